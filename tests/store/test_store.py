"""What is recorded comes back as it was, and equal results give equal stores."""

import itertools
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantailor.errors import StoreError
from quantailor.records import (
    ChunkScore,
    Comparison,
    Estimate,
    EvalItem,
    FidelityStatistics,
    Mix,
    TensorInfo,
    Timing,
    Verdict,
    VerdictRow,
    WeightError,
)
from quantailor.store import (
    CalibrationRecord,
    EvalKey,
    ImatrixKey,
    MeasurementKey,
    ModelRecord,
    ReferenceFile,
    ScoreKey,
    Store,
    StrategyRecord,
    SwapKey,
    TimingKey,
)
from stores import first_difference, table_names

TIMINGS = TimingKey("s" * 64, "a processor; a llama.cpp", 2, 0, 1)
A_REFERENCE = ReferenceFile("f" * 64, "base-none-1-Q4_0.gguf", "r" * 64, 1_000, 4.5, {"a.weight": "Q4_0", "b.weight": "F32"})
A_TIMING = Timing(Estimate(0.8, 0.01), Estimate(1.2, 0.02), 1e-4, 1e-3)
TENSORS = [
    TensorInfo("token_embd.weight", (512, 256), "F16", 262144),
    TensorInfo("blk.0.ffn_down_exps.weight", (4, 256, 512), "BF16", 1048576),
    TensorInfo("blk.0.attn_norm.weight", (256,), "F32", 1024),
]
MODEL = ModelRecord.of("f" * 64, "tiny", "llama", TENSORS)
KEY = MeasurementKey(MODEL.fingerprint, imatrix="i" * 64, settings="sampled 1%", definition_version=1)
COMPENSATED = replace(KEY, rounding="compensated-2:0123456789abcdef")
CELL = WeightError(
    tensor="token_embd.weight",
    type_name="Q4_K",
    size_bytes=73728,
    bits_per_weight=4.5,
    n_rows_measured=100,
    n_rows_total=512,
    rmse=0.1 + 0.2,
    max_abs_error=1 / 3,
    relative_mse=1e-300,
    sqnr_db=math.inf,
    weighted_mse=5e-324,
    output_error=None,
    output_mse=1 / 9,
    rmse_se=0.1,
    output_mse_se=1e-17,
    error_quantiles=(0.1, 0.2, 1 / 7, 0.4, 0.5),
    error_quantiles_se=(0.0,) * 5,
    histogram=tuple(1 / number for number in range(1, 65)),
    n_unseen_experts=3,
)
COMPUTATION = ImatrixKey(MODEL.fingerprint, corpus="c" * 64, n_ctx=512, options="process_output=0")
IMATRIX = CalibrationRecord(MODEL.fingerprint, "i" * 64, ("calibration.txt",), 100, 512, "computed")
COVARIANCES = CalibrationRecord(MODEL.fingerprint, "h" * 64, ("calibration.txt",), 100, 512, "computed")
SCORES = ScoreKey(MODEL.fingerprint, corpus="c" * 64, n_ctx=512, candidate="Q4_K_M")
ANSWERS = EvalKey(MODEL.fingerprint, evaluation="greedy-1:" + "e" * 64, candidate="Q4_K_M")
RUN = SwapKey(MODEL.fingerprint, imatrix="i" * 64, corpus="c" * 64, n_ctx=512, kernels="as built", base_kernels="finer")
PROBE = Mix.of({"token_embd.weight": "Q4_K"})
MIX = Mix.of({"token_embd.weight": "Q4_K", "blk.0.ffn_down_exps.weight": "Q6_K"})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store that knows one model; its clock ticks once per question."""
    ticks = itertools.count(1_000_000.0)
    with Store(tmp_path / "q.db", now=lambda: next(ticks)) as store:
        store.record_model(MODEL, TENSORS)
        yield store


def a_score(index: int) -> ChunkScore:
    return ChunkScore(index, 256, 812.5 + index / 3, 0.1 * index, 250, 1e-9, tuple(0.001 * number for number in range(256)))


def a_verdict(sentence: str = "No better than Q4_K_M.") -> Verdict:
    estimate = Estimate(0.1, 0.02)
    figures = FidelityStatistics(200, 51200, estimate, estimate, estimate, 0.01, 0.2, 0.4, 0.9, estimate, estimate)
    row = VerdictRow("ours", "ours", 1000, 4.5, figures)
    comparison = Comparison("Q4_K_M", -0.1, (-0.3, math.inf), 0.999, "no better")
    return Verdict(MODEL.fingerprint, "heldout.txt", "c" * 64, 512, (row,), (comparison,), 1e-9, sentence)


def test_a_model_comes_back_with_its_tensors_in_file_order(store: Store) -> None:
    assert store.model(MODEL.fingerprint) == MODEL
    assert store.tensors(MODEL.fingerprint) == TENSORS


def test_an_unknown_model_is_none(store: Store) -> None:
    assert store.model("unknown") is None
    assert store.tensors("unknown") == []


def test_the_model_recorded_last_comes_first(store: Store) -> None:
    later = ModelRecord.of("a" * 64, "other", "llama", [])
    store.record_model(later, [])
    assert store.models() == [later, MODEL]
    store.record_model(MODEL, TENSORS)
    assert store.models() == [MODEL, later]


def test_a_cell_comes_back_bit_for_bit(store: Store) -> None:
    store.record_cells(KEY, [CELL])
    assert store.cells(KEY) == [CELL]
    assert store.cells(KEY, distributions=False) == [replace(CELL, error_quantiles=(), error_quantiles_se=(), histogram=())]


def test_an_unavailable_cell_keeps_its_reason(store: Store) -> None:
    cell = WeightError("token_embd.weight", "IQ1_S", 1, 1.5, unavailable="IQ1_S needs an importance matrix")
    store.record_cells(KEY, [cell])
    assert store.cells(KEY) == [cell]


def test_cells_come_in_file_order_then_by_type(store: Store) -> None:
    names = [(tensor.name, type_name) for tensor in TENSORS for type_name in ("Q4_K", "Q8_0")]
    store.record_cells(KEY, [replace(CELL, tensor=tensor, type_name=type_name) for tensor, type_name in reversed(names)])
    assert [(cell.tensor, cell.type_name) for cell in store.cells(KEY)] == names
    assert {cell.tensor for cell in store.cells(KEY, tensor=TENSORS[1].name)} == {TENSORS[1].name}


def test_cells_are_found_only_under_their_own_key(store: Store) -> None:
    store.record_cells(KEY, [CELL])
    for other in (replace(KEY, imatrix=""), replace(KEY, settings="exhaustive"), replace(KEY, definition_version=2), COMPENSATED):
        assert store.cells(other) == []
        assert (CELL.tensor, CELL.type_name) not in store.recorded_cells(other)
    assert (CELL.tensor, "Q4_K") in store.recorded_cells(KEY)
    assert store.recorded_cells(KEY) == {(CELL.tensor, "Q4_K")}
    assert store.measurements(MODEL.fingerprint) == {KEY: 1}


def test_cells_of_every_rounding_are_counted_apart(store: Store) -> None:
    keys = [KEY, COMPENSATED, replace(COMPENSATED, rounding="plain:0123456789abcdef")]
    for key in keys:
        store.record_cells(key, [CELL])
    assert store.measurements(MODEL.fingerprint) == dict.fromkeys(keys, 1)
    assert [(key.swapped, key.covariances) for key in keys[:3]] == [
        ("", ""),
        ("compensated-2:0123456789abcdef", "0123456789abcdef"),
        ("", "0123456789abcdef"),
    ]


def test_a_cell_of_another_definition_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="measured by definition 1, not 2"):
        store.record_cells(replace(KEY, definition_version=2), [CELL])


def test_recording_again_keeps_the_later_cell(store: Store) -> None:
    store.record_cells(KEY, [CELL])
    store.record_cells(KEY, [replace(CELL, rmse=0.5)])
    assert [cell.rmse for cell in store.cells(KEY)] == [0.5]


def test_numpy_scalars_are_taken_as_numbers(store: Store) -> None:
    numpy_cell = replace(CELL, rmse=float(np.float32(0.1)), n_rows_measured=100)
    leaked: dict[str, Any] = {"rmse": np.float32(0.1), "n_rows_measured": np.int64(100)}
    store.record_cells(KEY, [replace(numpy_cell, **leaked)])
    assert store.cells(KEY) == [numpy_cell]


def test_a_name_that_is_not_unicode_is_refused_in_one_line(store: Store) -> None:
    with pytest.raises(StoreError, match=r"cannot hold a text that is not Unicode: .*rename that"):
        store.record_model(replace(MODEL, name="caf\udce9"), TENSORS)
    assert store.model(MODEL.fingerprint) == MODEL


def test_a_nan_is_refused_and_its_batch_with_it(store: Store) -> None:
    with pytest.raises(StoreError, match=r"rmse of token_embd\.weight at Q8_0 is NaN"):
        store.record_cells(KEY, [CELL, replace(CELL, type_name="Q8_0", rmse=math.nan)])
    assert store.cells(KEY) == []


def test_a_nan_among_quantiles_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="histogram of"):
        store.record_cells(KEY, [replace(CELL, histogram=(0.5, math.nan))])


def test_cells_of_an_unknown_model_are_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="Record the model and its tensors first"):
        store.record_cells(replace(KEY, model="unknown"), [CELL])


def test_a_measurement_can_be_forgotten(store: Store) -> None:
    store.record_cells(KEY, [CELL])
    assert store.forget_cells(KEY) == 1
    assert store.cells(KEY) == []


def test_imatrix_progress_is_replaced_and_dropped_when_it_is_finished(store: Store) -> None:
    store.record_imatrix_progress(COMPUTATION, 1, b"one")
    store.record_imatrix_progress(COMPUTATION, 2, bytes(range(256)))
    progress = store.imatrix_progress(COMPUTATION)
    assert progress is not None
    assert (progress.n_chunks_done, progress.state) == (2, bytes(range(256)))
    assert store.computed_imatrix(COMPUTATION) is None
    store.record_imatrix(IMATRIX, computed=COMPUTATION)
    assert store.imatrix_progress(COMPUTATION) is None
    assert store.computed_imatrix(COMPUTATION) == IMATRIX
    assert store.computed_imatrix(replace(COMPUTATION, n_ctx=1024)) is None


def test_an_imatrix_is_recorded_with_its_computation_or_not_at_all(store: Store) -> None:
    with pytest.raises(StoreError):
        store.record_imatrix(IMATRIX, computed=replace(COMPUTATION, model="unknown"))
    assert store.imatrices(MODEL.fingerprint) == []


def test_covariances_are_listed_and_found_by_their_computation(store: Store) -> None:
    imported = replace(COVARIANCES, fingerprint="j" * 64, origin="imported")
    store.record_covariances(COVARIANCES, computed=COMPUTATION)
    store.record_covariances(imported)
    assert store.covariances(MODEL.fingerprint) == [imported, COVARIANCES]
    assert store.computed_covariances(COMPUTATION) == COVARIANCES
    assert store.computed_covariances(replace(COMPUTATION, n_ctx=1024)) is None
    assert store.computed_imatrix(COMPUTATION) is None


def test_an_imported_imatrix_is_listed(store: Store) -> None:
    imported = replace(IMATRIX, fingerprint="j" * 64, origin="imported", datasets=("a.txt", "b.txt"))
    store.record_imatrix(IMATRIX)
    store.record_imatrix(imported)
    assert store.imatrices(MODEL.fingerprint) == [imported, IMATRIX]
    assert store.imatrix(MODEL.fingerprint, "j" * 64) == imported


def test_chunk_scores_come_back_by_index(store: Store) -> None:
    scores = [a_score(index) for index in range(5)]
    store.record_chunk_scores(SCORES, reversed(scores))
    assert store.chunk_scores(SCORES) == scores
    assert store.scored_chunks(SCORES) == {0, 1, 2, 3, 4}
    assert store.chunk_scores(replace(SCORES, candidate="base")) == []


def test_timings_come_back_by_name_and_say_what_they_were_timed_with(store: Store) -> None:
    assert store.n_timings() == 0
    store.record_timing(TIMINGS, "dense=Q4_K", replace(A_TIMING, reference_prompt_s=1.0))
    store.record_timing(TIMINGS, "dense=Q4_K", A_TIMING)
    store.record_timing(replace(TIMINGS, n_threads=4), "dense=Q4_K", A_TIMING)
    store.record_timing(replace(TIMINGS, n_threads=4), "output=Q4_K", A_TIMING)
    assert store.n_timings() == 3
    assert store.timings(TIMINGS) == {"dense=Q4_K": A_TIMING}
    assert store.timings(replace(TIMINGS, kernels="another processor")) == {}
    assert store.timed_with(TIMINGS.structure, TIMINGS.kernels, TIMINGS.definition_version) == [(4, 0), (2, 0)]


def test_what_a_reference_is_comes_back_by_its_name_and_its_content(store: Store) -> None:
    assert store.reference_file(A_REFERENCE.name) is None
    store.record_model(MODEL, TENSORS)
    store.record_reference_file(replace(A_REFERENCE, size_bytes=1))
    store.record_reference_file(A_REFERENCE)
    assert store.reference_file(A_REFERENCE.name) == A_REFERENCE
    assert store.reference_files_of(["another", A_REFERENCE.content]) == [A_REFERENCE]
    assert store.reference_files_of(["another"]) == []


def test_answers_come_back_by_item(store: Store) -> None:
    answers = [EvalItem(index, tuple(float(index) for _ in range(index))) for index in range(4)]
    store.record_answers(ANSWERS, reversed(answers))
    assert store.answers(ANSWERS) == answers
    assert store.answers(replace(ANSWERS, candidate="base")) == []
    assert store.answers(replace(ANSWERS, evaluation="greedy-2")) == []


def test_a_nan_score_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="kld_sum of chunk 0 of Q4_K_M is NaN"):
        store.record_chunk_scores(SCORES, [replace(a_score(0), kld_sum=math.nan)])


def a_mix_score(index: int) -> ChunkScore:
    """A chunk's sums, without the divergences of single tokens."""
    return replace(a_score(index), klds=())


