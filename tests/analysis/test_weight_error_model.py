"""Measuring models: resumable, the same for any number of threads, with the reason for every missing cell."""

from __future__ import annotations

import contextlib
import functools
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from benchmarks.in_memory import MemorySource, measure_model
from threadpoolctl import threadpool_limits

import fuzzing
from made_up_covariances import MadeUpCovariances, correlated, output_errors
from quantailor.analysis.importance.error_weights import UNWEIGHTED, ErrorWeights
from quantailor.analysis.rounding.rounding import Rounding
from quantailor.analysis.weight_errors.measure import OUTPUT_SES, MeasureSettings
from quantailor.errors import Paused, QuantailorError, TensorNotFoundError, TypeUnavailableError
from quantailor.ggml import codec, library
from quantailor.models.opening import open_model
from quantailor.models.source import ModelSource
from quantailor.numerics import Floats
from quantailor.qtypes import never_quantized
from quantailor.records import TensorInfo, WeightError

EXHAUSTIVE = MeasureSettings(exhaustive=True)
TYPES = ("Q8_0", "Q6_K", "Q4_K", "Q4_0", "IQ4_XS", "F16")


@functools.cache
def model() -> MemorySource:
    rng = np.random.default_rng(0)

    def matrix(*shape: int) -> Floats:
        return (rng.standard_t(5, shape) * rng.lognormal(-4, 0.5, (*shape[:-1], 1))).astype(np.float32)

    return MemorySource(
        {
            "token_embd.weight": matrix(600, 256),
            "blk.0.attn_q.weight": matrix(400, 512),
            "blk.0.attn_norm.weight": matrix(256),
            "blk.0.ffn_up_exps.weight": matrix(4, 200, 256),
            "blk.0.ffn_down.weight": matrix(40, 288),
        }
    )


def lognormal_weights(tensor: TensorInfo) -> ErrorWeights:
    rng = np.random.default_rng(sum(tensor.name.encode()))
    columns = rng.lognormal(0, 1, (tensor.n_slices, tensor.n_cols)).astype(np.float32)
    return ErrorWeights(columns=columns, means=(np.sqrt(columns) / 4).astype(np.float32), quantizer=columns, n_unseen_slices=1)


@functools.cache
def measured(types: tuple[str, ...] = TYPES, *, settings: MeasureSettings | None = None, n_threads: int = 2) -> list[WeightError]:
    source = model()
    return list(measure_model(source, list(source.arrays), types, weights_of=lognormal_weights, settings=settings, n_threads=n_threads))


class PausesAfter:
    """A control that asks for a pause at its n-th check."""

    def __init__(self, n: int) -> None:
        self.left, self.reported = n, [(0.0, 1.0)]

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Paused("asked to pause")

    def advance(self, done: float, total: float, message: str = "") -> None:
        self.reported.append((done, total))


COVARIANCES = MadeUpCovariances()
ROUNDINGS = {
    "plain": Rounding(),
    "plain, with covariances": Rounding(None, COVARIANCES),
    "compensated": Rounding(None, COVARIANCES, compensated=True),
}
FEW_TYPES = ("Q4_0", "F16")
COARSE = MeasureSettings(relative_se=0.05)


@functools.cache
def cells_with(kind: str, settings: MeasureSettings | None = None, n_threads: int = 2) -> list[WeightError]:
    source, how = model(), ROUNDINGS[kind]
    names = [name for name in source.arrays if "norm" not in name]
    return list(measure_model(source, names, FEW_TYPES, weights_of=shared_weights, rounding=how, settings=settings, n_threads=n_threads))


