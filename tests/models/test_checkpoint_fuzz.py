"""Mutated checkpoints of every family: whatever the bytes, a model or one clear line comes out, soon and in bounded memory.

`checkpoint_fuzzer` does the work in processes of its own, so that a crash fails one test; `mutations` has the ways to
damage a file. `test_hub_fuzz` does the same to what a hub says and sends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_fuzzer import GROUPS, HANG_S
from test_hub_fuzz import N_ANSWERS, N_LISTINGS

import fuzzing
from quantailor.models.convert.families import FAMILIES

FUZZER = Path(__file__).with_name("checkpoint_fuzzer.py")


def fuzz(group: str, folder: Path, *, factor: float) -> dict[str, tuple[int, int]]:
    """How many cases of each target opened and how many were refused; anything else fails here with what was seen."""
    command = [sys.executable, "-W", "error", str(FUZZER), group, str(fuzzing.seed()), str(factor), str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FUZZER.parent), str(FUZZER.parent.parent), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30 * HANG_S, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes: dict[str, tuple[int, int]] = json.loads(done.stdout)
    return outcomes


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_mutated_files_give_a_model_or_one_clear_line(group: str, tmp_path: Path) -> None:
    outcomes = fuzz(group, tmp_path, factor=1 if fuzzing.LONG else 0.1)
    expected = {target.name: fuzzing.n_cases(target.n_cases, share=10) for target in GROUPS[group]}
    assert {name: sum(counts) for name, counts in outcomes.items()} == expected
    # Were all refused or none, the mutations would be too coarse or too fine to find anything.
    opened, refused = (sum(counts) for counts in zip(*outcomes.values(), strict=True))
    assert min(opened, refused) > 0


def test_some_mutations_of_an_index(tmp_path: Path) -> None:
    outcomes = fuzz("indices", tmp_path, factor=0.05)
    assert [sum(counts) for counts in outcomes.values()] == [target.n_cases // 20 for target in GROUPS["indices"]]


def test_there_are_enough_cases_and_every_family_has_some() -> None:
    targets = [target for group in GROUPS.values() for target in group]
    assert sum(target.n_cases for target in targets) + N_LISTINGS + N_ANSWERS >= 20_000
    assert {target.model for target in targets if target.file == "config.json"} >= set(FAMILIES)
    assert len({target.name for target in targets}) == len(targets)
