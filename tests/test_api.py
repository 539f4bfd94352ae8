"""The front door: what a notebook uses."""

from __future__ import annotations

import doctest
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from commands import Workbench
from real_workers import free_port

import quantailor
from quantailor import files
from quantailor.app.api import choosing, measuring, opening, products
from quantailor.app.jobs import run_job, submit
from quantailor.control import Control
from quantailor.errors import ClusterError, OptionError, RpcError
from quantailor.models.identity import Identity, identify
from quantailor.models.opening import open_model
from quantailor.models.source import ModelSource
from quantailor.pipeline import MakeStep
from quantailor.session import Workspace
from quantailor.steps.plan import PlanOptions
from quantailor.steps.probe import TIMED_EFFORT, Effort
from small_base import write_small_base
from tiny_models import write_tiny

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "first_file.py"


@pytest.mark.long
@pytest.mark.slow
def test_the_example_runs_through_the_front_door_alone(tmp_path: Path) -> None:
    imports = re.findall(r"^(?:import|from) (\w+)", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(imports) == {"sys", "pathlib", "quantailor"}
    run = subprocess.run(
        [sys.executable, str(EXAMPLE), "demo/books-llama", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "Books Llama: 75 tensors, llama" in run.stdout
    assert "bytes, KL divergence 0." in run.stdout
    assert "against Q4_K_M at equal size" in run.stdout
    assert {path.name for path in tmp_path.iterdir()} >= {"books.gguf", "strategy.yaml", "books.verdict.png"}


def test_every_name_is_there_and_documented() -> None:
    assert len(quantailor.__all__) == 28
    for name in quantailor.__all__:
        assert getattr(quantailor, name).__doc__, name
    assert set(quantailor.__all__) <= set(dir(quantailor))
    with pytest.raises(AttributeError, match="no attribute 'sesame'"):
        quantailor.sesame  # noqa: B018


@pytest.mark.slow
def test_the_docstrings_examples_are_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("QUANTAILOR_HOME", str(tmp_path))
    names = {name: getattr(quantailor, name) for name in quantailor.__all__}
    results = [doctest.testmod(module, extraglobs=names) for module in (choosing, measuring, opening, products)]
    assert sum(result.failed for result in results) == 0
    assert sum(result.attempted for result in results) >= 11


def test_errors_are_of_one_kind(tmp_path: Path) -> None:
    with pytest.raises(quantailor.QuantailorError, match="nowhere"):
        quantailor.open_model(tmp_path / "nowhere", home=tmp_path)


def test_servers_and_workers_are_asked_for_before_any_work(tmp_path: Path) -> None:
    base, nobody, home = write_small_base(tmp_path / "base.gguf"), f"127.0.0.1:{free_port()}", tmp_path / "home"
    with quantailor.open_model(base, home=home, rpc=[nobody]) as model, pytest.raises(OptionError, match="puts no layer on a server"):
        quantailor.imatrix(model)
    with quantailor.open_model(base, home=home, rpc=[nobody], gpu_layers=99) as model, pytest.raises(RpcError, match=nobody):
        quantailor.imatrix(model)
    with (
        quantailor.open_model(base, home=home, cluster="nowhere") as model,
        pytest.raises(ClusterError, match="'nowhere' names no cluster"),
    ):
        quantailor.measure(model)


@pytest.mark.slow
def test_the_library_rounds_as_it_is_told_and_tells_what_that_gains(calibration_text: Path, tmp_path: Path) -> None:
    base, text = write_small_base(tmp_path / "base.gguf"), tmp_path / "short.txt"
    text.write_text(calibration_text.read_text(encoding="utf-8")[:2_000], encoding="utf-8")
    with quantailor.open_model(base, home=tmp_path / "home", threads=1) as model:
        for rounding in ("plain", "compensated"):
            assert quantailor.study(model, "quick", types=["Q4_0"], text=text, rounding=rounding).rounding == rounding
        assert quantailor.study(model, "quick", types=["Q4_0"], text=text).rounding == "compensated"
        strategy = quantailor.plan(model, bits_per_weight=5, options=PlanOptions(bits_per_weight=5, basis="ranking"))
        built = quantailor.build(model, strategy, tmp_path / "out.gguf")
        verdict = quantailor.verify(model, built.paths[0], against=[], text=text, chunks=1, beside="plain")
    assert "plain rounding" in {row.label for row in verdict.rows}
    assert "plain rounding" in verdict.sentence


@pytest.mark.slow
def test_a_make_opens_its_model_at_most_four_times_and_identifies_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_tiny("llama2", tmp_path / "models")
    files.wait_until_settled(files.state_of(directory.iterdir()))  # the identity of files that were just written is not kept
    opened: Counter[str] = Counter()
    identified: Counter[str] = Counter()

    def counted_open(path: Path | str) -> ModelSource:
        opened[Path(path).name] += 1
        return open_model(path)

    def counted_identify(source: ModelSource, *, control: Control) -> Identity:
        identified[Path(source.location).name] += 1
        return identify(source, control=control)

    monkeypatch.setattr("quantailor.session.workspace.open_model", counted_open)
    monkeypatch.setattr("quantailor.session.workspace.identify", counted_identify)
    step = MakeStep(
        model=str(directory),
        output=str(tmp_path / "out"),
        plan=PlanOptions(like="Q5_0", basis="ranking"),
        types=("Q4_0", "Q8_0"),
        imatrix_chunks=2,
        chunks=2,
        against=("Q5_0",),
    )
    with Workspace.open(tmp_path / "home") as workspace:
        run_job(workspace, submit(workspace, step))
    model, base = directory.name, "base.gguf"
    assert opened[model] + opened[base] <= 4
    assert identified[model] + identified[base] == 1


@pytest.mark.slow
def test_a_limit_of_time_takes_the_place_of_the_usual_limits(workbench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(TIMED_EFFORT.types) == 7
    types = TIMED_EFFORT.types[:4]  # of others ggml makes tables for 10 seconds, in two processes
    monkeypatch.setattr("quantailor.steps.probe.TIMED_EFFORT", Effort(types, TIMED_EFFORT.chunks))
    home = shutil.copytree(workbench.home, tmp_path / "home")
    with quantailor.open_model(workbench.base, home=home, threads=1) as model:
        quantailor.probe(model, seconds=1, group="role")
        arguments = next(job.arguments for job in model.workspace.store.jobs.all() if job.kind == "probe")
        assert (arguments["chunks"], arguments["mix_chunks"], tuple(arguments["types"])) == (16, 64, types)
        few = quantailor.probe(model, passes=3)
        assert few.n_scored - few.n_scored_before == 3
