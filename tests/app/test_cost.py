"""What a study will take: counted from the model and the store, timed by this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from clocks import Clock
from gguf_models import write_llama
from quantailor.analysis.evals import greedy
from quantailor.app.jobs import run_job, submit
from quantailor.app.measuring.cost import CostReport, job_cost, outline
from quantailor.app.measuring.counted import StageCost
from quantailor.costs.model_size import ModelSize
from quantailor.errors import CorpusError, TypeUnavailableError
from quantailor.jobs import resolve
from quantailor.pipeline import LEVELS, LadderStep, MakeStep, StudyStep
from quantailor.records import EvalItem
from quantailor.session import HELDOUT_TEXT, Workspace
from quantailor.steps.calibration.calibrate import CalibrateStep
from quantailor.steps.calibration.imatrix import ImatrixStep
from quantailor.steps.measure import MeasureStep
from quantailor.steps.options import Compute, Evals
from quantailor.steps.plan import PlanOptions
from quantailor.store import EvalKey, Pace, Store
from tiny_models import write_tiny


@pytest.fixture
def clock() -> Clock:
    return Clock(4_000_000_000.0)  # after the models were written


@pytest.fixture
def workspace(tmp_path: Path, clock: Clock) -> Iterator[Workspace]:
    home = resolve(tmp_path / "home").create()
    with Workspace(home, Store(home.database, now=clock)) as workspace:
        yield workspace


def stage(cost: CostReport, name: str) -> StageCost:
    return next(item for item in cost.stages if item.stage == name)


@pytest.mark.slow
def test_a_higher_level_takes_longer(workspace: Workspace, books_llama_base: Path) -> None:
    costs = [job_cost(workspace, StudyStep(model=str(books_llama_base), level=level)) for level in LEVELS]
    assert [cost.seconds[1] for cost in costs] == sorted(cost.seconds[1] for cost in costs)
    assert [len(cost.stages) for cost in costs] == [2, 4, 4, 5]
    assert all(0 < cost.seconds[0] < cost.seconds[1] for cost in costs)
    assert costs[0].disk_bytes < costs[1].disk_bytes
    assert all(cost.memory_bytes > 17_000_000 for cost in costs)


def test_a_file_of_any_size_needs_no_more_room_than_its_base(workspace: Workspace, tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base.gguf")
    task = MakeStep(model=str(base), output=str(tmp_path / "made"), plan=PlanOptions(size_bytes=1 << 50, basis="ranking"), verify=False)
    assert stage(job_cost(workspace, task), "build").disk_bytes <= base.stat().st_size


@pytest.mark.slow
def test_fewer_types_take_less(workspace: Workspace, books_llama_base: Path) -> None:
    task = StudyStep(model=str(books_llama_base), level="thorough")
    few = dataclasses.replace(task, types=("Q4_K", "Q8_0"))
    everything, some = (stage(job_cost(workspace, one), "measure") for one in (task, few))
    assert some.seconds[1] < everything.seconds[0]
    assert some.disk_bytes < everything.disk_bytes / 5


def test_more_threads_take_less(workspace: Workspace, books_llama_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantailor.costs.machine.n_threads", lambda: 8)
    monkeypatch.setattr("quantailor.app.measuring.counted.model_flops_per_second", lambda *_: None)  # this machine may have fewer
    one, eight = (
        job_cost(workspace, StudyStep(model=str(books_llama_base), level="quick", rounding="plain", compute=Compute(n_threads=n_threads)))
        for n_threads in (1, 8)
    )
    assert stage(eight, "imatrix").seconds[1] < stage(one, "imatrix").seconds[1] / 4


def test_several_sizes_take_one_measurement_and_a_build_each(workspace: Workspace, books_llama_base: Path) -> None:
    place, types, sizes = str(books_llama_base), ("Q4_K", "Q8_0"), ("Q3_K_M", "Q4_K_M", "6bpw", "9MiB")
    one = job_cost(workspace, MakeStep(model=place, output="out", types=types, plan=PlanOptions(like="Q4_K_M")))
    several = job_cost(workspace, LadderStep(model=place, output="out", types=types, sizes=sizes))
    names = [item.stage for item in several.stages]
    assert [name for name in names if name.startswith("build")] == ["build Q3_K_M", "build Q4_K_M", "build 6bpw", "build 9MiB"]
    assert stage(several, "build 9MiB").disk_bytes == 9 * 2**20
    built = [stage(several, name).disk_bytes for name in names if name.startswith("build")]
    assert built == sorted(built)
    assert stage(several, "measure").disk_bytes == stage(one, "measure").disk_bytes
    # The base once, a file and a preset for each size, or two presets where none has its name.
    assert stage(several, "verify").passes[0] / stage(one, "verify").passes[0] == pytest.approx((1 + 4 + 6) / 3, rel=0.02)


def test_of_experts_only_those_that_run_count(workspace: Workspace, books_moe_base: Path) -> None:
    with workspace.model(books_moe_base) as model:
        size = ModelSize.of(model.source)
        experts = [tensor for tensor in size.tensors if tensor.n_slices > 1]
        used = model.source.metadata["llama.expert_used_count"].value
    assert isinstance(used, int)
    others = sum(tensor.n_elements for tensor in size.tensors if tensor.n_slices == 1 and tensor.layer is not None)
    assert size.n_active == others + sum(tensor.n_elements * used // tensor.n_slices for tensor in experts)
    assert size.n_active < sum(tensor.n_elements for tensor in size.tensors if tensor.layer is not None)


def test_a_verdict_computes_the_base_once_and_probes_of_a_large_vocabulary_again(
    workspace: Workspace, books_llama_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with workspace.model(books_llama_base) as model:
        size = ModelSize.of(model.source)
    task = MakeStep(model=str(books_llama_base), output="out", plan=PlanOptions(like="Q4_K_M"))
    output = 2.0 * size.n_output * 512 / 2
    before = stage(job_cost(workspace, task), "verify").seconds
    assert size.score_flops(512) == size.decode_flops(512) + output
    monkeypatch.setattr("quantailor.costs.model_size.LARGE_BYTES", 1)
    assert size.score_flops(512) == size.decode_flops(512) + 2 * output
    assert size.score_flops(512, base_is_held=True) == size.decode_flops(512) + output
    assert stage(job_cost(workspace, task), "verify").seconds == pytest.approx(before, rel=0.01)


def test_what_the_store_has_is_taken_off(workspace: Workspace, tmp_path: Path) -> None:
    model = write_tiny("llama2", tmp_path)
    task = StudyStep(model=str(model), level="quick", types=("Q4_0", "Q5_0", "Q8_0"), imatrix="none")
    before = stage(job_cost(workspace, task), "measure")
    job = submit(workspace, MeasureStep(base=str(model), types=("Q4_0",), imatrix="none"))
    run_job(workspace, job)
    after = stage(job_cost(workspace, task), "measure")
    other = stage(job_cost(workspace, dataclasses.replace(task, types=("Q4_1", "Q5_0", "Q8_0"))), "measure")
    assert before.share_done == other.share_done == 0
    assert after.share_done == pytest.approx(1 / 3, abs=0.05)
    assert after.seconds[1] < other.seconds[1]
    assert after.disk_bytes < before.disk_bytes


@pytest.mark.slow
def test_what_earlier_jobs_took_corrects_and_narrows_the_range_of_any_model(
    workspace: Workspace, books_llama_base: Path, books_moe_base: Path
) -> None:
    tasks = [
        MakeStep(model=str(base), output="out", types=("Q4_K", "Q8_0"), compute=Compute(n_threads=1))
        for base in (books_llama_base, books_moe_base)
    ]
    trials = [job_cost(workspace, task) for task in tasks]
    assert trials[0].basis == "a short trial of this machine with this model"
    workspace.store.jobs.record_paces(Pace(name, 1, 100.0, 300.0) for name in ("calibrate", "probes compensated", "build compensated"))
    for task, before in zip(tasks, trials, strict=True):
        known = job_cost(workspace, task)
        assert known.basis == "a short trial of this machine, corrected by what earlier jobs took (calibrate, probes, build)"
        for name in ("calibrate", "probes", "build"):
            low, high = stage(known, name).seconds
            fewest, most = stage(known, name).passes if name == "probes" else (1, 1)
            assert high / low == pytest.approx(1.3**2 * most / fewest, rel=1e-3)
        assert stage(known, "build").seconds[1] > stage(before, "build").seconds[1]
        low, high = stage(known, "verify").seconds  # no such job, but others that ran a model
        assert high / low < 5
        assert stage(known, "measure").seconds == pytest.approx(stage(before, "measure").seconds, rel=0.01)


def test_a_part_alone_says_what_it_takes_without_a_trial_of_the_model(
    workspace: Workspace, books_llama_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantailor.app.measuring.counted.model_flops_per_second", lambda *_: pytest.fail("it was tried"))
    base, one = str(books_llama_base), Compute(n_threads=1)
    (imatrix,) = outline(workspace, ImatrixStep(base=base, chunks=5, compute=one))
    (calibrate,) = outline(workspace, CalibrateStep(base=base, chunks=5, compute=one))
    (measure,) = outline(workspace, MeasureStep(base=base, types=("Q4_K",), compute=one))
    assert [phase.pace for phase in (imatrix, calibrate, measure)] == ["imatrix", "calibrate", "measure"]
    assert imatrix.counted == calibrate.counted == 5
    assert 0 < imatrix.trial_seconds < calibrate.trial_seconds
    assert outline(workspace, MeasureStep(base=base, tensors=("attn_q",), compute=one)) == ()


def test_jobs_remember_how_long_their_work_took(workspace: Workspace, tmp_path: Path) -> None:
    model = write_tiny("llama2", tmp_path)
    step = MeasureStep(base=str(model), types=("Q4_0", "Q8_0"), imatrix="none", compute=Compute(n_threads=1))
    for _ in range(2):  # the second finds everything there, and tells nothing
        run_job(workspace, submit(workspace, step))
    (pace,) = workspace.store.jobs.paces()
    assert (pace.stage, pace.n_threads) == ("measure", 1)
    assert pace.expected_seconds > 0
    assert pace.seconds > 0


def test_the_whole_way_to_a_file_is_told_step_by_step(workspace: Workspace, books_llama_base: Path, tmp_path: Path) -> None:
    task = MakeStep(model=str(books_llama_base), output=str(tmp_path / "out"), compute=Compute(n_threads=1))
    cost = job_cost(workspace, task)
    assert [item.stage for item in cost.stages] == ["calibrate", "measure", "probes", "mixes", "plan", "build", "verify"]
    assert all(0 < item.seconds[0] <= item.seconds[1] < 15 * item.seconds[0] for item in cost.stages)
    assert stage(cost, "mixes").passes == (168, 168)  # 16 mixes and 3 files on 8 chunks each, and the base itself twice
    assert sum(item.seconds[1] for item in cost.stages) == pytest.approx(cost.seconds[1])
    ranking = dataclasses.replace(task, verify=False, plan=PlanOptions(basis="ranking"))
    assert [item.stage for item in job_cost(workspace, ranking).stages] == ["calibrate", "measure", "plan", "build"]


def test_a_file_as_large_as_a_preset_costs_as_one_of_its_size(workspace: Workspace, books_llama_base: Path, tmp_path: Path) -> None:
    task = MakeStep(model=str(books_llama_base), output=str(tmp_path / "out"), compute=Compute(n_threads=1))
    like = stage(job_cost(workspace, dataclasses.replace(task, plan=PlanOptions(like="Q4_K_M"))), "verify")
    by_bits = stage(job_cost(workspace, dataclasses.replace(task, plan=PlanOptions(bits_per_weight=4.9))), "verify")
    assert 0 < like.passes[1] < by_bits.passes[1], "beside one preset, not two"


def test_a_limit_of_time_ends_probes_and_not_what_comes_before_and_after(
    workspace: Workspace, books_llama_base: Path, tmp_path: Path
) -> None:
    task = MakeStep(model=str(books_llama_base), output=str(tmp_path / "out"), imatrix_chunks=2, compute=Compute(n_threads=1))
    free = job_cost(workspace, task)
    limit = sum(stage(free, name).seconds[1] for name in ("calibrate", "measure")) + stage(free, "probes").seconds[0]
    timed = job_cost(workspace, dataclasses.replace(task, seconds=limit))
    measuring = [item.seconds for item in timed.stages if item.stage in ("calibrate", "measure", "probes", "mixes")]
    assert sum(low for low, _ in measuring) <= limit * 1.01
    assert stage(timed, "verify").seconds[1] > 0
    short = job_cost(workspace, dataclasses.replace(task, seconds=1.0))
    assert stage(short, "calibrate").seconds[1] > 1.0
    assert 9 <= stage(short, "probes").passes[0] < 20  # one of every role is made in any case
    few = job_cost(workspace, dataclasses.replace(task, passes=32))
    assert (stage(few, "probes").passes, stage(few, "mixes").passes) == ((32, 32), (0, 0))
    assert few.gain.startswith("Plans from as many passes had 0.44 to 0.47 of the KL divergence of llama.cpp's presets")
    assert stage(few, "probes").seconds[1] < stage(free, "probes").seconds[1]


def test_bad_input_is_named(workspace: Workspace, books_llama_base: Path, tmp_path: Path) -> None:
    model = str(books_llama_base)
    with pytest.raises(TypeUnavailableError, match="Q9_K"):
        job_cost(workspace, StudyStep(model=model, types=("Q9_K",)))
    with pytest.raises(CorpusError, match=r"missing\.txt"):
        job_cost(workspace, StudyStep(model=model, text=str(tmp_path / "missing.txt")))


def test_evaluations_are_counted_and_what_was_answered_is_not(workspace: Workspace, small_base: Path) -> None:
    plain = MakeStep(model=str(small_base), output="out", plan=PlanOptions(like="Q4_K_M"), against=())
    greedily, both = (dataclasses.replace(plain, evals=Evals(names=names, prompts=100)) for names in (("greedy",), ("greedy", "choices")))
    assert "evaluations" not in [each.stage for each in job_cost(workspace, plain).stages]
    some, all_of_it = (job_cost(workspace, task) for task in (greedily, both))
    assert [each.stage for each in all_of_it.stages][-2:] == ["verify", "evaluations"]
    assert 0 < stage(some, "evaluations").passes[0] < stage(all_of_it, "evaluations").passes[0]
    several = job_cost(workspace, dataclasses.replace(greedily, against=("Q4_K_M", "Q3_K_M")))
    assert stage(several, "evaluations").passes[0] == pytest.approx(2 * stage(some, "evaluations").passes[0], abs=1)
    with workspace.model(small_base) as model:
        corpus = workspace.corpus(model, HELDOUT_TEXT)
        prompts = greedy.prompts(model.source, small_base, HELDOUT_TEXT, corpus, 100)
        base = EvalKey(model.fingerprint, greedy.key_of(prompts), "base's text", greedily.compute.devices.engine)
    workspace.store.record_answers(base, [EvalItem(index, (1.0,) * 32) for index in range(100)])
    known = stage(job_cost(workspace, greedily), "evaluations")
    assert known.share_done == pytest.approx(0.5, abs=0.05)
    assert known.passes[0] == pytest.approx(stage(some, "evaluations").passes[0] / 2, abs=1)
