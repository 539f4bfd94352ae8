"""Importance matrices as files, llama.cpp's and ours, intact and damaged."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from quantailor.analysis.importance.imatrix import Imatrix, ImatrixEntry, quantizer_importance
from quantailor.analysis.importance.imatrix_file import read_imatrix, write_imatrix
from quantailor.errors import ImatrixError, OutputError, QuantailorError
from quantailor.records import TensorInfo

GOLDEN = Path(__file__).parent.parent / "golden"
NEW = GOLDEN / "imatrix-books-llama-2-chunks.gguf"
LEGACY = GOLDEN / "imatrix-books-llama-2-chunks.dat"


def test_a_file_of_llama_imatrix() -> None:
    imatrix = read_imatrix(NEW)
    assert (len(imatrix.entries), imatrix.chunk_count, imatrix.chunk_size) == (56, 2, 512)
    assert imatrix.datasets == ("tests/data/calibration.txt",)
    assert imatrix.entries["blk.0.ffn_down.weight"].sum2.shape == (1, 768)
    assert imatrix.entries["blk.0.ffn_down.weight"].counts.tolist() == [1024]
    assert imatrix.token_counts is None
    assert not imatrix.error_only


def test_experts_of_llama_imatrix() -> None:
    entry = read_imatrix(GOLDEN / "imatrix-books-moe.gguf").entries["blk.0.ffn_up_exps.weight"]
    assert entry.sum2.shape == (8, 256)
    assert entry.counts.sum() == 2 * 66 * 512


def test_the_legacy_file_gives_the_same_importances() -> None:
    new, legacy = read_imatrix(NEW), read_imatrix(LEGACY)
    assert list(legacy.entries) == list(new.entries)
    assert (legacy.chunk_count, legacy.datasets) == (2, new.datasets)
    for name, entry in new.entries.items():
        tensor = TensorInfo(name, (4, entry.sum2.size), "F16", 0)
        ours, theirs = quantizer_importance(legacy, tensor), quantizer_importance(new, tensor)
        assert ours is not None
        assert theirs is not None
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_the_legacy_file_is_the_one_that_llama_imatrix_writes(tmp_path: Path) -> None:
    assert write_imatrix(read_imatrix(NEW), tmp_path / "ours.dat").read_bytes() == LEGACY.read_bytes()


def test_experts_that_no_token_reached_count_as_ones_in_a_legacy_file(tmp_path: Path) -> None:
    squares = np.array([[3.0, 6.0], [5.0, 9.0]], np.float32)
    entries = {
        "blk.0.ffn_up_exps.weight": ImatrixEntry(squares, np.array([600, 0])),
        "blk.1.ffn_up_exps.weight": ImatrixEntry(squares, np.array([0, 0])),
    }
    path = write_imatrix(Imatrix(entries, chunk_count=2, chunk_size=512), tmp_path / "experts.dat")
    found = read_imatrix(path)
    assert list(found.entries) == ["blk.0.ffn_up_exps.weight"]
    means = found.entries["blk.0.ffn_up_exps.weight"].sum2 / found.entries["blk.0.ffn_up_exps.weight"].counts
    np.testing.assert_allclose(means[0], [3 / 600, 6 / 600, 1.0, 1.0], rtol=1e-6)


def test_what_is_written_is_read_back(tmp_path: Path, full: Imatrix) -> None:
    path = write_imatrix(full, tmp_path / "sub" / "imatrix.gguf")
    found = read_imatrix(path)
    assert found.fingerprint == full.fingerprint
    assert found.datasets == full.datasets
    assert list(found.error_only) == ["output.weight"]
    assert found.token_counts is not None
    assert found.token_counts.tolist() == [5, 0, 7]
    again = write_imatrix(found, tmp_path / "again.gguf")
    assert again.read_bytes() == path.read_bytes()


def test_the_legacy_file_written_as_gguf_keeps_its_importances(tmp_path: Path) -> None:
    legacy = read_imatrix(LEGACY)
    assert read_imatrix(write_imatrix(legacy, tmp_path / "new.gguf")).fingerprint == legacy.fingerprint


def test_a_file_of_llama_imatrix_is_written_as_it_was(tmp_path: Path) -> None:
    ours = gguf.GGUFReader(write_imatrix(read_imatrix(NEW), tmp_path / "copy.gguf"))
    theirs = gguf.GGUFReader(NEW)
    assert list(ours.fields) == list(theirs.fields)
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert (mine.name, mine.tensor_type, mine.n_elements) == (other.name, other.tensor_type, other.n_elements)
        assert mine.data.tobytes() == other.data.tobytes()


def test_our_additions_have_names_that_llama_cpp_skips(tmp_path: Path, full: Imatrix) -> None:
    names = {tensor.name for tensor in gguf.GGUFReader(write_imatrix(full, tmp_path / "full.gguf")).tensors}
    read_by_llama_cpp = {name for name in names if name.endswith((".in_sum2", ".counts"))}
    assert read_by_llama_cpp == {f"{name}{suffix}" for name in full.entries for suffix in (".in_sum2", ".counts")}
    assert "output.weight.error_sum2" in names


def test_an_existing_file_is_kept(tmp_path: Path, full: Imatrix) -> None:
    path = tmp_path / "imatrix.gguf"
    path.write_text("precious", encoding="utf-8")
    with pytest.raises(OutputError, match="exists"):
        write_imatrix(full, path)
    assert path.read_text(encoding="utf-8") == "precious"
    write_imatrix(full, path, overwrite=True)
    assert read_imatrix(path).fingerprint == full.fingerprint


def test_nothing_and_unwritable_names_are_refused(tmp_path: Path, full: Imatrix) -> None:
    with pytest.raises(ImatrixError, match="is empty"):
        write_imatrix(Imatrix({}), tmp_path / "empty.gguf")
    with pytest.raises(ImatrixError, match="too long"):
        write_imatrix(Imatrix({"blk.0." + "x" * 60: full.entries["blk.0.attn_q.weight"]}), tmp_path / "long.gguf")
    assert not list(tmp_path.iterdir())


# Damage


@pytest.mark.parametrize("content", [b"", b"\0", b"GGUF", b"GG", b"\xff" * 64, struct.pack("<i", 0), struct.pack("<i", -1)])
def test_files_that_are_no_importance_matrix(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(ImatrixError):
        read_imatrix(path)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(ImatrixError, match="cannot read"):
            read_imatrix(path)


def test_a_model_is_no_importance_matrix(books_llama_base: Path) -> None:
    with pytest.raises(ImatrixError, match="is not an importance matrix"):
        read_imatrix(books_llama_base)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_values_that_no_sum_of_squares_has(tmp_path: Path, full: Imatrix, value: float) -> None:
    broken = {name: ImatrixEntry(entry.sum2.copy(), entry.counts, entry.sum) for name, entry in full.entries.items()}
    broken["blk.0.attn_q.weight"].sum2[0, 1] = value
    path = write_imatrix(Imatrix(broken), tmp_path / "broken.gguf")
    with pytest.raises(ImatrixError, match=r"blk\.0\.attn_q\.weight\.in_sum2 .* has the value"):
        read_imatrix(path)
    path.write_bytes(legacy_bytes({"blk.0.attn_q.weight": [1.0, value]}))
    with pytest.raises(ImatrixError, match="has the value"):
        read_imatrix(path)


@pytest.mark.parametrize("count", [-1.0, np.nan])
def test_counts_that_nothing_has(tmp_path: Path, count: float) -> None:
    path = tmp_path / "broken.gguf"
    write_raw(path, {"x.in_sum2": np.ones((1, 2)), "x.counts": np.full((1, 1), count)})
    with pytest.raises(ImatrixError, match="count that is negative"):
        read_imatrix(path)


def test_halves_of_entries(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    write_raw(path, {"x.in_sum2": np.ones((1, 2))})
    with pytest.raises(ImatrixError, match=r"has no x\.counts"):
        read_imatrix(path)
    write_raw(path, {"x.in_sum2": np.ones((1, 3)), "x.counts": np.ones((2, 1))})
    with pytest.raises(ImatrixError, match="3 values for 2 counts"):
        read_imatrix(path)
    write_raw(path, {"x.other": np.ones((1, 3))})
    with pytest.raises(ImatrixError, match="holds no importance matrix"):
        read_imatrix(path)


def test_a_legacy_file_without_its_tail(tmp_path: Path) -> None:
    path = tmp_path / "old.dat"
    path.write_bytes(legacy_bytes({"blk.0.attn_q.weight": [4.0, 8.0]}, n_calls=4))
    found = read_imatrix(path)
    assert (found.chunk_count, found.datasets) == (4, ())
    importance = quantizer_importance(found, TensorInfo("blk.0.attn_q.weight", (3, 2), "F16", 12))
    assert importance is not None
    assert importance.tolist() == [[1.0, 2.0]]


def test_a_legacy_value_too_large_to_scale(tmp_path: Path) -> None:
    path = tmp_path / "large.dat"
    path.write_bytes(legacy_bytes({"blk.0.attn_q.weight": [1.0, 3e38]}))
    with pytest.raises(ImatrixError, match="has the value inf"):
        read_imatrix(path)


def test_a_legacy_file_that_names_a_tensor_twice(tmp_path: Path) -> None:
    path = tmp_path / "twice.dat"
    once = legacy_bytes({"a": [1.0]})
    path.write_bytes(struct.pack("<i", 2) + once[4:] * 2)
    with pytest.raises(ImatrixError, match="corrupt at the entry 'a'"):
        read_imatrix(path)


def test_every_truncation_is_noticed(tmp_path: Path, full: Imatrix) -> None:
    whole = write_imatrix(full, tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "part"
    last_value = len(whole.rstrip(b"\0"))
    for size in range(0, last_value - 4, 3):
        path.write_bytes(whole[:size])
        with pytest.raises(ImatrixError):
            read_imatrix(path)
    old = legacy_bytes({"blk.0.attn_q.weight": [1.0, 2.0], "blk.0.attn_k.weight": [3.0]})
    for size in range(len(old) - 1):
        path.write_bytes(old[:size])
        with pytest.raises(ImatrixError):
            read_imatrix(path)


@pytest.mark.slow
def test_random_damage_never_crashes(tmp_path: Path, full: Imatrix) -> None:
    rng = np.random.default_rng(11)
    samples = [
        write_imatrix(full, tmp_path / "whole.gguf").read_bytes(),
        legacy_bytes({"blk.0.attn_q.weight": [1.0, 2.0], "blk.0.attn_k.weight": [3.0]}),
    ]
    path, outcomes = tmp_path / "damaged", set()
    for _ in range(6000):
        data = np.frombuffer(samples[rng.integers(2)], dtype=np.uint8).copy()
        places = rng.integers(0, data.size, size=rng.integers(1, 6))
        data[places] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, *rng.integers(0, 256, 3)], size=places.size)
        path.write_bytes(data.tobytes())
        try:
            read_imatrix(path)
            outcomes.add("read")
        except QuantailorError as error:
            outcomes.add(type(error).__name__)
    assert outcomes == {"read", "ImatrixError"}


def legacy_bytes(entries: dict[str, list[float]], *, n_calls: int = 1) -> bytes:
    parts = [struct.pack("<i", len(entries))]
    for name, values in entries.items():
        parts.append(struct.pack(f"<i{len(name)}sii{len(values)}f", len(name), name.encode(), n_calls, len(values), *values))
    return b"".join(parts)


def write_raw(path: Path, tensors: dict[str, np.ndarray]) -> None:
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_array("imatrix.datasets", ["text"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, values in tensors.items():
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def full() -> Imatrix:
    """An importance matrix with everything in it."""
    rng = np.random.default_rng(2)

    def entry(n_mat: int, n_cols: int, *, sums: bool) -> ImatrixEntry:
        values = rng.random((n_mat, n_cols), dtype=np.float32)
        return ImatrixEntry(values, np.arange(1, n_mat + 1), values - np.float32(0.5) if sums else None)

    entries = {
        "blk.0.attn_k.weight": entry(1, 5, sums=False),
        "blk.0.attn_q.weight": entry(1, 8, sums=True),
        "blk.0.ffn_up_exps.weight": entry(4, 6, sums=True),
    }
    return Imatrix(entries, {"output.weight": entry(1, 8, sums=True)}, np.array([5, 0, 7]), ("a.txt", "ü.txt"), 3, 512)
