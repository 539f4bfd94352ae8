"""How far a measurement is, seen while it grows: counts, errors, bands, probes, the job that is at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import Command, Workbench

from quantailor.analysis.weight_errors.measure import MeasureSettings
from quantailor.analysis.weight_errors.weight_error import DEFINITION_VERSION
from quantailor.app.jobs import job_lines, job_places
from quantailor.app.measuring.progress import MeasurementWatch, measurement_map
from quantailor.app.steps import type_bits, usual_types
from quantailor.errors import ModelError
from quantailor.records import TensorInfo, WeightError
from quantailor.session import Workspace
from quantailor.store import MeasurementKey, ModelRecord

BITS = {"Q2_K": 2.625, "Q4_0": 4.5, "Q4_K": 4.5, "Q8_0": 8.5, "F16": 16.0}
FINGERPRINT = "f" * 64
KEY = MeasurementKey(FINGERPRINT, "", MeasureSettings().key, DEFINITION_VERSION)


def tensor(layer: int, role: str) -> TensorInfo:
    return TensorInfo(f"blk.{layer}.{role}.weight", (256, 256), "BF16", 2 * 256 * 256)


def cell(name: str, type_name: str, error: float | None) -> WeightError:
    reason = None if error is not None else "needs an importance matrix"
    return WeightError(name, type_name, 1000, BITS[type_name], 256, 256, weighted_mse=error, relative_mse=error, unavailable=reason)


def looked(workspace: Workspace) -> MeasurementWatch:
    """A watch that looked once."""
    watch = MeasurementWatch(workspace, FINGERPRINT)
    watch.look()
    return watch


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """A home that knows a model of ten layers with two roles, and a norm that stays as it is."""
    tensors = [tensor(layer, role) for layer in range(10) for role in ("ffn_up", "attn_q")]
    tensors.append(TensorInfo("output_norm.weight", (256,), "F32", 1024))
    with Workspace.open(tmp_path / "home") as opened:
        opened.store.record_model(ModelRecord.of(FINGERPRINT, "made up", "llama", tensors), tensors)
        yield opened


def test_nothing_is_measured_at_first(workspace: Workspace) -> None:
    found = measurement_map(workspace, FINGERPRINT)
    assert (found.n_cells, found.n_possible, found.common_type, found.settings, found.job) == (0, 0, None, "", None)
    assert len(found.tensors) == 20
    assert looked(workspace).bands() == ()


def test_an_unknown_model_is_named(workspace: Workspace) -> None:
    with pytest.raises(ModelError, match="0123"):
        measurement_map(workspace, "0123")


def test_a_look_tells_which_tensors_changed(workspace: Workspace) -> None:
    watch = MeasurementWatch(workspace, FINGERPRINT)
    workspace.store.record_cells(KEY, [cell("blk.0.ffn_up.weight", "Q4_K", 0.004), cell("blk.0.ffn_up.weight", "Q2_K", 0.05)])
    watch.look()
    assert watch.look() == frozenset()
    workspace.store.record_cells(KEY, [cell("blk.3.attn_q.weight", "Q4_K", 0.006)])
    assert watch.look() == {"blk.3.attn_q.weight"}
    found = {item.name: item for item in watch.map("Q4_K").tensors}
    assert (found["blk.0.ffn_up.weight"].error, found["blk.3.attn_q.weight"].error) == (0.004, 0.006)
    assert [found[f"blk.{at}.{role}.weight"].n_measured for at, role in ((0, "ffn_up"), (3, "attn_q"), (1, "ffn_up"))] == [2, 1, 0]


def test_what_cannot_be_measured_counts_as_settled(workspace: Workspace) -> None:
    name = "blk.0.ffn_up.weight"
    workspace.store.record_cells(KEY, [cell(name, "Q4_K", 0.004), cell(name, "Q2_K", None)])
    found = measurement_map(workspace, FINGERPRINT)
    assert (found.n_cells, found.n_unavailable, found.n_tensors_done, found.n_possible) == (2, 1, 1, 2 * 20)
    assert found.tensors[0].is_done


def test_errors_are_at_the_nearest_measured_type(workspace: Workspace) -> None:
    workspace.store.record_cells(KEY, [cell("blk.0.ffn_up.weight", "Q2_K", 0.05), cell("blk.0.ffn_up.weight", "Q8_0", 1e-5)])
    assert measurement_map(workspace, FINGERPRINT, type_name="Q3_K").common_type == "Q2_K"
    assert measurement_map(workspace, FINGERPRINT, type_name="Q6_K").common_type == "Q8_0"


def test_bands_are_percentiles_of_the_best_type(workspace: Workspace) -> None:
    errors = np.linspace(0.01, 0.1, 10)
    for layer, error in enumerate(errors):
        name = f"blk.{layer}.ffn_up.weight"
        of_types = {"Q2_K": 10 * error, "Q4_0": 2 * error, "Q4_K": error, "Q8_0": error / 100, "F16": 0.0}
        workspace.store.record_cells(KEY, [cell(name, type_name, float(value)) for type_name, value in of_types.items()])
    (band,) = looked(workspace).bands()
    assert (band.role, band.n_tensors, band.bits) == ("ffn_up", 10, (2.625, 4.5, 8.5))
    for factor, low, median, high in zip((10, 1, 0.01), band.low, band.median, band.high, strict=True):
        assert (low, median, high) == pytest.approx(tuple(np.percentile(factor * errors, (10, 50, 90))))


def test_a_band_never_rises_with_bits(workspace: Workspace) -> None:
    name = "blk.0.attn_q.weight"
    workspace.store.record_cells(KEY, [cell(name, "Q4_K", 0.004), cell(name, "Q8_0", 0.009)])
    watch = looked(workspace)
    (band,) = watch.bands()
    assert band.median == (0.004, 0.004)
    assert [(point.type_name, point.error) for point in watch.curve(name)] == [("Q4_K", 0.004), ("Q8_0", 0.009)]


def test_the_job_s_own_measurement_is_shown(workspace: Workspace, tmp_path: Path) -> None:
    workspace.store.record_cells(KEY, [cell("blk.0.ffn_up.weight", "Q4_K", 0.004)])
    base = tmp_path / "base.gguf"
    workspace.store.record_location("model", FINGERPRINT, base)
    job = workspace.store.jobs.create("measure", {"base": str(base), "types": ["Q4_K", "Q8_0"], "exhaustive": True, "imatrix": "none"})
    before = measurement_map(workspace, FINGERPRINT)
    assert before.job is not None
    assert (before.job.state, before.n_cells, before.settings) == ("queued", 1, KEY.settings)
    at_work(workspace, job.id, "measure")
    found = measurement_map(workspace, FINGERPRINT)
    assert found.settings == "exhaustive"
    assert (found.types, found.n_cells, found.n_possible) == (("Q8_0", "Q4_K"), 0, 2 * 20)


def at_work(workspace: Workspace, job_id: int, stage: str) -> None:
    """Make this very process the job's worker."""
    from quantailor.jobs import JobControl, this_worker

    job = workspace.store.jobs.claim(job_id, this_worker())
    JobControl(workspace.store, job).stage(stage)


