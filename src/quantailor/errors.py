"""Every error Quantailor raises on purpose, as one tree.

A message names the thing (file, tensor, option), the value that was wrong and what to do about it, in
one line. Code raises the most specific class; the faces (command line, GUI) translate once, at the edge.

    QuantailorError
      NativeLibraryError        llama-cpp-python is missing, too old, or laid out in an unknown way
      ModelError                something about the model that was read
        ModelFormatError          a file that is truncated, corrupt or inconsistent
        UnsupportedModelError     a valid model that we cannot handle
          ConverterNeededError      one that llama.cpp's own converter may know
        AlreadyQuantizedError     a source whose weights are quantized already
        TensorNotFoundError       no tensor of that name
        NonFiniteWeightError      NaN or Inf among the weights
      HubError                  a Hugging Face repository that cannot be read; `reason` and `link` say where to act
        RepoNotFoundError         no such repository, or a private one
        RevisionNotFoundError     no such branch, tag or commit
        RepoFileNotFoundError     no such file in the repository, or none that fits
        AccessError               the repository is there, but not for this user
          AccessNotRequestedError   a gated repository whose terms were not accepted yet
          AccessPendingError        the request waits for the authors
          AccessRejectedError       the authors said no
          TokenMissingError         nobody is logged in
          TokenInvalidError         the hub does not know the token, or it cannot be read
          TokenPermissionError      the token may not read gated repositories
        RateLimitError            too many requests; `retry_after_s` says how long to wait
        HubUnreachableError       no network, or the hub does not answer
        HubOfflineError           HF_HUB_OFFLINE forbids it
        DownloadDamagedError      a file whose size or checksum is wrong
      OptionError               a number that is out of range
      TypeUnavailableError      a tensor cannot take that type
      ImatrixError              an importance matrix that cannot be read or does not fit the model
      CovarianceError           input covariances that cannot be read or do not fit the model
      CorpusError               a text that cannot be read or is too short
      StrategyError             a strategy that cannot be read, made or used
        StrategyFormatError       a file that does not follow the schema
        StrategyMismatchError     a strategy that was made for another model
        InfeasibleError           no strategy meets the target and the constraints
      OutputError               a result that cannot be written (disk full, no permission, exists)
      ResourceError             too little disk or memory for the work
      InferenceError            llama.cpp could not load the model or run the text
        CrashError                llama.cpp ended its process instead of answering
      RpcError                  a server of llama.cpp's RPC backend that cannot be reached, was lost, or is of another version
      ConverterError            llama.cpp's converter cannot be found, set up or brought to its end
      StoreError                the project database cannot be opened or is of a newer version
      ClusterError              workers that cannot be reached, or cannot do what is asked of them
      JobError                  no such job, or the job is not in a state that allows this
      Interrupted               not a failure: the work stopped at a safe point and can be resumed
        Paused
        Cancelled
"""

from __future__ import annotations


class QuantailorError(Exception):
    """Base class of every error that is meant for a user; `str(error)` is one line."""

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        self.message = _one_line(message)
        self.remedy = None if remedy is None else _one_line(remedy)
        super().__init__(self.message if self.remedy is None else f"{self.message.rstrip('.')}. {self.remedy}")


def _one_line(text: str) -> str:
    """Words with single spaces between; letters that would steer a terminal or that it cannot show are spelled out."""
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)


class NativeLibraryError(QuantailorError):
    """llama-cpp-python is missing, too old, or laid out in a way this version does not know."""


class ModelError(QuantailorError):
    """Something about the model that was read."""


class ModelFormatError(ModelError):
    """A model file that is truncated, corrupt or inconsistent."""


class UnsupportedModelError(ModelError):
    """A valid model that this version cannot handle."""


class ConverterNeededError(UnsupportedModelError):
    """A checkpoint that our own conversion does not know, and llama.cpp's converter may."""


class AlreadyQuantizedError(ModelError):
    """The weights are quantized already; quantizing them again loses quality twice."""


class TensorNotFoundError(ModelError):
    """The model has no tensor of that name."""


class NonFiniteWeightError(ModelError):
    """NaN or Inf among the weights."""


