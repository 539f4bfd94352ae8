"""A model that is open, and what its files are called and hold."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quantailor.errors import ModelError, NonFiniteWeightError, UnsupportedModelError
from quantailor.files import FilesState
from quantailor.models.convert.description.model_names import given_name
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.gguf_writer import layout, write_hollow
from quantailor.models.identity import Identity, description
from quantailor.models.source import ModelSource
from quantailor.qtypes import never_quantized
from quantailor.records import TensorInfo
from quantailor.session.loading import LoadRefusal, not_computable, refusal


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A source that is open, and which model it is."""

    source: ModelSource
    identity: Identity
    files: FilesState = ()
    """The state that its files are in."""

    @property
    def fingerprint(self) -> str:
        return self.identity.fingerprint

    @property
    def description(self) -> str:
        """What a file that is made from it is filed under; see `models.identity.description`."""
        return description(self.source, self.fingerprint)

    @property
    def path(self) -> Path:
        return Path(self.source.location)


def require_finite(identity: Identity) -> None:
    """Raise NonFiniteWeightError where weights that a model is to run with are NaN or Inf."""
    if identity.not_finite:
        raise NonFiniteWeightError(identity.not_finite, remedy="Get an intact copy of the model")


def require_held(identity: Identity) -> None:
    """Raise NonFiniteWeightError where the base would hold nothing of a tensor, as where it cannot hold a weight."""
    if identity.lost_whole:
        raise NonFiniteWeightError(
            f"{identity.lost_whole}, which makes them zero or nearly so",
            remedy='Save the checkpoint in bfloat16, which holds them (model.to(torch.bfloat16).save_pretrained("..."))',
        )


def require_intact(model: OpenedModel) -> LoadRefusal | None:
    """Refuse, before any work, a model that is damaged. What a directory's base lacks its conversion refuses.

    Returns:
        Why llama.cpp cannot run an intact one, for another reason than a tensor: it can still be measured and built. None where it can.

    Raises:
        NonFiniteWeightError: weights are NaN or Inf, norms and biases included; or the base would hold nothing of a tensor.
        ModelFormatError: a tensor that llama.cpp needs is missing or has another shape.
    """
    require_finite(model.identity)
    require_held(model.identity)
    refused = None
    if isinstance(model.source, GGUFSource):
        path = gguf_path(model)
        refused = refusal(path) or not_computable(path, model.source.tensors)
    if refused is not None and refused.is_of_tensors:
        raise refused.error
    return refused


def require_runnable(refused: LoadRefusal | None) -> None:
    """Refuse what llama.cpp cannot run, after `require_intact`.

    Raises:
        ModelFormatError: a metadata key that llama.cpp needs is missing or of another type.
        UnsupportedModelError: there are tensors that it does not know.
        InferenceError: it does not know the architecture or the vocabulary, or ends its process.
    """
    if refused is not None:
        raise refused.error


def unrunnable_words(refused: LoadRefusal | None) -> str | None:
    """What that says of a model that is measured all the same, in words, with what to do."""
    if refused is None:
        return None
    return f"{refused.error.message} (it can be measured and built, but not run). {refused.error.remedy}."


@dataclass(frozen=True, slots=True)
class Condition:
    """What stands against using a model, each in words, with what to do; None where nothing does."""

    defect: str | None = None
    """Why it is refused altogether."""
    unrunnable: str | None = None
    """Why llama.cpp cannot run it."""
    lost: str | None = None
    """Which rows of a checkpoint its base does not hold."""
    zeros: str | None = None
    """Which matrices and norms are zero."""

    @classmethod
    def of(cls, identity: Identity, *, defect: str | None = None, unrunnable: str | None = None) -> Condition:
        """What is known of a model's files, with what its weights say of themselves."""
        return cls(defect, unrunnable, lost_words(identity), zeros_words(identity))

    @property
    def sentences(self) -> tuple[str, ...]:
        """All of it."""
        refused = None if self.defect is None else f"This model cannot be used as it is: {self.defect}."
        return tuple(each for each in (refused, self.unrunnable, self.lost, self.zeros) if each is not None)


def condition(require: Callable[[OpenedModel], LoadRefusal | None], model: OpenedModel) -> Condition:
    """What `require`, which is one of `require_intact`, and the model's identity say of it."""
    try:
        return Condition.of(model.identity, unrunnable=unrunnable_words(require(model)))
    except ModelError as error:
        return Condition.of(model.identity, defect=str(error))


def lost_words(identity: Identity) -> str | None:
    """What of a checkpoint's weights is not in its base, and what to do, in words; None where all is, or `require_held` refuses it."""
    if not identity.lost or identity.lost_whole:
        return None
    return f"{identity.lost}, which makes them zero or nearly so: save the checkpoint in bfloat16, which holds them."


def zeros_words(identity: Identity) -> str | None:
    """Which matrices and norms are zero, what that may be and what to do, in words; None where none are."""
    if not identity.zeros:
        return None
    said = f"{identity.zeros[0].upper()}{identity.zeros[1:]}"
    return f"{said}, as in a file that was not downloaded whole: compare its checksum, unless the model was made so."


def gguf_path(model: OpenedModel) -> Path:
    """The file for llama.cpp to load (the first of its shards). Raises UnsupportedModelError for a directory."""
    source = model.source
    if isinstance(source, GGUFSource):
        return source.files[0]
    raise UnsupportedModelError(
        f"{source.location} is not a GGUF file, which llama.cpp needs here",
        remedy=f"Run `{shlex.join(('quantailor', 'convert', source.location, '-o', 'base.gguf'))}` first and give base.gguf",
    )


@contextmanager
def header_path(model: OpenedModel) -> Iterator[Path]:
    """A GGUF file that tells of the model, for what reads no weights: its own, or for a directory one whose data are a hole."""
    source = model.source
    if isinstance(source, GGUFSource):
        yield source.files[0]
        return
    with tempfile.TemporaryDirectory(prefix="quantailor-") as folder:
        hollow = Path(folder) / f"{model_label(model.path)}.gguf"
        write_hollow(hollow, layout(source.metadata, source.tensors))
        yield hollow


def model_label(path: str | Path) -> str:
    """A name for files about a model: the file's without its ending, the folder's, or the repository's in the hub's cache."""
    place = Path(path)
    return place.stem if place.is_file() else given_name(place)


def plain_label(path: str | Path) -> str:
    """The same in letters that every file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model_label(path)).strip("-.") or "model"


def quantizable_tensors(source: ModelSource) -> list[TensorInfo]:
    """The tensors whose type is a choice."""
    return [tensor for tensor in source.tensors if never_quantized(tensor, source.architecture) is None]
