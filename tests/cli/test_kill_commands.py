"""Every long command, killed at 30 random moments: resuming ends with the results of a run that was left alone."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import Workbench

from quantailor import cli
from quantailor.jobs import resolve
from quantailor.store import Store, first_difference

N_KILLS = 30
TYPES = "Q2_K,Q3_K,Q4_K,Q5_K,Q6_K,Q8_0,Q4_0,Q5_0"

pytestmark = pytest.mark.slow


@dataclass
class Killed:
    """What was seen while a command was killed again and again."""

    n_kills: int
    last_result: Any
    done_before_last: int


def run_killed(words: list[str], home: Path, *, longest_s: float, n_kills: int, seed: int, done: Callable[[Store], int]) -> Killed:
    """Run a command, kill it at random moments until it was killed `n_kills` times or ended; what is done never shrinks."""
    moments = random.Random(seed)
    argv = [sys.executable, "-m", "quantailor", *words, "--home", str(home), "--json"]
    kills, before = 0, 0
    while True:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            output, errors = process.communicate(timeout=moments.uniform(0.3, longest_s) if kills < n_kills else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            now = count(home, done)
            assert now >= before
            before = now
            continue
        assert process.returncode == 0, errors
        return Killed(kills, json.loads(output)["result"], before)


def count(home: Path, done: Callable[[Store], int]) -> int:
    database = resolve(home).database
    if not database.exists():
        return 0
    with Store(database) as store:
        return done(store)


def rows(table: str) -> Callable[[Store], int]:
    return lambda store: len(store.result_rows()[table])


def kill_until_enough(prepare: Callable[[Path], list[str]], tmp_path: Path, done: Callable[[Store], int]) -> list[Killed]:
    """Rounds in fresh homes until there were `N_KILLS` kills; each round's store equals an uninterrupted run's."""
    alone = tmp_path / "alone"
    words = prepare(alone)
    begun = time.monotonic()
    first = run_killed(words, alone, longest_s=0, n_kills=0, seed=0, done=done)
    longest_s = time.monotonic() - begun
    assert first.n_kills == 0
    rounds: list[Killed] = []
    while (left := N_KILLS - sum(killed.n_kills for killed in rounds)) > 0:
        home = tmp_path / f"killed-{len(rounds)}"
        killed = run_killed(prepare(home), home, longest_s=longest_s, n_kills=left, seed=len(rounds), done=done)
        with Store(resolve(alone).database) as one, Store(resolve(home).database) as other:
            assert first_difference(one, other) is None
            assert other.jobs.all()[0].state == "done"
        rounds.append(killed)
    return rounds


def run_first(home: Path, *words: object) -> None:
    assert cli.run([*(str(word) for word in words), "--home", str(home), "--json"]) == 0


def test_measure_survives_kills_and_measures_no_cell_twice(books_llama_base: Path, tmp_path: Path) -> None:
    words = ["measure", str(books_llama_base), "--types", TYPES, "--exhaustive"]
    rounds = kill_until_enough(lambda _: words, tmp_path, rows("cells"))
    for killed in rounds:
        assert killed.last_result["n_already_measured"] == killed.done_before_last
    assert any(killed.done_before_last for killed in rounds)


def test_imatrix_survives_kills(books_moe_base: Path, calibration_text: Path, tmp_path: Path) -> None:
    words = ["imatrix", str(books_moe_base), "-f", str(calibration_text), "--chunks", "24", "--threads", "1"]
    rounds = kill_until_enough(lambda _: words, tmp_path, rows("imatrices"))
    assert {killed.last_result["chunk_count"] for killed in rounds} == {24}
    assert len({killed.last_result["fingerprint"] for killed in rounds}) == 1


def test_build_survives_kills_and_leaves_nothing_half_written(workbench: Workbench, tmp_path: Path) -> None:
    strategy = tmp_path / "s.yaml"
    run_first(workbench.home, "plan", workbench.base, "--bpw", "3.4", "-o", strategy)
    imatrix = tmp_path / "imatrix.gguf"
    run_first(workbench.home, "imatrix", workbench.base, "--show", "--export", imatrix)
    outputs: list[Path] = []

    def prepare(home: Path) -> list[str]:
        output = tmp_path / f"{home.name}.gguf"
        outputs.append(output)
        run_first(home, "imatrix", workbench.base, "--import", imatrix)
        return ["build", str(workbench.base), str(strategy), "-o", str(output), "--force"]

    def whole_or_absent(store: Store) -> int:
        del store
        output = outputs[-1]
        if output.exists():
            assert output.read_bytes() == outputs[0].read_bytes()
        return int(output.exists())

    kill_until_enough(prepare, tmp_path, whole_or_absent)
    assert len({output.read_bytes() for output in outputs}) == 1
    assert not list(tmp_path.glob(".*.part"))


def test_verify_survives_kills(workbench: Workbench, tmp_path: Path) -> None:
    strategy, output, imatrix = tmp_path / "s.yaml", tmp_path / "ours.gguf", tmp_path / "imatrix.gguf"
    run_first(workbench.home, "plan", workbench.base, "--bpw", "4.5", "-o", strategy)
    run_first(workbench.home, "build", workbench.base, strategy, "-o", output)
    run_first(workbench.home, "imatrix", workbench.base, "--show", "--export", imatrix)

    def prepare(home: Path) -> list[str]:
        run_first(home, "imatrix", workbench.base, "--import", imatrix)
        return ["verify", str(output), "--base", str(workbench.base), "--against", "Q4_K_M", "--chunks", "12", "--threads", "1"]

    rounds = kill_until_enough(prepare, tmp_path, rows("chunk_scores"))
    verdicts = {json.dumps(killed.last_result["verdict"], sort_keys=True) for killed in rounds}
    assert len(verdicts) == 1


def scored_in_memory(store: Store) -> int:
    """(mix, chunk) pairs that were scored by swapping weights."""
    keys = [key for model in store.models() for key in store.swap_runs(model.fingerprint) if key.kernels == "as built"]
    return sum(len(scores) for key in keys for scores in store.mix_scores(key).values())


def measured_home(base: Path) -> Callable[[Path], None]:
    return lambda home: run_first(home, "measure", base, "--types", "Q2_K,Q4_K,Q8_0")


FEW = ("--n-ctx", "64", "--threads", "1")


def test_probe_survives_kills_and_scores_no_chunk_twice(books_llama_base: Path, calibration_text: Path, tmp_path: Path) -> None:
    def prepare(home: Path) -> list[str]:
        measured_home(books_llama_base)(home)
        few = ("--type", "Q2_K", "--group", "role-depth", "--chunks", "4", "--mixes", "3", "--mix-chunks", "4", "--anchors", "1")
        return ["probe", str(books_llama_base), "-f", str(calibration_text), *few, *FEW]

    rounds = kill_until_enough(prepare, tmp_path, scored_in_memory)
    for killed in rounds:
        assert killed.last_result["n_scored_before"] == killed.done_before_last
    assert any(killed.done_before_last for killed in rounds)
    assert len({json.dumps(killed.last_result["sensitivities"], sort_keys=True) for killed in rounds}) == 1


def test_sweep_survives_kills_and_measures_no_cell_twice(books_moe_base: Path, calibration_text: Path, tmp_path: Path) -> None:
    def prepare(home: Path) -> list[str]:
        measured_home(books_moe_base)(home)
        return ["sweep", str(books_moe_base), "-f", str(calibration_text), "--types", "Q2_K,Q8_0", "--chunks", "3", *FEW]

    rounds = kill_until_enough(prepare, tmp_path, scored_in_memory)
    for killed in rounds:
        cells = killed.last_result["cells"]
        assert len(cells) == killed.last_result["n_cells"] == 44 * 2
        assert {cell["measured"]["n_chunks"] for cell in cells} == {3}
        assert killed.last_result["n_already_measured"] <= killed.done_before_last / 3
    assert any(killed.last_result["n_already_measured"] for killed in rounds)
