"""Every long command, killed at every commit, rename and removal: a second run ends with the results of one left alone."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Command

import fuzzing
from faults import Forked, Killed, kill_at_each_moment
from quantailor import cli
from quantailor.jobs import resolve
from quantailor.store import Store
from stores import first_difference
from tiny_models import write_tiny

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")]

FEW = ("--n-ctx", 64, "--threads", 1)
Done = Callable[[Store, Path], int]


def rows(table: str) -> Done:
    return lambda store, _: len(store.result_rows()[table])


def scored_in_memory(store: Store, _: Path) -> int:
    """(mix, chunk) pairs that were scored by swapping weights."""
    keys = [key for model in store.models() for key in store.swap_runs(model.fingerprint) if key.kernels == "as built"]
    return sum(len(scores) for key in keys for scores in store.mix_scores(key).values())


def run_first(home: Path, *words: object) -> None:
    assert cli.run([*map(str, words), "--home", str(home), "--json"]) == 0


def forced_once_done(home: Path, kind: str) -> tuple[str, ...]:
    """What a second run needs in order to write its file again: nothing, unless the first was killed when its job was done."""
    if not resolve(home).database.exists():
        return ()
    with Store(resolve(home).database) as store:
        return ("--force",) if any((job.kind, job.state) == (kind, "done") for job in store.jobs.all()) else ()


def one_result(reports: list[Killed], *names: str) -> None:
    """Runs that were killed say the same of these in the end."""
    for name in names:
        assert len({json.dumps(report.result[name], sort_keys=True) for report in reports}) == 1


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny("llama2", tmp_path / "models")


@pytest.fixture
def base(model: Path, tmp_path: Path) -> Path:
    run_first(tmp_path / "home-of-the-base", "convert", model, "-o", tmp_path / "base.gguf")
    return tmp_path / "base.gguf"


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    run_first(tmp_path / "home-of-the-mixture", "convert", write_tiny("mixtral", tmp_path / "models"), "-o", tmp_path / "mixture.gguf")
    return tmp_path / "mixture.gguf"


@pytest.fixture
def text(calibration_text: Path, tmp_path: Path) -> Path:
    path = tmp_path / "short.txt"
    path.write_text(calibration_text.read_text(encoding="utf-8")[:8_000], encoding="utf-8")
    return path


@pytest.fixture(params=["plain", "compensated"])
def rounding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def whole_or_absent(output: Callable[[Path], Path]) -> Done:
    """Whether a file is there, which must be that of the run that was left alone."""

    def there(_: Store, home: Path) -> int:
        path, whole = output(home), output(home.parent / "alone")
        if path.exists():
            assert path.read_bytes() == whole.read_bytes()
        return int(path.exists())

    return there


def test_convert_leaves_nothing_half_written(forked: Forked, model: Path, tmp_path: Path) -> None:
    def words(home: Path) -> list[object]:
        return ["convert", model, "-o", home / "base.gguf", *forced_once_done(home, "convert")]

    reports = kill_at_each_moment(forked, words, tmp_path, whole_or_absent(lambda home: home / "base.gguf"))
    assert {report.done_before for report in reports} == {0, 1}
    assert not list(tmp_path.rglob(".*.part"))


def test_measure_measures_no_cell_twice(forked: Forked, base: Path, text: Path, tmp_path: Path, rounding: str) -> None:
    home = tmp_path / "prepared"
    run_first(home, "calibrate" if rounding == "compensated" else "imatrix", base, "-f", text, "--chunks", 2, *FEW)
    words = ["measure", base, "--types", "Q4_0,Q5_0,Q8_0", "--tensors", "blk.*", "--rounding", rounding]
    reports = kill_at_each_moment(forked, lambda _: words, tmp_path, rows("cells"), prepared=home)
    for report in reports:
        assert report.result["n_already_measured"] == report.done_before
    assert len({report.done_before for report in reports}) > 3


def test_imatrix_gives_one_matrix(forked: Forked, mixture: Path, text: Path, tmp_path: Path) -> None:
    def words(home: Path) -> list[object]:
        return ["imatrix", mixture, "-f", text, "--chunks", 8, *FEW, "-o", home / "out.gguf", *forced_once_done(home, "imatrix")]

    reports = kill_at_each_moment(forked, words, tmp_path, rows("imatrices"))
    assert {report.result["chunk_count"] for report in reports} == {8}
    one_result(reports, "fingerprint")
    assert len({(report.home / "out.gguf").read_bytes() for report in reports}) == 1


def test_calibrate_gives_one_file(forked: Forked, mixture: Path, text: Path, tmp_path: Path) -> None:
    def words(home: Path) -> list[object]:
        return ["calibrate", mixture, "-f", text, "--chunks", 8, *FEW, "-o", home / "out.gguf", *forced_once_done(home, "calibrate")]

    reports = kill_at_each_moment(forked, words, tmp_path, rows("covariances"))
    one_result(reports, "fingerprint")
    assert len({(report.home / "out.gguf").read_bytes() for report in reports}) == 1
    for report in reports:
        assert [path.suffix for path in (report.home / "covariances").iterdir()] == [".gguf"]


def test_build_leaves_nothing_half_written(forked: Forked, base: Path, text: Path, tmp_path: Path, rounding: str) -> None:
    home, strategy = tmp_path / "prepared", tmp_path / "s.yaml"
    run_first(home, "calibrate" if rounding == "compensated" else "imatrix", base, "-f", text, "--chunks", 2, *FEW)
    run_first(home, "measure", base, "--types", "Q4_0,Q5_0,Q8_0", "--rounding", rounding)
    run_first(home, "plan", base, "--bpw", 6.5, "-o", strategy)

    def output(home: Path) -> Path:
        return home / "out.gguf"

    def words(home: Path) -> list[object]:
        return ["build", base, strategy, "-o", output(home), *forced_once_done(home, "build")]

    reports = kill_at_each_moment(forked, words, tmp_path, whole_or_absent(output), prepared=home)
    assert {report.done_before for report in reports} == {0, 1}
    assert len({output(report.home).read_bytes() for report in reports}) == 1
    assert not list(tmp_path.rglob(".*.part"))


def test_only_its_own_file_is_replaced(forked: Forked, base: Path, tmp_path: Path) -> None:
    """A build is killed when its file has its name; it may go on only while that file is still there."""
    strategy, home, output = tmp_path / "s.yaml", tmp_path / "home", tmp_path / "out.gguf"
    run_first(home, "measure", base, "--types", "Q4_0,Q8_0", "--imatrix", "none")
    run_first(home, "plan", base, "--bpw", 6.5, "--basis", "ranking", "-o", strategy)
    words = ["build", base, strategy, "-o", output, "--home", home, "--json"]
    moments = forked.run(*words).moments
    named = next(number for number, moment in enumerate(moments) if moment.startswith(f"after replace {tmp_path}/.out.gguf."))
    output.unlink()
    assert forked.run(*words, stop_at=named).was_killed
    whole = output.read_bytes()
    output.rename(tmp_path / "kept.gguf")
    output.write_bytes(whole)
    refused = forked.run(*words)
    assert refused.code != 0
    assert f"{output} exists" in json.loads(refused.out)["error"]["message"]
    (tmp_path / "kept.gguf").replace(output)
    assert forked.run(*words).result["paths"] == [str(output)]
    assert output.read_bytes() == whole


@pytest.mark.long
def test_refine_leaves_one_strategy(forked: Forked, base: Path, text: Path, tmp_path: Path) -> None:
    home, strategy = tmp_path / "prepared", tmp_path / "s.yaml"
    run_first(home, "measure", base, "--types", "Q4_0,Q5_0,Q8_0", "--imatrix", "none")
    run_first(home, "probe", base, "-f", text, "--type", "Q4_0", "--group", "role", "--chunks", 2, "--mixes", 0, "--anchors", 0, *FEW)
    run_first(home, "plan", base, "--bpw", 6.5, "-o", strategy)

    def words(home: Path) -> list[object]:
        return ["refine", base, strategy, "-f", text, "--chunks", 2, *FEW, "-o", home / "refined.yaml", *forced_once_done(home, "refine")]

    reports = kill_at_each_moment(forked, words, tmp_path, scored_in_memory, prepared=home)
    assert all((report.home / "refined.yaml").exists() for report in reports)
    one_result(reports, "kld_before", "kld_after", "type_counts")
    assert len({(report.home / "refined.yaml").read_text() for report in reports}) == 1


@pytest.mark.long
def test_verify_gives_one_verdict(forked: Forked, base: Path, text: Path, tmp_path: Path) -> None:
    home, strategy, output = tmp_path / "prepared", tmp_path / "s.yaml", tmp_path / "ours.gguf"
    run_first(home, "imatrix", base, "-f", text, "--chunks", 2, *FEW)
    run_first(home, "measure", base, "--types", "Q4_0,Q5_0,Q8_0")
    run_first(home, "plan", base, "--bpw", 6.5, "-o", strategy)
    run_first(home, "build", base, strategy, "-o", output)
    words = ["verify", output, "--base", base, "--against", "Q8_0", "-f", text, "--chunks", 6, *FEW]
    reports = kill_at_each_moment(forked, lambda _: words, tmp_path, rows("chunk_scores"), prepared=home)
    one_result(reports, "verdict")
    assert len({report.done_before for report in reports}) > 2


@pytest.mark.long
def test_probe_scores_no_chunk_twice(forked: Forked, base: Path, text: Path, tmp_path: Path) -> None:
    home = tmp_path / "prepared"
    run_first(home, "measure", base, "--types", "Q4_0,Q5_0,Q8_0", "--imatrix", "none")
    few = ("--type", "Q4_0", "--group", "role", "--chunks", 2, "--mixes", 3, "--mix-chunks", 2, "--anchors", 1)
    words = ["probe", base, "-f", text, *few, *FEW]
    reports = kill_at_each_moment(forked, lambda _: words, tmp_path, scored_in_memory, prepared=home)
    for report in reports:
        assert report.result["n_scored_before"] == report.done_before
    assert any(report.done_before for report in reports)
    one_result(reports, "sensitivities")


@pytest.mark.long
def test_sweep_measures_no_cell_twice(forked: Forked, mixture: Path, text: Path, tmp_path: Path) -> None:
    home = tmp_path / "prepared"
    run_first(home, "measure", mixture, "--types", "Q4_0,Q8_0", "--imatrix", "none")
    words = ["sweep", mixture, "-f", text, "--types", "Q4_0,Q8_0", "--chunks", 3, *FEW]
    reports = kill_at_each_moment(forked, lambda _: words, tmp_path, scored_in_memory, prepared=home)
    n_cells = {report.result["n_cells"] for report in reports}
    assert len(n_cells) == 1
    for report in reports:
        cells = report.result["cells"]
        assert {len(cells)} == n_cells
        assert {cell["measured"]["n_chunks"] for cell in cells} == {3}
        assert report.result["n_already_measured"] <= report.done_before / 3
    assert any(report.result["n_already_measured"] for report in reports)


@pytest.mark.long
def test_make_goes_on_and_gives_one_file(forked: Forked, model: Path, text: Path, tmp_path: Path, rounding: str) -> None:
    few = ("--types", "Q4_0,Q5_0,Q8_0", "--bpw", 6, "--basis", "ranking", "--against", "Q8_0", "--chunks", 1, "--threads", 1)

    def words(home: Path) -> list[object]:
        return ["make", model, "-f", text, *few, "--rounding", rounding, "-o", home / "out"]

    def measured(store: Store, home: Path) -> int:
        for path in home.glob("out/*.gguf"):
            assert path.read_bytes() == (tmp_path / "alone" / "out" / path.name).read_bytes()
        return sum(len(store.result_rows()[table]) for table in ("cells", "chunk_scores", "imatrices"))

    reports = kill_at_each_moment(forked, words, tmp_path, measured)
    assert len({report.done_before for report in reports}) > 3
    files = [sorted(path.name for path in (report.home / "out").iterdir()) for report in reports]
    assert all(names == sorted(path.name for path in (tmp_path / "alone" / "out").iterdir()) for names in files)
    for report in reports:
        assert report.result["verify"]["verdict"]["rows"]


# Processes of their own, at any moment


@pytest.mark.parametrize("command", ["measure", "study"])
def test_a_process_killed_at_any_moment_goes_on(quantailor: Command, model: Path, text: Path, tmp_path: Path, command: str) -> None:
    options = {"measure": ("--exhaustive", "--imatrix", "none"), "study": ("--level", "quick", "-f", text)}[command]
    words = (command, model, *options, "--types", "Q4_0,Q5_0,Q8_0", "--threads", 1, "--json", "--home")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    argv = [sys.executable, "-m", "quantailor", *map(str, words), str(killed)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not resolve(killed).database.exists():
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=random.Random(f"{command} {fuzzing.seed()}").uniform(0, 1))
        process.kill()
    found, expected = quantailor(*words, killed).result, quantailor(*words, whole).result
    found = json.loads(json.dumps(found).replace(str(killed), str(whole)))
    assert {**found, "n_already_measured": 0} == {**expected, "n_already_measured": 0}
    with Store(resolve(killed).database) as one, Store(resolve(whole).database) as other:
        assert first_difference(one, other) is None
