"""What `make` and `study` do by themselves with a model whose weights take longer to round than to run: few passes, quickly rounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest

from quantailor.analysis.sensitivity import groups_of
from quantailor.app.jobs import run_job, submit
from quantailor.app.measuring.cost import job_cost
from quantailor.app.measuring.passes import passes_of_mixes
from quantailor.costs.model_size import QUICK_TYPES
from quantailor.evidence.grounds import CURVE
from quantailor.pipeline import MakeStep, StudyStep
from quantailor.pipeline.make import MakeResult
from quantailor.session import Workspace, quantizable_tensors
from quantailor.steps.calibration.calibrate import CalibrateStep
from quantailor.steps.measure import MeasureResult, MeasureStep
from quantailor.steps.options import Compute
from quantailor.steps.plan import PlanOptions
from quantailor.steps.probe import DEFAULT_PROBE_TYPES
from quantailor.store import SwapKey
from quantailor.strategy import file as strategy_file
from small_base import write_small_base

N_PASSES = 48


@pytest.fixture(autouse=True)
def every_model_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantailor.costs.model_size.LARGE_MODEL_WEIGHTS", 1)
    monkeypatch.setattr("quantailor.pipeline.parts.LARGE_PASSES", N_PASSES)


@pytest.fixture
def task(tmp_path: Path, calibration_text: Path) -> MakeStep:
    text = tmp_path / "short.txt"
    text.write_text(calibration_text.read_text(encoding="utf-8")[:4_000], encoding="utf-8")
    base = write_small_base(tmp_path / "base.gguf")
    return MakeStep(
        model=str(base),
        output=str(tmp_path / "out"),
        text=str(text),
        types=("Q3_K", "Q4_K", "Q6_K"),
        plan=PlanOptions(bits_per_weight=5.0),
        verify=False,
        compute=Compute(n_threads=1),
    )


def made(workspace: Workspace, task: MakeStep) -> MakeResult:
    result = run_job(workspace, submit(workspace, task))
    assert isinstance(result, MakeResult)
    return result


def scored(workspace: Workspace, task: MakeStep) -> Mapping[SwapKey, Mapping[str, int]]:
    with workspace.model(task.model) as model:
        return {key: workspace.store.scored_mixes(key) for key in workspace.store.swap_runs(model.fingerprint)}


@pytest.mark.slow
def test_what_is_probed_is_rounded_plainly_the_file_is_compensated_and_passes_are_counted_over_all_runs(
    task: MakeStep, tmp_path: Path
) -> None:
    with Workspace.open(tmp_path / "home") as workspace:
        result = made(workspace, task)
        grounds = result.plan.grounds
        assert result.rounding == "compensated"
        assert grounds is not None
        assert (grounds.rounding, grounds.carried) == ("plain", True)
        assert grounds.n_probed == grounds.n_tensors
        strategy = strategy_file.read(Path(result.strategy))
        assert strategy.inputs["rounding"] == "compensated"
        with workspace.model(task.model) as model:
            scores = [workspace.store.mix_scores(run) for run in workspace.store.swap_runs(model.fingerprint)]
            mixes = workspace.store.mixes(model.fingerprint, CURVE)
        assert {name for mix in mixes for name in mix.types.values()} <= set(QUICK_TYPES)
        assert all(any(mix.id in of_run for of_run in scores) for mix in mixes), "whole mixes come before passes are used up"
        before = scored(workspace, task)
        again = made(workspace, dataclasses.replace(task, imatrix="auto"))
        assert scored(workspace, task) == before, "passes are counted over all runs"
        assert again.plan.tensors == result.plan.tensors


def test_who_says_how_much_is_probed_gets_it(task: MakeStep, tmp_path: Path) -> None:
    with Workspace.open(tmp_path / "home") as workspace, workspace.model(task.model) as model:
        source = model.source
        usual = task.decided(workspace, source).probes(task.model, "auto", source)
        assert (usual.total_passes, usual.rounding, usual.anchors) == (N_PASSES, "plain", 1)
        told = dataclasses.replace(task, probe_chunks=3).decided(workspace, source).probes(task.model, "auto", source)
        assert (told.total_passes, told.chunks, told.group) == (None, 3, "role-depth")
        passes = dataclasses.replace(task, passes=7).decided(workspace, source).probes(task.model, "auto", source)
        assert (passes.passes, passes.total_passes) == (7, None)
        on_gpu = dataclasses.replace(task, compute=Compute(n_gpu_layers=-1)).decided(workspace, source).probes(task.model, "auto", source)
        assert (on_gpu.total_passes, on_gpu.group, on_gpu.rounding) == (None, "tensor", "plain")
        thorough = StudyStep(model=task.model, level="thorough").decided(source).probes(task.model, "auto", source)
        assert (thorough.total_passes, thorough.group, thorough.rounding) == (None, "tensor", "compensated")


def test_the_cost_is_of_these_passes(task: MakeStep, tmp_path: Path) -> None:
    with Workspace.open(tmp_path / "home") as workspace:
        stages = {each.stage: each for each in job_cost(workspace, task).stages}
    assert stages["probes"].passes[1] + stages["mixes"].passes[1] == N_PASSES
    assert stages["mixes"].passes[1] > 0


def test_whole_mixes_come_behind_roles_and_again_behind_roles_by_depth(task: MakeStep, tmp_path: Path) -> None:
    with Workspace.open(tmp_path / "home") as workspace, workspace.model(task.model) as model:
        probing = task.decided(workspace, model.source).probes(task.model, "auto", model.source)
        tensors = quantizable_tensors(model.source)
    n_roles, n_groups = (len(groups_of(tensors, group)) for group in ("role", "role-depth"))
    behind_roles, n_files = len(DEFAULT_PROBE_TYPES) * n_roles, probing.mixes + probing.anchors
    counted = [passes_of_mixes(tensors, probing, n) for n in (behind_roles, behind_roles + 1, behind_roles + 2 * n_files + n_groups)]
    assert counted == [0, 1, 2 * n_files]
    assert passes_of_mixes(tensors, probing, behind_roles + n_groups + 4 * n_files) == 4 * n_files


def test_weight_errors_of_large_models_are_sampled_less_precisely(task: MakeStep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worst = []
    for number, weights in enumerate((1, 10**9)):
        monkeypatch.setattr("quantailor.costs.model_size.LARGE_MODEL_WEIGHTS", weights)
        with Workspace.open(tmp_path / f"home{number}") as workspace:
            run_job(workspace, submit(workspace, CalibrateStep(base=task.model, text=task.text, n_ctx=64, compute=task.compute)))
            measure = MeasureStep(base=task.model, types=("Q4_0", "Q3_K"), rounding="plain", compute=task.compute)
            result = run_job(workspace, submit(workspace, measure))
        assert isinstance(result, MeasureResult)
        worst.append(max(cell.output_mse_se / cell.output_mse for cell in result.cells if cell.output_mse))
    assert worst[1] <= 0.03 < worst[0] <= 0.05
