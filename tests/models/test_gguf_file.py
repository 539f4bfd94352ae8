"""GGUF files as models: compared with the gguf package's own writer and reader, and opened in every damaged state."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_files import joined, small_file, u32, u64, write

from quantailor.errors import ModelError, ModelFormatError, QuantailorError, TensorNotFoundError, UnsupportedModelError
from quantailor.ggml import codec, library
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.gguf_writer import GGUFWriter, layout
from quantailor.records import MetadataValue

SCALARS: dict[str, Any] = {
    "uint8": 200,
    "int8": -100,
    "uint16": 60_000,
    "int16": -30_000,
    "uint32": 4_000_000_000,
    "int32": -2_000_000_000,
    "float32": 0.25,
    "uint64": 2**63,
    "int64": -(2**62),
    "float64": 1 / 3,
    "bool": True,
    "string": "Größe 重さ",
}
ARRAYS: dict[str, list[Any]] = {"string": ["a", "", "▁b"], "int32": [1, -2, 3], "float32": [0.5, -1.0], "bool": [True, False]}


def package_file(path: Path, *, alignment: int | None = None) -> Path:
    """A file by the gguf package: every metadata type, and a tensor of every type that both know."""
    writer = gguf.GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for name, value in SCALARS.items():
        writer.add_key_value(f"x.{name}", value, gguf.GGUFValueType[name.upper()])
    for name, values in ARRAYS.items():
        writer.add_key_value(f"x.{name}s", values, gguf.GGUFValueType.ARRAY, sub_type=gguf.GGUFValueType[name.upper()])
    rng = np.random.default_rng(5)
    for name, qtype in library.types().items():
        if name in gguf.GGMLQuantizationType.__members__:
            data = rng.integers(0, 255, (2, 3, qtype.row_bytes(qtype.block_size)), dtype=np.uint8)
            writer.add_tensor(f"{name.lower()}.weight", data, raw_dtype=gguf.GGMLQuantizationType[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("alignment", [None, 8, 32, 64, 4096])
def test_a_file_of_the_gguf_package_is_read_in_full(tmp_path: Path, alignment: int | None) -> None:
    path = package_file(tmp_path / "model.gguf", alignment=alignment)
    theirs = gguf.GGUFReader(path)
    source = GGUFSource(path)
    for name, value in SCALARS.items():
        assert source.metadata[f"x.{name}"] == MetadataValue(name, value)
    for name, values in ARRAYS.items():
        assert source.metadata[f"x.{name}s"] == MetadataValue("array", tuple(values), name)
    assert len(source.tensors) == len(theirs.tensors) > 20
    for tensor, expected in zip(source.tensors, theirs.tensors, strict=True):
        assert (tensor.name, tensor.type_name) == (expected.name, expected.tensor_type.name)
        assert tensor.shape == tuple(int(size) for size in reversed(expected.shape))
        assert tensor.size_bytes == expected.n_bytes
        raw = source.raw_rows(tensor.name, 0, tensor.n_rows)
        assert np.array_equal(raw.reshape(-1), np.ascontiguousarray(expected.data).view(np.uint8).reshape(-1))
    source.close()


@pytest.mark.parametrize("alignment", [None, 8, 64, 4096])
def test_written_again_the_file_is_the_same_bytes(tmp_path: Path, alignment: int | None) -> None:
    path = package_file(tmp_path / "model.gguf", alignment=alignment)
    source = GGUFSource(path)
    with GGUFWriter(tmp_path / "copy.gguf", layout(source.metadata, source.tensors)) as writer:
        for tensor in source.tensors:
            writer.write(source.raw_rows(tensor.name, 0, tensor.n_rows))
    source.close()
    assert (tmp_path / "copy.gguf").read_bytes() == path.read_bytes()


def test_what_we_write_the_gguf_package_reads(tmp_path: Path) -> None:
    types = {name: MetadataValue(name, value) for name, value in SCALARS.items()}
    arrays = {f"{name}s": MetadataValue("array", tuple(values), name) for name, values in ARRAYS.items()}
    with GGUFWriter(tmp_path / "ours.gguf", layout({**types, **arrays}, [])):
        pass
    reader = gguf.GGUFReader(tmp_path / "ours.gguf")
    for name, value in SCALARS.items():
        field = reader.fields[name]
        assert field.types == [gguf.GGUFValueType[name.upper()]]
        assert field.contents() == value
    for name, values in ARRAYS.items():
        assert reader.fields[f"{name}s"].types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType[name.upper()]]
        assert reader.fields[f"{name}s"].contents() == values


@pytest.mark.tables
@pytest.mark.slow
def test_rows_of_every_type_are_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    rng = np.random.default_rng(6)
    weights = rng.standard_normal((4, 512), dtype=np.float32)
    ones = np.ones(512, dtype=np.float32)
    packed = {name: codec.quantize(weights, qtype, ones) for name, qtype in library.types().items()}
    writer = gguf.GGUFWriter(path, "llama")
    for name in packed.keys() & gguf.GGMLQuantizationType.__members__.keys():
        writer.add_tensor(name, packed[name], raw_dtype=gguf.GGMLQuantizationType[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = GGUFSource(path)
    assert np.array_equal(source.rows("F32", 0, 4), weights)
    for tensor in source.tensors:
        expected = codec.dequantize(packed[tensor.name], library.types()[tensor.name], 512)
        assert np.array_equal(source.rows(tensor.name, 0, 4), expected)
        assert np.array_equal(source.rows(tensor.name, 1, 3), expected[1:3])
    assert source.rows("Q4_K", 2, 2).shape == (0, 512)
    source.close()


def test_big_endian_files_are_refused_by_that_name(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match="is big-endian"):
        GGUFSource(tmp_path / "big.gguf")


def test_names_come_from_the_metadata_or_the_file(tmp_path: Path) -> None:
    unnamed = GGUFSource(write(tmp_path, joined()))
    assert (unnamed.name, unnamed.architecture, unnamed.size_bytes) == ("small", "llama", len(joined()))
    odd = joined({"arch.key": small_file()["string.key"], "string.key": small_file()["arch.key"], "string.value": u64(2) + b"\x1b\xff"})
    hostile = GGUFSource(write(tmp_path, odd, "odd.gguf"))
    assert hostile.architecture == "\ufffd"
    number = joined({"arch.type": u32(4), "arch.value": u32(3)})
    assert GGUFSource(write(tmp_path, number, "number.gguf")).architecture == "unknown"


def test_only_rows_that_exist_are_read(tmp_path: Path) -> None:
    source = GGUFSource(write(tmp_path, joined()))
    with pytest.raises(TensorNotFoundError, match=r"has no tensor missing\.weight"):
        source.rows("missing.weight", 0, 1)
    for start, stop in ((0, 4), (-1, 1), (2, 1)):
        with pytest.raises(IndexError, match=r"embd\.weight has 3 rows"):
            source.raw_rows("embd.weight", start, stop)
    source.close()


def test_a_file_that_shrinks_while_open_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, joined())
    source = GGUFSource(path)
    os.truncate(path, len(joined()) - 100)
    with pytest.raises(ModelFormatError, match="has become shorter"):
        source.rows("ffn.weight", 0, 2)
    assert source.rows("norm.weight", 0, 1).shape == (1, 32)
    source.close()
    with pytest.raises(ModelError, match="cannot read"):
        source.rows("norm.weight", 0, 1)


def test_what_is_no_readable_file_is_named(tmp_path: Path) -> None:
    cases = {"empty.gguf": "is empty", "missing.gguf": "there is no file", "folder.gguf": "is no file"}
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "folder.gguf").mkdir()
    for name, message in cases.items():
        with pytest.raises(ModelError, match=message):
            GGUFSource(tmp_path / name)
    for name in ("n" * 300, "zero\0.gguf"):
        with pytest.raises(ModelError):
            GGUFSource(tmp_path / name)


def test_a_file_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, joined())

    def refuse(*args: object, **options: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ModelError, match=r"cannot read .*small\.gguf: Permission denied"):
        GGUFSource(path)


def test_devices_and_pipes_do_not_hang(tmp_path: Path) -> None:
    places = [Path(os.devnull)]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.gguf")
        places.append(tmp_path / "pipe.gguf")
    for place in places:
        with pytest.raises(ModelError, match="is no file"):
            GGUFSource(place)


def test_platforms_without_positioned_reads_get_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = GGUFSource(package_file(tmp_path / "model.gguf"))
    expected = [source.raw_rows(tensor.name, 1, 5) for tensor in source.tensors]
    monkeypatch.delattr(os, "preadv", raising=False)
    for tensor, rows in zip(source.tensors, expected, strict=True):
        assert np.array_equal(source.raw_rows(tensor.name, 1, 5), rows)
    source.close()


# Shards


def shards(folder: Path) -> list[Path]:
    """A model in three shards, by the gguf package."""
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama", split_max_tensors=2)
    for number in range(5):
        writer.add_tensor(f"blk.{number}.ffn_up.weight", np.full((4, 32), number, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("*.gguf"))


def test_any_shard_opens_all(tmp_path: Path) -> None:
    files = shards(tmp_path)
    assert len(files) == 3
    for file in files:
        source = GGUFSource(file)
        assert list(source.files) == files
        assert source.location == str(files[0])
        assert source.architecture == "llama"
        assert source.size_bytes == sum(path.stat().st_size for path in files)
        for number, tensor in enumerate(source.tensors):
            assert (source.rows(tensor.name, 0, 4) == number).all()
        source.close()


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    files = shards(tmp_path)
    files[1].unlink()
    with pytest.raises(ModelError, match=r"the shard .*model-00002-of-00003\.gguf is missing"):
        GGUFSource(files[0])


def test_shards_under_wrong_names_are_refused(tmp_path: Path) -> None:
    files = shards(tmp_path)
    alone = files[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelFormatError, match="is shard 1 of 3, which its name does not say"):
        GGUFSource(alone)
    files[1].rename(files[0])
    files[2].rename(files[1])
    alone.rename(files[2])
    with pytest.raises(ModelFormatError, match="says that it is shard 2 of 3; its name says 1 of 3"):
        GGUFSource(files[0])


def test_a_shard_of_another_model_is_refused(tmp_path: Path) -> None:
    files = shards(tmp_path)
    files[1].write_bytes(joined())
    with pytest.raises(ModelFormatError, match="hold 6 tensors, not 5"):
        GGUFSource(files[0])
    files[1].write_bytes(files[2].read_bytes())
    with pytest.raises(ModelFormatError, match=r"repeats the tensor blk\.4\.ffn_up\.weight of another shard"):
        GGUFSource(files[0])


@pytest.mark.parametrize("name", ["model-00000-of-00003.gguf", "model-00004-of-00003.gguf", "model-00001-of-00000.gguf"])
def test_shard_numbers_must_make_sense(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelFormatError, match="is a whole model, though its name says shard"):
        GGUFSource(write(tmp_path, joined(), name))
    (tmp_path / name).unlink()
    with pytest.raises(ModelFormatError, match="is not one of"):
        GGUFSource(tmp_path / name)


def test_a_single_shard_is_a_model(tmp_path: Path) -> None:
    source = GGUFSource(write(tmp_path, joined(), "model-00001-of-00001.gguf"))
    assert len(source.tensors) == 3
    source.close()


def test_a_truncated_download_is_refused_at_any_length(tmp_path: Path) -> None:
    whole = joined()
    for length in range(0, len(whole), 7):
        with pytest.raises(QuantailorError):
            GGUFSource(write(tmp_path, whole[:length]))
