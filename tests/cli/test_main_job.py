"""The main job as a user does it, command by command."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import Command, Workbench

from tiny_models import write_tiny

GOLDEN = Path(__file__).parent.parent / "golden"


def test_inspect_shows_structure_and_which_types_a_tensor_can_take(quantailor: Command, books_llama_base: Path) -> None:
    report = quantailor("inspect", books_llama_base, "--json").result
    tensors = {tensor["name"]: tensor for tensor in report["tensors"]}
    assert report["architecture"] == "llama"
    assert report["n_parameters"] == sum(_elements(tensor["shape"]) for tensor in report["tensors"])
    assert "Q4_K" in tensors["blk.0.attn_q.weight"]["available_types"]
    assert tensors["output_norm.weight"]["available_types"] == ["F32"]
    assert tensors["output_norm.weight"]["unavailable_types"]["Q4_K"] == "it has one dimension"


def _elements(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def test_inspect_reads_a_directory_like_its_base(quantailor: Command, books_llama_dir: Path, books_llama_base: Path) -> None:
    ours, base = (quantailor("inspect", path, "--json").result for path in (books_llama_dir, books_llama_base))
    assert ours["fingerprint"] == base["fingerprint"]
    assert "config.json" in ours["config_files"]


def test_inspect_as_a_table_names_every_tensor(quantailor: Command, books_moe_base: Path) -> None:
    out = quantailor("inspect", books_moe_base).out
    assert "blk.5.ffn_down_exps.weight" in out
    assert "8 x 256 x 256" in out
    assert "the expert router" in out


def test_convert_writes_a_base_once(quantailor: Command, books_llama_dir: Path, books_llama_base: Path, tmp_path: Path) -> None:
    output = tmp_path / "base.gguf"
    result = quantailor("convert", books_llama_dir, "-o", output, "--home", tmp_path / "home", "--json").result
    assert result["size_bytes"] == output.stat().st_size == books_llama_base.stat().st_size
    written = output.stat().st_mtime_ns
    assert quantailor("convert", books_llama_dir, "-o", output, "--home", tmp_path / "home", "--json").result == result
    assert output.stat().st_mtime_ns == written
    output.write_bytes(b"something else")
    assert "exists" in quantailor("convert", books_llama_dir, "-o", output, "--home", tmp_path / "home").error_line


def test_imatrix_is_shown_exported_and_imported(quantailor: Command, workbench: Workbench, tmp_path: Path) -> None:
    export = tmp_path / "imatrix.gguf"
    shown = quantailor("imatrix", workbench.base, "--show", "-o", export, "--home", workbench.home, "--json").result
    printed = quantailor("imatrix", workbench.base, "--show", "--home", workbench.home).out
    assert "Statistics of E[x2]" in printed
    assert "\\" not in printed, "brackets are no markup"
    assert shown["chunk_count"] == 8
    assert shown["missing_tensors"] == []
    elsewhere = ("--home", tmp_path / "home", "--json")
    assert "there is no importance matrix" in quantailor("imatrix", workbench.base, "--show", *elsewhere).error_line
    imported = quantailor("imatrix", workbench.base, "--import", export, *elsewhere).result
    assert imported["fingerprint"] == shown["fingerprint"]
    assert imported["statistics"] == shown["statistics"]


def test_what_is_measured_is_not_measured_again(quantailor: Command, workbench: Workbench) -> None:
    again = quantailor("measure", workbench.base, "--types", "Q4_K,Q6_K", "--home", workbench.home, "--json").result
    assert again["n_already_measured"] == again["n_cells"] == 2 * again["n_tensors"]


@pytest.mark.parametrize(
    "target", [("--bpw", "6.5"), *(pytest.param(words, marks=pytest.mark.slow) for words in (("--like", "Q4_K_M"), ("--size", "5MB")))]
)
def test_a_plan_keeps_its_target_and_its_size_is_exact(quantailor: Command, workbench: Workbench, tmp_path: Path, target: Any) -> None:
    strategy, output = tmp_path / "s.yaml", tmp_path / "out.gguf"
    plan = quantailor("plan", workbench.base, *target, "-o", strategy, "--home", workbench.home, "--json").result
    built = quantailor("build", workbench.base, strategy, "-o", output, "--home", workbench.home, "--json").result
    size = output.stat().st_size
    assert plan["prediction"]["file_size_bytes"] == built["size_bytes"] == size
    assert plan["basis"] == "ranking only"
    if target[0] == "--bpw":
        assert plan["prediction"]["bits_per_weight"] <= 6.5
    else:
        limit = plan["preset_size_bytes"] if target[0] == "--like" else 5_000_000
        assert 0.99 * limit < size <= limit


@pytest.mark.parametrize(
    "rule",
    [
        ("--knee", "relative:300"),
        ("--knee", "absolute:0.2"),
        ("--knee", "statistical:6"),
        ("--knee", "second-difference"),
        ("--knee", "fitted"),
        ("--greedy", "damage:Q8_0", "--bpw", "5"),
        ("--bins", "10=Q6_K,50=Q5_K,100=Q4_K"),
    ],
)
def test_every_rule_gives_a_strategy_that_keeps_the_pins(quantailor: Command, workbench: Workbench, rule: Any) -> None:
    plan = quantailor("plan", workbench.base, *rule, "--pin", "attn_v=Q8_0", "--home", workbench.home, "--json").result
    types = {tensor["name"]: tensor["type_name"] for tensor in plan["tensors"]}
    assert len(types) == 58
    assert {kind for name, kind in types.items() if "attn_v" in name} == {"Q8_0"}
    assert all(tensor["reason"] for tensor in plan["tensors"])


def test_ties_and_limits_hold(quantailor: Command, workbench: Workbench) -> None:
    limits = ("--tie", "gate_up", "--min", "Q3_K", "--max", "6.6", "--allow", "ffn_down=Q5_K,Q6_K")
    plan = quantailor("plan", workbench.base, "--bpw", "5", *limits, "--home", workbench.home, "--json").result
    types = {tensor["name"]: tensor["type_name"] for tensor in plan["tensors"]}
    for layer in range(8):
        assert types[f"blk.{layer}.ffn_gate.weight"] == types[f"blk.{layer}.ffn_up.weight"]
        assert types[f"blk.{layer}.ffn_down.weight"] in ("Q5_K", "Q6_K")
    assert not {"Q2_K", "Q8_0", "IQ3_XXS"} & set(types.values())


@pytest.mark.slow
def test_verify_ends_with_a_verdict_and_its_files(quantailor: Command, workbench: Workbench, tmp_path: Path) -> None:
    strategy, output = tmp_path / "s.yaml", tmp_path / "ours.gguf"
    common = ("--home", workbench.home, "--json")
    assert quantailor("plan", workbench.base, "--like", "Q4_K_M", "-o", strategy, *common).code == 0
    assert quantailor("build", workbench.base, strategy, "-o", output, *common).code == 0
    arguments = ("verify", output, "--base", workbench.base, "--against", "Q8_0,Q4_K_M", "--chunks", 4, "--threads", 1)
    verdict = quantailor(*arguments, *common).result["verdict"]
    rows = {row["label"]: row for row in verdict["rows"]}
    assert set(rows) == {"base", "ours", "Q8_0", "Q4_K_M"}
    assert rows["Q8_0"]["statistics"]["kld_mean"]["value"] < rows["ours"]["statistics"]["kld_mean"]["value"]
    assert "too few" in verdict["sentence"]
    for suffix in (".json", ".csv", ".png", ".svg"):
        assert (tmp_path / f"ours.verdict{suffix}").stat().st_size > 100
    table = quantailor(*arguments, "--home", workbench.home).out
    assert "mean KLD" in table
    assert verdict["sentence"].split(".")[0] in table


@pytest.mark.slow
def test_a_split_build_loads_and_has_the_predicted_size(quantailor: Command, workbench: Workbench, tmp_path: Path) -> None:
    strategy = tmp_path / "s.yaml"
    common = ("--home", workbench.home, "--json")
    quantailor("plan", workbench.base, "--bpw", "6", "-o", strategy, *common)
    built = quantailor("build", workbench.base, strategy, "-o", tmp_path / "out.gguf", "--split-max-size", "2MB", *common).result
    assert len(built["paths"]) > 2
    assert built["size_bytes"] == built["predicted_size_bytes"] == sum(Path(path).stat().st_size for path in built["paths"])
    assert len(quantailor("inspect", built["paths"][0], "--json").result["tensors"]) == 75


@pytest.mark.slow
def test_make_goes_the_whole_way_and_a_second_run_takes_what_is_there(quantailor: Command, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    few = ("--types", "Q4_0,Q5_0,Q8_0", "--imatrix-chunks", 8, "--chunks", 4, "--against", "Q4_K_M", "--threads", 1)
    mixture = write_tiny("mixtral", tmp_path / "models")
    arguments = ("make", mixture, "-o", folder, "--bpw", 6.5, "--basis", "ranking", *few, "--home", tmp_path / "home", "--json")
    first = quantailor(*arguments).result
    names = {path.name for path in folder.iterdir()}
    assert {"base.gguf", "imatrix.gguf", "strategy.yaml", "verdict.png", "verdict.svg", "verdict.csv", "verdict.json"} <= names
    built = Path(first["build"]["paths"][0])
    before = built.stat().st_mtime_ns
    assert quantailor(*arguments).result == first
    assert built.stat().st_mtime_ns == before


@pytest.mark.long
@pytest.mark.slow
def test_without_probes_a_file_is_better_than_the_preset_of_its_size(quantailor: Command, books_llama_base: Path, tmp_path: Path) -> None:
    few = ("--types", "Q4_K,Q5_K,Q6_K,Q8_0", "--imatrix-chunks", 20, "--chunks", 12, "--threads", 1, "--home", tmp_path / "home")
    made = quantailor("make", books_llama_base, "--like", "Q5_K_M", "--basis", "ranking", *few, "-o", tmp_path / "out", "--json").result
    (comparison,) = made["verify"]["verdict"]["comparisons"]  # with nothing but the preset of its size
    assert comparison["reference"] == "Q5_K_M"
    assert 0.998 < comparison["size_ratio"] <= 1
    assert comparison["interval"][1] < math.log(0.9)


FITTING = "Q2_K,Q3_K,Q4_K,Q5_K,Q6_K,IQ3_XXS,IQ3_S,IQ4_XS"
"""What a plan of Q3_K_M's size picks from; for types with fewer bits ggml makes tables for ten seconds and more."""


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("model", ["books_llama", "books_moe"])
def test_types_alone_do_not_lose_to_a_small_preset_without_probes(
    model: str, quantailor: Command, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    matrix = GOLDEN / f"imatrix-{model.replace('_', '-')}.gguf"
    few = ("--rounding", "plain", "--types", FITTING, "--imatrix", matrix, "--chunks", 12, "--threads", 1, "--home", tmp_path / "home")
    base = request.getfixturevalue(f"{model}_base")
    made = quantailor("make", base, "--like", "Q3_K_M", "--basis", "ranking", *few, "-o", tmp_path / "out", "--json")
    (comparison,) = made.result["verify"]["verdict"]["comparisons"]
    assert comparison["reference"] == "Q3_K_M"
    assert comparison["interval"][0] < 0


def test_a_plan_without_probes_says_so_and_how_to_probe(quantailor: Command, workbench: Workbench) -> None:
    command = ("plan", workbench.base, "--bpw", "4.5", "--home", workbench.home)
    assert quantailor(*command, "--json").result["probe_command"].startswith(f"quantailor probe {workbench.base}")
    assert f"predict it: quantailor probe {workbench.base}" in quantailor(*command).out


@pytest.mark.slow
def test_a_detached_job_is_followed_to_its_end(quantailor: Command, books_llama_base: Path, calibration_text: Path, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    started = quantailor(
        "imatrix", books_llama_base, "-f", calibration_text, "--chunks", 6, "--threads", 1, "--detach", *home, "--json"
    ).result
    followed = quantailor("jobs", "show", started["id"], "--follow", *home, "--json").result
    assert (followed["state"], followed["progress"]) == ("done", 1.0)
    assert quantailor("imatrix", books_llama_base, "--show", *home, "--json").result["chunk_count"] == 6
    assert [job["id"] for job in quantailor("jobs", *home, "--json").result] == [started["id"]]
    quantailor("jobs", "remove", started["id"], *home)
    assert quantailor("jobs", "list", *home, "--json").result == []


@pytest.mark.slow
def test_a_job_is_paused_from_another_terminal_and_resumed(
    quantailor: Command, books_llama_base: Path, calibration_text: Path, tmp_path: Path
) -> None:
    text = tmp_path / "long.txt"
    text.write_text(calibration_text.read_text() * 10)  # minutes of work: it is not done before it is asked to pause
    home = ("--home", str(tmp_path / "home"))
    command = [sys.executable, "-m", "quantailor", "imatrix", str(books_llama_base), "-f", str(text), "--threads", "1", *home]
    first = _paused_while_it_works(quantailor, command, home, after=0.0)
    resume = [sys.executable, "-m", "quantailor", "jobs", "resume", "1", *home]
    second = _paused_while_it_works(quantailor, resume, home, after=first)
    assert 0 < first < second < 1


def _paused_while_it_works(quantailor: Command, command: list[str], home: tuple[str, str], *, after: float) -> float:
    """Run a command in a process of its own and pause job 1 once it is further than before; how far it came."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _wait_for_progress(quantailor, home, after)
    assert quantailor("jobs", "pause", 1, *home).code == 0
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "jobs resume 1" in errors
    job = quantailor("jobs", "show", 1, *home, "--json").result
    assert job["state"] == "paused"
    return float(job["progress"])


def _wait_for_progress(quantailor: Command, home: tuple[str, str], after: float) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        jobs = quantailor("jobs", *home, "--json")
        if jobs.code == 0 and any(job["state"] == "running" and job["progress"] > after for job in json.loads(jobs.out)["result"]):
            return
        time.sleep(0.1)
    pytest.fail("the job made no progress")