def shared_weights(tensor: TensorInfo) -> ErrorWeights:
    """Experts by how many tokens come to them, and the diagonal of the made-up covariances."""
    matrices = [COVARIANCES.of(tensor, index) for index in range(tensor.n_slices)]
    columns = [np.ones(tensor.n_cols) if matrix is None else np.diagonal(matrix.matrix) for matrix in matrices]
    shares = np.arange(1, tensor.n_slices + 1) / sum(range(1, tensor.n_slices + 1))
    return ErrorWeights(columns=np.array(columns, dtype=np.float32), slice_shares=shares.astype(np.float32))


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind == "compensated" else []) for kind in ROUNDINGS])
def test_output_mse_is_what_errors_do_to_outputs(kind: str) -> None:
    source, rounding, qtypes = model(), ROUNDINGS[kind], library.types()
    cells = {(cell.tensor, cell.type_name): cell for cell in cells_with(kind, EXHAUSTIVE)}
    for tensor in source.tensors:
        if len(tensor.shape) == 1:
            continue
        matrices, shares = [COVARIANCES.of(tensor, index) for index in range(tensor.n_slices)], shared_weights(tensor).slice_shares
        cell = cells[tensor.name, "Q4_0"]
        if rounding.covariances is None or matrices[0] is None or shares is None:
            assert (cell.output_mse, cell.error) == (None if rounding.covariances is None else cell.weighted_mse, cell.weighted_mse)
            continue
        lost = whole = 0.0
        for index, (matrix, share) in enumerate(zip(matrices, shares, strict=True)):
            rows = source.rows(tensor.name, index * tensor.rows_per_slice, (index + 1) * tensor.rows_per_slice)
            with threadpool_limits(1, user_api="blas"):  # as in all work that rounds: factors depend on it
                data = rounding.quantize(tensor, index, rows, qtypes["Q4_0"])
            written = codec.dequantize(data, qtypes["Q4_0"], tensor.n_cols)
            assert matrix is not None
            lost += float(share) * output_errors((written - rows)[None], [matrix.matrix])
            whole += float(share) * output_errors(rows[None], [matrix.matrix])
        assert cell.output_mse == pytest.approx(lost / whole, rel=1e-4)
        assert cell.error == cell.output_mse


def test_compensated_cells_lose_less_of_the_outputs() -> None:
    plain, better = (
        {(cell.tensor, cell.type_name): cell.output_mse for cell in cells_with(kind, COARSE) if cell.type_name == "Q4_0"}
        for kind in ("plain, with covariances", "compensated")
    )
    for (name, type_name), error in better.items():
        before = plain[name, type_name]
        if error is not None and before is not None and name not in COVARIANCES.without:
            assert error < 0.8 * before, name


@pytest.mark.parametrize("kind", ROUNDINGS)
def test_sampling_reaches_its_target_for_the_outputs_too(kind: str) -> None:
    sampled = [cell for cell in cells_with(kind, COARSE) if cell.sampled and cell.unavailable is None]
    exact = {(cell.tensor, cell.type_name): cell for cell in cells_with(kind, EXHAUSTIVE)}
    assert sampled
    for cell in sampled:
        assert cell.error is not None
        has_metric = kind != "plain" and cell.tensor not in COVARIANCES.without
        assert 0 < cell.error_se <= (OUTPUT_SES if has_metric else 1) * COARSE.relative_se * cell.error
        assert cell.error == pytest.approx(exact[cell.tensor, cell.type_name].error, abs=4 * cell.error_se)


def test_outputs_can_be_sampled_less_precisely() -> None:
    finer, coarser = MeasureSettings(relative_se=0.02), MeasureSettings(relative_se=0.02, output_ses=5 * OUTPUT_SES)
    assert finer.key == coarser.key, "both stand in one table, each figure with its own standard error"
    fine, coarse = (
        {cell.tensor: cell for cell in cells_with("plain, with covariances", each) if cell.type_name == "Q4_0"} for each in (finer, coarser)
    )
    assert sum(cell.n_rows_measured for cell in coarse.values()) < sum(cell.n_rows_measured for cell in fine.values())
    for name, cell in coarse.items():
        if cell.output_mse is not None:
            assert cell.output_mse_se <= coarser.output_ses * coarser.relative_se * cell.output_mse, name


