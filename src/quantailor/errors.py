"""Every error Quantailor raises on purpose, as one tree.

A message names the thing (file, tensor, option), the value that was wrong and what to do about it, in
one line. Code raises the most specific class; the faces (command line, GUI) translate once, at the edge.

    QuantailorError
      NativeLibraryError        llama-cpp-python is missing, too old, or laid out in an unknown way
      ModelError                something about the model that was read
        ModelFormatError          a file that is truncated, corrupt or inconsistent
        UnsupportedModelError     a valid model that we cannot handle
        AlreadyQuantizedError     a source whose weights are quantized already
        TensorNotFoundError       no tensor of that name
        NonFiniteWeightError      NaN or Inf among the weights
      TypeUnavailableError      a tensor cannot take that type
      ImatrixError              an importance matrix that cannot be read or does not fit the model
      CorpusError               a text that cannot be read or is too short
      StrategyError             a strategy that cannot be read, made or used
        StrategyFormatError       a file that does not follow the schema
        StrategyMismatchError     a strategy that was made for another model
        InfeasibleError           no strategy meets the target and the constraints
      OutputError               a result that cannot be written (disk full, no permission, exists)
      InferenceError            llama.cpp could not load the model or run the text
      StoreError                the project database cannot be opened or is of a newer version
      JobError                  no such job, or the job is not in a state that allows this
      Interrupted               not a failure: the work stopped at a safe point and can be resumed
        Paused
        Cancelled
"""

from __future__ import annotations


class QuantailorError(Exception):
    """Base class of every error that is meant for a user; `str(error)` is one line."""

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        self.message = " ".join(message.split())
        self.remedy = None if remedy is None else " ".join(remedy.split())
        super().__init__(self.message if self.remedy is None else f"{self.message.rstrip('.')}. {self.remedy}")


class NativeLibraryError(QuantailorError):
    """llama-cpp-python is missing, too old, or laid out in a way this version does not know."""


class ModelError(QuantailorError):
    """Something about the model that was read."""


class ModelFormatError(ModelError):
    """A model file that is truncated, corrupt or inconsistent."""


class UnsupportedModelError(ModelError):
    """A valid model that this version cannot handle."""


class AlreadyQuantizedError(ModelError):
    """The weights are quantized already; quantizing them again loses quality twice."""


class TensorNotFoundError(ModelError):
    """The model has no tensor of that name."""


class NonFiniteWeightError(ModelError):
    """NaN or Inf among the weights."""


class TypeUnavailableError(QuantailorError):
    """A tensor cannot take that type; the message says why."""


class ImatrixError(QuantailorError):
    """An importance matrix that cannot be read or does not fit the model."""


class CorpusError(QuantailorError):
    """A text that cannot be read or is too short."""


class StrategyError(QuantailorError):
    """A strategy that cannot be read, made or used."""


class StrategyFormatError(StrategyError):
    """A strategy file that does not follow the schema."""


class StrategyMismatchError(StrategyError):
    """A strategy that was made for another model."""


class InfeasibleError(StrategyError):
    """No strategy meets the target and the constraints."""


class OutputError(QuantailorError):
    """A result that cannot be written: disk full, no permission, or the file exists."""


class InferenceError(QuantailorError):
    """llama.cpp could not load the model or run the text."""


class StoreError(QuantailorError):
    """The project database cannot be opened, or was written by a newer version."""


class JobError(QuantailorError):
    """No such job, or the job is not in a state that allows this."""


class Interrupted(QuantailorError):
    """Not a failure: the work stopped at a safe point and can be resumed."""


class Paused(Interrupted):
    """Somebody asked the job to pause."""


class Cancelled(Interrupted):
    """Somebody asked the job to stop for good."""
