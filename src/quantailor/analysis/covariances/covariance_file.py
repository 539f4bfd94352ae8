"""Input covariances as a file: GGUF with `general.type` "covariances", read one matrix at a time.

Metadata, all under `quantailor.covariances.`: `version` 2; `model`, the model's fingerprint; `fingerprint`, SHA-256 over all figures;
`datasets`, `chunk_count`, `chunk_size` as in importance matrices; `inputs`, the names of the inputs, and for each its matrices
in `n_slices` (1, or the experts, which are followed by one more matrix for the input of all of them together) and columns in
`n_cols`; `tensors`, and in `tensor_inputs` which input each is multiplied with; `counts`, the tokens behind every matrix, and `digests`,
SHA-256 of every matrix's figures, both in the order of inputs and matrices. Token embeddings that
are only looked up are an input, too: their matrix is the metric of `embeddings`, and their count that of the rows that read them. That of
embeddings that are tied to the output has this metric added.

Data, for input number I: `I.diagonal`, float32 (n_matrices, n_cols), E[x_j^2]; `I.correlation`, int16 (n_matrices, n_pairs), the upper
triangle without its diagonal, row after row: E[x_i x_j] / sqrt(E[x_i^2] E[x_j^2]) in units of 1 / 32767. Before it was rounded, a
correlation was multiplied by 1 - 2^-12, which keeps matrices positive whose smallest eigenvalues rounding could push below zero.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from quantailor.analysis.covariances.covariances import InputCovariance
from quantailor.analysis.covariances.sums import diagonal, panels
from quantailor.errors import CovarianceError, ModelError
from quantailor.files import Closing
from quantailor.ggml.codec import MAX_IMPORTANCE
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.gguf_writer import PartLayout, layout
from quantailor.numerics import Bytes, Floats
from quantailor.records import MetadataValue, TensorInfo

VERSION = 2
LEAN_COLUMNS = 0.3
"""An expert leans on the covariance of all experts as if that were so many tokens of its own per column (docs/LOG.md)."""
SCALE = 32767
POSITIVE = 1 - 2**-12
_TYPE = "covariances"
_PREFIX = "quantailor.covariances."
_INTACT = "Get an intact copy, or compute it again with `quantailor calibrate`"
_UNKNOWN = "0" * 64
"""In place of a digest that is not known yet."""

Correlations = npt.NDArray[np.int16]
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Input:
    """What one or several weight matrices are multiplied with."""

    key: str
    """The first tensor that it was seen at."""
    tensors: tuple[str, ...]
    n_slices: int
    """1, or how many experts have covariances of their own."""
    n_cols: int

    @property
    def n_matrices(self) -> int:
        """Those of the slices and, where there are several, that of all together."""
        return self.n_slices + 1 if self.n_slices > 1 else 1

    @property
    def n_pairs(self) -> int:
        """Correlations of one matrix; a single column still has a place for one."""
        return max(1, self.n_cols * (self.n_cols - 1) // 2)


@dataclass(frozen=True, slots=True)
class Description:
    """What a file says of itself, in its header."""

    model: str
    """The model's fingerprint."""
    inputs: tuple[Input, ...]
    counts: tuple[tuple[int, ...], ...]
    """Tokens behind each input's matrices."""
    digests: tuple[tuple[str, ...], ...]
    """SHA-256 of each input's matrices."""
    datasets: tuple[str, ...] = ()
    chunk_count: int = 0
    chunk_size: int = 0

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all figures; the names of the texts do not count."""
        inputs = [[one.key, list(one.tensors), one.n_slices, one.n_cols] for one in self.inputs]
        content = [self.model, self.chunk_count, self.chunk_size, inputs, self.counts, self.digests]
        return hashlib.sha256(json.dumps(content).encode("utf-8", "surrogateescape")).hexdigest()


# Writing


def encoded(packed: Floats, mean_squares: Floats) -> tuple[Correlations, str]:
    """A packed sum, (packed_size,), as the file's correlations, (n_pairs,), and the digest of the matrix.

    Args:
        packed: of `sums`.
        mean_squares: the diagonal as the file will hold it, (n_cols,).
    """
    n_cols = len(mean_squares)
    scale = np.sqrt(diagonal(packed, n_cols))
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    out = np.zeros(max(1, n_cols * (n_cols - 1) // 2), dtype=np.int16)
    done = 0
    for panel in panels(n_cols):
        correlation = panel.of(packed, n_cols) * inverse[panel.start : panel.stop, None] * inverse[panel.start :]
        rounded = np.rint(np.clip(correlation, -1, 1) * np.float32(SCALE * POSITIVE)).astype(np.int16)
        values = rounded[_above(rounded.shape)]
        out[done : done + len(values)] = values
        done += len(values)
    return out, _digest(mean_squares, out)


def _above(shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Which elements of a panel are above the diagonal."""
    return np.arange(shape[1])[None, :] > np.arange(shape[0])[:, None]


