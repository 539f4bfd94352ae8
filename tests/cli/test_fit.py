"""`fit`: what a context takes is llama.cpp's own account, and what fits beside it follows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Command, validate

from quantailor import cli
from quantailor.ggml.memory.context import context_memory
from small_base import HIDDEN, INNER, N_LAYERS, write_small_base

N_CTX = 4096
KV_BYTES = 2 * 2 * N_LAYERS * HIDDEN * N_CTX
"""Keys and values of every layer in 16 bits."""
FLAGS = f"-c {N_CTX} -ctk q8_0 -ctv q8_0 -fa on -np 1 --cache-ram 0 --load-mode none"
MIB = 2**20
NOISE_BYTES = 3 << 20
"""By which the peak of one and the same process differs from time to time, whatever the file: a tenth of these small ones."""
PEAK = Path(__file__).parents[1] / "ggml" / "peak_memory.py"


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
    words = ("fit", base, "--ctx", N_CTX, "--kv", "q8_0", *home)
    taken = context_memory(base, n_ctx=N_CTX, kv_type="q8_0").total_bytes
    outcome = quantailor(*words, "--memory", taken + (sizes["Q8_0"] + sizes["Q4_K_M"]) // 2, "--json")
    validate(outcome.out)
    found = outcome.result
    parts = sum(found[f"{part}_bytes"] for part in ("kv", "compute", "output", "program"))
    assert found["room_bytes"] == found["memory_bytes"] - parts
    assert all(each["fits"] == (each["size_bytes"] <= found["room_bytes"]) for each in found["files"])
    best = max((name for name in sizes if sizes[name] <= found["room_bytes"]), key=lambda name: sizes[name])
    assert found["best"] == f"{tmp_path}/{best}.gguf"
    assert found["run_command"] == f"llama-server -m {tmp_path}/{best}.gguf {FLAGS}"
    assert f"make {base} --size {found['room_bytes']} -o out" in found["make_command"]
    assert "The model was made for 512 tokens." in quantailor(*words, "--memory", "1GiB").out


def test_what_does_not_fit_at_all_is_told(quantailor: Command, base: Path, tmp_path: Path) -> None:
    words = ("fit", base, "--ctx", N_CTX, "--home", tmp_path / "home")
    line = quantailor(*words, "--memory", "1MiB").error_line
    assert "a context of 4,096 tokens takes" in line
    assert "Give a smaller --ctx, another --kv such as q8_0, or more --memory" in line
    assert "cannot keep keys and values in q9_9. Give --kv f32, f16" in quantailor(*words, "--memory", "1GiB", "--kv", "q9_9").error_line


def test_a_split_file_takes_as_much_of_the_gpu_as_fits_there(quantailor: Command, base: Path, tmp_path: Path) -> None:
    words = ("fit", base, "--ctx", N_CTX, "--memory", "64MiB", "--home", tmp_path, "--gpu-memory")
    everything, nothing = (quantailor(*words, size, "--json") for size in ("64MiB", "1KiB"))
    validate(everything.out)
    (file,) = (each for each in everything.result["files"] if each["kind"] == "this")
    whole, n_layers = file["split"], N_LAYERS + 1
    assert (whole["n_gpu_layers"], whole["n_layers"], whole["n_cpu_moe"]) == (n_layers, n_layers, 0)
    assert whole["gpu"]["kv_bytes"] == KV_BYTES
    assert whole["host"]["kv_bytes"] == whole["gpu"]["copies_bytes"] == 0
    assert everything.result["run_command"] == f"llama-server -m {base} -ngl {n_layers} {FLAGS.replace('-ctk q8_0 -ctv q8_0 -fa on ', '')}"
    assert f"llama-server -m {base} --device none -c" in nothing.result["run_command"]
    part = quantailor(*words, whole["gpu"]["needs_bytes"] - 1, "--json").result["files"][0]["split"]
    assert part["n_gpu_layers"] == N_LAYERS
    assert part["gpu"]["copies_bytes"] == 2 * HIDDEN * INNER  # the largest matrix of the layer that is not there
    assert part["host"]["kv_bytes"] == KV_BYTES // N_LAYERS
    assert part["gpu"]["needs_bytes"] < whole["gpu"]["needs_bytes"]
    assert f"-ngl {N_LAYERS} " in quantailor(*words, whole["gpu"]["needs_bytes"] - 1).out


@pytest.mark.slow
def test_where_no_split_fits_the_least_memory_is_named(quantailor: Command, books_moe_base: Path, tmp_path: Path) -> None:
    def asked(memory: int | str, *more: str) -> tuple[str | Path | int, ...]:
        return ("fit", books_moe_base, "--ctx", 512, "--home", tmp_path, "--gpu-memory", "1MiB", "--memory", memory, *more)

    files = quantailor(*asked("64MiB", "--json")).result["files"]
    least = min(each["split"]["host"]["needs_bytes"] for each in files)
    outcome = quantailor(*asked(least - NOISE_BYTES, "--json")).result
    assert not any(each["fits"] for each in outcome["files"])
    assert outcome["best"] is None
    assert " MiB of memory beside 1.00 MiB on the GPU." in outcome["shortfall"]
    assert "None of these files fits: llama.cpp Q2_K needs least, " in " ".join(quantailor(*asked(least - NOISE_BYTES)).out.split())
    assert quantailor(*asked(least + NOISE_BYTES, "--json")).result["shortfall"] is None
    line = quantailor(*asked("1MiB")).error_line
    assert "a context of 512 tokens takes at least" in line
    assert "beside 1.00 MiB on the GPU with f16, more than 1.00 MiB" in line


@pytest.mark.slow
def test_experts_stay_with_the_processor_longest(quantailor: Command, books_moe_base: Path, tmp_path: Path) -> None:
    words = ("fit", books_moe_base, "--ctx", 512, "--memory", "64MiB", "--home", tmp_path, "--json", "--gpu-memory")
    needs = dict[tuple[int, int], int]()
    for mib in (7, 8, 10, 14, 22, 28, 34):
        split = quantailor(*words, f"{mib}MiB").result["files"][0]["split"]
        needs[split["n_gpu_layers"], split["n_cpu_moe"]] = split["gpu"]["needs_bytes"]
        assert split["gpu"]["needs_bytes"] <= mib * MIB
    n_layers = split["n_layers"]
    assert (n_layers, 0) in needs
    assert {n_cpu_moe for n_gpu_layers, n_cpu_moe in needs if 0 < n_gpu_layers < n_layers} == {n_layers - 1}
    assert sorted({n_cpu_moe for n_gpu_layers, n_cpu_moe in needs if n_gpu_layers == n_layers})[0] == 0
    assert len({n_cpu_moe for n_gpu_layers, n_cpu_moe in needs if n_gpu_layers == n_layers}) > 2


SPLIT_BUFFERS = PEAK.with_name("split_buffers.py")


@pytest.mark.slow
@pytest.mark.parametrize("of", ["books_moe_base", "books_llama_base"])
@pytest.mark.parametrize(("gpu", "kv_type"), [("8MiB", "f16"), ("13MiB", "q8_0"), ("18MiB", "f16"), ("64MiB", "q8_0")])
def test_either_side_takes_what_llama_cpp_allocates_there(
    quantailor: Command, request: pytest.FixtureRequest, tmp_path: Path, of: str, gpu: str, kv_type: str
) -> None:
    base = request.getfixturevalue(of)
    asked = ("--memory", "1GiB", "--gpu-memory", gpu, "--ctx", 1024, "--kv", kv_type)
    (split,) = (
        each["split"] for each in quantailor("fit", base, *asked, "--home", tmp_path, "--json").result["files"] if each["kind"] == "this"
    )
    patterns = [rf"blk\.{layer}\.ffn_(up|down|gate)_exps" for layer in range(split["n_cpu_moe"])]
    words = (sys.executable, SPLIT_BUFFERS, base, 1024, kv_type, split["n_gpu_layers"], *patterns)
    ran = subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True)
    allocated = json.loads(ran.stdout.splitlines()[-1])
    for side, kinds in allocated.items():
        found = split[side]
        assert found["kv_bytes"] == pytest.approx(kinds.get("KV", 0.0) * MIB, abs=0.02 * MIB)
        assert found["compute_bytes"] == pytest.approx(kinds.get("compute", 0.0) * MIB, abs=0.02 * MIB)
        assert found["weights_bytes"] == pytest.approx(kinds.get("model", 0.0) * MIB, rel=0.005, abs=0.1 * MIB)


@pytest.fixture(scope="module")
def built(books_moe_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the mixture, in a folder beside the home that knows it."""
    folder = tmp_path_factory.mktemp("built")
    words = ("build", books_moe_base, "Q4_K_M", "-o", folder / "Q4_K_M.gguf", "--imatrix", "none", "--home", folder / "home")
    assert cli.run([str(word) for word in words]) == 0
    return folder / "Q4_K_M.gguf"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a process's peak is read from /proc")
@pytest.mark.parametrize(("n_ctx", "kv_type"), [(512, "q8_0"), (1024, "f16"), (4096, "f16")])
def test_a_file_needs_what_a_process_takes(quantailor: Command, books_moe_base: Path, built: Path, n_ctx: int, kv_type: str) -> None:
    asked = ("--memory", "1GiB", "--ctx", n_ctx, "--kv", kv_type)
    found = quantailor("fit", books_moe_base, *asked, "--home", built.parent / "home", "--json").result
    needs = {each["name"]: each["needs_bytes"] for each in found["files"]}
    for path in (books_moe_base, built):
        words = (sys.executable, PEAK, path, n_ctx, kv_type)
        peak = int(subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True).stdout)
        assert needs[str(path)] == pytest.approx(peak, rel=0.05, abs=NOISE_BYTES)