@functools.cache
def few_loud_rows() -> MemorySource:
    """Matrices of which one row in thirty goes with what their inputs have in common, and holds most of the output."""
    rng = np.random.default_rng(1)

    def matrix(index: int) -> Floats:
        name = f"blk.{index}.attn_q.weight"
        rows = rng.normal(0, 0.02, (512, 128)) * rng.lognormal(0, 0.3, (512, 1))
        direction = np.linalg.eigh(correlated(f" {name}/0", 128))[1][:, -1]
        loud = rng.choice(512, 6, replace=False)
        rows[loud] += rng.normal(0, 0.2, (6, 1)) * direction
        return rows.astype(np.float32)

    return MemorySource({f"blk.{index}.attn_q.weight": matrix(index) for index in range(4)})


@pytest.mark.slow
def test_sampled_output_errors_are_honest_where_a_few_rows_hold_much_of_the_output() -> None:
    """A sample without those rows does not know what it lacks: W^T H W must be known of all rows."""
    source, types = few_loud_rows(), ("Q4_0", "Q5_0", "IQ4_NL", "Q8_0")
    rounding = Rounding(None, COVARIANCES)
    measured_at = partial(measure_model, source, list(source.arrays), types, weights_of=shared_weights, rounding=rounding)
    exact = [cell.output_mse for cell in measured_at(settings=EXHAUSTIVE)]
    ratios, scores = [], []
    for seed in range(40):
        for cell, truth in zip(measured_at(settings=COARSE, seed=str(seed)), exact, strict=True):
            assert cell.output_mse is not None
            assert truth is not None
            assert cell.sampled
            ratios.append(cell.output_mse / truth)
            scores.append((cell.output_mse - truth) / cell.output_mse_se)
    assert float(np.mean(ratios)) == pytest.approx(1, abs=0.02)
    assert float(np.mean(np.abs(scores) <= 2)) >= 0.92


def test_compensated_cells_that_were_interrupted_are_those_of_one_run() -> None:
    source, found = model(), dict[tuple[str, str], WeightError]()
    names = [name for name in source.arrays if "norm" not in name]
    for patience in (*range(1, 60, 7), 10**6):
        missing = measure_model(
            source,
            names,
            FEW_TYPES,
            weights_of=shared_weights,
            rounding=ROUNDINGS["compensated"],
            done=lambda *cell: cell in found,
            settings=EXHAUSTIVE,
            control=PausesAfter(patience),
        )
        with contextlib.suppress(Paused):
            found.update(((cell.tensor, cell.type_name), cell) for cell in missing)
    assert list(found.values()) == cells_with("compensated", EXHAUSTIVE)


@pytest.mark.parametrize("settings", [COARSE, EXHAUSTIVE], ids=["sampled", "exhaustive"])
def test_threads_change_no_bit_of_compensated_cells(settings: MeasureSettings | None) -> None:
    assert cells_with("compensated", settings, n_threads=1) == cells_with("compensated", settings)


@pytest.mark.parametrize("settings", [pytest.param(None, id="sampled"), pytest.param(EXHAUSTIVE, id="exhaustive", marks=pytest.mark.slow)])
def test_threads_do_not_change_a_bit(settings: MeasureSettings | None) -> None:
    assert measured(settings=settings, n_threads=1) == measured(settings=settings, n_threads=3)


def test_some_cells_are_sampled_within_the_target() -> None:
    cells = [cell for cell in measured() if cell.sampled and cell.unavailable is None]
    assert cells
    for cell in cells:
        assert cell.weighted_mse is not None
        assert 0 < cell.weighted_mse_se <= 0.01 * cell.weighted_mse


