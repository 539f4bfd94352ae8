"""What is measured of a model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from quantailor.analysis.scores.resting import Rest
from quantailor.app.api.opening import Model, matrix_choice, optional_path, run_on
from quantailor.pipeline import Level, StudyResult, StudyStep
from quantailor.records import RoundingWish
from quantailor.session import AUTO
from quantailor.steps.calibration.calibrate import CalibrateReport, CalibrateStep
from quantailor.steps.calibration.imatrix import ImatrixReport, ImatrixStep, use_imatrix
from quantailor.steps.measure import MeasureResult, MeasureStep
from quantailor.steps.options import DEFAULT_N_CTX
from quantailor.steps.probe import (
    DEFAULT_ANCHORS,
    DEFAULT_MIXES,
    Grouping,
    ProbeResult,
    ProbeStep,
    effort,
)
from quantailor.steps.speed import DEFAULT_MIXES as DEFAULT_TIMED_MIXES
from quantailor.steps.speed import SpeedResult, SpeedStep
from quantailor.steps.sweep import DEFAULT_SWEEP_CHUNKS, SweepResult, SweepStep


def imatrix(
    model: Model, text: str | Path | None = None, *, chunks: int | None = None, n_ctx: int = DEFAULT_N_CTX, file: str | Path | None = None
) -> ImatrixReport:
    """Compute an importance matrix, which later steps use; or take `file` (GGUF or legacy .dat) instead.

    Args:
        model: what llama.cpp runs on the text.
        text: a text file; None is the calibration text that ships.
        chunks: at most so many chunks of `n_ctx` tokens.
        n_ctx: tokens in a chunk.
        file: an importance matrix that is there already.

    Raises:
        CorpusError: the text cannot be read or is too short.
        ImatrixError: the file is not an importance matrix of this model.

    >>> with open_model("demo/books-llama") as model:
    ...     matrix = imatrix(model, chunks=2)
    >>> matrix.chunk_count, matrix.missing_tensors
    (2, ())
    """
    if file is not None:
        return use_imatrix(model.workspace, model.path, import_file=Path(file))
    step = ImatrixStep(base=str(model.base), text=optional_path(text), chunks=chunks, n_ctx=n_ctx, compute=model.compute)
    return run_on(model, step)


def calibrate(model: Model, text: str | Path | None = None, *, chunks: int | None = None, n_ctx: int = DEFAULT_N_CTX) -> CalibrateReport:
    """Compute an importance matrix and input covariances in one run; later steps use both.

    Args:
        model: what llama.cpp runs on the text.
        text: a text file; None is the calibration text that ships.
        chunks: at most so many chunks of `n_ctx` tokens.
        n_ctx: tokens in a chunk.

    Raises:
        CorpusError: the text cannot be read or is too short.

    >>> with open_model("demo/books-llama") as model:
    ...     found = calibrate(model, chunks=2)
    >>> found.chunk_count, found.missing_tensors
    (2, ())
    """
    step = CalibrateStep(base=str(model.base), text=optional_path(text), chunks=chunks, n_ctx=n_ctx, compute=model.compute)
    return run_on(model, step)


def measure(
    model: Model,
    types: Iterable[str] = (),
    tensors: Iterable[str] = (),
    *,
    exhaustive: bool = False,
    imatrix: str | Path = AUTO,
    rounding: RoundingWish = "auto",
) -> MeasureResult:
    """Measure what each type costs in each tensor: relative and weighted squared error, RMSE, largest error (METHODS 1).

    Args:
        model: any model; no inference is needed.
        types: the types; empty for all that ggml writes.
        tensors: names, roles or patterns; empty for all.
        exhaustive: every row, instead of a sample with a stated error.
        imatrix: "auto" (the one of the model's own that saw most, if any), "none", or a file.
        rounding: "compensated" after `calibrate`; else plain.

    Raises:
        TypeUnavailableError: an unknown type.
        CovarianceError: compensated rounding without covariances.
        TensorNotFoundError: nothing matches.

    >>> with open_model("demo/books-llama") as model:
    ...     result = measure(model, types=["Q4_K", "Q8_0"], tensors=["attn_v"])
    >>> result.n_tensors, result.n_types, all(cell.weighted_mse > 0 for cell in result.cells)
    (8, 2, True)
    """
    step = MeasureStep(
        base=str(model.path),
        types=tuple(types),
        tensors=tuple(tensors),
        exhaustive=exhaustive,
        imatrix=matrix_choice(imatrix),
        rounding=rounding,
        compute=model.compute,
    )
    return run_on(model, step)


def probe(
    model: Model,
    text: str | Path | None = None,
    *,
    chunks: int | None = None,
    types: Iterable[str] = (),
    group: Grouping = "tensor",
    mixes: int = DEFAULT_MIXES,
    mix_chunks: int | None = None,
    anchors: int = DEFAULT_ANCHORS,
    seconds: float | None = None,
    passes: int | None = None,
    rest: Rest = "16",
    imatrix: str | Path = AUTO,
    rounding: RoundingWish = "auto",
) -> ProbeResult:
    """Measure in memory how much each tensor's error matters to the model, and fit the prediction to whole mixes (METHODS 4).

    Args:
        model: what llama.cpp runs.
        text: a text file; None is the calibration text that ships.
        chunks: chunks per probe, at most; None for 2, or 16 where time limits them.
        types: the types that tensors are probed at; empty for Q2_K, Q6_K and Q8_0, and more where time limits them.
        group: probe every tensor, a role by quarters of the depth, or whole roles.
        mixes: random whole mixes that the prediction is fitted to; 0 leaves it with a wide interval.
        mix_chunks: chunks per whole mix; None for four times those of probes' default.
        anchors: mixes that are also built as files.
        seconds: probing ends then, what helps a plan most comes first, and everything counts; None for as long as it takes.
        passes: the same after so many runs of a chunk through the model with something quantized.
        rest: "q8_0" lets the base rest at 8 bits, in half the memory: high-bit types are then estimated, and no KLD is predicted.
        imatrix: "auto", "none", or a file.
        rounding: of the weights that are swapped in; "auto" as most was measured.

    Raises InferenceError, CorpusError, CovarianceError, TypeUnavailableError.
    """
    usual = effort(seconds, passes)
    step = ProbeStep(
        base=str(model.base),
        text=optional_path(text),
        chunks=usual.chunks if chunks is None else chunks,
        types=tuple(types) or usual.types,
        group=group,
        mixes=mixes,
        mix_chunks=usual.mix_chunks if mix_chunks is None else mix_chunks,
        anchors=anchors,
        seconds=seconds,
        passes=passes,
        rest=rest,
        imatrix=matrix_choice(imatrix),
        rounding=rounding,
        compute=model.compute,
    )
    return run_on(model, step)


def sweep(
    model: Model,
    text: str | Path | None = None,
    *,
    chunks: int = DEFAULT_SWEEP_CHUNKS,
    types: Iterable[str] = (),
    tensors: Iterable[str] = (),
    imatrix: str | Path = AUTO,
    rounding: RoundingWish = "auto",
) -> SweepResult:
    """Perplexity and KL divergence of every tensor at every type, all others as they are; arguments as for `probe` and `measure`.

    Raises InferenceError, CorpusError, TypeUnavailableError, TensorNotFoundError.
    """
    step = SweepStep(
        base=str(model.base),
        text=optional_path(text),
        chunks=chunks,
        types=tuple(types),
        tensors=tuple(tensors),
        imatrix=matrix_choice(imatrix),
        rounding=rounding,
        compute=model.compute,
    )
    return run_on(model, step)


def study(
    model: Model,
    level: Level = "balanced",
    *,
    types: Iterable[str] = (),
    text: str | Path | None = None,
    seconds: float | None = None,
    passes: int | None = None,
    rest: Rest = "16",
    rounding: RoundingWish = "auto",
) -> StudyResult:
    """Everything that measuring needs in one job.

    Args:
        model: any model; one that predicts no next token can be studied at the level "quick".
        level: "quick", "balanced", "thorough" or "exhaustive".
        types: the types; empty for all usual ones.
        text: a text file; None is the calibration text that ships.
        seconds: time for everything, as probes get what is left of it; None for as long as it takes.
        passes: as of `probe`.
        rest: as of `probe`.
        rounding: "plain" or "compensated"; "auto" compensates wherever a text runs through the model.

    Raises what its steps raise.
    """
    step = StudyStep(
        model=str(model.path),
        level=level,
        types=tuple(types),
        text=optional_path(text),
        seconds=seconds,
        passes=passes,
        rest=rest,
        rounding=rounding,
        compute=model.compute,
    )
    return run_on(model, step)


def speed(model: Model, types: Iterable[str] = (), *, mixes: int = DEFAULT_TIMED_MIXES) -> SpeedResult:
    """Time types on this machine, prompts and generation; plans then say how fast a file will be, and take a speed.

    Args:
        model: a GGUF base; what was timed of another one of the same shapes counts.
        types: what to time; none for all that plans use by themselves.
        mixes: random mixes that tell how far predictions are off.

    Raises:
        TypeUnavailableError: there is no such type.
        InferenceError: llama.cpp cannot run the model.
    """
    return run_on(model, SpeedStep(base=str(model.base), types=tuple(types), mixes=mixes, compute=model.compute))
