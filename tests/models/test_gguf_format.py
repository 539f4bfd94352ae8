"""GGUF headers: what is read, what is refused, and that what is written is read back."""

from __future__ import annotations

import dataclasses
import mmap
import struct
import tracemalloc

import pytest
from gguf_files import SCALARS, joined, parsed, small_file, text, u32, u64
from hypothesis import given
from hypothesis import strategies as st

from quantailor.errors import ModelError, ModelFormatError, UnsupportedModelError
from quantailor.ggml import library
from quantailor.models.gguf_format import encode_header, parse_header
from quantailor.records import MetadataValue, TensorInfo


def test_every_metadata_type_is_read() -> None:
    metadata = parsed(joined()).metadata
    assert metadata["x.uint8"] == MetadataValue("uint8", 7)
    assert metadata["x.int64"] == MetadataValue("int64", -(2**40))
    assert metadata["x.float64"] == MetadataValue("float64", 0.1)
    assert metadata["x.bool"] == MetadataValue("bool", True)
    assert metadata["x.strings"] == MetadataValue("array", ("seven", "seven"), "string")
    assert {metadata[f"x.{name}s"].element_type for name in SCALARS} == set(SCALARS)


def test_tensors_have_numpy_shapes_and_places_in_the_file() -> None:
    header = parsed(joined())
    assert [stored.info for stored in header.tensors] == [
        TensorInfo("norm.weight", (32,), "F32", 128),
        TensorInfo("embd.weight", (3, 32), "Q8_0", 102),
        TensorInfo("ffn.weight", (2, 1, 256), "Q4_K", 288),
    ]
    assert [stored.offset - header.data_offset for stored in header.tensors] == [0, 128, 256]


def test_version_2_is_read_as_well() -> None:
    assert parsed(joined({"version": u32(2)})) == parsed(joined())


def test_the_encoder_writes_the_same_bytes() -> None:
    header = parsed(joined())
    encoded = encode_header(header.metadata, [stored.info for stored in header.tensors])
    assert encoded == joined()[: header.data_offset]


@pytest.mark.parametrize("name", ["magic", *(name for name in small_file() if not name.startswith("data."))])
def test_a_file_that_ends_before_any_field_is_refused(name: str) -> None:
    fields = list(small_file())
    kept = fields[: fields.index(name)]
    with pytest.raises(ModelFormatError):
        parsed(b"".join(small_file()[field] for field in kept))


def test_a_file_cut_at_any_byte_is_refused() -> None:
    whole = joined()
    for length in range(len(whole)):
        with pytest.raises(ModelFormatError):
            parsed(whole[:length])