def _digest(mean_squares: Floats, correlations: Correlations) -> str:
    digest = hashlib.sha256(mean_squares.astype("<f4").tobytes())
    digest.update(np.ascontiguousarray(correlations.astype("<i2", copy=False)).data)
    return digest.hexdigest()


def plan_file(inputs: Sequence[Input], *, model: str, datasets: tuple[str, ...], chunk_count: int, chunk_size: int) -> PartLayout:
    """Where everything will be in a file whose figures are not known yet; the header of the finished file is as long."""
    counts = tuple((0,) * one.n_matrices for one in inputs)
    digests = tuple((_UNKNOWN,) * one.n_matrices for one in inputs)
    return file_layout(Description(model, tuple(inputs), counts, digests, datasets, chunk_count, chunk_size))


def file_layout(description: Description) -> PartLayout:
    """The header and the places of the data."""
    return layout(metadata_of(description), list(_tensors(description.inputs))).parts[0]


def _tensors(inputs: Sequence[Input]) -> Iterator[TensorInfo]:
    for number, one in enumerate(inputs):
        yield TensorInfo(f"{number}.diagonal", (one.n_matrices, one.n_cols), "F32", 4 * one.n_matrices * one.n_cols)
        yield TensorInfo(f"{number}.correlation", (one.n_matrices, one.n_pairs), "I16", 2 * one.n_matrices * one.n_pairs)


def metadata_of(description: Description) -> dict[str, MetadataValue]:
    """All entries of the header."""
    inputs = description.inputs
    tensors = [(name, number) for number, one in enumerate(inputs) for name in one.tensors]

    def array(kind: str, values: Sequence[str | int]) -> MetadataValue:
        return MetadataValue("array", tuple(values), kind)

    values = {
        "version": MetadataValue("uint32", VERSION),
        "model": MetadataValue("string", description.model),
        "fingerprint": MetadataValue("string", description.fingerprint),
        "datasets": array("string", description.datasets),
        "chunk_count": MetadataValue("uint32", description.chunk_count),
        "chunk_size": MetadataValue("uint32", description.chunk_size),
        "inputs": array("string", [one.key for one in inputs]),
        "n_slices": array("uint32", [one.n_slices for one in inputs]),
        "n_cols": array("uint32", [one.n_cols for one in inputs]),
        "tensors": array("string", [name for name, _ in tensors]),
        "tensor_inputs": array("uint32", [number for _, number in tensors]),
        "counts": array("int64", [count for counts in description.counts for count in counts]),
        "digests": array("string", [digest for digests in description.digests for digest in digests]),
    }
    return {"general.type": MetadataValue("string", _TYPE)} | {_PREFIX + name: value for name, value in values.items()}


# Reading


