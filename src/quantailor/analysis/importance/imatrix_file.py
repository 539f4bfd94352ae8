"""Importance matrices as files: GGUF, and the legacy `.dat` format, which ik_llama.cpp and older tools read.

GGUF, as llama-imatrix writes it: `general.type` "imatrix", `imatrix.datasets`, `imatrix.chunk_count` and
`imatrix.chunk_size`; per tensor NAME an F32 tensor `NAME.in_sum2` of (n_mat, n_cols) and `NAME.counts` of (n_mat, 1).
We add `NAME.in_sum`, error-only inputs under `NAME.error_sum2`, `NAME.error_counts` and `NAME.error_sum`, and how often
each token was an input under `quantailor.token_counts`; llama.cpp's readers skip all of these.

Legacy, little endian: n_entries i32; per entry the name (length i32, bytes), n_calls i32, n_values i32 and float32 values
that are mean squares times n_calls; at the end, optionally, the number of chunks i32 and the text's name. It holds neither tokens of
experts nor what only weighs errors.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from quantailor.analysis.importance.imatrix import Imatrix, ImatrixEntry
from quantailor.errors import ImatrixError, ModelError
from quantailor.files import START_BYTES, refuse_streams, stand_in_for_binary, whole_file
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.gguf_format import MAGIC, MAX_NAME_BYTES
from quantailor.models.gguf_writer import GGUFWriter, layout
from quantailor.numerics import Floats, Integers
from quantailor.records import MetadataValue, TensorInfo

LEGACY_SUFFIX = ".dat"
LEGACY_CHUNK_SIZE = 512
"""Legacy files count calls, not tokens; llama-imatrix converts them as calls of so many tokens, and so do we."""
_FREQUENCIES = "quantailor.token_counts"
_KEYS = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")
_COUNTED = (".in_sum2", ".counts", ".in_sum")
_ERROR_ONLY = (".error_sum2", ".error_counts", ".error_sum")
_INTACT = "Get an intact copy, or compute it again"
_MAX_COUNT = 2.0**53


# Reading


def read_imatrix(path: Path) -> Imatrix:
    """Read an importance matrix, GGUF or legacy.

    Raises:
        ImatrixError: the file cannot be read, is truncated or corrupt, or holds values that no sum of squares has.
    """
    try:
        refuse_streams(path)
        with path.open("rb") as stream:
            start = stream.read(START_BYTES)
        if found := stand_in_for_binary(start):
            raise ImatrixError(f"{path} is {found.what}, not the file itself", remedy=found.remedy)
        return _read_gguf(path) if start.startswith(MAGIC) else _read_legacy(path.read_bytes(), path)
    except OSError as error:
        raise ImatrixError(f"cannot read {path}: {error.strerror or error}", remedy="Check the path") from error


def _read_gguf(path: Path) -> Imatrix:
    try:
        source = GGUFSource(path)
    except ModelError as error:
        raise ImatrixError(error.message, remedy=_INTACT) from error
    try:
        metadata = source.metadata
        missing = [key for key in _KEYS if key not in metadata]
        if missing:
            raise ImatrixError(f"{path} is not an importance matrix: it has no {missing[0]}", remedy="Give a file that llama-imatrix wrote")
        entries = dict(_entries(source, _COUNTED))
        if not entries:
            raise ImatrixError(f"{path} holds no importance matrix", remedy=_INTACT)
        return Imatrix(
            entries=entries,
            error_only=dict(_entries(source, _ERROR_ONLY)),
            token_counts=_token_counts(metadata, path),
            datasets=_strings(metadata["imatrix.datasets"], path),
            chunk_count=_number(metadata, "imatrix.chunk_count", path),
            chunk_size=_number(metadata, "imatrix.chunk_size", path),
        )
    finally:
        source.close()


def _entries(source: GGUFSource, suffixes: tuple[str, str, str]) -> Iterator[tuple[str, ImatrixEntry]]:
    sum2, counts, total = suffixes
    present = {tensor.name for tensor in source.tensors}
    names = sorted({name.removesuffix(suffix) for suffix in (sum2, counts) for name in present if name.endswith(suffix)})
    for name in names:
        for suffix in (sum2, counts):
            if name + suffix not in present:
                raise ImatrixError(f"{source.location} has no {name}{suffix}", remedy=_INTACT)
        tokens = _whole_numbers(_values(source, name + counts), f"{name}{counts} in {source.location}")
        squares = _by_matrix(_values(source, name + sum2), tokens, f"{name}{sum2} in {source.location}")
        _check_squares(squares, f"{name}{sum2} in {source.location}")
        sums = _by_matrix(_values(source, name + total), tokens, f"{name}{total} in {source.location}") if name + total in present else None
        if sums is not None and (sums.shape != squares.shape or not np.isfinite(sums).all()):
            raise ImatrixError(f"{name}{total} in {source.location} does not fit its squares", remedy=_INTACT)
        yield name, ImatrixEntry(squares, tokens, sums)


def _values(source: GGUFSource, name: str) -> Floats:
    tensor = source.tensor(name)
    if tensor.type_name != "F32":
        raise ImatrixError(f"{name} in {source.location} is {tensor.type_name}, not F32", remedy=_INTACT)
    return source.rows(name, 0, tensor.n_rows).reshape(-1)


def _by_matrix(values: Floats, counts: Integers, what: str) -> Floats:
    if values.size % counts.size:
        raise ImatrixError(f"{what} has {values.size} values for {counts.size} counts", remedy=_INTACT)
    return values.reshape(counts.size, -1)


def _check_squares(values: Floats, what: str) -> None:
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        raise ImatrixError(f"{what} has the value {float(values[bad][0]):g}, which a sum of squares cannot have", remedy=_INTACT)


def _whole_numbers(values: Floats, what: str) -> Integers:
    if not ((values >= 0) & (values <= _MAX_COUNT)).all():
        raise ImatrixError(f"{what} has a count that is negative or too large", remedy=_INTACT)
    return np.rint(values).astype(np.int64)


def _number(metadata: Mapping[str, MetadataValue], key: str, path: Path) -> int:
    value = metadata[key].value
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ImatrixError(f"{path} has the value {value!r} for {key}", remedy=_INTACT)
    return value


def _strings(stored: MetadataValue, path: Path) -> tuple[str, ...]:
    if not isinstance(stored.value, tuple) or not all(isinstance(text, str) for text in stored.value):
        raise ImatrixError(f"{path} has no list of texts", remedy=_INTACT)
    # Bytes that are not UTF-8 become replacement characters: names of texts are for people.
    return tuple(str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace") for text in stored.value)


def _token_counts(metadata: Mapping[str, MetadataValue], path: Path) -> Integers | None:
    stored = metadata.get(_FREQUENCIES)
    if stored is None:
        return None
    usable = isinstance(stored.value, tuple) and stored.element_type == "int64"
    counts = np.array(stored.value if usable else (-1,), dtype=np.int64)
    if (counts < 0).any():
        raise ImatrixError(f"{path} has no usable {_FREQUENCIES}", remedy=_INTACT)
    return counts


# The legacy format


class _Legacy:
    """Reads little-endian values and never past the end."""

    def __init__(self, data: bytes, path: Path) -> None:
        self.data, self.path, self.offset = data, path, 0

    @property
    def ended(self) -> bool:
        return self.offset == len(self.data)

    def take(self, n_bytes: int, what: str) -> bytes:
        if not 0 <= n_bytes <= len(self.data) - self.offset:
            raise ImatrixError(f"{self.path} is not an importance matrix, or ends within {what}", remedy=_INTACT)
        self.offset += n_bytes
        return self.data[self.offset - n_bytes : self.offset]

    def number(self, what: str) -> int:
        return int(struct.unpack("<i", self.take(4, what))[0])

    def positive(self, what: str) -> int:
        value = self.number(what)
        if value < 1:
            raise ImatrixError(f"{self.path} is not an importance matrix: {what} is {value}", remedy=_INTACT)
        return value


def _read_legacy(data: bytes, path: Path) -> Imatrix:
    file = _Legacy(data, path)
    entries: dict[str, ImatrixEntry] = {}
    most_calls = 0
    for _ in range(file.positive("the number of entries")):
        raw = file.take(file.positive("the length of a name"), "a name")
        name = raw.decode("utf-8", "replace")
        if name in entries or not name.isprintable() or len(raw) > MAX_NAME_BYTES:
            raise ImatrixError(f"{path} is corrupt at the entry {name[:80]!r}", remedy=_INTACT)
        n_calls = file.number(f"the calls of {name}")
        values = np.frombuffer(file.take(4 * file.positive(f"the length of {name}"), name), dtype="<f4").astype(np.float32)
        counts = np.array([max(1, n_calls) * LEGACY_CHUNK_SIZE], dtype=np.int64)
        with np.errstate(over="ignore", invalid="ignore"):
            sums = values * np.float32(LEGACY_CHUNK_SIZE)
        _check_squares(sums, f"{name} in {path}")
        entries[name] = ImatrixEntry(sums[None], counts)
        most_calls = max(most_calls, n_calls)
    chunk_count = most_calls if file.ended else max(0, file.number("the number of chunks"))
    datasets = () if file.ended else (file.take(file.number("the length of the text's name"), "the text's name"),)
    return Imatrix(
        entries, datasets=tuple(text.decode("utf-8", "replace") for text in datasets), chunk_count=chunk_count, chunk_size=LEGACY_CHUNK_SIZE
    )


# Writing


def write_imatrix(imatrix: Imatrix, path: Path, *, overwrite: bool = False) -> Path:
    """Write GGUF that llama-quantize and llama-imatrix read, or the legacy format where the name ends in .dat; whole or not at all.

    Raises:
        ImatrixError: there is nothing to write, or a tensor's name is too long for GGUF.
        OutputError: the file exists, or cannot be written.
    """
    if not imatrix.entries:
        raise ImatrixError("the importance matrix is empty", remedy="Compute it for a model whose matrices llama.cpp multiplies")
    if path.suffix.lower() == LEGACY_SUFFIX:
        with whole_file(path, overwrite=overwrite) as target:
            target.write(_legacy(imatrix))
        return path
    arrays = dict(_arrays(imatrix))
    for name in arrays:
        if len(name.encode()) > MAX_NAME_BYTES:
            raise ImatrixError(f"the tensor name {name} is too long for a GGUF file")
    tensors = [TensorInfo(name, array.shape, "F32", array.nbytes) for name, array in arrays.items()]
    with GGUFWriter(path, layout(_metadata(imatrix), tensors), overwrite=overwrite) as writer:
        for array in arrays.values():
            writer.write(np.ascontiguousarray(array).view(np.uint8))
    return path


def _legacy(imatrix: Imatrix) -> bytes:
    """As llama-imatrix writes it: experts without a token count as ones, tensors without any are left out."""
    seen = {name: entry for name, entry in sorted(imatrix.entries.items()) if entry.counts.any()}
    parts = [struct.pack("<i", len(seen))]
    for name, entry in seen.items():
        raw, tokens = name.encode(), entry.counts.astype(np.float32)[:, None]
        n_calls = -(-int(entry.counts.max()) // (imatrix.chunk_size or LEGACY_CHUNK_SIZE))
        means = np.where(tokens > 0, entry.sum2 / np.maximum(tokens, np.float32(1)), np.float32(1))  # (n_mat, n_cols)
        parts += [
            struct.pack("<i", len(raw)),
            raw,
            struct.pack("<ii", n_calls, means.size),
            (means * np.float32(n_calls)).astype("<f4").tobytes(),
        ]
    text = (imatrix.datasets[-1] if imatrix.datasets else "").encode()
    return b"".join((*parts, struct.pack("<ii", imatrix.chunk_count, len(text)), text))


def _metadata(imatrix: Imatrix) -> dict[str, MetadataValue]:
    metadata = {
        "general.type": MetadataValue("string", "imatrix"),
        "imatrix.datasets": MetadataValue("array", imatrix.datasets, "string"),
        "imatrix.chunk_count": MetadataValue("uint32", imatrix.chunk_count),
        "imatrix.chunk_size": MetadataValue("uint32", imatrix.chunk_size),
    }
    if imatrix.token_counts is not None:
        metadata[_FREQUENCIES] = MetadataValue("array", tuple(imatrix.token_counts.tolist()), "int64")
    return metadata


def _arrays(imatrix: Imatrix) -> Iterator[tuple[str, Floats]]:
    groups: Sequence[tuple[Mapping[str, ImatrixEntry], tuple[str, str, str]]] = (
        (imatrix.entries, _COUNTED),
        (imatrix.error_only, _ERROR_ONLY),
    )
    for entries, (sum2, counts, total) in groups:
        for name in sorted(entries):
            entry = entries[name]
            yield name + sum2, entry.sum2
            yield name + counts, entry.counts.astype(np.float32)[:, None]
            if entry.sum is not None:
                yield name + total, entry.sum
