"""`plan --speed`: size, damage and tokens per second together, on a machine whose times are made up."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Command, Workbench, validate

import quantailor as q
from made_up_timings import SLOW, record, takes
from quantailor import cli
from quantailor.analysis.speed import groups
from quantailor.evidence.speeds import reference_file
from quantailor.models.opening import open_model

SIZE = 5_200_000


@pytest.fixture(scope="module")
def timed(workbench: Workbench) -> Workbench:
    record(workbench.home, workbench.base)
    return workbench


@pytest.fixture
def plan(quantailor: Command, timed: Workbench) -> Command:
    """`plan` of the dense model at a size, unless it is given another target."""

    def run(*words: object) -> Any:
        target = () if {"--kld", "--bpw", "--like", "--types-of"} & set(map(str, words)) else ("--size", SIZE)
        return quantailor("plan", timed.base, *target, *words, "--home", timed.home)

    return run


def real_speed(base: Path, result: dict[str, Any]) -> float:
    """What the made-up machine does with a plan's types."""
    source = open_model(base)
    types = {each["name"]: each["type_name"] for each in result["tensors"]}
    found = 1 / takes(source, {name: types[name] for name in groups(source)})
    source.close()
    return found


def test_a_plan_says_how_fast_its_file_will_be(plan: Command, timed: Workbench) -> None:
    outcome = plan("--json")
    validate(outcome.out)
    speed = outcome.result["speed"]
    assert speed["generation_tokens_per_second"] == pytest.approx(real_speed(timed.base, outcome.result))
    assert speed["prompt_tokens_per_second"] == pytest.approx(10 * speed["generation_tokens_per_second"])
    assert "tokens per second of generation (± 0.0 %)" in plan().out


def test_without_timings_nothing_is_said_and_a_speed_is_refused(quantailor: Command, measured_home: Path, books_llama_base: Path) -> None:
    words = ("plan", books_llama_base, "--size", SIZE, "--home", measured_home)
    assert quantailor(*words, "--json").result["speed"] is None
    line = quantailor(*words, "--speed", "0.9").error_line
    assert "have not been timed on this machine" in line
    assert f"quantailor speed {books_llama_base}" in line


def test_a_speed_is_reached_within_the_size_at_the_least_damage(plan: Command, timed: Workbench, tmp_path: Path) -> None:
    free = plan("--json").result
    faster = 1.02 * free["speed"]["generation_tokens_per_second"]
    found = plan("--speed", f"{faster:.4f}tok/s", "--json", "-o", tmp_path / "s.yaml").result
    assert found["speed"]["generation_tokens_per_second"] >= faster * (1 - 1e-6)
    assert real_speed(timed.base, found) == pytest.approx(found["speed"]["generation_tokens_per_second"])
    assert found["prediction"]["file_size_bytes"] <= SIZE
    assert found["type_counts"] != free["type_counts"]
    assert yaml.safe_load((tmp_path / "s.yaml").read_text())["target"] == {
        "size_bytes": SIZE,
        "speed": f"{faster:.4f}tok/s",
        "speed_of": "generation",
    }


def test_a_part_is_of_the_speed_of_the_preset_of_that_size(plan: Command) -> None:
    preset = plan("--types-of", "Q4_K_M", "--json").result["speed"]["generation_tokens_per_second"]
    found = plan("--like", "Q4_K_M", "--speed", "1.01", "--json").result["speed"]["generation_tokens_per_second"]
    assert found >= 1.01 * preset * (1 - 1e-6)
    slow_enough, free = (plan("--like", "Q4_K_M", *words, "--json").result for words in (("--speed", "0.5"), ()))
    assert slow_enough["prediction"]["damage"] == pytest.approx(free["prediction"]["damage"], rel=0.01)


def test_prompts_may_be_what_is_to_be_fast(plan: Command) -> None:
    free = plan("--json").result["speed"]["prompt_tokens_per_second"]
    found = plan("--speed", f"{1.02 * free:.3f} tokens/s", "--speed-of", "prompt", "--json").result
    assert found["speed"]["prompt_tokens_per_second"] >= 1.02 * free * (1 - 1e-6)