def test_mixes_come_back_by_purpose(store: Store) -> None:
    store.record_mixes(MODEL.fingerprint, "curve", [MIX, PROBE])
    store.record_mixes(MODEL.fingerprint, "anchor", [Mix.of({})])
    assert store.mixes(MODEL.fingerprint, "curve") == sorted([MIX, PROBE], key=lambda mix: mix.id)
    assert store.mixes(MODEL.fingerprint, "anchor") == [Mix.of({})]
    assert store.mixes(MODEL.fingerprint, "weighing") == store.mixes("unknown", "curve") == []


def test_mixes_are_recorded_once(store: Store) -> None:
    for _ in range(2):
        store.record_mixes(MODEL.fingerprint, "curve", [MIX, MIX])
    assert store.mixes(MODEL.fingerprint, "curve") == [MIX]


def test_mixes_of_an_unknown_model_are_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="Record the model and its tensors first"):
        store.record_mixes("unknown", "curve", [MIX])


def test_a_mix_that_cannot_be_kept_takes_its_batch_with_it(store: Store) -> None:
    with pytest.raises(StoreError, match="cannot hold a text that is not Unicode"):
        store.record_mixes(MODEL.fingerprint, "curve", [MIX, Mix.of({"caf\udce9": "Q4_K"})])
    assert store.mixes(MODEL.fingerprint, "curve") == []