class CovarianceFile(Closing):
    """An open file; satisfies `Covariances`. Use as a context manager, or call `close`.

    Raises:
        CovarianceError: the file cannot be read, is of a later version, or is no intact file of covariances.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._source = GGUFSource(path)
        except ModelError as error:
            raise CovarianceError(error.message, remedy=_INTACT) from error
        try:
            self.description = _Header(path, self._source).description()
            self._check_data()
        except BaseException:
            self.close()
            raise
        self._by_tensor = {name: number for number, one in enumerate(self.description.inputs) for name in one.tensors}
        self._common: tuple[int, Floats] | None = None

    def __reduce__(self) -> tuple[Callable[[Path, str], CovarianceFile], tuple[Path, str]]:
        """Another process opens the file itself, and makes sure that it is the same."""
        return _again, (self.path.absolute(), self.fingerprint)

    def close(self) -> None:
        """Release the file."""
        self._source.close()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all figures."""
        return self.description.fingerprint

    @property
    def size_bytes(self) -> int:
        return self._source.size_bytes

    def input_of(self, name: str) -> Input | None:
        """What a tensor is multiplied with; None where that was not seen."""
        number = self._by_tensor.get(name)
        return None if number is None else self.description.inputs[number]

    def key_of(self, tensor: TensorInfo, index: int = 0) -> str | None:
        """The input of one of a tensor's matrices; None where it is not known."""
        one = self.input_of(tensor.name)
        return None if one is None else f"{one.key}#{index}" if one.n_slices > 1 else one.key

    def of(self, tensor: TensorInfo, index: int = 0) -> InputCovariance | None:
        """Its covariance, read now; None where there is none.

        That of an expert leans on that of all experts: (n H + k H_all) / (n + k), k = `LEAN_COLUMNS` x n_cols, and counts as
        n + k tokens, at most those of all. Raises CovarianceError where it does not fit the tensor or the file is damaged.
        """
        one, key = self.input_of(tensor.name), self.key_of(tensor, index)
        if one is None or key is None:
            return None
        if (tensor.n_slices, tensor.n_cols) != (one.n_slices, one.n_cols):
            raise CovarianceError(
                f"{self.path} has covariances of {one.n_slices} x {one.n_cols} inputs for {tensor.name}, "
                f"which needs {tensor.n_slices} x {tensor.n_cols}",
                remedy="Use one that was computed for this model",
            )
        number = self._by_tensor[tensor.name]
        if one.n_slices == 1:
            return InputCovariance(key, self._matrix(number, 0), self.description.counts[number][0], str(self.path))
        n_own, n_all = self.description.counts[number][index], self.description.counts[number][-1]
        if self._common is None or self._common[0] != number:
            self._common = number, self._matrix(number, one.n_slices)
        lean = LEAN_COLUMNS * one.n_cols
        share = np.float32(n_own / (n_own + lean))
        matrix = self._common[1] * (1 - share)
        if n_own:
            matrix += self._matrix(number, index) * share
        return InputCovariance(key, matrix, min(n_all, round(n_own + lean)), str(self.path))

    def check(self) -> None:
        """Read everything once. Raises CovarianceError where something is damaged."""
        for number, one in enumerate(self.description.inputs):
            for index in range(one.n_matrices):
                self._checked(number, index)

    def _check_data(self) -> None:
        planned = {tensor.name: tensor for tensor in _tensors(self.description.inputs)}
        found = {tensor.name: tensor for tensor in self._source.tensors}
        if planned != found:
            name = min(name for name in planned.keys() | found.keys() if planned.get(name) != found.get(name))
            raise CovarianceError(f"{self.path} does not hold the covariances that it says it holds: {name}", remedy=_INTACT)

    def _checked(self, number: int, index: int) -> tuple[Floats, Correlations]:
        """One matrix as it is stored: mean squares (n_cols,) and correlations (n_pairs,)."""
        what = self.description.inputs[number].key
        try:
            mean_squares = self._row(f"{number}.diagonal", index).view("<f4").astype(np.float32)
            correlations = self._row(f"{number}.correlation", index).view("<i2").astype(np.int16, copy=False)
        except ModelError as error:
            raise CovarianceError(error.message, remedy=_INTACT) from error
        bad = ~((mean_squares >= 0) & (mean_squares <= MAX_IMPORTANCE))
        if bad.any():
            raise CovarianceError(
                f"{self.path} has the mean square {float(mean_squares[bad][0]):g} for an input of {what}, which a mean square cannot be",
                remedy=_INTACT,
            )
        if (worst := int(correlations.min())) < -SCALE:
            raise CovarianceError(f"{self.path} has the correlation {worst / SCALE:g} for inputs of {what}, below -1", remedy=_INTACT)
        if _digest(mean_squares, correlations) != self.description.digests[number][index]:
            raise CovarianceError(f"{self.path} is damaged: the figures of {what} are not those that were written", remedy=_INTACT)
        return mean_squares, correlations

    def _row(self, name: str, index: int) -> Bytes:
        return self._source.raw_rows(name, index, index + 1).reshape(-1)

    def _matrix(self, number: int, index: int) -> Floats:
        """One matrix, (n_cols, n_cols)."""
        mean_squares, correlations = self._checked(number, index)
        n_cols, done = len(mean_squares), 0
        scale = np.sqrt(mean_squares)
        matrix = np.zeros((n_cols, n_cols), dtype=np.float32)
        for panel in panels(n_cols):
            block = np.zeros((panel.stop - panel.start, n_cols - panel.start), dtype=np.float32)
            above = _above(block.shape)
            count = int(np.count_nonzero(above))
            block[above] = correlations[done : done + count]
            done += count
            block *= (scale[panel.start : panel.stop] / np.float32(SCALE))[:, None]
            block *= scale[panel.start :]
            matrix[panel.start : panel.stop, panel.start :] += block
            matrix[panel.start :, panel.start : panel.stop] += block.T
        np.fill_diagonal(matrix, mean_squares)
        return matrix


