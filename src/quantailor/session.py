"""An opened home, and the models that are opened in it.

Whatever a step needs from an earlier one (a model's record, its importance matrices, its measurements) is found here. A model
is identified once per session and file state. Inside `keeping_models` it is also opened once: steps that follow each other
get the same open source.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from quantailor import files
from quantailor.analysis.corpus import Corpus, load_corpus
from quantailor.analysis.covariances.covariance_file import CovarianceFile
from quantailor.analysis.importance.imatrix import TOKEN_EMBEDDINGS, Imatrix, fits, quantizer_importance
from quantailor.analysis.importance.imatrix_file import read_imatrix, write_imatrix
from quantailor.control import QUIET, Control
from quantailor.errors import CovarianceError, ImatrixError, ModelError, NonFiniteWeightError, QuantailorError, UnsupportedModelError
from quantailor.files import FilesState
from quantailor.jobs import Home, resolve
from quantailor.models.contents import require_language_model
from quantailor.models.convert.description.model_names import given_name
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.gguf_writer import layout, write_hollow
from quantailor.models.identity import DEFINITION, Identity, description, identify
from quantailor.models.opening import model_files, open_model, require_unquantized
from quantailor.models.source import ModelSource
from quantailor.models.upstream.checkpoint import checkpoint_digest, checkpoint_files
from quantailor.qtypes import never_quantized
from quantailor.records import TensorInfo
from quantailor.store import CovarianceRecord, ImatrixKey, ImatrixRecord, ModelRecord, Store

DATA = Path(__file__).parent / "data"
CALIBRATION_TEXT = DATA / "calibration.txt"
HELDOUT_TEXT = DATA / "heldout.txt"
AUTO, NONE = "auto", "none"
"""What an importance matrix may be instead of a file: the model's own (see `Workspace.stored_imatrices`), or none."""

SEEN_EVERY_S = 60.0
"""How often a model that is opened again and again is recorded as seen."""

SHOWN_BYTES = 256 << 20
"""Smaller models are identified before anybody could read of it."""


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


@dataclass
class _Kept:
    """What one thread keeps open."""

    sources: dict[FilesState, ModelSource] = field(default_factory=dict)
    corpora: dict[tuple[FilesState, FilesState], Corpus] = field(default_factory=dict)


class _Thread(threading.local):
    kept: _Kept | None = None
    begin: Callable[[str], Control] | None = None


