"""`fit`: what a context takes is llama.cpp's own account, and what fits beside it follows."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from commands import Command, validate
from vision_models import projector_bytes, write_projector, write_vision

from quantailor import cli
from quantailor.ggml.memory.context import context_memory
from quantailor.models.gguf_file import GGUFSource
from quantailor.present.words import size
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


@pytest.mark.slow
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


@pytest.fixture
def seeing(tmp_path: Path) -> Path:
    """A base with its projector beside it."""
    write_projector(tmp_path / "mmproj-F16.gguf", text_width=HIDDEN)
    return write_small_base(tmp_path / "seeing.gguf")


def test_a_projector_beside_the_model_counts_and_is_in_the_command(quantailor: Command, seeing: Path, tmp_path: Path) -> None:
    words = ("fit", seeing, "--ctx", N_CTX, "--memory", "1GiB", "--home", tmp_path / "home")
    outcome = quantailor(*words, "--json")
    validate(outcome.out)
    found, alone = outcome.result, quantailor(*words, "--mmproj", "none", "--json").result
    mmproj, path = found["mmproj"], seeing.with_name("mmproj-F16.gguf")
    with closing(GGUFSource(path)) as source:
        assert mmproj["weights_bytes"] == sum(tensor.size_bytes for tensor in source.tensors)
    assert mmproj["picture"] == [224, 224]
    assert mmproj["inputs_bytes"] == 3 * 224 * 224 * 3 * 4
    assert mmproj["work_bytes"] == 16 * 16 * HIDDEN * 2
    assert mmproj["compute_bytes"] > 16 * 16 * (128 + 3 * 64) * 4
    parts = sum(mmproj[f"{part}_bytes"] for part in ("weights", "compute", "work", "inputs", "program"))
    assert alone["room_bytes"] - found["room_bytes"] == pytest.approx(parts, abs=MIB)
    assert alone["mmproj"] is None
    assert found["run_command"].startswith(f"llama-server -m {seeing} --mmproj {path} -c {N_CTX}")
    assert "--mmproj" not in alone["run_command"]
    shown = " ".join(quantailor(*words).out.split())
    assert f"projector mmproj-F16.gguf: weights {size(mmproj['weights_bytes'])}, compute buffers" in shown
    assert "while it encodes a picture of 224 x 224" in shown


def test_a_projector_goes_to_the_gpu_where_it_fits(quantailor: Command, seeing: Path, tmp_path: Path) -> None:
    words = ("fit", seeing, "--ctx", N_CTX, "--memory", "64MiB", "--home", tmp_path / "home", "--json", "--gpu-memory")
    path = seeing.with_name("mmproj-F16.gguf")
    on_gpu = quantailor(*words, "64MiB").result
    taken = on_gpu["mmproj"]["weights_bytes"] + on_gpu["mmproj"]["compute_bytes"]
    split = on_gpu["files"][0]["split"]
    assert on_gpu["mmproj"]["on_gpu"]
    assert split["gpu"]["mmproj_bytes"] == taken
    assert split["host"]["mmproj_bytes"] == on_gpu["mmproj"]["inputs_bytes"] + on_gpu["mmproj"]["program_bytes"]
    assert f"--mmproj {path} -ngl {N_LAYERS + 1} " in on_gpu["run_command"]
    whole = quantailor(*words, "64MiB", "--mmproj", "none").result["files"][0]["split"]["gpu"]
    assert split["gpu"]["needs_bytes"] == whole["needs_bytes"] + taken


@pytest.mark.slow
def test_a_projector_and_layers_share_the_gpu(quantailor: Command, seeing: Path, tmp_path: Path) -> None:
    words = ("fit", seeing, "--ctx", N_CTX, "--memory", "64MiB", "--home", tmp_path / "home", "--json", "--gpu-memory")
    path = seeing.with_name("mmproj-F16.gguf")
    mmproj = quantailor(*words, "64MiB").result["mmproj"]
    taken = mmproj["weights_bytes"] + mmproj["compute_bytes"]
    whole = quantailor(*words, "64MiB", "--mmproj", "none").result["files"][0]["split"]["gpu"]
    assert quantailor(*words, whole["needs_bytes"]).result["files"][0]["split"]["n_gpu_layers"] <= N_LAYERS
    stays = quantailor(*words, whole["needs_bytes"], "--no-mmproj-offload").result
    assert stays["files"][0]["split"]["n_gpu_layers"] == N_LAYERS + 1
    assert f"--mmproj {path} --no-mmproj-offload -ngl {N_LAYERS + 1} " in stays["run_command"]

    alone = quantailor(*words, taken).result
    assert (alone["mmproj"]["on_gpu"], alone["files"][0]["split"]["n_gpu_layers"]) == (True, 0)
    assert f"--mmproj {path} -ngl 0 --no-op-offload " in alone["run_command"]
    too_small = quantailor(*words, taken - 1).result
    assert (too_small["mmproj"]["on_gpu"], too_small["files"][0]["split"]["gpu"]["mmproj_bytes"]) == (False, 0)
    assert too_small["notes"] == ["The projector does not fit the GPU: the processor runs it."]


def test_a_projector_beside_a_built_file_is_found(quantailor: Command, base: Path, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    (tmp_path / "out").mkdir()
    assert quantailor("build", base, "Q8_0", "-o", tmp_path / "out" / "Q8_0.gguf", "--imatrix", "none", *home).code == 0
    for name in ("mmproj-F16.gguf", "mmproj-Q8_0.gguf"):
        write_projector(tmp_path / "out" / name, text_width=HIDDEN)
    outcome = quantailor("fit", base, "--ctx", 512, "--memory", "1GiB", *home)
    assert "projector mmproj-F16.gguf: weights" in outcome.out
    assert "Beside it: mmproj-Q8_0.gguf. --mmproj FILE counts another projector." in " ".join(outcome.out.split())


def test_a_projector_that_cannot_run_beside_the_model_is_told(quantailor: Command, seeing: Path, tmp_path: Path) -> None:
    words = ("fit", seeing, "--ctx", 512, "--home", tmp_path / "home", "--memory")
    other = write_projector(tmp_path / "other.gguf", text_width=HIDDEN // 2)
    line = quantailor(*words, "1GiB", "--mmproj", other).error_line
    assert f"cannot load the projector {other} beside this model: mismatch between text model (n_embd = {HIDDEN})" in line
    assert "Give --mmproj the projector that was made with this model, or none" in line
    assert f"{seeing} is not a projector. Give --mmproj the file that" in quantailor(*words, "1GiB", "--mmproj", seeing).error_line
    assert f"there is no file {tmp_path / 'none.gguf'}" in quantailor(*words, "1GiB", "--mmproj", tmp_path / "none.gguf").error_line
    line = quantailor(*words, "1MiB").error_line
    assert "a context of 512 tokens and the projector take" in line
    assert "--mmproj none, or more --memory" in line

    place = seeing.with_name("mmproj-F16.gguf")
    place.write_bytes(projector_bytes(tmp_path, width=HIDDEN))  # without a tower
    outcome = quantailor(*words, "1GiB", "--json")
    assert outcome.result["mmproj"] is None
    assert outcome.result["notes"][0].startswith(f"{place} is not counted. llama.cpp cannot load the projector")


def test_a_tower_without_its_file_is_told(quantailor: Command, tmp_path: Path) -> None:
    model = write_vision(tmp_path / "model")
    words = ("fit", model, "--ctx", 512, "--memory", "1GiB", "--home", tmp_path / "home")
    command = f"quantailor convert {model} -o base.gguf --mmproj mmproj.gguf"
    said = f"The model's tower for images or sound is not counted: `{command}` makes the file"
    assert said in " ".join(quantailor(*words).out.split())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a process's peak is read from /proc")
def test_a_file_needs_with_a_projector_what_a_process_takes(quantailor: Command, base: Path, tmp_path: Path) -> None:
    projector = write_projector(tmp_path / "tower.gguf", text_width=HIDDEN, width=256, inner=1024, n_layers=2, side=896)
    asked = ("--memory", "1GiB", "--ctx", 512, "--mmproj", projector)
    (file,) = (each for each in quantailor("fit", base, *asked, "--home", tmp_path, "--json").result["files"] if each["kind"] == "this")
    words = (sys.executable, PEAK, base, 512, "f16", projector, 896)
    peak = int(subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True).stdout)
    assert peak > 64 * MIB
    picture_bytes = 896 * 896 * 3 * 4
    assert 0.97 * peak <= file["needs_bytes"] <= 1.05 * peak + picture_bytes  # of the picture's three copies, a small tower's run has two