class _Header:
    """Reads a file's metadata and refuses what no header of covariances has."""

    def __init__(self, path: Path, source: GGUFSource) -> None:
        self._path, self._metadata = path, source.metadata

    def description(self) -> Description:
        kind = self._metadata.get("general.type")
        if kind is None or kind.value != _TYPE:
            raise CovarianceError(
                f"{self._path} holds no covariances: it says that it is {'nothing' if kind is None else repr(kind.value)}",
                remedy="Give a file that `quantailor calibrate` wrote",
            )
        version = self._number("version")
        if version != VERSION:
            raise CovarianceError(
                f"{self._path} is of version {version}, this Quantailor reads version {VERSION}",
                remedy="Update Quantailor" if version > VERSION else _INTACT,
            )
        inputs, n_matrices = self._inputs()
        description = Description(
            model=self._text("model"),
            inputs=inputs,
            counts=_grouped(self._numbers("counts", sum(n_matrices)), n_matrices),
            digests=_grouped(self._texts("digests", sum(n_matrices)), n_matrices),
            datasets=self._texts("datasets"),
            chunk_count=self._number("chunk_count"),
            chunk_size=self._number("chunk_size"),
        )
        if self._text("fingerprint") != description.fingerprint:
            raise CovarianceError(f"{self._path} is damaged: its header is not as it was written", remedy=_INTACT)
        return description

    def _inputs(self) -> tuple[tuple[Input, ...], list[int]]:
        keys, names = self._texts("inputs"), self._texts("tensors")
        n_slices, n_cols = self._numbers("n_slices", len(keys)), self._numbers("n_cols", len(keys))
        numbers = self._numbers("tensor_inputs", len(names))
        if not keys or len(set(names)) != len(names) or min(n_slices) < 1 or min(n_cols) < 1 or max(numbers, default=0) >= len(keys):
            raise self._bad("inputs")
        grouped: list[list[str]] = [[] for _ in keys]
        for name, number in zip(names, numbers, strict=True):
            grouped[number].append(name)
        inputs = tuple(Input(*one) for one in zip(keys, map(tuple, grouped), n_slices, n_cols, strict=True))
        return inputs, [one.n_matrices for one in inputs]

    def _bad(self, name: str) -> CovarianceError:
        return CovarianceError(f"{self._path} is not a file of covariances: it has no usable {_PREFIX}{name}", remedy=_INTACT)

    def _text(self, name: str) -> str:
        value = self._value(name)
        if not isinstance(value, str):
            raise self._bad(name)
        return value

    def _number(self, name: str) -> int:
        value = self._value(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self._bad(name)
        return value

    def _texts(self, name: str, count: int | None = None) -> tuple[str, ...]:
        value = self._value(name)
        if not isinstance(value, tuple) or count not in (None, len(value)) or not all(isinstance(text, str) for text in value):
            raise self._bad(name)
        # Bytes that are not UTF-8 become replacement characters: these texts are for people.
        return tuple(str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace") for text in value)

    def _numbers(self, name: str, count: int) -> tuple[int, ...]:
        value = self._value(name)
        if not isinstance(value, tuple) or len(value) != count or not all(type(number) is int and number >= 0 for number in value):
            raise self._bad(name)
        return tuple(int(number) for number in value)

    def _value(self, name: str) -> object:
        stored = self._metadata.get(_PREFIX + name)
        if stored is None:
            raise self._bad(name)
        return stored.value


def _grouped(values: Sequence[_Value], sizes: Sequence[int]) -> tuple[tuple[_Value, ...], ...]:
    ends = np.cumsum(sizes).tolist()
    return tuple(tuple(values[end - size : end]) for size, end in zip(sizes, ends, strict=True))


def _again(path: Path, fingerprint: str) -> CovarianceFile:
    found = CovarianceFile(path)
    if found.fingerprint != fingerprint:
        found.close()
        raise CovarianceError(f"{path} holds covariances {found.fingerprint[:12]}, not {fingerprint[:12]}", remedy=_INTACT)
    return found
