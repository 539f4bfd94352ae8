"""An opened home, and the models that are opened in it.

Whatever a step needs from an earlier one (a model's record, its importance matrices, its measurements) is found here. A model
is identified once per session and file state. Inside `keeping_models` it is also opened once: steps that follow each other
get the same open source.
"""

from __future__ import annotations

import glob
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from quantailor.analysis.corpus import Corpus, load_corpus
from quantailor.analysis.importance.imatrix import Imatrix, quantizer_importance
from quantailor.analysis.importance.imatrix_file import read_imatrix, write_imatrix
from quantailor.errors import ImatrixError, QuantailorError, UnsupportedModelError
from quantailor.jobs import Home, resolve
from quantailor.models.convert.description.model_names import given_name
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.gguf_writer import layout, write_hollow
from quantailor.models.opening import open_model, require_unquantized
from quantailor.models.source import ModelSource, fingerprint
from quantailor.qtypes import never_quantized
from quantailor.records import TensorInfo
from quantailor.store import ImatrixKey, ImatrixRecord, ModelRecord, Store

DATA = Path(__file__).parent / "data"
CALIBRATION_TEXT = DATA / "calibration.txt"
HELDOUT_TEXT = DATA / "heldout.txt"
AUTO, NONE = "auto", "none"
"""What an importance matrix may be instead of a file: the newest of the model, or none."""

_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")

SEEN_EVERY_S = 60.0
"""How often a model that is opened again and again is recorded as seen."""

FileState = tuple[tuple[str, int, int, int], ...]
"""(path, inode, size, time of the last change in nanoseconds) of a file, or of all files of a directory or a split model."""


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A source that is open, with its fingerprint."""

    source: ModelSource
    fingerprint: str

    @property
    def path(self) -> Path:
        return Path(self.source.location)


@dataclass
class _Kept:
    """What one thread keeps open."""

    sources: dict[FileState, ModelSource] = field(default_factory=dict)
    corpora: dict[tuple[FileState, FileState], Corpus] = field(default_factory=dict)


class _Thread(threading.local):
    kept: _Kept | None = None


class Workspace:
    """An opened home. Use as a context manager."""

    def __init__(self, home: Home, store: Store) -> None:
        self.home = home
        self.store = store
        self._identities: dict[FileState, str] = {}
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
    def source(self, path: str | Path) -> Iterator[ModelSource]:
        """A model's source, open. Raises ModelError."""
        kept = self._thread.kept
        state = () if kept is None else _file_state(Path(path))
        if kept is not None and state:
            if state not in kept.sources:
                kept.sources[state] = open_model(path)
            yield kept.sources[state]
            return
        source = open_model(path)
        try:
            yield source
        finally:
            source.close()

    @contextmanager
    def model(self, path: str | Path, *, allow_requantize: bool = True) -> Iterator[OpenedModel]:
        """Open a model and record it; a GGUF that is quantized already is refused unless allowed. Raises ModelError."""
        with self.source(path) as source:
            require_unquantized(source, allow_requantize=allow_requantize)
            key, place = self._identified(source), Path(source.location)
            recorded, now = self._recorded.get((key, place)), self.store.now
            if recorded is None:
                self.store.record_model(ModelRecord.of(key, source.name, source.architecture, source.tensors), source.tensors)
            if recorded is None or now - recorded > SEEN_EVERY_S:
                self.store.record_location("model", key, place)
                self._recorded[key, place] = now
            yield OpenedModel(source, key)

    def identity(self, path: str | Path) -> str:
        """The fingerprint of the model at a path, quantized or not. Raises ModelError."""
        known = self._identities.get(_file_state(Path(path)))
        if known is not None:
            return known
        with self.source(path) as source:
            return self._identified(source)

    def remember(self, path: Path, fingerprint: str) -> None:
        """Note that a file which was just written holds the model of that fingerprint."""
        self._identities[_file_state(path)] = fingerprint

    def is_model(self, path: Path, fingerprint: str) -> bool:
        """Whether the model at a path can be read and has that fingerprint."""
        try:
            return path.is_file() and self.identity(path) == fingerprint
        except QuantailorError:
            return False

    def _identified(self, source: ModelSource) -> str:
        state = _file_state(Path(source.location))
        if state not in self._identities:
            self._identities[state] = fingerprint(source)
        return self._identities[state]

    def corpus(self, model: OpenedModel, text: Path) -> Corpus:
        """A text cut into the model's tokens; see `load_corpus` for what it raises, and UnsupportedModelError for a directory."""
        path = gguf_path(model)
        corpora = {} if self._thread.kept is None else self._thread.kept.corpora
        key = (_file_state(path), _file_state(text))
        if key not in corpora:
            corpora[key] = load_corpus(path, text)
        return corpora[key]

    # Importance matrices

    def imatrix_path(self, model: str, imatrix: str) -> Path:
        """Where the store keeps that importance matrix."""
        return self.home.imatrices / f"{model[:16]}-{imatrix[:16]}.gguf"

    def base_path(self, model: Path, identity: str) -> Path:
        """Where the home keeps a model's base: named after its place and its contents, so that no two models share one."""
        return self.home.bases / f"{plain_label(model)}-{identity[:8]}.gguf"

    def keep_imatrix(self, model: str, imatrix: Imatrix, *, imported: bool, computed: ImatrixKey | None = None) -> Path:
        """Write an importance matrix to its place and record it as the model's newest."""
        path = self.imatrix_path(model, imatrix.fingerprint)
        if not path.exists():
            write_imatrix(imatrix, path)
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
                f"importance matrix {imatrix[:12]} is not at {path}", remedy="Compute it again with `quantailor imatrix`, or give the file"
            )
        return read_imatrix(path)

    def stored_imatrices(self, model: str) -> list[ImatrixRecord]:
        """A model's importance matrices whose files are there, the latest first."""
        records = self.store.imatrices(model)
        return [record for record in records if self.imatrix_path(model, record.fingerprint).exists()]

    def newest_imatrix(self, model: str) -> Imatrix | None:
        """The latest importance matrix of a model whose file is there."""
        return next((self.imatrix(model, record.fingerprint) for record in self.stored_imatrices(model)), None)

    def choose_imatrix(self, model: OpenedModel, wanted: str) -> Imatrix | None:
        """What `--imatrix` means: "auto" the newest, "none" nothing, else a file (which is then kept).

        Raises ImatrixError where the file cannot be read or belongs to another model.
        """
        if wanted == NONE:
            return None
        if wanted == AUTO:
            return self.newest_imatrix(model.fingerprint)
        imatrix = read_imatrix(Path(wanted))
        check_fit(imatrix, model.source)
        is_known = self.store.imatrix(model.fingerprint, imatrix.fingerprint) is not None
        if not is_known or not self.imatrix_path(model.fingerprint, imatrix.fingerprint).exists():
            self.keep_imatrix(model.fingerprint, imatrix, imported=True)
        return imatrix