def test_cells_per_second_are_those_of_the_latest_looks(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = iter([100.0, 102.0, 104.0])
    base = tmp_path / "base.gguf"
    workspace.store.record_location("model", FINGERPRINT, base)
    job = workspace.store.jobs.create("measure", {"base": str(base), "types": ["Q4_K"], "exhaustive": False, "imatrix": "none"})
    at_work(workspace, job.id, "measure")
    watch = MeasurementWatch(workspace, FINGERPRINT)
    monkeypatch.setattr(type(workspace.store), "now", property(lambda _: next(clock)))
    watch.look()
    for layer in range(4):
        workspace.store.record_cells(KEY, [cell(f"blk.{layer}.ffn_up.weight", "Q4_K", 0.004)])
    watch.look()
    assert watch.is_active
    assert watch._rate() == 2.0


def test_a_finished_job_is_no_longer_told_of(workspace: Workspace, tmp_path: Path) -> None:
    base = tmp_path / "base.gguf"
    workspace.store.record_location("model", FINGERPRINT, base)
    job = workspace.store.jobs.create("probe", {"base": str(base)})
    workspace.store.jobs.create("probe", {"base": str(tmp_path / "another.gguf")})
    assert (found := measurement_map(workspace, FINGERPRINT).job) is not None
    assert found.id == job.id
    workspace.store.jobs.set_state(job.id, "done")
    assert measurement_map(workspace, FINGERPRINT).job is None


def test_jobs_know_their_model_and_their_log(workspace: Workspace, tmp_path: Path) -> None:
    base = tmp_path / "base.gguf"
    workspace.store.record_location("model", FINGERPRINT, base)
    job = workspace.store.jobs.create("measure", {"base": str(base)})
    (place,) = job_places(workspace)
    assert (place.fingerprint, place.is_unclaimed, place.ended_seconds_ago) == (FINGERPRINT, True, None)
    workspace.store.jobs.log(job.id, "measure begins")
    (line,) = job_lines(workspace, job.id)
    assert line.message == "measure begins"
    assert job_lines(workspace, job.id, after=line.id) == []
    workspace.store.jobs.set_state(job.id, "cancelled")
    (place,) = job_places(workspace)
    assert place.ended_seconds_ago is not None
    assert place.ended_seconds_ago < 60


def test_a_real_measurement(workbench: Workbench, quantailor: Command) -> None:
    found = quantailor("status", workbench.base, "--type", "Q6_K", "--home", workbench.home, "--json").result
    measured = quantailor("measure", workbench.base, "--types", "Q6_K", "--home", workbench.home, "--json").result
    assert found["n_cells"] == found["n_possible"] == len(found["types"]) * len(found["tensors"])
    assert {item["name"]: item["error"] for item in found["tensors"]} == {
        item["tensor"]: item["weighted_mse"] for item in measured["cells"]
    }


def test_status_tells_it_in_words(workbench: Workbench, quantailor: Command) -> None:
    told = quantailor("status", workbench.base, "--home", workbench.home).out
    assert "58 of 58 done, 0 probed" in told
    assert "lost at Q4_K" in told
    assert "ffn_down" in told


def test_usual_types_leave_out_the_special_ones() -> None:
    assert "Q4_K" in usual_types()
    assert not {"TQ1_0", "MXFP4"} & set(usual_types())
    assert set(usual_types()) <= set(type_bits())


@pytest.mark.slow
def test_probes_are_shown_for_the_tensors_that_have_them(
    books_llama_base: Path, calibration_text: Path, quantailor: Command, tmp_path: Path
) -> None:
    few = ("--chunks", 2, "--mixes", 0, "--anchors", 0, "--n-ctx", 64, "--threads", 1, "--group", "role")
    home = ("--home", tmp_path, "--json")
    assert quantailor("measure", books_llama_base, "--types", "Q2_K,Q4_K", *home).code == 0
    probed = quantailor("probe", books_llama_base, "-f", calibration_text, "--type", "Q2_K", *few, *home).result
    found = quantailor("status", books_llama_base, *home).result
    alphas = {item["name"]: item["sensitivity"]["alpha"] for item in found["tensors"] if item["sensitivity"]}
    assert alphas == {item["tensor"]: item["alpha"] for item in probed["sensitivities"] if item["probes"]}
    assert found["n_probed"] == len(alphas) > 50


@pytest.mark.slow
def test_five_thousand_tensors_are_watched(tmp_path: Path) -> None:
    """Only the tensors with new cells are looked at again; how long that takes is for benchmarks/gui.py to say."""
    tensors = [tensor(layer, f"role_{at}") for layer in range(100) for at in range(50)]
    types = [name for name in tuple(type_bits()) if name in usual_types()][:20]
    with Workspace.open(tmp_path / "home") as workspace:
        workspace.store.record_model(ModelRecord.of(FINGERPRINT, "large", "llama", tensors), tensors)
        cells = [
            WeightError(item.name, name, 1, type_bits()[name], 1, 1, weighted_mse=0.01, relative_mse=0.01, histogram=(0.0,) * 64)
            for item in tensors
            for name in types
        ]
        workspace.store.record_cells(KEY, cells[:-20])
        watch = MeasurementWatch(workspace, FINGERPRINT)
        assert len(watch.look()) == 5000
        workspace.store.record_cells(KEY, cells[-20:])
        assert watch.look() == {tensors[-1].name}
        assert watch.map().n_cells == len(cells)
        assert len(watch.bands()) == 50
