"""Reference files from llama.cpp's own quantizer, in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from gguf_models import write_llama
from quantailor.control import NullControl
from quantailor.errors import (
    AlreadyQuantizedError,
    Cancelled,
    CrashError,
    ImatrixError,
    InferenceError,
    OutputError,
    QuantailorError,
    TypeUnavailableError,
)
from quantailor.ggml import reference
from quantailor.ggml.reference import preset_name, quantize_reference
from quantailor.ggml.runtime import tokenizer
from quantailor.processes import apart
from quantailor.strategy.interchange import exact_pattern


def types_of(path: Path) -> dict[str, str]:
    return {str(tensor.name): tensor.tensor_type.name for tensor in GGUFReader(path).tensors}


class CountingControl(NullControl):
    """Remembers progress; cancels once `limit` tensors are done."""

    def __init__(self, limit: float = float("inf")) -> None:
        self.limit, self.done, self.total = limit, 0.0, 0.0

    def check(self) -> None:
        if self.done >= self.limit:
            raise Cancelled("enough")

    def advance(self, done: float, total: float, message: str = "") -> None:
        self.done, self.total = done, total


def test_a_preset_gives_llama_cpps_mix(books_llama_base: Path, tmp_path: Path) -> None:
    control = CountingControl()
    types = types_of(quantize_reference(books_llama_base, tmp_path / "q.gguf", preset="Q4_K_M", control=control))
    assert types["blk.0.attn_q.weight"] == "Q4_K"
    assert types["output.weight"] == "Q6_K"
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert control.done == control.total == len(types)


def test_overrides_win_over_one_type_for_all(books_moe_base: Path, tmp_path: Path) -> None:
    overrides = [(exact_pattern("blk.0.attn_q.weight"), "Q6_K"), ("ffn_down_exps", "NVFP4")]
    types = types_of(quantize_reference(books_moe_base, tmp_path / "q.gguf", type_name="Q3_K", overrides=overrides))
    assert types["blk.0.attn_q.weight"] == "Q6_K"
    assert types["blk.5.ffn_down_exps.weight"] == "NVFP4"
    assert types["output.weight"] == types["token_embd.weight"] == "Q3_K"
    assert types["blk.0.ffn_gate_inp.weight"] == "F32"


def test_metadata_is_written(small_base: Path, tmp_path: Path) -> None:
    metadata: dict[str, str | int] = {"quantize.imatrix.file": "x" * 200, "quantize.imatrix.chunks_count": 7}
    reader = GGUFReader(quantize_reference(small_base, tmp_path / "q.gguf", preset="Q8_0", metadata=metadata))
    assert reader.fields["quantize.imatrix.file"].contents() == "x" * 127
    assert reader.fields["quantize.imatrix.chunks_count"].contents() == 7


@pytest.mark.parametrize("preset", ["Q4_K_M", *(pytest.param(name, marks=pytest.mark.slow) for name in ("Q3_K_M", "MXFP4_MOE"))])
def test_a_presets_types_are_known_without_quantizing(books_llama_base: Path, tmp_path: Path, preset: str) -> None:
    imatrix = {name: np.ones(256 if "down" not in name else 768, np.float32) for name in types_of(books_llama_base)}
    written = types_of(quantize_reference(books_llama_base, tmp_path / "q.gguf", preset=preset, imatrix=imatrix))
    quantized = {name: type_name for name, type_name in written.items() if type_name != "F32"}
    assert reference.preset_types(books_llama_base, preset, imatrix=imatrix) == quantized


@pytest.mark.parametrize(("text", "name"), [("q4_k_m", "Q4_K_M"), ("Q4_K", "Q4_K_M"), ("iq2_xxs", "IQ2_XXS")])
def test_presets_are_known_by_their_aliases(text: str, name: str) -> None:
    assert preset_name(text) == name


def test_an_unknown_preset_is_refused_with_the_list() -> None:
    with pytest.raises(TypeUnavailableError, match=r"no preset Q9_K.*Q4_K_M"):
        preset_name("Q9_K")


def test_patterns_match_one_tensor_only() -> None:
    assert exact_pattern("blk.1.attn_q.weight") == r"^blk\.1\.attn_q\.weight$"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"preset": "IQ2_XS"}, ImatrixError, "imatrix"),
        ({"preset": "Q4_0", "imatrix": {"blk.0.attn_q.weight": np.ones(5, np.float32)}}, ImatrixError, r"blk\.0\.attn_q"),
        ({"preset": "Q4_0", "imatrix": {"blk.0.attn_q.weight": np.full(256, np.nan, np.float32)}}, ImatrixError, "NaN"),
        ({"preset": "NVFP4"}, TypeUnavailableError, "39"),
        ({"type_name": "Q9_K"}, TypeUnavailableError, "Q9_K"),
        ({"preset": "Q8_0", "overrides": [("(", "Q4_0")]}, InferenceError, "regular expression"),
    ],
)
def test_failures_are_told_and_leave_nothing(
    books_llama_base: Path, tmp_path: Path, options: Mapping[str, Any], error: type[QuantailorError], message: str
) -> None:
    with pytest.raises(error, match=message):
        quantize_reference(books_llama_base, tmp_path / "q.gguf", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_source_is_refused_unless_asked_for(small_base: Path, tmp_path: Path) -> None:
    small = quantize_reference(small_base, tmp_path / "q8.gguf", preset="Q8_0")
    with pytest.raises(AlreadyQuantizedError):
        quantize_reference(small, tmp_path / "q4.gguf", preset="Q4_0")
    assert quantize_reference(small, tmp_path / "q4.gguf", preset="Q4_0", allow_requantize=True).exists()


def test_a_file_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(InferenceError, match=r"text\.gguf"):
        quantize_reference(tmp_path / "text.gguf", tmp_path / "q.gguf", preset="Q8_0")


def test_an_unwritable_folder_is_an_output_error(small_base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        quantize_reference(small_base, tmp_path / "file" / "q.gguf", preset="Q8_0")


def test_a_cancelled_run_leaves_nothing(small_base: Path, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        quantize_reference(small_base, tmp_path / "q.gguf", preset="Q2_K", control=CountingControl(limit=5))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_check_keeps_the_final_name_free(small_base: Path, tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        raise OutputError(f"{path.name} looks wrong")

    with pytest.raises(OutputError, match="looks wrong"):
        quantize_reference(small_base, tmp_path / "q.gguf", preset="Q8_0", check=refuse)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_ends_the_quantizer_is_an_error(tmp_path: Path) -> None:
    """A mixture of experts that uses none of them."""
    model = write_llama(tmp_path / "none.gguf", metadata={"llama.expert_count": 4, "llama.expert_used_count": 0})
    with pytest.raises(CrashError, match=r"while quantizing .*none\.gguf to Q8_0: aborted, SIGABRT: .*GGML_ASSERT"):
        quantize_reference(model, tmp_path / "q.gguf", preset="Q8_0")
    assert list(tmp_path.iterdir()) == [model]


def test_a_model_that_cannot_be_loaded_is_told_the_same_way_afterwards(small_base: Path, tmp_path: Path) -> None:
    """Both read llama.cpp's messages, in the same process."""
    (tmp_path / "text.gguf").write_text("no model")
    quantize_reference(small_base, tmp_path / "q.gguf", preset="Q8_0")
    with pytest.raises(InferenceError, match="invalid magic characters"):
        apart.call(tokenizer, tmp_path / "text.gguf")
