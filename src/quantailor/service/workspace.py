"""The place where everything is kept, opened: the store, and the files beside it.

Whatever a step needs from an earlier one (the model's record, its importance matrices, its measurements) is found here.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

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
from quantailor.service.tasks import AUTO, NONE
from quantailor.store import ImatrixKey, ImatrixRecord, ModelRecord, Store

DATA = Path(__file__).parent.parent / "data"
CALIBRATION_TEXT = DATA / "calibration.txt"
HELDOUT_TEXT = DATA / "heldout.txt"


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A source that is open, with its fingerprint."""

    source: ModelSource
    fingerprint: str

    @property
    def path(self) -> Path:
        return Path(self.source.location)


class Workspace:
    """An opened home. Use as a context manager."""

    def __init__(self, home: Home, store: Store) -> None:
        self.home = home
        self.store = store

    @classmethod
    def open(cls, home: Path | None = None) -> Self:
        """Open `home`, or the place that QUANTAILOR_HOME or the platform names. Raises StoreError."""
        place = resolve(home).create()
        return cls(place, Store(place.database))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.store.close()

    @contextmanager
    def model(self, path: str | Path, *, allow_requantize: bool = True) -> Iterator[OpenedModel]:
        """Open a model and record it; a GGUF that is quantized already is refused unless allowed."""
        source = open_model(path)
        try:
            require_unquantized(source, allow_requantize=allow_requantize)
            key = fingerprint(source)
            self.store.record_model(ModelRecord.of(key, source.name, source.architecture, source.tensors), source.tensors)
            self.store.record_location("model", key, Path(source.location))
            yield OpenedModel(source, key)
        finally:
            source.close()

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

    def newest_imatrix(self, model: str) -> Imatrix | None:
        """The latest importance matrix of a model whose file is there."""
        for record in self.store.imatrices(model):
            if self.imatrix_path(model, record.fingerprint).exists():
                return self.imatrix(model, record.fingerprint)
        return None

    def choose_imatrix(self, model: OpenedModel, wanted: str) -> Imatrix | None:
        """What `--imatrix` means: "auto" the newest, "none" nothing, else a file (which is then kept).

        Raises ImatrixError where the file cannot be read or is another model's.
        """
        if wanted == NONE:
            return None
        if wanted == AUTO:
            return self.newest_imatrix(model.fingerprint)
        found = read_imatrix(Path(wanted))
        check_fit(found, model.source)
        known = self.store.imatrix(model.fingerprint, found.fingerprint) is not None
        if not known or not self.imatrix_path(model.fingerprint, found.fingerprint).exists():
            self.keep_imatrix(model.fingerprint, found, imported=True)
        return found


def gguf_path(model: OpenedModel) -> Path:
    """The file for llama.cpp to load (the first of its shards). Raises UnsupportedModelError for a directory."""
    source = model.source
    if isinstance(source, GGUFSource):
        return source.files[0]
    raise UnsupportedModelError(
        f"{source.location} is no GGUF file, which llama.cpp needs here", remedy="Run `quantailor convert` first and give its output"
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


def fingerprint_of(path: Path) -> str:
    """The fingerprint of a model at a path, quantized or not."""
    source = open_model(path)
    try:
        return fingerprint(source)
    finally:
        source.close()


def is_model(path: Path, fingerprint: str) -> bool:
    """Whether the model at a path can be read and has that fingerprint."""
    try:
        return path.is_file() and fingerprint_of(path) == fingerprint
    except QuantailorError:
        return False
