"""Too little disk or memory blocks the start and names the shortfall."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from commands import Command

from quantailor.app.jobs import list_jobs, preflight, run_job, submit
from quantailor.costs import machine
from quantailor.costs.machine import filesystem, free_disk_bytes, free_memory_bytes, total_memory_bytes
from quantailor.costs.model_size import ModelSize
from quantailor.costs.needs import n_together
from quantailor.errors import ResourceError
from quantailor.models.opening import open_model
from quantailor.pipeline import MakeStep, StudyStep
from quantailor.session import Workspace
from quantailor.steps.calibration.calibrate import CalibrateStep
from quantailor.steps.calibration.imatrix import ImatrixStep
from quantailor.steps.conversion.convert import ConvertStep
from quantailor.steps.measure import MeasureStep
from quantailor.steps.plan import PlanOptions
from quantailor.steps.probe import ProbeStep
from quantailor.steps.step import Step, StepResult
from quantailor.steps.sweep import SweepStep
from quantailor.steps.verify import VerifyStep

MIB = 1 << 20


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.open(tmp_path / "home") as workspace:
        yield workspace


def give(monkeypatch: pytest.MonkeyPatch, *, disk: int | None = 1 << 50, memory: int | None = 1 << 50) -> None:
    """A machine with that much left."""
    monkeypatch.setattr(machine, "free_disk_bytes", lambda path: disk)
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: memory)
    monkeypatch.setattr(machine, "total_memory_bytes", lambda: memory)


def every_task(model: Path, base: Path, folder: Path) -> list[Step[StepResult]]:
    return [
        ConvertStep(model=str(model), output=str(folder / "base.gguf")),
        ImatrixStep(base=str(base)),
        CalibrateStep(base=str(base)),
        MeasureStep(base=str(base)),
        ProbeStep(base=str(base)),
        SweepStep(base=str(base)),
        StudyStep(model=str(model), level="exhaustive"),
        VerifyStep(file=str(base), base=str(base)),
        MakeStep(model=str(model), output=str(folder / "out"), plan=PlanOptions(size_bytes=5 * MIB)),
    ]


@pytest.mark.slow
def test_calibrate_needs_what_its_sums_and_its_file_take(
    workspace: Workspace, books_llama_base: Path, books_moe_base: Path, calibration_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for base in (books_llama_base, books_moe_base):
        step = CalibrateStep(base=str(base), text=str(calibration_text), chunks=1, n_ctx=64)
        told = step.needs(workspace)
        sums = told.memory_bytes - ImatrixStep(base=str(base), text=str(calibration_text), n_ctx=64).needs(workspace).memory_bytes
        assert 8 * MIB < sums < 40 * MIB
        run_job(workspace, submit(workspace, step))
        with workspace.model(base) as model:
            covariances = workspace.covariances.default(model.fingerprint)
        assert covariances is not None
        size = covariances.size_bytes
        assert size < sum(n_bytes for _, n_bytes in told.disk) < 10 * size
        assert size < base.stat().st_size
    give(monkeypatch, disk=1 * MIB)
    assert any("covariances" in line or "needs" in line for line in preflight(workspace, CalibrateStep(base=str(books_llama_base))))


def test_a_machine_with_room_starts_everything(
    workspace: Workspace, books_llama_dir: Path, books_llama_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch)
    for task in every_task(books_llama_dir, books_llama_base, tmp_path):
        assert preflight(workspace, task) == (), task


def test_what_cannot_be_known_blocks_nothing(
    workspace: Workspace, books_llama_dir: Path, books_llama_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, disk=None, memory=None)
    for task in every_task(books_llama_dir, books_llama_base, tmp_path):
        assert preflight(workspace, task) == (), task


def test_too_little_disk_is_named_with_what_is_missing(
    workspace: Workspace, books_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, disk=6 * MIB)
    (line,) = preflight(workspace, ConvertStep(model=str(books_llama_dir), output=str(tmp_path / "base.gguf")))
    assert line == f"needs 16.02 MiB on {tmp_path}, 6.00 MiB free: free 10.02 MiB or write it elsewhere"


def test_a_full_home_can_be_moved(workspace: Workspace, books_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, disk=6 * MIB)
    (line,) = preflight(workspace, StudyStep(model=str(books_llama_dir), level="quick", rounding="plain"))
    assert line.startswith(f"needs 16.02 MiB on {workspace.home.path}, 6.00 MiB free")
    assert line.endswith("set QUANTAILOR_HOME")


def test_weights_that_are_exchanged_must_fit_in_memory(
    workspace: Workspace, books_llama_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, memory=8 * MIB)
    for task in (ProbeStep(base=str(books_llama_base)), SweepStep(base=str(books_llama_base))):
        (line,) = preflight(workspace, task)
        assert "of memory, 8.00 MiB free" in line
    assert preflight(workspace, MeasureStep(base=str(books_llama_base))) == ()


def test_weights_that_are_mapped_may_give_way_but_must_fit_the_machine(
    workspace: Workspace, books_llama_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = VerifyStep(file=str(books_llama_base), base=str(books_llama_base))
    give(monkeypatch, memory=12 * MIB)
    (line,) = preflight(workspace, task)
    assert "this machine has 12.00 MiB" in line
    assert line.endswith("do without a verdict (--no-verify)")
    monkeypatch.setattr(machine, "total_memory_bytes", lambda: 64 * MIB)
    assert preflight(workspace, task) == ()


def test_a_model_larger_than_memory_is_calibrated_and_planned_without_probes(
    workspace: Workspace, books_llama_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, memory=15 * MIB)
    base = str(books_llama_base)
    assert preflight(workspace, ImatrixStep(base=base)) == ()
    assert preflight(workspace, CalibrateStep(base=base, memory_bytes=5 * MIB)) == ()
    make = MakeStep(model=base, output=str(tmp_path / "out"), plan=PlanOptions(size_bytes=5 * MIB), rounding="plain")
    (line,) = preflight(workspace, make)
    assert line.endswith("probe it at 8 bits (--rest q8_0), put layers on other machines (--rpc), or plan without probes (--basis ranking)")
    without = replace(make, plan=PlanOptions(size_bytes=5 * MIB, basis="ranking"), verify=False)
    assert preflight(workspace, without) == ()


def test_chunks_run_side_by_side_where_the_model_is_larger_than_memory(books_llama_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(open_model(books_llama_base)) as source:
        size = ModelSize.of(source)
    each = size.chunk_bytes(512)
    give(monkeypatch)
    assert n_together(size, 512, 0) == 1
    give(monkeypatch, memory=None)
    assert n_together(size, 512, 0) == 1
    give(monkeypatch, memory=size.tensor_bytes + each + 1)
    assert n_together(size, 512, 0) == 1
    give(monkeypatch, memory=10 * each)
    assert n_together(replace(size, tensor_bytes=8 * each), 512, 0) == 1
    assert n_together(replace(size, tensor_bytes=8 * each), 512, 0, sums_bytes=2 * each) == 4
    assert n_together(replace(size, tensor_bytes=11 * each), 512, 0) == 5
    assert n_together(replace(size, tensor_bytes=11 * each), 512, 0, sums_bytes=4 * each) == 3
    assert n_together(replace(size, tensor_bytes=11 * each), 512, 99) == 1, "a GPU holds its layers"
    give(monkeypatch, memory=MIB)
    assert n_together(size, 512, 0) == 1


def test_what_runs_side_by_side_is_said_and_is_what_runs_alone(
    books_llama_base: Path, calibration_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(open_model(books_llama_base)) as source:
        size = ModelSize.of(source)
    found, logs = list[bytes](), list[str]()
    for memory in (1 << 50, size.tensor_bytes):
        give(monkeypatch, memory=memory)
        with Workspace.open(tmp_path / str(memory)) as workspace:
            step = ImatrixStep(
                base=str(books_llama_base), text=str(calibration_text), chunks=5, n_ctx=64, output=str(tmp_path / f"{memory}.gguf")
            )
            job = submit(workspace, step)
            run_job(workspace, job)
            logs.append(" ".join(line.message for line in workspace.store.jobs.log_lines(job)))
        found.append((tmp_path / f"{memory}.gguf").read_bytes())
    assert found[0] == found[1]
    assert ["chunks run side by side, layer by layer" in log for log in logs] == [False, True]


@pytest.mark.parametrize("version", [1, 2])
def test_a_control_group_has_less_memory_than_the_machine(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most, taken, line = {
        1: ("memory/pod/memory.limit_in_bytes", "memory/pod/memory.usage_in_bytes", "5:cpu:/\n4:memory:/pod/box\n"),
        2: ("pod/memory.max", "pod/memory.current", "0::/pod/box\n"),
    }[version]
    pages = "inactive_file 10\nactive_file 20\n" + ("total_inactive_file 100\ntotal_active_file 200\n" if version == 1 else "")
    (tmp_path / most).parent.mkdir(parents=True)
    (tmp_path / most).write_text(f"{900 * MIB}\n")
    (tmp_path / taken).write_text(f"{400 * MIB}\n")
    (tmp_path / most).with_name("memory.stat").write_text(pages)
    (tmp_path / "own").write_text(line)
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=0, free=0))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=1 << 50, available=1 << 49))
    monkeypatch.setattr(machine, "GROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    assert total_memory_bytes() == 900 * MIB
    assert free_memory_bytes() == 500 * MIB + (300 if version == 1 else 30)
    (tmp_path / most).write_text("max\n")
    assert (total_memory_bytes(), free_memory_bytes()) == (1 << 50, 1 << 49)
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "none")
    assert (total_memory_bytes(), free_memory_bytes()) == (1 << 50, 1 << 49)


def test_a_job_with_a_shortfall_is_not_queued(workspace: Workspace, books_llama_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, memory=8 * MIB)
    with pytest.raises(ResourceError, match=r"cannot start: needs .* of memory"):
        submit(workspace, ProbeStep(base=str(books_llama_base)))
    assert list_jobs(workspace) == []


def test_an_impossible_task_is_left_to_say_so_itself(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, disk=0, memory=0)
    assert preflight(workspace, ImatrixStep(base=str(tmp_path / "missing.gguf"))) == ()


def test_the_command_says_it_in_one_line(
    quantailor: Command, books_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, disk=6 * MIB)
    words = ("convert", books_llama_dir, "-o", tmp_path / "base.gguf", "--home", tmp_path / "home")
    assert "free 10.02 MiB" in quantailor(*words).error_line
    assert "cannot start: needs" in quantailor("study", books_llama_dir, "--cost", "--home", tmp_path / "home").out


def test_the_machine_answers_for_places_that_are_still_to_be_made(tmp_path: Path) -> None:
    assert (free_disk_bytes(tmp_path / "not" / "yet") or 0) > 0
    assert filesystem(tmp_path / "not" / "yet") == filesystem(tmp_path)
    assert (total_memory_bytes() or 0) >= (free_memory_bytes() or 0) > 0
