"""Strategies: planned, predicted, refined, compared, read and written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from quantailor.app.api.opening import Model, matrix_choice, run_on
from quantailor.app.choosing.comparing import StrategyDiff, compare_strategies
from quantailor.app.choosing.predicting import PredictResult
from quantailor.app.choosing.predicting import predict as predict_strategy
from quantailor.evidence import strategies
from quantailor.evidence.recipes import recipe_of, reference_of
from quantailor.evidence.strategies import store_strategy
from quantailor.records import RoundingWish, SpeedOf, Strategy
from quantailor.session import AUTO
from quantailor.steps.options import absolute
from quantailor.steps.plan import Method, PlanOptions, Target, choose, like_target
from quantailor.steps.refine import DEFAULT_REFINE_CHUNKS, RefineResult, RefineStep
from quantailor.strategy import file as strategy_file


def plan(
    model: Model,
    *,
    size_bytes: int | None = None,
    bits_per_weight: float | None = None,
    like: str | Path | None = None,
    types_of: str | Path | None = None,
    kld_nats: float | None = None,
    speed: float | str | None = None,
    speed_of: SpeedOf = "generation",
    method: Method = "optimal",
    pins: Mapping[str, str] | None = None,
    types: Iterable[str] = (),
    options: PlanOptions | None = None,
    imatrix: str | Path = AUTO,
    rounding: RoundingWish = "auto",
) -> Strategy:
    """Choose a type for every tensor from what was measured.

    Args:
        model: the model that was measured.
        size_bytes: the file's size, header included, at most.
        bits_per_weight: the same as bits per weight.
        like: "as large as" this preset of llama.cpp, or this GGUF file.
        types_of: no choice of our own but the very types of a GGUF file, a file for llama-quantize's --tensor-type-file, or a preset.
        kld_nats: the smallest file whose predicted KL divergence is at most this; needs probes.
        speed: at least this part of the speed of the preset of that size, such as 0.95, or "40tok/s", on this machine; see `speed`.
        speed_of: what `speed` is about, "generation" or "prompt".
        method: "optimal", "knee", "greedy" or "bins".
        pins: tensor name, role or pattern -> the type it gets.
        types: the types that may be used; empty for all usual ones.
        options: every option of `quantailor plan`, instead of those above.
        imatrix: which measurements to use: "auto", "none", or those with that file.
        rounding: which measurements to use, and how the file is rounded; "auto" as most was measured.

    Raises StrategyError where nothing is measured or, with `speed`, timed, or where no strategy meets target and constraints; OptionError
    for what is no speed.

    >>> with open_model("demo/books-llama") as model:
    ...     _ = measure(model, types=["Q3_K", "Q4_K", "Q6_K", "Q8_0"])
    ...     strategy = plan(model, bits_per_weight=5.0, pins={"attn_v": "Q8_0"})
    >>> strategy.types["blk.0.attn_v.weight"], strategy.prediction.bits_per_weight <= 5.0
    ('Q8_0', True)
    """
    if types_of is not None:
        with model.workspace.model(model.path) as opened:
            return recipe_of(model.workspace, opened, reference_of(str(types_of)), matrix_choice(imatrix), types_alone=True)
    as_large = like_target(str(like)) if like is not None else Target(size_bytes=None, bits_per_weight=None, like=None, kld_nats=None)
    wanted = options or PlanOptions(
        method=method,
        size_bytes=size_bytes or as_large["size_bytes"],
        bits_per_weight=bits_per_weight,
        like=as_large["like"],
        kld_nats=kld_nats,
        speed=None if speed is None else str(speed),
        speed_of=speed_of,
        pins=tuple(f"{pattern}={type_name}" for pattern, type_name in (pins or {}).items()),
        allow=(",".join(types),) if types else (),
    )
    with model.workspace.model(model.path) as opened:
        strategy, *_ = choose(model.workspace, opened, wanted, imatrix=matrix_choice(imatrix), rounding=rounding)
    return strategy


def predict(model: Model, strategy: Strategy, *, evidence: str | None = None) -> PredictResult:
    """The KL divergence of a strategy's file before it is built, with 80 % and 95 % intervals, and where it comes from.

    `evidence` names the probes to stand on, as `quantailor status` lists them; None takes those that cover most.

    Raises StrategyError where the model has no probes, or the strategy is another model's.
    """
    return predict_strategy(model.workspace, model.path, strategy, evidence=evidence)


def refine(
    model: Model, strategy: Strategy, output: str | Path, *, swaps: int = 0, chunks: int = DEFAULT_REFINE_CHUNKS, overwrite: bool = False
) -> RefineResult:
    """Improve a strategy at its size with measurements around it; the better of old and new is written to `output`.

    Raises StrategyError where the model has no probes, OutputError where the output exists.
    """
    step = RefineStep(
        base=str(model.base),
        strategy=store_strategy(model.workspace, strategy),
        output=absolute(output),
        swaps=swaps,
        chunks=chunks,
        overwrite=overwrite,
        compute=model.compute,
    )
    return run_on(model, step)


def compare(model: Model, a: str | Path | Strategy, b: str | Path | Strategy) -> StrategyDiff:
    """Two choices of types side by side: strategies, files, or presets by name. Raises StrategyError, TypeUnavailableError."""
    return compare_strategies(model.workspace, model.path, a, b)


def read_strategy(path: str | Path) -> Strategy:
    """A strategy from its file, YAML or JSON, or from a GGUF file that was built from one. Raises StrategyError."""
    return strategies.read_strategy(Path(path))


def write_strategy(strategy: Strategy, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a strategy, YAML or JSON by its name. Raises OutputError where the file exists or cannot be written."""
    return strategy_file.write(strategy, Path(path), overwrite=overwrite)
