"""From Hugging Face directories to bases: what llama.cpp's converter wrote is the golden file, and rows come in any range."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor

from gguf_description import describe
from quantailor.control import NullControl
from quantailor.errors import Cancelled, OutputError
from quantailor.models.convert.base import write_base
from quantailor.models.convert.vocabulary.sentencepiece import read_pieces
from quantailor.models.huggingface import HuggingFaceSource
from quantailor.models.identity import fingerprint
from quantailor.models.opening import open_model
from tiny_models import TINY, numbers, packed, safetensors_bytes, write_tiny

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "convert.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TINY)
def test_the_base_is_the_file_that_llama_cpp_wrote(name: str, tmp_path: Path) -> None:
    source = open_model(write_tiny(name, tmp_path))

    assert describe(write_base(source, tmp_path / "base.gguf")) == GOLDEN[name]
    source.close()


@pytest.mark.parametrize("model", ["books_llama_dir", "books_moe_dir"])
def test_trained_models_become_the_files_that_llama_cpp_wrote(model: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = open_model(folder := request.getfixturevalue(model))

    assert describe(write_base(source, tmp_path / "base.gguf")) == GOLDEN[folder.name]
    source.close()


def test_the_golden_file_holds_every_model() -> None:
    assert list(GOLDEN) == ["books-llama", "books-moe", *TINY]


@pytest.mark.parametrize("name", ["llama3", "mixtral", "biases", "linear-rope"])
def test_any_range_of_rows_is_a_part_of_the_whole(name: str, tmp_path: Path) -> None:
    source = open_model(write_tiny(name, tmp_path))
    for tensor in source.tensors:
        whole = source.raw_rows(tensor.name, 0, tensor.n_rows)
        assert whole.nbytes == tensor.size_bytes
        for start, stop in ((0, 1), (0, 0), (tensor.n_rows // 3, tensor.n_rows), (tensor.n_rows // 2, tensor.n_rows - 1)):
            assert np.array_equal(source.raw_rows(tensor.name, start, max(start, stop)), whole[start : max(start, stop)])
        with pytest.raises(IndexError, match=f"{tensor.n_rows} rows"):
            source.raw_rows(tensor.name, 0, tensor.n_rows + 1)
    source.close()


def test_a_directory_has_the_fingerprint_of_its_base(tmp_path: Path) -> None:
    source = open_model(write_tiny("mixtral", tmp_path))
    base = open_model(write_base(source, tmp_path / "base.gguf"))

    assert fingerprint(source) == fingerprint(base)
    source.close()
    base.close()


def test_a_directory_tells_what_it_holds(tmp_path: Path) -> None:
    source = HuggingFaceSource(write_tiny("llama3", tmp_path))

    assert source.name == "Tiny Llama 3.1 8B Instruct v2"
    assert source.architecture == "llama"
    assert source.config["rope_theta"] == 500000.0
    assert source.config_files == ("config.json", "tokenizer_config.json", "tokenizer.json")
    assert source.size_bytes == source.files[0].stat().st_size
    source.close()


def test_experts_are_one_tensor_per_matrix(tmp_path: Path) -> None:
    source = open_model(write_tiny("mixtral", tmp_path))

    assert source.tensor("blk.0.ffn_down_exps.weight").shape == (4, 64, 96)
    down = numbers("model.layers.0.block_sparse_moe.experts.2.w2.weight", (64, 96))
    assert source.raw_rows("blk.0.ffn_down_exps.weight", 2 * 64, 3 * 64).tobytes() == packed(down, "BF16")
    source.close()


def test_neighbours_are_rotated_together(tmp_path: Path) -> None:
    """Row i of a head and row i + half of it become neighbours."""
    source = open_model(write_tiny("linear-rope", tmp_path))
    stored = numbers("model.layers.0.self_attn.q_proj.weight", (64, 64)).astype(np.float16)

    rows = source.rows("blk.0.attn_q.weight", 0, 16)
    assert np.array_equal(rows, np.stack([stored[:8], stored[8:16]], axis=1).reshape(16, 64).astype(np.float32))
    source.close()


def test_tied_embeddings_have_no_output_tensor(tmp_path: Path) -> None:
    source = open_model(write_tiny("llama3-tied", tmp_path))
    names = [tensor.name for tensor in source.tensors]

    assert "output.weight" not in names
    assert names[0] == "rope_freqs.weight"
    source.close()


@pytest.mark.parametrize(("stored", "expected"), [("F16", "F16"), ("BF16", "BF16"), ("F32", "F16")])
def test_matrices_keep_their_16_bits(stored: str, expected: str, tmp_path: Path) -> None:
    folder = write_tiny("biases", tmp_path)
    _rewrite(folder, lambda name: stored)
    source = open_model(folder)

    assert {tensor.type_name for tensor in source.tensors if len(tensor.shape) > 1} == {expected}
    assert {tensor.type_name for tensor in source.tensors if len(tensor.shape) == 1} == {"F32"}
    source.close()


def test_numbers_are_rounded_to_the_nearest(tmp_path: Path) -> None:
    """The first 16-bit matrix decides; F32 beside it is rounded, ties to even."""
    folder = write_tiny("biases", tmp_path)
    _rewrite(folder, lambda name: "F32" if "embed" in name else "BF16")
    source = open_model(folder)

    values = numbers("model.embed_tokens.weight", (4096, 48))[:64]
    rows = source.rows("token_embd.weight", 0, 64)
    low, high = packed_floats(values), packed_floats(np.nextafter(values, np.float32(np.inf)) + np.abs(values) * np.float32(2**-7))
    assert source.tensor("token_embd.weight").type_name == "BF16"
    assert np.all(np.abs(rows - values) <= np.abs(high - low) / 2 + np.abs(values) * 2**-8)
    source.close()


def packed_floats(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """BF16 by truncation, as float32 again."""
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def _rewrite(folder: Path, dtype_of: Callable[[str], str]) -> None:
    """Write the arrays again in other types."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    shapes = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    arrays = {name: (dtype_of(name), shape, packed(numbers(name, shape), dtype_of(name))) for name, shape in shapes.items()}
    path.write_bytes(safetensors_bytes(arrays))


