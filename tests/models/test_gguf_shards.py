"""Shards and pieces of files: what was done to them is told, with what their names must look like."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from gguf_models import write_llama
from quantailor.errors import ModelError, ModelFormatError
from quantailor.models.opening import open_model


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """A model in three shards."""
    write_llama(tmp_path / "in" / "tiny.gguf", tensors_per_shard=4)
    return sorted((tmp_path / "in").iterdir())


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "whole.gguf")


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        open_model(path)
    return str(caught.value)


def copied(shards: list[Path], folder: Path, name: Callable[[int], str]) -> list[Path]:
    folder.mkdir()
    return [Path(shutil.copyfile(shard, folder / name(number))) for number, shard in enumerate(shards, start=1)]


def test_shards_joined_byte_by_byte(shards: list[Path], tmp_path: Path) -> None:
    joined = tmp_path / "joined.gguf"
    joined.write_bytes(b"".join(shard.read_bytes() for shard in shards))
    line = refused(joined)
    assert "joined byte by byte" in line
    assert "begins with shard 1 of 3" in line
    assert "llama-gguf-split --merge FIRST_SHARD OUTPUT" in line


def test_merged_shards_are_one_file(tmp_path: Path) -> None:
    """llama-gguf-split --merge leaves the shards' entries, with a count of 0."""
    path = write_llama(tmp_path / "merged.gguf", metadata={"split.no": 0, "split.count": 0, "split.tensors.count": 12})
    with closing(open_model(path)) as source:
        assert source.files == (path,)


@pytest.mark.parametrize("name", ["TINY-{:05d}-OF-00003.GGUF", "tiny-{:05d}-of-00003-0f3a91c2.gguf", "tiny-{:04d}-of-0003.gguf", "{}.gguf"])
def test_names_that_are_no_shards_names(shards: list[Path], tmp_path: Path, name: str) -> None:
    for number, path in enumerate(copied(shards, tmp_path / "renamed", name.format), start=1):
        line = refused(path)
        assert f"{path} is shard {number} of 3, which its name does not say" in line
        assert "NAME-00001-of-00003.gguf, NAME-00002-of-00003.gguf, NAME-00003-of-00003.gguf" in line


def test_shards_of_several_stems(shards: list[Path], tmp_path: Path) -> None:
    paths = copied(shards, tmp_path / "stems", lambda number: f"{'abc'[number - 1]}-{number:05d}-of-00003.gguf")
    line = refused(paths[0])
    assert f"{paths[0]} is shard 1 of 3, but shard 2 beside it is called b-00002-of-00003.gguf" in line
    assert "Name the shards a-00001-of-00003.gguf, a-00002-of-00003.gguf, a-00003-of-00003.gguf" in line


def test_a_shard_that_is_elsewhere_is_named(shards: list[Path]) -> None:
    shards[1].unlink()
    assert refused(shards[0]) == f"the shard {shards[1]} is missing. Put all shards into one directory"


def test_a_shard_twice(shards: list[Path]) -> None:
    shutil.copyfile(shards[1], shards[2])
    line = refused(shards[0])
    assert f"{shards[2]}" in line
    assert "another shard" in line or "says that it is shard 2 of 3; its name says 3 of 3" in line


def test_shards_in_another_order(shards: list[Path], tmp_path: Path) -> None:
    paths = copied(shards, tmp_path / "order", lambda number: f"tiny-{(number % 3) + 1:05d}-of-00003.gguf")
    assert "says that it is shard 3 of 3; its name says 1 of 3" in refused(paths[0])


def test_a_shard_of_another_model(shards: list[Path], tmp_path: Path) -> None:
    write_llama(tmp_path / "other" / "tiny.gguf", tensors_per_shard=4, more={"blk.0.attn_q.bias": (256,)})
    other = sorted((tmp_path / "other").iterdir())
    shutil.copyfile(other[0], shards[0])
    shutil.copyfile(other[0].with_name("tiny-00003-of-00004.gguf"), shards[2])
    assert "shard 1 of 4; its name says 1 of 3" in refused(shards[1])


def test_shards_of_models_with_other_tensors(shards: list[Path], tmp_path: Path) -> None:
    write_llama(tmp_path / "other" / "tiny.gguf", tensors_per_shard=5, more={"blk.0.extra.weight": (2, 256)})
    shutil.copyfile(sorted((tmp_path / "other").iterdir())[2], shards[2])
    line = refused(shards[0])
    assert "hold 11 tensors, not 12" in line
    assert "of another model" in line


def test_a_number_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    writer = GGUFWriter(str(path), "llama")
    writer.add_string("split.no", "first")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "where a shard's number is" in refused(path)