def test_scores_of_another_rounding_are_another_run(store: Store) -> None:
    compensated = replace(RUN, rounding="compensated-2:0123456789abcdef")
    store.record_mix_scores(RUN, [(PROBE.id, a_mix_score(0))])
    assert store.mix_scores(compensated) == {}
    store.record_mix_scores(compensated, [(PROBE.id, a_mix_score(1))])
    assert store.mix_scores(RUN) == {PROBE.id: [a_mix_score(0)]}
    assert set(store.swap_runs(MODEL.fingerprint)) == {RUN, compensated}


def test_scores_of_mixes_come_back_bit_for_bit_by_chunk(store: Store) -> None:
    scores = {mix.id: [a_mix_score(index) for index in range(3)] for mix in (PROBE, MIX)}
    store.record_mix_scores(RUN, [(mix, replace(score, klds=(0.1,))) for mix, found in scores.items() for score in reversed(found)])
    assert store.mix_scores(RUN) == scores


def test_recording_a_mixs_score_again_keeps_the_later_one(store: Store) -> None:
    store.record_mix_scores(RUN, [(MIX.id, a_mix_score(0)), (MIX.id, a_mix_score(1))])
    store.record_mix_scores(RUN, [(MIX.id, replace(a_mix_score(1), kld_sum=0.5))])
    assert store.mix_scores(RUN) == {MIX.id: [a_mix_score(0), replace(a_mix_score(1), kld_sum=0.5)]}
    assert store.swap_runs(MODEL.fingerprint) == [RUN]