# Vocabularies


def test_pieces_are_those_of_the_sentencepiece_library(books_llama_dir: Path) -> None:
    path = books_llama_dir / "tokenizer.model"
    library = SentencePieceProcessor(model_file=str(path))
    pieces = read_pieces(path)

    assert [piece.text for piece in pieces] == [library.id_to_piece(number) for number in range(library.vocab_size())]
    assert [piece.score for piece in pieces] == [library.get_score(number) for number in range(library.vocab_size())]
    assert [piece.kind == 6 for piece in pieces] == [library.is_byte(number) for number in range(library.vocab_size())]
    assert [piece.kind == 3 for piece in pieces] == [library.is_control(number) for number in range(library.vocab_size())]


def test_both_formats_of_merges_are_the_same(tmp_path: Path) -> None:
    old = open_model(write_tiny("llama3", tmp_path))
    new = open_model(write_tiny("llama3-tied", tmp_path))

    assert old.metadata["tokenizer.ggml.merges"] == new.metadata["tokenizer.ggml.merges"]
    old.close()
    new.close()


@pytest.mark.parametrize(
    ("name", "pre"), [("llama3", "llama-bpe"), ("mistral-tekken", "tekken"), ("smollm", "smollm"), ("byte-fallback", "default")]
)
def test_pre_tokenizers_are_known_by_their_definition(name: str, pre: str, tmp_path: Path) -> None:
    source = open_model(write_tiny(name, tmp_path))

    assert source.metadata["tokenizer.ggml.pre"].value == pre
    source.close()


# Whole or not at all


class StopsAfter(NullControl):
    """Cancels at the n-th safe point."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.messages: list[str] = []

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Cancelled("stop")

    def advance(self, done: float, total: float, message: str = "") -> None:
        self.messages.append(f"{done / total:.3f} {message}")


def test_a_cancelled_conversion_leaves_nothing(tmp_path: Path) -> None:
    source = open_model(write_tiny("llama2", tmp_path))
    control = StopsAfter(3)

    with pytest.raises(Cancelled):
        write_base(source, tmp_path / "out" / "base.gguf", control=control)
    assert list((tmp_path / "out").iterdir()) == []
    assert len(control.messages) == 3
    source.close()


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    source = open_model(write_tiny("llama2", tmp_path))
    control = StopsAfter(10_000)
    write_base(source, tmp_path / "base.gguf", control=control)

    assert control.messages[-1].startswith("1.000")
    source.close()


def test_an_existing_base_is_kept(tmp_path: Path) -> None:
    source = open_model(write_tiny("llama2", tmp_path))
    (tmp_path / "base.gguf").write_bytes(b"precious")

    with pytest.raises(OutputError, match="exists"):
        write_base(source, tmp_path / "base.gguf")
    assert (tmp_path / "base.gguf").read_bytes() == b"precious"
    write_base(source, tmp_path / "base.gguf", overwrite=True)
    source.close()
