"""Writing GGUF: sizes known beforehand, whole files or none, and shards as llama.cpp makes them."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from quantailor.errors import InferenceError, ModelFormatError, OutputError
from quantailor.ggml.runtime import LoadedModel
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.gguf_writer import FileLayout, GGUFWriter, layout
from quantailor.records import MetadataValue, TensorInfo

Usage = namedtuple("Usage", ["total", "used", "free"])

METADATA = {"general.architecture": MetadataValue("string", "llama"), "general.name": MetadataValue("string", "small")}
TENSORS = (
    TensorInfo("norm.weight", (5,), "F32", 20),
    TensorInfo("embd.weight", (3, 32), "Q8_0", 102),
    TensorInfo("ffn.weight", (2, 256), "Q4_K", 288),
    TensorInfo("output.weight", (4, 64), "F16", 512),
)


def data_of(tensor: TensorInfo) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(tensor.size_bytes).integers(0, 255, tensor.size_bytes, dtype=np.uint8)


ALL_DATA = np.concatenate([data_of(tensor) for tensor in TENSORS])


def write_all(output: Path, planned: FileLayout, *, overwrite: bool = False, chunk: int = 97) -> tuple[Path, ...]:
    with GGUFWriter(output, planned, overwrite=overwrite) as writer:
        for start in range(0, len(ALL_DATA), chunk):
            writer.write(ALL_DATA[start : start + chunk])
    return writer.paths


def assert_holds_all(path: Path) -> None:
    source = GGUFSource(path)
    assert list(source.tensors) == list(TENSORS)
    for tensor in TENSORS:
        assert np.array_equal(source.raw_rows(tensor.name, 0, tensor.n_rows).reshape(-1), data_of(tensor))
    source.close()


# Sizes and content


@pytest.mark.parametrize("alignment", [None, 1, 8, 64, 2048])
@pytest.mark.parametrize("most", [None, 1, 400, 10**6])
@pytest.mark.parametrize("chunk", [1, 64, 10_000])
def test_the_size_is_known_beforehand_and_the_data_arrive(tmp_path: Path, alignment: int | None, most: int | None, chunk: int) -> None:
    metadata = METADATA if alignment is None else METADATA | {"general.alignment": MetadataValue("uint32", alignment)}
    planned = layout(metadata, TENSORS, split_max_bytes=most)
    paths = write_all(tmp_path / "model.gguf", planned, chunk=chunk)
    assert [path.stat().st_size for path in paths] == [part.size_bytes for part in planned.parts]
    assert sum(path.stat().st_size for path in paths) == planned.size_bytes
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert_holds_all(paths[-1])
    for path in paths:
        assert all(field.data_offset % (alignment or 32) == 0 for field in gguf.GGUFReader(path).tensors)


@pytest.mark.parametrize("most", [None, 300])
def test_bytes_may_come_in_any_order(tmp_path: Path, most: int | None) -> None:
    planned = layout(METADATA, TENSORS, split_max_bytes=most)
    in_order = [path.read_bytes() for path in write_all(tmp_path / "in-order.gguf", planned)]
    pieces = [(number, start) for number, tensor in enumerate(TENSORS) for start in range(0, tensor.size_bytes, 33)]
    with GGUFWriter(tmp_path / "any.gguf", planned) as writer:
        for place in np.random.default_rng(3).permutation(len(pieces)):
            number, start = pieces[place]
            writer.place(number, start, data_of(TENSORS[number])[start : start + 33])
    assert [path.read_bytes() for path in writer.paths] == in_order


def test_a_piece_beyond_its_tensor_or_a_missing_one_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="more data than its tensors hold"), GGUFWriter(tmp_path / "m", layout({}, TENSORS)) as writer:
        writer.place(0, 16, data_of(TENSORS[0]))
    with pytest.raises(OutputError, match="is incomplete"), GGUFWriter(tmp_path / "m", layout({}, TENSORS)) as writer:
        writer.place(3, 0, data_of(TENSORS[3]))
    assert list(tmp_path.iterdir()) == []


def test_chunks_need_not_be_contiguous(tmp_path: Path) -> None:
    tensor = TensorInfo("a.weight", (2, 4), "F32", 32)
    rows = np.arange(64, dtype=np.uint8).reshape(4, 16)[::2]
    with GGUFWriter(tmp_path / "a.gguf", layout({}, [tensor])) as writer:
        writer.write(rows)
    source = GGUFSource(tmp_path / "a.gguf")
    assert np.array_equal(source.raw_rows("a.weight", 0, 2), rows)
    source.close()


def test_a_file_without_tensors_is_a_file(tmp_path: Path) -> None:
    planned = layout(METADATA, [])
    with GGUFWriter(tmp_path / "vocab.gguf", planned):
        pass
    assert (tmp_path / "vocab.gguf").stat().st_size == planned.size_bytes
    GGUFSource(tmp_path / "vocab.gguf").close()


# Shards


def test_shards_carry_the_names_and_keys_of_llama_cpp(tmp_path: Path) -> None:
    paths = write_all(tmp_path / "model.gguf", layout(METADATA, TENSORS, split_max_bytes=300))
    assert [path.name for path in paths] == [f"model-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    keys = ["split.no", "split.count", "split.tensors.count"]
    u16, i32 = [gguf.GGUFValueType.UINT16], [gguf.GGUFValueType.INT32]
    for number, path in enumerate(paths):
        fields = {name: field for name, field in gguf.GGUFReader(path).fields.items() if not name.startswith("GGUF.")}
        assert list(fields) == [*METADATA, *keys] if number == 0 else keys
        assert [fields[key].types for key in keys] == [u16, u16, i32]
        assert [fields[key].contents() for key in keys] == [number, 3, len(TENSORS)]


def test_a_shard_holds_as_many_tensors_as_fit(tmp_path: Path) -> None:
    def names(most: int) -> list[list[str]]:
        return [[tensor.name for tensor in part.tensors] for part in layout({}, TENSORS, split_max_bytes=most).parts]

    assert names(32 + 128 + 288) == [["norm.weight", "embd.weight", "ffn.weight"], ["output.weight"]]
    assert names(32 + 128 + 287) == [["norm.weight", "embd.weight"], ["ffn.weight"], ["output.weight"]]
    assert names(1) == [[tensor.name] for tensor in TENSORS]
    assert layout({}, [], split_max_bytes=1).paths(Path("a.gguf")) == (Path("a-00001-of-00001.gguf"),)


def test_what_a_split_base_says_of_itself_is_left_out(tmp_path: Path) -> None:
    first = write_all(tmp_path / "split.gguf", layout(METADATA, TENSORS, split_max_bytes=300))[0]
    source = GGUFSource(first)
    assert "split.count" in source.metadata
    assert_holds_all(write_all(tmp_path / "joined.gguf", layout(source.metadata, TENSORS))[0])
    assert layout(source.metadata, TENSORS) == layout(METADATA, TENSORS)
    assert layout(source.metadata, TENSORS, split_max_bytes=500) == layout(METADATA, TENSORS, split_max_bytes=500)
    source.close()


def test_more_shards_than_llama_cpp_can_count_are_refused() -> None:
    tensors = [TensorInfo(f"t{number}", (1,), "F32", 4) for number in range(65_537)]
    with pytest.raises(ModelFormatError, match=r"split\.count"):
        layout({}, tensors, split_max_bytes=1)


@pytest.mark.slow
def test_llama_cpp_loads_shards_as_the_whole_file(tmp_path: Path, books_llama_base: Path) -> None:
    source = GGUFSource(books_llama_base)
    planned = layout(source.metadata, source.tensors, split_max_bytes=4 << 20)
    with GGUFWriter(tmp_path / "model.gguf", planned) as writer:
        for tensor in source.tensors:
            writer.write(source.raw_rows(tensor.name, 0, tensor.n_rows))
    source.close()
    assert len(writer.paths) > 2
    tokens = np.arange(1, 33, dtype=np.int32)
    with LoadedModel(books_llama_base, n_ctx=64) as whole, LoadedModel(writer.paths[0], n_ctx=64) as split:
        assert np.array_equal(whole.logits(tokens), split.logits(tokens))
    writer.paths[1].unlink()
    with pytest.raises(InferenceError):
        LoadedModel(writer.paths[0], n_ctx=64).__enter__()


# Whole or not at all


def write_and_stop(output: Path, planned: FileLayout, n_bytes: int) -> None:
    with GGUFWriter(output, planned) as writer:
        writer.write(ALL_DATA[:n_bytes])
        raise KeyboardInterrupt


@pytest.mark.parametrize("most", [None, 300])
def test_nothing_is_left_after_an_exception(tmp_path: Path, most: int | None) -> None:
    for n_bytes in (0, 50, 300, len(ALL_DATA)):
        with pytest.raises(KeyboardInterrupt):
            write_and_stop(tmp_path / "m.gguf", layout(METADATA, TENSORS, split_max_bytes=most), n_bytes)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n_bytes", [0, 1, 20, len(ALL_DATA) - 1])
def test_too_little_data_is_an_error(tmp_path: Path, n_bytes: int) -> None:
    with pytest.raises(OutputError, match="is incomplete"), GGUFWriter(tmp_path / "m.gguf", layout(METADATA, TENSORS)) as writer:
        writer.write(ALL_DATA[:n_bytes])
    assert list(tmp_path.iterdir()) == []


def test_too_much_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="more data than its tensors hold"), GGUFWriter(tmp_path / "m", layout({}, TENSORS)) as writer:
        writer.write(np.append(ALL_DATA, np.uint8(0)))
    assert list(tmp_path.iterdir()) == []


def test_a_closed_writer_takes_nothing(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", layout({}, TENSORS))
    with pytest.raises(OutputError, match=r"more data|not open"):
        writer.write(ALL_DATA)


@pytest.mark.parametrize("most", [None, 300])
def test_existing_files_stay_unless_replacing_is_asked_for(tmp_path: Path, most: int | None) -> None:
    planned = layout(METADATA, TENSORS, split_max_bytes=most)
    last = planned.paths(tmp_path / "m.gguf")[-1]
    last.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists"):
        write_all(tmp_path / "m.gguf", planned)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"precious"]
    with pytest.raises(RuntimeError), GGUFWriter(tmp_path / "m.gguf", planned, overwrite=True):
        raise RuntimeError
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"precious"]
    assert_holds_all(write_all(tmp_path / "m.gguf", planned, overwrite=True)[0])


def test_a_set_that_cannot_be_renamed_leaves_no_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = layout(METADATA, TENSORS, split_max_bytes=300)
    write_all(tmp_path / "m.gguf", planned)
    rename = Path.replace

    def refuse_second(path: Path, target: Path) -> Path:
        if "00002-of" in target.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", refuse_second)
    with pytest.raises(OutputError, match="Input/output error"):
        write_all(tmp_path / "m.gguf", planned, overwrite=True)
    assert not (tmp_path / "m-00001-of-00003.gguf").exists()
    assert not list(tmp_path.glob(".*"))


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "m.gguf", tmp_path / ("n" * 300), tmp_path / "sub" / ("n" * 250)):
        with pytest.raises(OutputError, match="cannot write"):
            write_all(output, layout({}, TENSORS))
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(OutputError, match=r"folder\.gguf"):
        write_all(tmp_path / "folder.gguf", layout({}, TENSORS), overwrite=True)


def test_permission_denied_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OutputError, match=r"cannot write .*m\.gguf: Permission denied"):
        write_all(tmp_path / "m.gguf", layout({}, TENSORS))


# Full disks


def test_a_disk_too_small_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(OutputError, match=r"1,000 bytes free, m\.gguf needs 1,\d{3}"):
        write_all(tmp_path / "m.gguf", layout(METADATA, TENSORS))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_at_the_flush_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_all(tmp_path / "m.gguf", layout(METADATA, TENSORS))
    assert list(tmp_path.iterdir()) == []


class FullDisk(io.FileIO):
    """Takes so many bytes and no more."""

    room = 0

    def write(self, data: Any) -> int:
        if len(memoryview(data)) > FullDisk.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        FullDisk.room -= len(memoryview(data))
        return super().write(data) or 0


@pytest.mark.parametrize("room", range(0, 1280, 99))
@pytest.mark.parametrize("most", [None, 300])
def test_a_disk_that_fills_up_at_any_byte_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, most: int | None
) -> None:
    planned = layout(METADATA, TENSORS, split_max_bytes=most)
    assert room < planned.size_bytes
    monkeypatch.setattr(FullDisk, "room", room)
    monkeypatch.setattr(Path, "open", lambda path, mode: FullDisk(path, mode))
    with pytest.raises(OutputError, match=r"cannot write .*: No space left on device"):
        write_all(tmp_path / "m.gguf", planned)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file sizes")
@pytest.mark.parametrize(("limit", "most"), [(10, 0), (100_000, 0), (1_000_000, 0), (300_000, 600_000), (100_000, 1)])
def test_a_file_that_may_not_grow_leaves_nothing(tmp_path: Path, limit: int, most: int) -> None:
    import resource

    tensors = [TensorInfo(f"t{number}", (256, 256), "F32", 262144) for number in range(4)]

    def write_zeros() -> None:
        with GGUFWriter(tmp_path / "m.gguf", layout({}, tensors, split_max_bytes=most or None)) as writer:
            for tensor in tensors:
                writer.write(np.zeros(tensor.size_bytes, dtype=np.uint8))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*File too large"):
            write_zeros()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
