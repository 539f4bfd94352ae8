"""`fit`: what a context takes is llama.cpp's own account, and what fits beside it follows."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Command, validate

from quantailor.ggml.memory import context_memory
from small_base import HIDDEN, N_LAYERS, write_small_base

N_CTX = 4096
KV_BYTES = 2 * 2 * N_LAYERS * HIDDEN * N_CTX
"""Keys and values of every layer in 16 bits."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_base(tmp_path_factory.mktemp("base") / "base.gguf")


@pytest.mark.parametrize(("kv_type", "bits"), [("f16", 16), ("q8_0", 8.5), ("q4_0", 4.5)])
def test_keys_and_values_take_what_their_type_takes(base: Path, kv_type: str, bits: float) -> None:
    found = context_memory(base, n_ctx=N_CTX, kv_type=kv_type)
    assert found.kv_bytes == pytest.approx(KV_BYTES * bits / 16, rel=0.002)
    assert found.compute_bytes > 0


def test_the_best_file_that_fits_is_named_with_its_flags(quantailor: Command, base: Path, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    sizes = {}
    for preset in ("Q4_K_M", "Q8_0"):
        building = ("build", base, preset, "-o", tmp_path / f"{preset}.gguf", "--imatrix", "none", *home, "--json")
        sizes[preset] = quantailor(*building).result["size_bytes"]
    context = context_memory(base, n_ctx=N_CTX, kv_type="q8_0")
    taken = context.kv_bytes + context.compute_bytes + context.output_bytes
    words = ("fit", base, "--ctx", N_CTX, "--kv", "q8_0", *home)
    outcome = quantailor(*words, "--memory", taken + sizes["Q8_0"] - 1, "--json")
    validate(outcome.out)
    found = outcome.result
    assert found["room_bytes"] == sizes["Q8_0"] - 1
    assert found["best"] == str(tmp_path / "Q4_K_M.gguf")
    assert found["run_command"] == f"llama-server -m {tmp_path}/Q4_K_M.gguf -c {N_CTX} -ctk q8_0 -ctv q8_0 -fa on"
    fits = {Path(each["name"]).name: each["fits"] for each in found["files"]}
    assert (fits["base.gguf"], fits["Q8_0.gguf"], fits["Q4_K_M.gguf"], fits["Q4_K_M"]) == (False, False, True, True)
    assert f"make {base} --size {sizes['Q8_0'] - 1} -o out" in found["make_command"]
    assert "The model was made for 512 tokens." in quantailor(*words, "--memory", "1GiB").out


def test_what_does_not_fit_at_all_is_told(quantailor: Command, base: Path, tmp_path: Path) -> None:
    words = ("fit", base, "--ctx", N_CTX, "--home", tmp_path / "home")
    line = quantailor(*words, "--memory", "1MiB").error_line
    assert "a context of 4,096 tokens takes" in line
    assert "Give a smaller --ctx, another --kv such as q8_0, or more --memory" in line
    assert "keeps no keys and values in q9_9. Give --kv f32, f16" in quantailor(*words, "--memory", "1GiB", "--kv", "q9_9").error_line