def test_a_speed_that_nothing_reaches_names_the_fastest_and_its_cost(plan: Command) -> None:
    line = plan("--speed", "100000tok/s").error_line
    assert "no strategy generates 100,000 tokens per second in a file of at most" in line
    assert "a damage of" in line
    assert "tokens per second at the size of Q4_K_M: " in plan("--like", "Q4_K_M", "--speed", "100000tok/s").error_line
    assert "without --speed" in line
    fastest = line.partition("Ask for --speed ")[2].split("tok/s")[0]
    assert plan("--speed", f"{fastest}tok/s", "--json").result["speed"]["generation_tokens_per_second"] >= float(fastest)


def test_types_that_were_not_timed_are_not_used(quantailor: Command, measured_home: Path, books_llama_base: Path, tmp_path: Path) -> None:
    home = shutil.copytree(measured_home, tmp_path / "home")
    record(home, books_llama_base, ("Q3_K", "Q6_K"))
    words = ("plan", books_llama_base, "--size", SIZE, "--home", home)
    assert quantailor(*words, "--json").result["speed"] is None
    found = quantailor(*words, "--speed", "100tok/s", "--json").result
    in_groups = [each["type_name"] for each in found["tensors"] if each["name"] != "token_embd.weight"]
    assert set(in_groups) <= {"Q3_K", "Q6_K", "Q8_0"}
    line = quantailor(*words, "--speed", "0.5").error_line
    assert "was not timed" in line


@pytest.mark.parametrize("speed", ["-1", "fast", "0", "101", "nan", "tok/s", "-3tok/s"])
def test_what_is_no_speed_is_refused(plan: Command, speed: str) -> None:
    line = plan(f"--speed={speed}").error_line
    assert f"--speed {speed}" in line
    assert "40tok/s" in line


def test_what_does_not_go_together_is_refused(plan: Command) -> None:
    assert "knee cannot hold a speed" in plan("--knee", "relative", "--speed", "0.9").error_line
    assert plan("--speed-of", "prompt").code == 2
    assert plan("--types-of", "Q4_K_M", "--speed", "0.9").code == 2


def test_the_front_door_takes_a_speed(timed: Workbench) -> None:
    with q.open_model(timed.base, home=timed.home) as model:
        free = q.plan(model, size_bytes=SIZE)
        fast = q.plan(model, size_bytes=SIZE, speed=1.0)
    assert fast.target["speed"] == "1.0"
    assert sum(each in SLOW for each in fast.types.values()) <= sum(each in SLOW for each in free.types.values())


@pytest.fixture
def made(quantailor: Command, timed: Workbench, tmp_path: Path) -> Command:
    def run(*words: object) -> Any:
        usual = ("--basis", "ranking", "--no-verify", "--imatrix", "none", "--rounding", "plain", "--types", "Q3_K,Q4_K,Q6_K,Q8_0")
        return quantailor("make", timed.base, *usual, "-o", tmp_path / "made", *words)

    return run


@pytest.mark.slow
def test_make_holds_a_speed_and_its_recipe_says_so(made: Command, timed: Workbench, tmp_path: Path) -> None:
    found = made("--size", SIZE, "--speed", "0.9", "--home", timed.home, "--json")
    assert found.result["plan"]["speed"]["generation_tokens_per_second"] > 0
    recipe = yaml.safe_load((tmp_path / "made" / "recipe.yaml").read_text())
    assert (recipe["speed"], recipe["speed-of"]) == ("0.9", "generation")
    again = cli.run(["make", "-r", str(tmp_path / "made" / "recipe.yaml"), "-o", str(tmp_path / "made"), "--home", str(timed.home)])
    assert again == 0
    assert "holds another result" in made("--size", SIZE, "--speed", "0.8", "--home", timed.home).error_line


@pytest.mark.slow
def test_every_file_of_a_ladder_holds_the_speed(made: Command, timed: Workbench, tmp_path: Path) -> None:
    found = made("--sizes", "Q4_K_M,Q6_K", "--speed", "0.9", "--home", timed.home, "--json").result
    assert len(found["rungs"]) == 2
    assert all(rung["plan"]["speed"]["generation_tokens_per_second"] > 0 for rung in found["rungs"])
    strategies = [yaml.safe_load(path.read_text()) for path in (tmp_path / "made" / "strategies").glob("*.yaml")]
    assert [each["target"]["speed"] for each in strategies] == ["0.9", "0.9"]
    assert yaml.safe_load((tmp_path / "made" / "recipe.yaml").read_text())["speed"] == "0.9"