def _file_state(path: Path) -> FileState:
    """What tells a file, or a directory's own files, from what they were before; empty where there is nothing to read."""
    try:
        shard = _SHARD.fullmatch(path.name)
        if shard is not None:
            files = sorted(path.parent.glob(f"{glob.escape(shard[1])}-*-of-{shard[2]}.gguf"))
        else:
            files = sorted(path.iterdir()) if path.is_dir() else [path]
        return tuple(_state_of(file) for file in files if file.is_file())
    except OSError:
        return ()


def _state_of(file: Path) -> tuple[str, int, int, int]:
    state = file.stat()
    return str(file.absolute()), state.st_ino, state.st_size, state.st_mtime_ns


def gguf_path(model: OpenedModel) -> Path:
    """The file for llama.cpp to load (the first of its shards). Raises UnsupportedModelError for a directory."""
    source = model.source
    if isinstance(source, GGUFSource):
        return source.files[0]
    raise UnsupportedModelError(
        f"{source.location} is not a GGUF file, which llama.cpp needs here", remedy="Run `quantailor convert` first and give its output"
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


def check_fit(imatrix: Imatrix, source: ModelSource) -> None:
    """Raise ImatrixError when an importance matrix is another model's, or has a vector of a wrong length."""
    names = {tensor.name for tensor in source.tensors}
    n_known = sum(name in names for name in imatrix.entries)
    if 2 * n_known < len(imatrix.entries) or not n_known:
        raise ImatrixError(
            f"the importance matrix is of another model: {source.name} has {n_known} of its {len(imatrix.entries)} tensors",
            remedy="Use one of this model",
        )
    for tensor in quantizable_tensors(source):
        quantizer_importance(imatrix, tensor)