def test_numpy_figures_of_a_mix_are_taken_as_numbers(store: Store) -> None:
    leaked: dict[str, Any] = {"kld_sum": np.float64(0.25), "top_agreement": np.int64(7)}
    store.record_mix_scores(RUN, [(MIX.id, replace(a_mix_score(0), **leaked))])
    assert store.mix_scores(RUN)[MIX.id] == [replace(a_mix_score(0), kld_sum=0.25, top_agreement=7)]


@pytest.mark.parametrize("figure", ["nll_sum", "kld_sum", "dp_square_sum"])
def test_a_nan_among_the_scores_of_mixes_is_refused_and_its_batch_with_it(store: Store, figure: str) -> None:
    broken: dict[str, Any] = {figure: math.nan}
    with pytest.raises(StoreError, match=rf"{figure} of chunk 1 of token_embd\.weight=Q4_K is NaN"):
        store.record_mix_scores(RUN, [(MIX.id, a_mix_score(0)), (PROBE.id, replace(a_mix_score(1), **broken))])
    assert (store.mix_scores(RUN), store.swap_runs(MODEL.fingerprint)) == ({}, [])


def test_scores_that_the_database_refuses_leave_no_run_behind(store: Store) -> None:
    store.record_mix_scores(RUN, [(MIX.id, a_mix_score(0))])
    other = replace(RUN, n_ctx=1024)
    with pytest.raises(StoreError, match="cannot hold a text that is not Unicode"):
        store.record_mix_scores(other, [(MIX.id, a_mix_score(0)), ("caf\udce9", a_mix_score(0))])
    with pytest.raises(StoreError, match="Record the model and its tensors first"):
        store.record_mix_scores(replace(RUN, model="unknown"), [(MIX.id, a_mix_score(0))])
    assert store.swap_runs(MODEL.fingerprint) == [RUN]
    assert store.mix_scores(other) == {}