def test_types_added_later_change_nothing_for_the_others() -> None:
    together = {(cell.tensor, cell.type_name): cell for cell in measured()}
    apart = measured(("Q4_K",)) + measured(("IQ4_XS", "Q8_0"))
    assert all(together[cell.tensor, cell.type_name] == cell for cell in apart)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [None, EXHAUSTIVE], ids=["sampled", "exhaustive"])
def test_interrupted_and_resumed_equals_uninterrupted(settings: MeasureSettings | None) -> None:
    source, stored = model(), dict[tuple[str, str], WeightError]()
    for patience in range(1, 400):
        control = PausesAfter(patience)
        missing = measure_model(
            source,
            list(source.arrays),
            TYPES,
            weights_of=lognormal_weights,
            done=lambda tensor, type_name: (tensor, type_name) in stored,
            settings=settings,
            control=control,
        )
        try:
            for cell in missing:
                assert (cell.tensor, cell.type_name) not in stored
                stored[cell.tensor, cell.type_name] = cell
        except Paused:
            continue
        break
    assert sorted(stored.values(), key=repr) == sorted(measured(settings=settings), key=repr)


def test_progress_ends_at_its_total() -> None:
    source, control = model(), PausesAfter(10**6)
    list(measure_model(source, list(source.arrays), TYPES, settings=EXHAUSTIVE, control=control))
    assert control.reported[-1][0] == pytest.approx(control.reported[-1][1])


def test_every_cell_comes_with_figures_or_a_reason() -> None:
    source = model()
    cells = list(measure_model(source, list(source.arrays), ("Q4_K", "IQ2_XXS", "IQ3_XXS"), settings=EXHAUSTIVE))
    reasons = {(cell.tensor, cell.type_name): cell.unavailable for cell in cells}
    assert len(cells) == 15
    assert reasons["blk.0.attn_norm.weight", "Q4_K"] == "it has one dimension"
    assert "row width 288" in str(reasons["blk.0.ffn_down.weight", "Q4_K"])
    assert "llama.cpp would write Q5_0" in str(reasons["blk.0.ffn_down.weight", "Q4_K"])
    assert reasons["blk.0.attn_q.weight", "IQ2_XXS"] == "IQ2_XXS needs an importance matrix that holds this tensor"
    assert reasons["token_embd.weight", "IQ2_XXS"] == "IQ2_XXS needs an importance matrix that holds this tensor", "ggml would abort"
    assert reasons["token_embd.weight", "IQ3_XXS"] is None
    assert all((cell.weighted_mse is None) == (cell.unavailable is not None) for cell in cells)


def test_unseen_experts_are_counted_in_the_record() -> None:
    source = model()
    (cell,) = measure_model(source, ["blk.0.ffn_up_exps.weight"], ["Q4_K"], weights_of=lognormal_weights)
    assert cell.n_unseen_experts == 1


def test_unknown_names_are_told() -> None:
    with pytest.raises(TensorNotFoundError, match=r"no tensor no\.such"):
        list(measure_model(model(), ["no.such"], ["Q4_K"]))
    with pytest.raises(TypeUnavailableError, match=r"there is no type 'Q9_X'\. .*Known: F32, F16"):
        list(measure_model(model(), ["token_embd.weight"], ["Q9_X"]))


def test_settings_have_a_key_that_tells_them_apart() -> None:
    keys = {MeasureSettings().key, EXHAUSTIVE.key, MeasureSettings(relative_se=0.02).key}
    assert len(keys) == 3
    with pytest.raises(QuantailorError, match="not between 0 and 1"):
        MeasureSettings(relative_se=0.0)


def _weights(tensor: TensorInfo, with_matrix: bool) -> ErrorWeights:
    rng = np.random.default_rng(sum(tensor.name.encode()))
    if not with_matrix:
        return UNWEIGHTED
    if tensor.name == "token_embd.weight":
        return ErrorWeights(row_weights=(1 + rng.pareto(1, tensor.n_rows) * 5).astype(np.float32))
    columns = rng.lognormal(0, 1.5, (tensor.n_slices, tensor.n_cols)).astype(np.float32)
    shares = rng.dirichlet(np.full(tensor.n_slices, 5.0)).astype(np.float32)
    return ErrorWeights(columns=columns, slice_shares=shares, quantizer=columns)


