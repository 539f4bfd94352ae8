"""From a checkpoint to a quantized file with no base between: the same file, nothing else on the disk, no more memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Command, validate
from hub_server import HubServer

from faults import Forked
from gguf_description import describe
from quantailor.app.choosing.comparing import preset_types_of
from quantailor.session import Workspace
from tiny_models import safetensors_bytes, write_tiny

TYPES = ("--types", "Q4_0,Q5_0,Q8_0")
WITHOUT = ("--basis", "ranking", "--no-verify")
STATUS = Path("/proc/self/status")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the hub's cache and the home."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in found}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith(("hf/", "home/"))}


# The same as in two steps


@pytest.mark.slow
@pytest.mark.parametrize("name", ["books-llama", "books-moe"])
def test_a_repository_gives_the_file_that_its_base_gives(
    hub: HubServer, run: Command, name: str, books_llama_dir: Path, books_moe_dir: Path, tmp_path: Path
) -> None:
    directory = {"books-llama": books_llama_dir, "books-moe": books_moe_dir}[name]
    hub.add(f"org/{name}", directory)
    work, base, elsewhere = tmp_path / "work", tmp_path / "bases" / "base.gguf", tmp_path / "two-steps"
    words = ("--types", "Q2_K,Q4_K,IQ4_XS,Q8_0", "--imatrix", "none", "--json")
    measured = run("measure", f"org/{name}", *words).result
    run("plan", f"org/{name}", "--bpw", "4.2", "--imatrix", "none", "-o", work / "s.yaml")
    before = contents(tmp_path)
    assert run("build", f"org/{name}", work / "s.yaml", "-o", work / "straight.gguf").code == 0
    assert contents(tmp_path).keys() - before.keys() == {"work/straight.gguf"}
    assert not list((tmp_path / "home").rglob("bases/*")), "no base"

    assert run("convert", directory, "-o", base).code == 0
    with Workspace.open(elsewhere):
        pass
    assert cli_in(elsewhere, "build", base, work / "s.yaml", "-o", work / "two-steps.gguf") == 0
    straight, two_steps = describe(work / "straight.gguf"), describe(work / "two-steps.gguf")
    assert straight["tensors"] == two_steps["tensors"]
    assert straight["metadata"] == two_steps["metadata"]
    assert straight["file"] == two_steps["file"]
    again = json_of(elsewhere, tmp_path, "measure", base, *words)
    assert again["n_already_measured"] == 0
    assert again["cells"] == measured["cells"]


def cli_in(home: Path, *words: object) -> int:
    from quantailor import cli

    return cli.run([*map(str, words), "--home", str(home)])


def json_of(home: Path, folder: Path, *words: object) -> Any:
    argv = [sys.executable, "-m", "quantailor", *map(str, words), "--home", str(home)]
    return json.loads(subprocess.run(argv, check=True, capture_output=True, text=True, cwd=folder).stdout)["result"]


# make


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny("llama2", tmp_path / "models")


@pytest.fixture
def matrix(run: Command, model: Path, calibration_text: Path, tmp_path: Path) -> Path:
    """An importance matrix of the model, computed in another home."""
    folder, home = tmp_path / "matrix", tmp_path / "another-home"
    assert cli_in(home, "convert", model, "-o", folder / "base.gguf") == 0
    words = ("--chunks", 4, "--n-ctx", 64, "--threads", 1, "-o", folder / "imatrix.gguf")
    assert cli_in(home, "imatrix", folder / "base.gguf", "-f", calibration_text, *words) == 0
    return folder / "imatrix.gguf"


def test_make_writes_the_result_alone(hub: HubServer, run: Command, model: Path, matrix: Path, tmp_path: Path) -> None:
    hub.add("org/tiny", {path.name: path.read_bytes() for path in model.iterdir()} | {"imatrix.gguf": matrix.read_bytes()})
    before = contents(tmp_path)
    words = ("make", "org/tiny", "--imatrix", "repo", *WITHOUT, *TYPES, "--like", "Q5_0", "-o", tmp_path / "out")
    made = run(*words, "--json")
    validate(made.out)
    found = made.result
    assert (found["base"], found["verify"]) == (None, None)
    assert found["origin"] == f"org/tiny@{hub.repos['org/tiny'].sha}"
    (built,) = found["build"]["paths"]
    assert Path(built).name.startswith("tiny-")
    assert contents(tmp_path).keys() - before.keys() == {f"out/{name}" for name in ("strategy.yaml", "recipe.yaml", Path(built).name)}
    assert not list((tmp_path / "home").rglob("bases/*"))
    assert run(*words, "--json").result == found
    assert built in run(*words).out


@pytest.mark.slow
def test_make_without_a_base_makes_the_same_file(run: Command, model: Path, matrix: Path, tmp_path: Path) -> None:
    few = ("--imatrix", matrix, "--basis", "ranking", "--rounding", "plain", *TYPES, "--bpw", 6, "--threads", 1)
    straight = run("make", model, *few, "--no-verify", "-o", tmp_path / "straight", "--json").result
    proven = run("make", model, *few, "--chunks", 1, "--against", "Q8_0", "-o", tmp_path / "proven", "--json").result
    assert straight["base"] is None
    assert proven["base"] == str(tmp_path / "proven" / "base.gguf")
    assert proven["verify"]["verdict"]["rows"]
    assert straight["imatrix"] == proven["imatrix"] == str(matrix)
    files = [Path(made["build"]["paths"][0]).read_bytes() for made in (straight, proven)]
    assert files[0] == files[1]
    strategies = [Path(made["strategy"]).read_bytes() for made in (straight, proven)]
    assert strategies[0] == strategies[1]


@pytest.mark.slow
def test_make_takes_the_importance_matrix_that_the_store_has(run: Command, model: Path, matrix: Path, tmp_path: Path) -> None:
    few = (*WITHOUT, *TYPES, "--bpw", 6, "--threads", 1, "--json")
    assert run("imatrix", model, "--import", matrix).code == 0
    found = run("make", model, "--imatrix", "auto", *few, "-o", tmp_path / "auto").result
    assert Path(found["imatrix"]).is_relative_to(tmp_path / "home")
    assert found["base"] is None
    assert run("make", model, "--imatrix", "none", *few, "-o", tmp_path / "none").result["imatrix"] is None


@pytest.mark.slow
def test_make_computes_an_importance_matrix_where_the_store_has_none(
    run: Command, model: Path, calibration_text: Path, tmp_path: Path
) -> None:
    text = tmp_path / "short.txt"
    text.write_text(calibration_text.read_text(encoding="utf-8")[:8_000], encoding="utf-8")
    few = ("--imatrix", "auto", *WITHOUT, *TYPES, "--bpw", 6, "-f", text, "--threads", 1, "--json")
    found = run("make", model, *few, "-o", tmp_path / "out").result
    assert found["base"] == str(tmp_path / "out" / "base.gguf")
    assert (tmp_path / "out" / "imatrix.gguf").is_file()


def test_a_wrong_importance_matrix_stops_make_before_it_writes(run: Command, model: Path, tmp_path: Path) -> None:
    words = ("make", model, *TYPES, "--bpw", 6, "-o", tmp_path / "out", "--imatrix")
    assert "missing.gguf" in run(*words, tmp_path / "missing.gguf").error_line
    assert run(*words, "repo").code == 2
    assert contents(tmp_path / "out") == {}


def test_make_keeps_to_its_types_also_where_more_were_measured(run: Command, model: Path, tmp_path: Path) -> None:
    """As by probes, which measure types of their own."""
    assert run("measure", model, "--types", "Q4_0,Q4_1,Q5_0,Q5_1,Q8_0", "--imatrix", "none").code == 0
    few = ("--imatrix", "none", *WITHOUT, "--types", "Q4_0,Q8_0", "--bpw", 6, "-o", tmp_path / "out", "--json")
    assert set(run("make", model, *few).result["plan"]["type_counts"]) == {"Q4_0", "Q8_0"}
    free = run("plan", model, "--imatrix", "none", "--bpw", 6, "--json").result
    assert not set(free["type_counts"]) <= {"Q4_0", "Q8_0"}, "others would serve better"


@pytest.mark.slow
def test_a_preset_s_types_are_known_without_a_base(run: Command, books_moe_dir: Path, books_moe_base: Path, tmp_path: Path) -> None:
    with Workspace.open(tmp_path / "home") as workspace:
        for preset in ("Q4_K_M", "IQ3_XXS", "Q5_K_S"):
            straight, base = (preset_types_of(workspace, model, preset) for model in (books_moe_dir, books_moe_base))
            assert straight == base


# Stopping


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_make_survives_kills_of_its_download(hub: HubServer, run: Command, forked: Forked, model: Path, tmp_path: Path) -> None:
    hub.add("org/tiny", model)
    words = ["make", "org/tiny", "--imatrix", "none", *WITHOUT, *TYPES, "--bpw", "6", "--json"]
    expected = run(*words, "-o", tmp_path / "alone").result["build"]["paths"][0]
    for number, file in enumerate(["config.json", *sorted(path.name for path in model.glob("*.safetensors"))]):
        folder = tmp_path / f"killed-{number}"
        argv = [*words, "-o", folder / "out", "--home", folder / "home"]
        environment = {**hub.environment(folder), "HF_TOKEN": hub.token}
        hub.asked.clear()
        hub.bytes_per_second = 200_000
        assert forked.run(*argv, environment=environment, kill_when=partial(hub.gets, file)).was_killed
        snapshots = folder / "hf" / "hub" / "models--org--tiny" / "snapshots"
        before = {path.name: hub.gets(path.name) for path in snapshots.glob("*/*")}
        assert len(before) < len(hub.repos["org/tiny"].files), "killed while it downloads"
        hub.bytes_per_second = None
        resumed = forked.run(*argv, environment=environment)
        assert Path(resumed.result["build"]["paths"][0]).read_bytes() == Path(expected).read_bytes()
        assert {name: hub.gets(name) for name in before} == before, "a whole file was fetched again"
        assert not list(folder.rglob("*.incomplete"))


# Memory

PEAK = """
import sys
from quantailor import cli
code = cli.run(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


def wide_model(folder: Path, template: Path) -> Path:
    """A model whose tensors are large beside the program: 160 MiB in all."""
    folder.mkdir()
    hidden, inner, layers, vocabulary = 1024, 6144, 4, 4096
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocabulary}
    config = json.loads((template / "config.json").read_text(encoding="utf-8"))
    config |= {**sizes, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.model").write_bytes((template / "tokenizer.model").read_bytes())
    shapes: dict[str, tuple[int, ...]] = {
        f"model.{name}.weight": shape for name, shape in (("embed_tokens", (vocabulary, hidden)), ("norm", (hidden,)))
    }
    shapes["lm_head.weight"] = (vocabulary, hidden)
    for layer in range(layers):
        block = f"model.layers.{layer}"
        shapes |= {f"{block}.self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
        shapes |= {f"{block}.mlp.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
        shapes |= {f"{block}.mlp.down_proj.weight": (hidden, inner)}
        shapes |= {f"{block}.{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
    random_bits = np.random.default_rng(1)
    arrays = {
        name: ("BF16", shape, (random_bits.standard_normal(shape, dtype=np.float32).view(np.uint32) >> 16).astype("<u2").tobytes())
        for name, shape in shapes.items()
    }
    (folder / "model.safetensors").write_bytes(safetensors_bytes(arrays))
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="the system does not tell a process's peak")
def test_building_from_a_checkpoint_takes_no_more_memory_than_from_a_base(run: Command, books_llama_dir: Path, tmp_path: Path) -> None:
    model, base = wide_model(tmp_path / "wide", books_llama_dir), tmp_path / "base.gguf"
    assert run("convert", model, "-o", base).code == 0
    assert run("measure", base, "--types", "Q8_0", "--imatrix", "none").code == 0
    assert run("plan", base, "--bpw", 9, "--allow", "Q8_0", "--imatrix", "none", "-o", tmp_path / "s.yaml").code == 0
    peaks = {source: peak_bytes(source, tmp_path) for source in (model, base)}
    weights = (model / "model.safetensors").stat().st_size
    assert peaks[model] <= 1.3 * peaks[base] + (50 << 20)
    assert 1.3 * peaks[base] + (50 << 20) < peaks[base] + weights, "the model as a whole in memory would be noticed"


def peak_bytes(source: Path, folder: Path) -> int:
    """Most memory that a process of its own held while it built from `source`."""
    words = ("build", source, folder / "s.yaml", "-o", folder / f"{source.stem}-out.gguf", "--threads", 2, "--home", folder / "home")
    argv = [sys.executable, "-c", PEAK, *map(str, words)]
    ended = subprocess.run(argv, check=True, capture_output=True, text=True)
    return int(ended.stdout.splitlines()[-1]) * 1024