HUGE = [2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize(
    "field", ["n_tensors", "n_metadata", *(f"{name}s.count" for name in SCALARS), "norm.dim0", "embd.dim1", "ffn.dim2", "ffn.offset"]
)
def test_absurd_counts_and_lengths_are_refused(field: str, value: int) -> None:
    with pytest.raises(ModelFormatError):
        parsed(joined({field: u64(value)}))


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("field", ["arch.key", "arch.value", "string.value", "strings.first", "strings.second", "norm.name"])
def test_absurd_text_lengths_are_refused(field: str, value: int) -> None:
    with pytest.raises(ModelFormatError, match="is corrupt at byte"):
        parsed(joined({field: u64(value) + small_file()[field][8:]}))


REFUSED = {
    "no magic": ({"magic": b"GGML"}, "is not a GGUF file"),
    "no version": ({"version": u32(0)}, "has GGUF version 0"),
    "big endian": ({"version": struct.pack(">I", 3)}, "is big-endian"),
    "version 1": ({"version": u32(1)}, "has GGUF version 1"),
    "version 4": ({"version": u32(4)}, "has GGUF version 4"),
    "metadata type": ({"arch.type": u32(13)}, "general.architecture has the unknown metadata type 13"),
    "array of arrays": ({"uint8s.element": u32(9)}, "array of the unknown type 9"),
    "element type": ({"uint8s.element": u32(99)}, "array of the unknown type 99"),
    "empty key": ({"uint8.key": text("")}, "a metadata key has 0 bytes"),
    "key twice": ({"int8.key": text("x.uint8")}, "key x.uint8 appears twice"),
    "long key": ({"int8.key": text("k" * 65536)}, "a metadata key has 65536 bytes"),
    "key of bytes": ({"int8.key": text(b"x.\xff\xfe")}, "a metadata key is not plain text"),
    "key of controls": ({"int8.key": text("x.\x1b[2J\n")}, "a metadata key is not plain text"),
    "alignment of zero": ({"align.value": u32(0)}, "alignment 0"),
    "alignment of 48": ({"align.value": u32(48)}, "alignment 48"),
    "alignment of 2 GiB": ({"align.value": u32(2**31)}, "alignment 2147483648"),
    "alignment as text": ({"align.type": u32(8), "align.value": text("q" * 5000)}, "alignment string"),
    "no name": ({"norm.name": text("")}, "a tensor's name has 0 bytes"),
    "long name": ({"norm.name": text("n" * 64)}, "a tensor's name has 64 bytes"),
    "name with a zero": ({"norm.name": text("norm\0.weight")}, "a tensor's name is not plain text"),
    "name of bytes": ({"norm.name": text(b"\x80\x81")}, "a tensor's name is not plain text"),
    "name twice": ({"norm.name": text("embd.weight")}, "holds the tensor embd.weight twice"),
    "no dimensions": ({"norm.n_dims": u32(0)}, "norm.weight has 0 dimensions"),
    "five dimensions": ({"norm.n_dims": u32(5)}, "norm.weight has 5 dimensions"),
    "a dimension of zero": ({"embd.dim1": u64(0)}, r"embd.weight has the shape \(0, 32\)"),
    "overflowing shape": ({"embd.dim0": u64(2**32), "embd.dim1": u64(2**32)}, "embd.weight has the shape"),
    "rows that blocks do not fill": ({"ffn.dim0": u64(128)}, "ffn.weight has rows of 128 weights"),
    "removed type": ({"norm.type_id": u32(4)}, "norm.weight in small.gguf has the tensor type 4"),
    "unknown type": ({"norm.type_id": u32(4711)}, "norm.weight in small.gguf has the tensor type 4711"),
    "unaligned": ({"embd.offset": u64(130)}, "embd.weight starts at 130, not aligned to 32"),
    "overlap": ({"embd.offset": u64(96)}, "embd.weight overlaps"),
    "same place": ({"embd.offset": u64(0)}, "overlaps"),
    "beyond the end": ({"ffn.offset": u64(288)}, "ffn.weight ends at byte"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_inconsistent_headers_are_refused_by_name(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(ModelError, match=message) as caught:
        parsed(joined(changes))
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


def test_unsupported_is_told_from_corrupt() -> None:
    for changes in ({"version": u32(4)}, {"norm.type_id": u32(4711)}):
        with pytest.raises(UnsupportedModelError):
            parsed(joined(changes))


def test_vocabularies_of_bytes_that_are_no_utf_8_survive() -> None:
    data = joined({"strings.first": text(b"\xf0\x28\x8c"), "string.value": text(b"\xff")})
    header = parsed(data)
    assert encode_header(header.metadata, [stored.info for stored in header.tensors]) == data[: header.data_offset]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("uint8", 1), ("uint16", 2), ("float32", 4), ("string", 8)])
def test_memory_stays_in_proportion_to_the_file(name: str, size: int) -> None:
    number, _ = SCALARS[name]
    n_bytes = 4 << 20
    data = b"GGUF" + u32(3) + u64(0) + u64(1) + text("x") + u32(9) + u32(number) + u64(n_bytes // size) + bytes(n_bytes)
    library.types()
    tracemalloc.start()
    parse_header(memoryview(data), len(data), "big.gguf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * len(data)


def test_a_header_of_a_gigabyte_is_not_even_tried() -> None:
    start = b"GGUF" + u32(3) + u64(0) + u64(1) + text("x") + u32(9) + u32(0) + u64(10**9)
    data = memoryview(mmap.mmap(-1, 10**9 + len(start)))
    data[: len(start)] = start
    tracemalloc.start()
    with pytest.raises(ModelFormatError):
        parse_header(data, len(data), "big.gguf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


# Writing

TEXT = st.text(max_size=40)
KEYS = st.from_regex(r"[a-z][a-z0-9_.]{0,30}", fullmatch=True).filter(lambda key: key != "general.alignment")
INTEGERS = {
    f"{sign}int{bits}": st.integers(*((0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)))
    for sign in ("u", "")
    for bits in (8, 16, 32, 64)
}
VALUES: dict[str, st.SearchStrategy[bool | int | float | str]] = {
    **INTEGERS,
    "float32": st.floats(width=32, allow_nan=False),
    "float64": st.floats(allow_nan=False),
    "bool": st.booleans(),
    "string": TEXT,
}
SCALAR_VALUES = st.sampled_from(sorted(VALUES)).flatmap(lambda name: VALUES[name].map(lambda value: MetadataValue(name, value)))
ARRAY_VALUES = st.sampled_from(sorted(VALUES)).flatmap(
    lambda name: st.lists(VALUES[name], max_size=8).map(lambda values: MetadataValue("array", tuple(values), name))
)


@st.composite
def tensors(draw: st.DrawFn) -> list[TensorInfo]:
    names = draw(st.lists(st.from_regex(r"[a-z][a-z0-9_.]{0,60}", fullmatch=True), unique=True, max_size=6))
    found = []
    for name in names:
        qtype = library.types()[draw(st.sampled_from(sorted(library.types())))]
        shape = (*draw(st.lists(st.integers(1, 4), max_size=3)), qtype.block_size * draw(st.integers(1, 3)))
        size = qtype.row_bytes(shape[-1])
        for length in shape[:-1]:
            size *= length
        found.append(TensorInfo(name, shape, qtype.name, size))
    return found


@given(metadata=st.dictionaries(KEYS, SCALAR_VALUES | ARRAY_VALUES, max_size=8), infos=tensors(), power=st.none() | st.integers(0, 12))
def test_whatever_is_written_is_read_back(metadata: dict[str, MetadataValue], infos: list[TensorInfo], power: int | None) -> None:
    if power is not None:
        metadata = metadata | {"general.alignment": MetadataValue("uint32", 2**power)}
    data = encode_header(metadata, infos)
    header = parse_header(memoryview(data), 2**40, "drawn.gguf")
    assert dict(header.metadata) == metadata
    assert list(header.metadata) == list(metadata)
    assert [stored.info for stored in header.tensors] == infos
    assert header.data_offset == len(data)
    assert all(stored.offset % header.alignment == 0 for stored in header.tensors)
    without = parse_header(memoryview(data), 2**40, "drawn.gguf", with_arrays=False)
    scalars = {key: value for key, value in metadata.items() if value.value_type != "array"}
    assert without == dataclasses.replace(header, metadata=scalars)


def test_a_vocabulary_that_is_passed_over_is_not_decoded() -> None:
    tokens = MetadataValue("array", tuple(f"token-{number}" for number in range(100_000)), "string")
    data = encode_header({"tokenizer.ggml.tokens": tokens, "x": MetadataValue("uint8", 3)}, [])
    tracemalloc.start()
    header = parse_header(memoryview(data), len(data), "vocabulary.gguf", with_arrays=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert header.metadata == {"x": MetadataValue("uint8", 3)}
    assert peak < len(data) / 10


@pytest.mark.parametrize(
    "value",
    [
        MetadataValue("uint8", 256),
        MetadataValue("uint8", -1),
        MetadataValue("int64", 2**63),
        MetadataValue("float32", 1e39),
        MetadataValue("uint32", 1.5),
        MetadataValue("bool", "yes"),
        MetadataValue("string", 3),
        MetadataValue("string", "\ud800"),
        MetadataValue("complex", 3),
        MetadataValue("array", (1, 2)),
        MetadataValue("array", (1, "a"), "uint8"),
        MetadataValue("array", ("a", 1), "string"),
        MetadataValue("array", (), "array"),
    ],
)
def test_values_that_their_type_cannot_hold_are_refused(value: MetadataValue) -> None:
    with pytest.raises(ModelFormatError, match="metadata value of x cannot be written"):
        encode_header({"x": value}, [])


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (TensorInfo("n" * 64, (32,), "F32", 128), "cannot be a tensor's name"),
        (TensorInfo("a\nb", (32,), "F32", 128), "cannot be a tensor's name"),
        (TensorInfo("a", (32,), "Q9_X", 128), "cannot be written as Q9_X"),
        (TensorInfo("a", (31,), "Q8_0", 34), "cannot be written as Q8_0"),
        (TensorInfo("a", (), "F32", 4), "cannot be written as F32"),
        (TensorInfo("a", (0, 32), "F32", 0), "does not take 0 bytes"),
        (TensorInfo("a", (32,), "F32", 64), "does not take 64 bytes"),
    ],
)
def test_tensors_that_no_reader_takes_are_refused(tensor: TensorInfo, message: str) -> None:
    with pytest.raises(ModelFormatError, match=message):
        encode_header({}, [tensor])


def test_keys_and_names_must_be_readable_and_single() -> None:
    tensor = TensorInfo("a", (32,), "F32", 128)
    with pytest.raises(ModelFormatError, match="written twice"):
        encode_header({}, [tensor, tensor])
    for key in ("", "a\0b", "k" * 65536):
        with pytest.raises(ModelFormatError, match="cannot be a metadata key"):
            encode_header({key: MetadataValue("uint8", 1)}, [])