def _z_scores(source: ModelSource, with_matrix: bool) -> list[float]:
    """(sampled - exhaustive) / standard error of weighted_mse for every cell that sampling did not exhaust.

    The truth takes most of the time: a short run draws three samples of the first layer and of what belongs to none, and looks at
    the types that take longest in large tensors alone, which are sampled and not exhausted, and only with importances.
    """
    slow = [name for name in library.types() if name.startswith(("IQ1", "IQ2", "IQ3"))]
    fast = [name for name in library.types() if name not in slow]
    scores = []
    for types, least_rows in ((fast, 0), (slow, 1000))[: 2 if fuzzing.LONG or with_matrix else 1]:
        names = [
            tensor.name
            for tensor in source.tensors
            if never_quantized(tensor, source.architecture) is None
            and (fuzzing.LONG or (tensor.layer in (None, 0) and tensor.n_rows >= least_rows))
        ]
        measured_at = partial(measure_model, source, names, types, weights_of=partial(_weights, with_matrix=with_matrix))
        truth = list(measured_at(settings=EXHAUSTIVE))
        for seed in ("honest",) if fuzzing.LONG else ("honest", "still honest", "honest again"):
            for full, sample in zip(truth, measured_at(seed=seed), strict=True):
                assert sample.unavailable == full.unavailable
                if full.weighted_mse is None or sample.weighted_mse is None:
                    assert full.unavailable is not None
                elif not sample.sampled:
                    assert sample == full
                elif sample.weighted_mse_se > 0:
                    assert sample.weighted_mse_se <= 0.01 * sample.weighted_mse
                    scores.append((sample.weighted_mse - full.weighted_mse) / sample.weighted_mse_se)
    return scores


@pytest.mark.slow
def test_sampled_output_errors_are_honest_on_both_models(books_llama_base: Path, books_moe_base: Path) -> None:
    """Over the first layer and the embeddings, with made-up covariances of their inputs: 92-98 % within two standard errors."""
    rounding, scores, ratios = Rounding(None, MadeUpCovariances(without=())), [], []
    for base in (books_llama_base, books_moe_base):
        with closing(open_model(base)) as source:
            names = [t.name for t in source.tensors if t.layer in (None, 0) and never_quantized(t, source.architecture) is None]
            measured_at = partial(measure_model, source, names, ("Q4_0", "Q5_1", "IQ4_NL"), rounding=rounding)
            truth = list(measured_at(settings=EXHAUSTIVE))
            for seed in range(6):
                for full, sample in zip(truth, measured_at(seed=str(seed)), strict=True):
                    assert full.output_mse is not None
                    assert sample.output_mse is not None
                    if sample.sampled:
                        assert 0 < sample.output_mse_se <= OUTPUT_SES * 0.01 * sample.output_mse
                        scores.append((sample.output_mse - full.output_mse) / sample.output_mse_se)
                        ratios.append(sample.output_mse / full.output_mse)
    assert len(scores) > 150
    assert 0.92 <= float(np.mean(np.abs(scores) <= 2)) <= 0.98
    assert float(np.mean(ratios)) == pytest.approx(1, abs=0.01)


@pytest.mark.tables
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sampling_is_honest_on_both_models(books_llama_base: Path, books_moe_base: Path) -> None:
    """Over all types of both models, with and without importance: 93-97 % within two standard errors."""
    scores: list[float] = []
    for base in (books_llama_base, books_moe_base):
        with closing(open_model(base)) as source:
            for with_matrix in (False, True):
                scores += _z_scores(source, with_matrix)
    assert len(scores) > 1000
    assert 0.93 <= float(np.mean(np.abs(scores) <= 2)) <= 0.97