OTHER_RUNS: dict[str, SwapKey] = {
    "model": replace(RUN, model="a" * 64),
    "imatrix": replace(RUN, imatrix=""),
    "corpus": replace(RUN, corpus="d" * 64),
    "n_ctx": replace(RUN, n_ctx=1024),
    "kernels": replace(RUN, kernels="values"),
    "base_kernels": replace(RUN, base_kernels="as stored"),
    "engine": replace(RUN, engine="llama-cpp-python 0.0.1"),
    "rounding": replace(RUN, rounding="compensated-2:0123456789abcdef"),
    "rest": replace(RUN, rest="Q8_0"),
}


def test_a_run_differs_with_every_part_of_its_key() -> None:
    assert set(OTHER_RUNS) == set(SwapKey.__slots__)
    assert len({RUN.run, *(key.run for key in OTHER_RUNS.values())}) == 1 + len(OTHER_RUNS)
    assert RUN.run == replace(RUN).run


def test_results_of_another_llama_cpp_do_not_count(store: Store) -> None:
    older = "llama-cpp-python 0.0.1"
    cells, scores = replace(KEY, engine=older), replace(SCORES, engine=older)
    run, computed = replace(RUN, engine=older), replace(COMPUTATION, engine=older)
    store.record_cells(cells, [CELL])
    store.record_mix_scores(run, [(MIX.id, a_mix_score(0))])
    store.record_chunk_scores(scores, [a_mix_score(0)])
    store.record_imatrix_progress(computed, 1, b"state")
    assert store.cells(cells) == [CELL]
    assert (store.cells(KEY), store.measurements(MODEL.fingerprint), store.recorded_cells(KEY)) == ([], {}, frozenset())
    assert (store.swap_runs(MODEL.fingerprint), store.counts(MODEL.fingerprint).n_mixes) == ([], 0)
    assert (store.scored_chunks(SCORES), store.scored_chunks(scores)) == (frozenset(), frozenset({0}))
    assert (store.imatrix_progress(COMPUTATION), store.imatrix_progress(computed) is None) == (None, False)


@pytest.mark.parametrize("part", [part for part in OTHER_RUNS if part != "model"])
def test_scores_of_mixes_are_found_only_under_their_own_key(store: Store, part: str) -> None:
    store.record_mix_scores(RUN, [(MIX.id, a_mix_score(0))])
    assert store.mix_scores(OTHER_RUNS[part]) == {}


def test_the_run_scored_last_comes_first(store: Store) -> None:
    files = replace(RUN, kernels="file")
    for latest, other in ((RUN, files), (files, RUN), (RUN, files)):
        for key in (other, latest):
            store.record_mix_scores(key, [(MIX.id, a_mix_score(0))])
        assert store.swap_runs(MODEL.fingerprint) == [latest, other]
    assert store.swap_runs("unknown") == []