def test_pieces_of_a_file_say_how_they_are_joined(whole: Path, tmp_path: Path) -> None:
    data, folder = whole.read_bytes(), tmp_path / "two pieces"
    folder.mkdir()
    pieces = [folder / f"big model.gguf.part{number}of2" for number in (1, 2)]
    for piece, part in zip(pieces, (data[: len(data) // 2], data[len(data) // 2 :]), strict=True):
        piece.write_bytes(part)
    first, second = (refused(piece) for piece in pieces)
    assert "the first of 2 pieces of big model.gguf" in first
    assert "the second of 2 pieces of big model.gguf" in second
    command = first.split("byte by byte: ")[1]
    subprocess.run(["/bin/sh", "-c", command], check=True)
    with closing(open_model(folder / "big model.gguf")) as source, closing(open_model(whole)) as expected:
        assert source.tensors == expected.tensors
    pieces[1].unlink()
    assert "Put all 2 pieces into one directory, where 1 lie now" in refused(pieces[0])


@pytest.mark.parametrize("names", [("x.gguf-split-a", "x.gguf-split-b"), ("x.gguf.1", "x.gguf.2"), ("x.gguf.aa", "x.gguf.ab")])
def test_other_programs_pieces(whole: Path, tmp_path: Path, names: tuple[str, str]) -> None:
    data = whole.read_bytes()
    for name, part in zip(names, (data[: len(data) // 2], data[len(data) // 2 :]), strict=True):
        (tmp_path / name).write_bytes(part)
    line = refused(tmp_path / names[1])
    assert f"{names[1]} is a piece of x.gguf" in line
    assert f"cat {tmp_path / names[0]} {tmp_path / names[1]} > {tmp_path / 'x.gguf'}" in line


def test_a_file_that_is_merely_short_is_called_truncated(whole: Path) -> None:
    whole.write_bytes(whole.read_bytes()[:-1000])
    with pytest.raises(ModelFormatError, match="truncated"):
        open_model(whole)


def test_shards_under_any_stem_open(shards: list[Path], tmp_path: Path) -> None:
    for stem in ("model.shard", "mein mödell"):
        paths = copied(shards, tmp_path / stem, lambda number, stem=stem: f"{stem}-{number:05d}-of-00003.gguf")  # type: ignore[misc]
        with closing(open_model(paths[2])) as source:
            assert len(source.tensors) == 12


def test_shards_joined_under_the_name_of_the_first(shards: list[Path]) -> None:
    data = b"".join(shard.read_bytes() for shard in shards)
    for shard in shards:
        shard.unlink()
    shards[0].write_bytes(data)
    assert "is shards joined byte by byte" in refused(shards[0])


def test_whole_files_joined_byte_by_byte(whole: Path) -> None:
    whole.write_bytes(whole.read_bytes() * 2)
    assert f"{whole} is several GGUF files joined byte by byte: another one begins behind its last tensor" in refused(whole)


def test_a_whole_file_that_is_called_a_shard(whole: Path, tmp_path: Path) -> None:
    path = whole.rename(tmp_path / "m-00001-of-00003.gguf")
    assert f"{path} is a whole model, though its name says shard 1 of 3. Give it another name, such as m.gguf" in refused(path)


@pytest.mark.parametrize(
    ("name", "says"), [(lambda k: f"t-{k - 1:05d}-of-00003.gguf", "0 of 3"), (lambda k: f"t-{k:05d}-of-00004.gguf", "1 of 4")]
)
def test_shards_that_are_counted_in_another_way(shards: list[Path], tmp_path: Path, name: Callable[[int], str], says: str) -> None:
    path = copied(shards, tmp_path / "counted", name)[0]
    line = refused(path)
    assert f"{path} says that it is shard 1 of 3; its name says {says}" in line
    assert "Name the shards t-00001-of-00003.gguf, t-00002-of-00003.gguf, t-00003-of-00003.gguf" in line


def test_pieces_as_split_calls_them(whole: Path, tmp_path: Path) -> None:
    data, folder = whole.read_bytes(), tmp_path / "cut"
    folder.mkdir()
    pieces = [folder / "xaa", folder / "xab"]
    for piece, part in zip(pieces, (data[: len(data) // 2], data[len(data) // 2 :]), strict=True):
        piece.write_bytes(part)
    for piece in pieces:
        line = refused(piece)
        assert f"{piece} is a piece of a file that was cut apart with split" in line
        assert f"cat {pieces[0]} {pieces[1]} > {folder / 'model.gguf'}" in line


def test_half_a_download_is_called_one(whole: Path) -> None:
    path = whole.with_name("m.gguf.crdownload")
    path.write_bytes(whole.read_bytes()[:-1000])
    assert f"{path} is a download that was not finished. Finish it" in refused(path)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"PK\x03\x04", "is a zip archive or a PyTorch checkpoint, not a GGUF file. Unpack it"),
        (b"\x1f\x8b\x08\x00", "is a gzip archive, not a GGUF file. Unpack it"),
        (b"tjgg\x03\x00\x00\x00", "is in a format of ggml older than GGUF, which llama.cpp no longer reads"),
        (b'\x40\x00\x00\x00\x00\x00\x00\x00{"a":', "is a safetensors file. Give the directory that it lies in"),
        (bytes(8), "is a file that begins with zeros alone, as an unfinished download does, not a GGUF file. Download the file again"),
        (b"L\x00\x00\x00\x01\x14\x02\x00", "is a Windows shortcut, not a GGUF file. Copy what the shortcut leads to"),
        (b"whatever", "is not a GGUF file. Give a GGUF file or a Hugging Face directory"),
    ],
)
def test_a_file_of_another_format_is_called_by_its_name(start: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(start + bytes(1000))
    assert f"{path} {said}" in refused(path)