class Workspace:
    """An opened home. Use as a context manager."""

    def __init__(self, home: Home, store: Store) -> None:
        self.home = home
        self.store = store
        self._identities: dict[tuple[str, FilesState], Identity] = {}
        self._recorded: dict[tuple[str, Path], float] = {}
        """(fingerprint, place) -> when it was recorded last."""
        self._thread = _Thread()

    @classmethod
    def open(cls, home: Path | None = None) -> Self:
        """Open `home`, or the place that QUANTAILOR_HOME or the platform names. Raises StoreError."""
        place = resolve(home).create()
        return cls(place, Store(place.database))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.store.close()

    # Models

    @contextmanager
    def keeping_models(self) -> Iterator[None]:
        """Inside, models and texts stay open for whoever asks for them again in this thread. For the length of a job, at most."""
        if self._thread.kept is not None:
            yield
            return
        self._thread.kept = kept = _Kept()
        try:
            yield
        finally:
            self._thread.kept = None
            for source in kept.sources.values():
                source.close()

    @contextmanager
    def watched(self, begin: Callable[[str], Control]) -> Iterator[None]:
        """Inside, `begin` is asked for a stage to report to whenever this thread reads a large model to identify it."""
        before, self._thread.begin = self._thread.begin, begin
        try:
            yield
        finally:
            self._thread.begin = before

    @contextmanager
    def source(self, path: str | Path) -> Iterator[ModelSource]:
        """A language model's source, open. Raises ModelError, also for a GGUF file of something else."""
        with self._opened(path) as (source, _):
            yield source

    @contextmanager
    def _opened(self, path: str | Path) -> Iterator[tuple[ModelSource, FilesState]]:
        """A source and the state that its files were in before it was opened."""
        kept, state = self._thread.kept, _state_of_model(Path(path))
        if kept is not None and state:
            if state not in kept.sources:
                kept.sources[state] = open_model(path)
            require_language_model(kept.sources[state])
            yield kept.sources[state], state
            return
        source = open_model(path)
        try:
            require_language_model(source)
            yield source, state
        finally:
            source.close()

    @contextmanager
    def model(self, path: str | Path, *, allow_requantize: bool = True) -> Iterator[OpenedModel]:
        """Open a model and record it; a GGUF that is quantized already is refused unless allowed. Raises ModelError."""
        with self._opened(path) as (source, state):
            require_unquantized(source, allow_requantize=allow_requantize)
            identity, place = self._identified(source, state), Path(source.location)
            key = identity.fingerprint
            recorded, now = self._recorded.get((key, place)), self.store.now
            if recorded is None:
                self.store.record_model(ModelRecord.of(key, source.name, source.architecture, source.tensors), source.tensors)
            if recorded is None or now - recorded > SEEN_EVERY_S:
                self.store.record_location("model", key, place)
                self._recorded[key, place] = now
            yield OpenedModel(source, identity, state)

    def identity(self, path: str | Path) -> Identity:
        """Which model is at a path, quantized or not. Raises ModelError."""
        known = self.known_identity(path)
        if known is not None:
            return known
        with self._opened(path) as (source, state):
            return self._identified(source, state)

    def known_identity(self, path: str | Path) -> Identity | None:
        """The same where it can be said without reading the model: its files are as they were when it was read."""
        state = _state_of_model(Path(path))
        return self._remembered(str(Path(path).absolute()), state) if state else None

    def is_unchanged(self, path: Path, since: float) -> bool:
        """Whether there is a model whose files are as they were at that wall-clock second."""
        state = _state_of_model(path)
        return bool(state) and files.last_change(state) <= since

    def remember(self, path: Path, model: OpenedModel) -> None:
        """Note that a file which was just written holds that model, whose own files must be as they were when it was identified."""
        if _state_of_model(model.path) == model.files:
            files.wait_until_settled(_state_of_model(path))
            self._keep(str(path.absolute()), _state_of_model(path), model.identity)

    def holds(self, path: Path, description: str) -> bool:
        """Whether the model at a path can be read and is the one of that description; see `OpenedModel.description`."""
        try:
            return path.is_file() and self._content(path) == description
        except QuantailorError:
            return False

    def note_written(self, path: Path, recipe: str) -> None:
        """Note that the file which was just written is what that recipe gives."""
        self.store.record_location("written", f"{recipe}:{self._content(path)}", path)

    def is_as_written(self, path: Path, recipe: str) -> bool:
        """Whether a file is what that recipe gave when it was written, down to what describes it."""
        keys = (each.key.rpartition(":") for each in self.store.every_location("written") if each.path == path.absolute())
        return any(made == recipe and self.holds(path, content) for made, _, content in keys)

    def _content(self, path: Path) -> str:
        fingerprint = self.identity(path).fingerprint
        with self.source(path) as source:
            return description(source, fingerprint)

    def checkpoint(self, folder: Path) -> str:
        """A digest of a directory that we need not be able to read ourselves. Raises ModelError."""
        state = files.state_of(checkpoint_files(folder))
        n_bytes = sum(size for _, _, _, size, _, _ in state)
        return self._read_once(
            f"checkpoint {folder.absolute()}",
            state,
            lambda: files.state_of(checkpoint_files(folder)),
            lambda: Identity(checkpoint_digest(folder, control=self._watching(n_bytes))),
        ).fingerprint

    def _identified(self, source: ModelSource, state: FilesState) -> Identity:
        path = Path(source.location)
        n_bytes = sum(tensor.size_bytes for tensor in source.tensors)
        return self._read_once(
            str(path.absolute()), state, lambda: _state_of_model(path), lambda: identify(source, control=self._watching(n_bytes))
        )

    def _watching(self, n_bytes: int) -> Control:
        """Who is told of reading so much, which is a stage of its own where it takes long."""
        return QUIET if self._thread.begin is None or n_bytes < SHOWN_BYTES else self._thread.begin("identify")

    def _read_once(self, name: str, state: FilesState, now: Callable[[], FilesState], read: Callable[[], Identity]) -> Identity:
        """What reading files gave, or gives; remembered under that name as long as they stay in this state."""
        known = self._remembered(name, state)
        if known is not None:
            return known
        found = read()
        if now() != state:
            raise ModelError(f"{name} changed while it was read", remedy="Try again when nothing writes to it any more")
        self._keep(name, state, found)
        return found

    def _remembered(self, name: str, state: FilesState) -> Identity | None:
        if (name, state) not in self._identities and (stored := self.store.identity(name, _text_of(state))) is not None:
            self._identities[name, state] = Identity(*stored)
        return self._identities.get((name, state))

    def _keep(self, name: str, state: FilesState, identity: Identity) -> None:
        """Remember it, unless a change would leave no trace because the files were changed a moment ago."""
        if files.is_settled(state):
            self._identities[name, state] = identity
            self.store.record_identity(name, _text_of(state), identity.fingerprint, identity.not_finite)

    def corpus(self, model: OpenedModel, text: Path) -> Corpus:
        """A text cut into the model's tokens; see `load_corpus` for what it raises, and UnsupportedModelError for a directory."""
        path = gguf_path(model)
        corpora = {} if self._thread.kept is None else self._thread.kept.corpora
        key = (_state_of_model(path), files.state_of([text]))
        if key not in corpora:
            corpora[key] = load_corpus(path, text)
        return corpora[key]

    def seen_corpus(self, model: OpenedModel, text: Path) -> Corpus:
        """The same for a text that something is computed from; where it lies is kept, so that a verdict can tell what was seen before."""
        corpus = self.corpus(model, text)
        self.store.record_location("text", corpus.sha256, text)
        return corpus

    # Importance matrices

    def imatrix_path(self, model: str, imatrix: str) -> Path:
        """Where the store keeps that importance matrix."""
        return self.home.imatrices / f"{model[:16]}-{imatrix[:16]}.gguf"

    def base_path(self, model: Path, identity: str) -> Path:
        """Where the home keeps a model's base: named after its place and what it copies, so that no two models share one."""
        return self.home.bases / f"{plain_label(model)}-{identity[:8]}.gguf"

    def keep_imatrix(self, model: str, imatrix: Imatrix, *, imported: bool, computed: ImatrixKey | None = None) -> Path:
        """Write an importance matrix to its place and record it as the model's latest."""
        path = self.imatrix_path(model, imatrix.fingerprint)
        if self.intact_imatrix(model, imatrix.fingerprint) is None:
            write_imatrix(imatrix, path, overwrite=True)
        record = ImatrixRecord(
            model=model,
            fingerprint=imatrix.fingerprint,
            datasets=imatrix.datasets,
            chunk_count=imatrix.chunk_count,
            chunk_size=imatrix.chunk_size,
            origin="imported" if imported else "computed",
        )
        self.store.record_imatrix(record, computed=computed)
        return path

    def imatrix(self, model: str, imatrix: str) -> Imatrix:
        """The importance matrix of that fingerprint. Raises ImatrixError where its file is gone."""
        path = self.imatrix_path(model, imatrix)
        if not path.exists():
            raise ImatrixError(
                f"importance matrix {imatrix[:12]} is not at {path}",
                remedy="Put it back there, or compute one with `quantailor imatrix BASE`",
            )
        found = read_imatrix(path)
        if found.fingerprint != imatrix:
            raise ImatrixError(
                f"{path} is not importance matrix {imatrix[:12]} any more",
                remedy="Delete it and compute it again",
            )
        return found

    def intact_imatrix(self, model: str, imatrix: str) -> Imatrix | None:
        """The same; None where its file is gone or is not what was written."""
        try:
            return self.imatrix(model, imatrix)
        except ImatrixError:
            return None

    def stored_imatrices(self, model: str) -> list[ImatrixRecord]:
        """A model's importance matrices whose files are there: the one that "auto" takes, then the others, the latest first.

        A later one takes an earlier one's place where it saw as many tokens, or where it alone was measured with.
        """
        records = [record for record in self.store.imatrices(model) if self.imatrix_path(model, record.fingerprint).exists()]
        measured = {key.imatrix for key in self.store.measurements(model)} if len(records) > 1 else ()
        default: ImatrixRecord | None = None
        for record in reversed(records):
            saw_less = default is not None and 0 < _n_tokens(record) < _n_tokens(default)
            if default is None or not saw_less or (record.fingerprint in measured and default.fingerprint not in measured):
                default = record
        return sorted(records, key=lambda record: record != default)

    def passed_over(self, model: str) -> str | None:
        """A sentence about the latest importance matrix of a model where "auto" takes another one."""
        stored = self.stored_imatrices(model)
        latest = next((record for record in self.store.imatrices(model) if record in stored), None)
        if latest is None or latest == stored[0]:
            return None
        seen = [f"{record.chunk_count or '?'} chunks of {', '.join(record.datasets) or 'a text'}" for record in (stored[0], latest)]
        place = self.imatrix_path(model, latest.fingerprint)
        return f"Importance matrix {stored[0].fingerprint[:12]} is used ({seen[0]}); --imatrix {place} takes the later one ({seen[1]})."

    def default_imatrix(self, model: str) -> Imatrix | None:
        """The importance matrix that "auto" takes; None where a model has none."""
        return next((self.imatrix(model, record.fingerprint) for record in self.stored_imatrices(model)), None)

    def choose_imatrix(self, model: OpenedModel, wanted: str, tell: Callable[[str], None] | None = None) -> Imatrix | None:
        """What `--imatrix` means: "auto" the model's own, "none" nothing, else a file (which is then kept).

        Where "auto" passes over the latest one, that is told to `tell`.

        Raises ImatrixError where the file cannot be read or belongs to another model.
        """
        if wanted == NONE:
            return None
        if wanted == AUTO:
            if tell is not None and (passed_over := self.passed_over(model.fingerprint)) is not None:
                tell(passed_over)
            return self.default_imatrix(model.fingerprint)
        imatrix, _ = fitted(read_imatrix(Path(wanted)), model.source)
        is_known = self.store.imatrix(model.fingerprint, imatrix.fingerprint) is not None
        if not is_known or not self.imatrix_path(model.fingerprint, imatrix.fingerprint).exists():
            self.keep_imatrix(model.fingerprint, imatrix, imported=True)
        return imatrix

    # Covariances

    def covariances_path(self, model: str, covariances: str) -> Path:
        """Where the home keeps those covariances."""
        return self.home.covariances / f"{model[:16]}-{covariances[:16]}.gguf"

    def keep_covariances(self, model: str, file: Path, *, imported: bool, computed: ImatrixKey | None = None) -> CovarianceFile:
        """Bring a whole file of covariances to its place, unless it is there, and record it.

        Raises CovarianceError where it is damaged or of another model.
        """
        with CovarianceFile(file) as found:
            description, fingerprint = found.description, found.fingerprint
            if description.model != model:
                raise CovarianceError(
                    f"{file} holds covariances of model {description.model[:12]}, not of {model[:12]}",
                    remedy="Compute them for this model with `quantailor calibrate`",
                )
            place = self.covariances_path(model, fingerprint)
            if imported:
                found.check()
        if file != place and self.intact_covariances(model, fingerprint) is None:
            with files.writing(place):
                if imported:
                    with files.whole_file(place) as stream, file.open("rb") as source:
                        shutil.copyfileobj(source, stream, 1 << 20)
                else:
                    file.replace(place)
        elif not imported and file != place:
            with files.writing(file):
                file.unlink()
        record = CovarianceRecord(
            model=model,
            fingerprint=fingerprint,
            datasets=description.datasets,
            chunk_count=description.chunk_count,
            chunk_size=description.chunk_size,
            origin="imported" if imported else "computed",
        )
        self.store.record_covariances(record, computed=computed)
        return CovarianceFile(place)

    def intact_covariances(self, model: str, covariances: str) -> CovarianceFile | None:
        """The covariances of that fingerprint; None where their file is gone or is not what was written."""
        try:
            found = CovarianceFile(self.covariances_path(model, covariances))
            found.check()
        except CovarianceError:
            return None
        return found if found.fingerprint == covariances else None

    def default_covariances(self, model: str) -> CovarianceFile | None:
        """Of a model's covariances whose files are there, those that saw most tokens, and of these the latest.

        Raises CovarianceError where they are damaged.
        """
        chosen = next(iter(self.stored_covariances(model)), None)
        return None if chosen is None else CovarianceFile(self.covariances_path(model, chosen.fingerprint))

    def stored_covariances(self, model: str) -> list[CovarianceRecord]:
        """A model's covariances whose files are there, the model's own first: those that saw most tokens, of these the latest."""
        records = [one for one in self.store.covariances(model) if self.covariances_path(model, one.fingerprint).exists()]
        return sorted(records, key=_n_tokens, reverse=True)

    def choose_covariances(self, model: OpenedModel, wanted: str) -> CovarianceFile | None:
        """What `--covariances` means: "auto" the model's own, "none" nothing, else a file (which is then kept).

        Raises CovarianceError where the file cannot be read, is damaged or belongs to another model.
        """
        if wanted == NONE:
            return None
        if wanted == AUTO:
            return self.default_covariances(model.fingerprint)
        with CovarianceFile(Path(wanted)) as found:
            if found.path == self.covariances_path(model.fingerprint, found.fingerprint):
                return CovarianceFile(found.path)  # each matrix is looked at when it is read
            known = [record.fingerprint for record in self.store.covariances(model.fingerprint)]
            kept = self.intact_covariances(model.fingerprint, found.fingerprint) if found.fingerprint in known else None
        return kept or self.keep_covariances(model.fingerprint, Path(wanted), imported=True)


