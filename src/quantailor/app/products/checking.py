"""A built file against its strategy: types, sizes, and the checksum of every part."""

from __future__ import annotations

import dataclasses
import hashlib
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantailor.analysis.importance.imatrix import Imatrix
from quantailor.control import QUIET, Control
from quantailor.errors import ModelError
from quantailor.evidence.strategies import embedded_strategy, require_whole, strategy_imatrix
from quantailor.making import building
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.gguf_format import aligned, alignment_of, parse_header
from quantailor.records import MetadataValue, Strategy, TensorInfo
from quantailor.session import AUTO, OpenedModel, Workspace
from quantailor.strategy import file as strategy_file


@dataclass(frozen=True, slots=True)
class TypeDifference:
    """A tensor whose type is not the expected one; None where a side lacks the tensor."""

    tensor: str
    expected: str | None
    found: str | None


@dataclass(frozen=True, slots=True)
class CheckedPart:
    """One file of a model."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class BuildCheck:
    """Whether a file is what its strategy says."""

    ok: bool
    differences: tuple[TypeDifference, ...]
    n_tensors: int
    size_bytes: int
    """Of all parts."""
    expected_size_bytes: int | None
    """To the byte; None where another program wrote the header, whose size is its own matter."""
    tensor_bytes: int
    expected_tensor_bytes: int
    carries_strategy: Literal["this one", "another", "none"]
    """What the file's own metadata say of its strategy."""
    parts: tuple[CheckedPart, ...]


_BLOCK_BYTES = 8 * 2**20


@dataclasses.dataclass(frozen=True)
class _File:
    """What a GGUF file, all parts together, says of itself."""

    paths: tuple[Path, ...]
    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, MetadataValue]

    @property
    def types(self) -> dict[str, str]:
        return {tensor.name: tensor.type_name for tensor in self.tensors}


def check_build(workspace: Workspace, base: Path, strategy: Strategy, file: Path, *, control: Control = QUIET) -> BuildCheck:
    """Compare a file with the strategy it is to be built by.

    Args:
        workspace: where the importance matrix lies.
        base: the model the strategy was made for.
        strategy: what the file is to be.
        file: the GGUF file, or any part of a split one.
        control: told the bytes read for the checksums, asked whether to go on.

    Raises:
        StrategyError: the strategy is another model's.
        ModelError: the file cannot be read, or a part of it is missing.
    """
    with workspace.model(base, allow_requantize=True) as model:
        require_whole(strategy, model)
        imatrix = strategy_imatrix(workspace, model, strategy, AUTO)
        expected = building.output_tensors(model.source, strategy.types, imatrix=imatrix)
        found = _opened(workspace, file)
        if (embedded := embedded_strategy(workspace, file)) is not None:
            strategy = building.rounded_like(strategy, embedded)  # a build may be told to round otherwise; types and sizes are what counts
        carried = _carried(found, strategy)
        size = None if carried == "none" else _expected_size(model, strategy, imatrix, found)
    parts = tuple(_checked(found.paths, control))
    differences = _differences({tensor.name: tensor.type_name for tensor in expected}, found.types)
    n_bytes, tensor_bytes = sum(part.size_bytes for part in parts), sum(tensor.size_bytes for tensor in found.tensors)
    expected_bytes = sum(tensor.size_bytes for tensor in expected)
    return BuildCheck(
        ok=not differences and tensor_bytes == expected_bytes and size in (None, n_bytes),
        differences=differences,
        n_tensors=len(found.tensors),
        size_bytes=n_bytes,
        expected_size_bytes=size,
        tensor_bytes=tensor_bytes,
        expected_tensor_bytes=expected_bytes,
        carries_strategy=carried,
        parts=parts,
    )


def _opened(workspace: Workspace, path: Path) -> _File:
    with workspace.source(path) as source:
        if not isinstance(source, GGUFSource):
            raise ModelError(f"{path} is not a GGUF file", remedy="Give the file that was built")
        return _File(tuple(source.files), tuple(source.tensors), dict(source.metadata))


def _carried(found: _File, strategy: Strategy) -> Literal["this one", "another", "none"]:
    text = found.metadata.get("quantailor.strategy")
    if text is None:
        return "none"
    return "this one" if text.value == strategy_file.dumps(strategy, format="json", include_prediction=False) else "another"


def _expected_size(model: OpenedModel, strategy: Strategy, imatrix: Imatrix | None, found: _File) -> int:
    """Bytes of the strategy's file, split where the file is split."""
    split = _split_max_bytes(found) if "split.count" in found.metadata else None
    return building.predict_layout(model.source, strategy, imatrix=imatrix, split_max_bytes=split).size_bytes


def _split_max_bytes(found: _File) -> int:
    """A limit that splits the file as it is split.

    Every part took tensors until the next would not fit, so the largest part with more than one tensor is such a limit;
    larger single tensors get a part of their own at any limit.
    """
    alignment = alignment_of(found.metadata, found.paths[0].name)
    parts = [_tensors_of(path) for path in found.paths]
    sizes = [sum(aligned(tensor.size_bytes, alignment) for tensor in part) for part in parts if len(part) > 1]
    return max(sizes, default=1)


def _tensors_of(path: Path) -> list[TensorInfo]:
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
        return [stored.info for stored in parse_header(view, len(view), str(path), with_arrays=False).tensors]


def _differences(expected: Mapping[str, str], found: Mapping[str, str]) -> tuple[TypeDifference, ...]:
    """In the expected order, then what is too much."""
    names = dict.fromkeys((*expected, *found))
    return tuple(TypeDifference(name, expected.get(name), found.get(name)) for name in names if expected.get(name) != found.get(name))


def _checked(paths: Sequence[Path], control: Control) -> Iterator[CheckedPart]:
    total, done = sum(path.stat().st_size for path in paths), 0
    for path in paths:
        digest, size = hashlib.sha256(), 0
        for block in _blocks(path):
            control.check()
            digest.update(block)
            size += len(block)
            control.advance(done + size, total, f"checksum of {path.name}")
        done += size
        yield CheckedPart(str(path), size, digest.hexdigest())


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                yield block
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}", remedy="Check the path") from error