class HubError(QuantailorError):
    """A Hugging Face repository that cannot be read.

    `reason` is one word for programs; `link` is the page where the user can act, None where there is none.
    """

    reason = "hub"

    def __init__(self, message: str, *, remedy: str | None = None, link: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.link = link


class RepoNotFoundError(HubError):
    """No such repository, or a private one that the token does not open."""

    reason = "not-found"


class RevisionNotFoundError(HubError):
    """The repository has no such branch, tag or commit."""

    reason = "revision-not-found"


class RepoFileNotFoundError(HubError):
    """The repository has no such file, or none that fits the purpose."""

    reason = "file-not-found"


class AccessError(HubError):
    """The repository is there, but not for this user or token."""

    reason = "forbidden"


class AccessNotRequestedError(AccessError):
    """A gated repository whose terms the user has not accepted yet."""

    reason = "not-requested"


class AccessPendingError(AccessError):
    """The user has asked for access and the authors have not answered."""

    reason = "pending"


class AccessRejectedError(AccessError):
    """The authors refused access."""

    reason = "rejected"


class TokenMissingError(AccessError):
    """A gated repository, and nobody is logged in."""

    reason = "no-token"


class TokenInvalidError(AccessError):
    """The hub does not know the token, or its file cannot be read."""

    reason = "invalid-token"


class TokenPermissionError(AccessError):
    """The user may read the repository, but this token may not."""

    reason = "token-permission"


class RateLimitError(HubError):
    """Too many requests, also after waiting."""

    reason = "rate-limit"

    def __init__(self, message: str, *, remedy: str | None = None, link: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, remedy=remedy, link=link)
        self.retry_after_s = retry_after_s


class HubUnreachableError(HubError):
    """No network, or the hub does not answer."""

    reason = "no-network"


class HubOfflineError(HubError):
    """HF_HUB_OFFLINE forbids to ask the hub."""

    reason = "offline"


class DownloadDamagedError(HubError):
    """A file that arrived with another size or checksum than the hub says."""

    reason = "damaged"


class OptionError(QuantailorError):
    """A number among the options that is out of range."""


class TypeUnavailableError(QuantailorError):
    """A tensor cannot take that type; the message says why."""


class ImatrixError(QuantailorError):
    """An importance matrix that cannot be read or does not fit the model."""


class CovarianceError(QuantailorError):
    """Input covariances that cannot be read, do not fit the model or belong to another one."""


class CorpusError(QuantailorError):
    """A text that cannot be read or is too short."""


class StrategyError(QuantailorError):
    """A strategy that cannot be read, made or used."""


class StrategyFormatError(StrategyError):
    """A strategy file that does not follow the schema."""


class StrategyMismatchError(StrategyError):
    """A strategy that was made for another model."""


class InfeasibleError(StrategyError):
    """No strategy meets the target and the constraints.

    `smallest_bytes` is the tensor data, padding included, of the smallest mix where a size is too small, and `least_damage` what the
    best mix does where a damage is too little. `least_seconds` is what the fastest mix takes where a time is too short.
    """

    def __init__(
        self,
        message: str,
        *,
        remedy: str | None = None,
        smallest_bytes: int | None = None,
        least_damage: float | None = None,
        least_seconds: float | None = None,
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.smallest_bytes, self.least_damage, self.least_seconds = smallest_bytes, least_damage, least_seconds


class OutputError(QuantailorError):
    """A result that cannot be written: disk full, no permission, or the file exists."""


class ResourceError(QuantailorError):
    """The work needs more disk or memory than there is."""


class InferenceError(QuantailorError):
    """llama.cpp could not load the model or run the text."""


class CrashError(InferenceError):
    """llama.cpp ended its process instead of answering: an assertion, a stack overflow, a kill.

    `doing` is what it was doing ("loading tiny.gguf"), `reason` how it ended.
    """

    def __init__(self, doing: str, reason: str, *, remedy: str | None = None) -> None:
        super().__init__(f"llama.cpp ended its process while {doing}: {reason}", remedy=remedy)
        self.doing, self.reason = doing, reason

    def __reduce__(self) -> tuple[type[CrashError], tuple[str, str], dict[str, object]]:
        return CrashError, (self.doing, self.reason), self.__dict__


class RpcError(QuantailorError):
    """A server of llama.cpp's RPC backend that cannot be reached, was lost, or is of another version."""


class ConverterError(QuantailorError):
    """llama.cpp's converter cannot be found, set up or brought to its end."""


class StoreError(QuantailorError):
    """The project database cannot be opened, or was written by a newer version."""


class ClusterError(QuantailorError):
    """Workers that cannot be reached, or that cannot do what is asked of them."""


class JobError(QuantailorError):
    """No such job, or the job is not in a state that allows this."""


class Interrupted(QuantailorError):
    """Not a failure: the work stopped at a safe point and can be resumed."""


class Paused(Interrupted):
    """Somebody asked the job to pause."""


class Cancelled(Interrupted):
    """Somebody asked the job to stop for good."""