def test_make_refuses_a_speed_before_any_work_where_nothing_was_timed(made: Command, tmp_path: Path) -> None:
    assert "have not been timed" in made("--size", SIZE, "--speed", "0.9", "--home", tmp_path / "home").error_line
    assert not list((tmp_path / "made").glob("*.gguf"))


@pytest.mark.slow
def test_fit_says_how_fast_each_file_is(quantailor: Command, timed: Workbench) -> None:
    words = ("fit", timed.base, "--memory", "100MiB", "--ctx", 512, "--home", timed.home)
    found = {each["name"]: each["speed"] for each in quantailor(*words, "--json").result["files"]}
    source = open_model(timed.base)
    assert found[str(timed.base)]["generation_tokens_per_second"] == pytest.approx(1 / takes(source, dict.fromkeys(groups(source), "F16")))
    source.close()
    assert found["Q4_K_M"]["generation_tokens_per_second"] > found["Q8_0"]["generation_tokens_per_second"]
    assert "tokens per second" in quantailor(*words).out


@pytest.mark.slow
def test_a_prediction_says_how_fast_the_file_is(quantailor: Command, probed: Workbench, tmp_path: Path) -> None:
    record(probed.home, probed.base)
    words = ("--home", probed.home, "--json")
    planned = quantailor("plan", probed.base, "--size", SIZE, "--speed", "0.9", "-o", tmp_path / "s.yaml", *words).result
    predicted = quantailor("predict", probed.base, tmp_path / "s.yaml", *words).result
    assert planned["prediction"]["kld_nats"] > 0
    assert predicted["speed"] == planned["speed"]
    line = quantailor("plan", probed.base, "--size", SIZE, "--speed", "100000tok/s", "--home", probed.home).error_line
    assert "at a predicted KLD of" in line


def test_two_choices_of_types_are_compared_by_speed_too(quantailor: Command, timed: Workbench, measured_home: Path) -> None:
    words = ("diff", timed.base, "Q4_K_M", "Q8_0", "--home")
    outcome = quantailor(*words, timed.home, "--json")
    validate(outcome.out)
    small, large = (outcome.result[side]["speed"]["generation_tokens_per_second"] for side in ("a", "b"))
    assert small > large
    assert large == pytest.approx(1 / of_reference(timed.base))
    assert "tokens per second (predicted)" in " ".join(quantailor(*words, timed.home).out.split())
    assert quantailor(*words, measured_home, "--json").result["a"]["speed"] is None
    assert "tokens per second" not in quantailor(*words, measured_home).out


def of_reference(base: Path) -> float:
    """Seconds of a token on the made-up machine with every matrix at Q8_0."""
    source = open_model(base)
    found = takes(source, reference_file(source).types)
    source.close()
    return found


@pytest.mark.slow
def test_a_verdict_says_how_fast_its_files_are(quantailor: Command, timed: Workbench, tmp_path: Path) -> None:
    home = ("--home", shutil.copytree(timed.home, tmp_path / "home"))
    quantailor("build", timed.base, "Q8_0", "-o", tmp_path / "large.gguf", "--imatrix", "none", "--rounding", "plain", *home)
    words = ("verify", tmp_path / "large.gguf", "--base", timed.base, "--against", "Q3_K_M", "--chunks", 2, "--imatrix", "none", *home)
    outcome = quantailor(*words, "--json")
    validate(outcome.out)
    speeds = {label: each["generation_tokens_per_second"] for label, each in outcome.result["speeds"].items()}
    assert set(speeds) == {"base", "large", "Q3_K_M"}
    assert speeds["base"] < speeds["large"] == pytest.approx(1 / of_reference(timed.base))
    shown = quantailor("verdicts", timed.base, *home)
    assert "tokens per second" in shown.out
    stored = quantailor("verdicts", timed.base, *home, "--json")
    validate(stored.out)
    again = {label: each["generation_tokens_per_second"] for label, each in stored.result["speeds"].items()}
    assert again == pytest.approx(speeds)