def test_a_strategy_is_filed_under_its_text(store: Store) -> None:
    first, second = (StrategyRecord.of(MODEL.fingerprint, "optimal", f'{{"target": {number}}}') for number in range(2))
    store.record_strategy(first)
    store.record_strategy(second)
    assert store.strategies(MODEL.fingerprint) == [second, first]
    assert store.strategy(first.fingerprint) == first
    assert store.strategy("unknown") is None


def test_a_verdict_comes_back_as_it_was(store: Store) -> None:
    fingerprint = store.record_verdict(a_verdict(), strategy="s" * 64)
    record = store.verdict(fingerprint)
    assert record is not None
    assert (record.verdict, record.strategy) == (a_verdict(), "s" * 64)
    later = store.record_verdict(a_verdict("Better."))
    assert [one.fingerprint for one in store.verdicts(MODEL.fingerprint)] == [later, fingerprint]


def test_a_location_seen_last_comes_first(store: Store, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf", "a.gguf"):
        store.record_location("build", "s" * 64, tmp_path / name)
    assert store.locations("build", "s" * 64) == [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    assert store.locations("model", "s" * 64) == []


def test_forgetting_a_model_forgets_all_about_it(store: Store) -> None:
    record_everything(store)
    store.forget_model(MODEL.fingerprint)
    assert [table for table, rows in store.result_rows().items() if rows] == ["timings"]  # which belong to all models of a structure
    assert store.mix_scores(RUN) == {}


def record_everything(store: Store) -> None:
    store.record_model(MODEL, TENSORS)
    store.record_cells(KEY, [CELL])
    store.record_imatrix_progress(replace(COMPUTATION, n_ctx=64), 1, b"one")
    store.record_imatrix(IMATRIX, computed=COMPUTATION)
    store.record_covariances(COVARIANCES, computed=COMPUTATION)
    store.record_chunk_scores(SCORES, [a_score(0)])
    store.record_answers(ANSWERS, [EvalItem(0, (1.5,))])
    store.record_timing(TIMINGS, "dense=Q4_K", A_TIMING)
    store.record_reference_file(A_REFERENCE)
    store.record_strategy(StrategyRecord.of(MODEL.fingerprint, "optimal", "{}"))
    store.record_verdict(a_verdict())
    store.record_mixes(MODEL.fingerprint, "curve", [MIX])
    store.record_mix_scores(RUN, [(MIX.id, a_mix_score(0))])


def test_the_same_results_give_the_same_rows_whenever_they_were_recorded(store: Store, tmp_path: Path) -> None:
    record_everything(store)
    with Store(tmp_path / "other.db") as other:
        for _ in range(2):
            record_everything(other)
        other.record_location("model", MODEL.fingerprint, tmp_path)
        other.jobs.create("measure", {})
        assert first_difference(store, other) is None
        assert all(store.result_rows().values())


def test_a_difference_is_told(store: Store, tmp_path: Path) -> None:
    with Store(tmp_path / "other.db") as other:
        assert first_difference(store, other) == "models: 1 rows against 0"
        other.record_model(replace(MODEL, name="other"), TENSORS)
        assert "'tiny'" in (first_difference(store, other) or "")


def test_every_table_is_either_a_result_or_known_not_to_be(store: Store, tmp_path: Path) -> None:
    others = {"migrations", "locations", "history", "jobs", "job_log", "drafts", "identities", "paces"}
    assert table_names(tmp_path / "q.db") - set(store.result_rows()) == others


figures = st.floats(allow_nan=False)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(figures, st.one_of(st.none(), figures), st.lists(figures, max_size=5)), min_size=1, max_size=3))
def test_any_figures_survive(store: Store, drawn: list[tuple[float, float | None, list[float]]]) -> None:
    cells = [
        replace(CELL, type_name=f"type {at}", rmse_se=plain, rmse=optional, error_quantiles=tuple(several))
        for at, (plain, optional, several) in enumerate(drawn)
    ]
    store.forget_cells(KEY)
    store.record_cells(KEY, cells)
    assert store.cells(KEY) == cells


def test_threads_share_a_store(store: Store) -> None:
    def record(number: int) -> None:
        for index in range(25):
            store.record_chunk_scores(SCORES, [a_score(100 * number + index)])

    threads = [threading.Thread(target=record, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.scored_chunks(SCORES)) == 100