def _n_tokens(record: ImatrixRecord | CovarianceRecord) -> int:
    """Tokens that an importance matrix or covariances saw; 0 where its file does not tell."""
    return record.chunk_count * record.chunk_size


def _state_of_model(path: Path) -> FilesState:
    """What tells a model's files from what they were before; empty where there is nothing to read."""
    try:
        return files.state_of(model_files(path))
    except OSError:
        return ()


def _text_of(state: FilesState) -> str:
    return hashlib.sha256(f"{DEFINITION} {state}".encode("utf-8", "surrogateescape")).hexdigest()


def require_finite(identity: Identity) -> None:
    """Raise NonFiniteWeightError where weights that a model is to run with are NaN or Inf."""
    if identity.not_finite:
        raise NonFiniteWeightError(identity.not_finite, remedy="Get an intact copy of the model")


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


def fitted(imatrix: Imatrix, source: ModelSource) -> tuple[Imatrix, tuple[str, ...]]:
    """An importance matrix without the entries whose lengths are not the tensors', and the names of these.

    Raises ImatrixError when it is another model's: most of its names or lengths are not this model's.
    """
    tensors = {tensor.name: tensor for tensor in source.tensors}
    known = [name for name in imatrix.entries if name in tensors]
    if 2 * len(known) < len(imatrix.entries) or not known:
        raise ImatrixError(
            f"the importance matrix is of another model: {source.name} has {len(known)} of its {len(imatrix.entries)} tensors",
            remedy="Use one of this model",
        )
    odd = tuple(name for name in known if name not in TOKEN_EMBEDDINGS and not fits(imatrix.entries[name], tensors[name]))
    if 2 * len(odd) > len(known):
        entry, tensor = imatrix.entries[odd[0]], tensors[odd[0]]
        raise ImatrixError(
            f"the importance matrix is of another model: {len(odd)} of {len(known)} tensors have other lengths, "
            f"{odd[0]} {entry.sum2.size} values instead of {tensor.n_slices * tensor.n_cols}",
            remedy="Use one of this model",
        )
    if odd:
        imatrix = replace(imatrix, entries={name: entry for name, entry in imatrix.entries.items() if name not in odd})
    for tensor in quantizable_tensors(source):
        quantizer_importance(imatrix, tensor)
    return imatrix, odd
