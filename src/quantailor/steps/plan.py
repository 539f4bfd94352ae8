"""From measurements to a strategy whose file size is known to the byte."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Literal, TypedDict

from quantailor import files
from quantailor.analysis.importance.imatrix import Imatrix
from quantailor.analysis.prediction import Damage, curve_kld, damage_for
from quantailor.errors import InfeasibleError, StrategyError
from quantailor.evidence.damages import basis_of, expected_tables, inputs_of, kld_of, probed_tables, require_probes, require_told, with_kld
from quantailor.evidence.grounds import command_line
from quantailor.evidence.knowledge import Knowledge, load_knowledge
from quantailor.evidence.measurements import Measured, measured, model_facts, usual_types
from quantailor.evidence.presets import near_a_preset, preset_size_bytes
from quantailor.evidence.recipes import recipe_of
from quantailor.evidence.roundings import named_rounding
from quantailor.evidence.speed_limits import SpeedLimit, require_speeds, speed_limit, timed_tables
from quantailor.evidence.speeds import Speeds, speed_at
from quantailor.evidence.strategies import is_gguf, require_whole, store_strategy
from quantailor.ggml.reference import preset_name
from quantailor.making import building, judging
from quantailor.models.abilities import require_predictions, why_no_predictions
from quantailor.records import Grounds, PredictedSpeed, Prediction, RoundingWish, SpeedOf, Strategy, TensorCells, TensorChoice
from quantailor.session import AUTO, OpenedModel, Workspace
from quantailor.steps.checks.limits import constraints_of, too_little, too_slow
from quantailor.steps.step import StepResult
from quantailor.strategy import file as strategy_file
from quantailor.strategy.choose import predict, select
from quantailor.strategy.constraints import Constraints
from quantailor.strategy.rules.bins import parse_bins

Method = Literal["optimal", "knee", "greedy", "bins"]
BasisWish = Literal["auto", "probes", "ranking"]


class Target(TypedDict):
    """The part of PlanOptions that says how large; at most one is not None."""

    size_bytes: int | None
    bits_per_weight: float | None
    like: str | None
    kld_nats: float | None


class RuleOptions(TypedDict):
    """The part of PlanOptions that says how to choose."""

    method: Method
    parameters: Mapping[str, float | str]
    bins: tuple[str, ...]


class Limits(TypedDict):
    """The part of PlanOptions that holds in every rule."""

    pins: tuple[str, ...]
    allow: tuple[str, ...]
    minimum: tuple[str, ...]
    maximum: tuple[str, ...]
    ties: tuple[str, ...]
    budgets: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """How types are chosen. At most one target: size, bits per weight, "as large as this preset", or a predicted KLD."""

    method: Method = "optimal"
    size_bytes: int | None = None
    bits_per_weight: float | None = None
    like: str | None = None
    kld_nats: float | None = None
    """The smallest file whose predicted KLD is at most this; needs probes."""
    basis: BasisWish = "auto"
    """"auto" takes probes where there are any."""
    evidence: str | None = None
    """The name of the probes to stand on; None takes those that cover most (see `evidence.grounds`)."""
    parameters: Mapping[str, float | str] = field(default_factory=dict)
    """The method's own options, e.g. {"test": "relative", "threshold": 0.5} for knees."""
    bins: tuple[str, ...] = ()
    """"10=Q6_K": the top 10 % by importance get at least Q6_K."""
    pins: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    minimum: tuple[str, ...] = ()
    maximum: tuple[str, ...] = ()
    ties: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()
    """"blk.*=2GiB": the bytes of the tensors that match must fit."""
    speed: str | None = None
    """"0.95" of the speed of the preset that is nearest in size, or "40tok/s", at least; needs timings of this machine (`speed`)."""
    speed_of: SpeedOf = "generation"


@dataclass(frozen=True, slots=True)
class PlanResult(StepResult):
    """A strategy that was chosen, and where it was saved."""

    path: str | None
    method: str
    basis: str
    prediction: Prediction
    type_counts: Mapping[str, int]
    tensors: tuple[TensorChoice, ...]
    preset_size_bytes: int | None = None
    """The size of the preset's own file where `--like` asked for it."""
    grounds: Grounds | None = None
    """What it stands on; None without probes."""
    probe_command: str | None = None
    """What measures the damages that this plan only expects; None where it rests on probes, or the model cannot be probed."""
    notes: tuple[str, ...] = ()
    """What gave way to something else that was asked for, one sentence each."""
    speed: PredictedSpeed | None = None
    """On this machine; None where its types were not timed."""


def plan(
    workspace: Workspace,
    base: Path,
    wanted: PlanOptions | str,
    *,
    imatrix: str = AUTO,
    rounding: RoundingWish = "auto",
    covariances: str = AUTO,
    output: Path | None = None,
    overwrite: bool = False,
    origin: str | None = None,
) -> PlanResult:
    """Choose a type for every tensor of `base` from what the store has measured, or take the very types of something else.

    Args:
        base: the model that was measured.
        wanted: rule, target and constraints; or the types of a file, a preset or a strategy, as of `evidence.recipes.reference_of`.
        imatrix: which measurements to use: those with the model's own importance matrix ("auto", where there is one), without ("none"),
            or with that file.
        rounding: which measurements to use; "auto" is compensated where as much is measured with it as without.
        covariances: which measurements to use: those with the model's own covariances ("auto"), without ("none"), or with that file.
        output: where to save the strategy, as YAML or JSON by its name.
        overwrite: replace an existing file.
        origin: where the model came from, for the result.

    Raises:
        StrategyError: there are no measurements or no such evidence, or no strategy meets target and constraints; or there are no such
            types, or they are another model's.
        CovarianceError: covariances that cannot be used.
        ModelError: a model that llama.cpp could not run.
    """
    if output is not None:
        files.refuse_existing(output, overwrite=overwrite)
    preset_size = None
    with workspace.model(base) as model:
        remarks = [*workspace.imatrices.remarks(model, imatrix), *workspace.reservations(model)]
        cannot_be_probed = why_no_predictions(model.source) or workspace.require_intact(model)
        which = named_rounding(workspace, model, rounding, covariances)
        if isinstance(wanted, str):
            strategy, grounds = _same_types(workspace, model, wanted, imatrix, which)
        else:
            strategy, preset_size, grounds = choose(workspace, model, wanted, imatrix=imatrix, rounding=which)
    if output is not None:
        strategy_file.write(strategy, output, overwrite=overwrite)
    result = plan_result(workspace, strategy, output, preset_size, grounds, base=base, origin=origin)
    advice = None if cannot_be_probed else result.probe_command
    return dataclasses.replace(result, notes=(*result.notes, *remarks), probe_command=advice)


def _same_types(workspace: Workspace, model: OpenedModel, reference: str, imatrix: str, rounding: str) -> tuple[Strategy, Grounds | None]:
    """A strategy of the very types of something else, with what is known of them, which is recorded; its grounds."""
    taken = recipe_of(workspace, model, reference, imatrix, types_alone=True)
    require_whole(taken, model)
    strategy = dataclasses.replace(taken, prediction=None, basis="ranking only")
    known, missing = None, "nothing is measured"
    matrix = workspace.imatrices.choose(model, imatrix)
    try:
        found = measured(workspace, model, imatrix, rounding=rounding)
        known = load_knowledge(workspace, model, found.key, found.cells)
        tables = expected_tables(model.source, found, matrix) if known is None else probed_tables(model.source, found, known)
        damages = predict(strategy.types, tables, model=model_facts(model, tables)).damage
        strategy = dataclasses.replace(strategy, basis=basis_of(known), inputs={**strategy.inputs, **inputs_of(found, known)})
    except StrategyError as error:
        known, damages, missing = None, 0.0, error.message
    prediction = building.predict(model.source, strategy, imatrix=matrix)
    prediction = dataclasses.replace(prediction, damage=damages, no_prediction=None if known else missing)
    strategy = with_kld(dataclasses.replace(strategy, prediction=prediction), known)
    store_strategy(workspace, strategy)
    return strategy, None if known is None else known.grounds


def like_target(text: str) -> Target:
    """What "as large as" this means: a preset's size, or that of a GGUF file. Raises ModelError for a file that cannot be read."""
    nothing = Target(size_bytes=None, bits_per_weight=None, like=None, kld_nats=None)
    if is_gguf(path := files.expanded(text)) or path.suffix == ".gguf":
        return {**nothing, "size_bytes": judging.file_size(path)[0]}
    return {**nothing, "like": text}


def choose(
    workspace: Workspace,
    model: OpenedModel,
    options: PlanOptions,
    *,
    imatrix: str = AUTO,
    exhaustive: bool | None = None,
    rounding: str = AUTO,
) -> tuple[Strategy, int | None, Grounds | None]:
    """The strategy of `plan`, which is recorded; the preset's size where it is "as large as" one; its grounds.

    `rounding` is as of `measured`. Raises StrategyError.
    """
    if options.basis == "probes" or options.kld_nats is not None:
        require_predictions(model.source)  # before advice to measure what no plan could use
    measurement = measured(workspace, model, imatrix, exhaustive, rounding=rounding)
    key = measurement.key
    matrix = workspace.imatrices.read(model.fingerprint, key.imatrix) if key.imatrix else None
    known = None
    if options.basis != "ranking" or options.kld_nats is not None:
        known = load_knowledge(workspace, model, key, measurement.cells, evidence=options.evidence)
        if known is None and (options.basis == "probes" or options.kld_nats is not None):
            known = require_probes(workspace, model, measurement)
        if known is None:
            require_told(workspace, model, measurement)
    tables = expected_tables(model.source, measurement, matrix) if known is None else probed_tables(model.source, measurement, known)
    speeds = None if options.speed is None else require_speeds(workspace, model)
    strategy, preset_size = solve(Evidence(model, measurement, known, tables, matrix, speeds), options)
    store_strategy(workspace, strategy)
    return strategy, preset_size, None if known is None else known.grounds


@dataclass(frozen=True)
class Evidence:
    """What a plan rests on."""

    model: OpenedModel
    found: Measured
    known: Knowledge | None
    """None plans by what is expected of weight errors."""
    tables: Sequence[TensorCells]
    matrix: Imatrix | None
    speeds: Speeds | None = None
    """Of this machine, for a plan that asks for a speed."""


def solve(at: Evidence, options: PlanOptions, *, knees: Mapping[str, str] | None = None) -> tuple[Strategy, int | None]:
    """The strategy for these options, its size exact, and the preset's size where it is "as large as" one.

    `knees` are the tensors' own within the options' constraints, where the caller has them. Raises StrategyError.
    """
    target, preset_size = _target(at.model, options, at.matrix, at.known)
    tables = at.tables if at.known else near_a_preset(at.tables, at.model, at.matrix, target)
    limit = None
    if options.speed is not None:
        if at.speeds is None:
            raise StrategyError("the model's types have not been timed on this machine", remedy="Run `quantailor speed` first")
        tables = timed_tables(at.model.source, at.speeds, tables)
        limit = speed_limit(at.model, at.speeds, options.speed, options.speed_of, tables, target, at.matrix)
        target = {**target, "speed": options.speed, "speed_of": options.speed_of}
    try:
        strategy = _selected(at, options, tables, target, limit, knees)
    except InfeasibleError as error:
        if limit is not None and error.least_seconds is not None:
            raise too_slow(limit, error.least_seconds, target, partial(_selected, at, options, tables, target)) from None
        if error.least_damage is None or options.kld_nats is None or at.known is None:
            raise
        raise too_little(options.kld_nats, curve_kld(at.known.curve, error.least_damage)) from None
    if options.kld_nats is not None and at.known is not None and options.kld_nats <= at.known.curve.c0_nats:
        raise too_little(options.kld_nats, at.known.curve.c0_nats)
    return strategy, preset_size


def _selected(
    at: Evidence,
    options: PlanOptions,
    tables: Sequence[TensorCells],
    target: Mapping[str, str | int | float],
    limit: SpeedLimit | None,
    knees: Mapping[str, str] | None = None,
) -> Strategy:
    """The rule's choice with its prediction. Raises InfeasibleError, StrategyError."""
    facts = model_facts(at.model, at.tables)
    strategy = select(
        tables,
        model=facts,
        method=options.method,
        target=target,
        parameters=_parameters(options),
        constraints=constraints_of(options),
        inputs=inputs_of(at.found, at.known),
        basis=basis_of(at.known),
        exact_size=lambda planned: building.predict_layout(at.model.source, planned, imatrix=at.matrix).size_bytes,
        knees=knees,
        time=None if limit is None else limit.time,
    )
    if strategy.prediction is not None:
        damage = predict(strategy.types, at.tables, model=facts).damage
        strategy = dataclasses.replace(strategy, prediction=dataclasses.replace(strategy.prediction, damage=damage))
    return with_kld(strategy, at.known)


def plan_result(
    workspace: Workspace,
    strategy: Strategy,
    output: Path | None,
    preset_size: int | None,
    grounds: Grounds | None,
    *,
    base: str | Path,
    origin: str | None = None,
) -> PlanResult:
    """A strategy as the answer of a plan, with its speed where it is known. Raises StrategyError where it has no prediction."""
    if strategy.prediction is None:
        raise StrategyError("the strategy has no prediction")
    return PlanResult(
        path=None if output is None else str(output),
        method=strategy.method,
        basis=strategy.basis,
        prediction=strategy.prediction,
        type_counts=dict(Counter(strategy.types.values()).most_common()),
        tensors=strategy.tensors,
        preset_size_bytes=preset_size,
        grounds=grounds,
        probe_command=None if strategy.basis == "probes" else command_line(workspace, "study" if Path(base).is_dir() else "probe", base),
        notes=_exceptions(strategy),
        origin=origin,
        speed=speed_at(workspace, base, strategy.types),
    )


def _exceptions(strategy: Strategy) -> tuple[str, ...]:
    """The pins that leave the types which were allowed overall."""
    recorded = strategy.parameters.get("constraints", {})
    limits = Constraints.from_parameters(recorded if isinstance(recorded, Mapping) else {})
    if set(limits.allowed) == set(usual_types()):
        return ()
    return tuple(
        f"--pin {pattern}={type_name} is an exception to --allow {','.join(limits.allowed)}."
        for pattern, type_name in limits.pins.items()
        if limits.allowed and not any(fnmatchcase(type_name, allowed) for allowed in limits.allowed)
    )


# What is asked for


def _target(
    model: OpenedModel, options: PlanOptions, imatrix: Imatrix | None, known: Knowledge | None
) -> tuple[dict[str, str | int | float], int | None]:
    """The target, and the preset's size where it is "as large as"."""
    if options.kld_nats is not None and known is not None:
        # Every quantized file costs c0; the least that can be had above it is told where the search finds nothing.
        damage = damage_for(known.curve, options.kld_nats) if options.kld_nats > known.curve.c0_nats else 0.0
        _, reason = kld_of(known, Damage(damage))
        if reason is not None:
            raise StrategyError(f"no file can be chosen by its KLD: {reason}", remedy=f"Run `{known.grounds.command}`, or ask for a size")
        return {"kld_nats": options.kld_nats, "damage": damage}, None
    if options.like is not None:
        preset = preset_name(options.like)
        size = preset_size_bytes(model, preset, imatrix)
        return {"like": preset, "size_bytes": size}, size
    return target_of(options), None


def target_of(options: PlanOptions) -> dict[str, str | int | float]:
    """What was asked for, as it was said."""
    asked = {key: value for key in Target.__annotations__ if (value := getattr(options, key)) is not None}
    return asked if options.speed is None else {**asked, "speed": options.speed, "speed_of": options.speed_of}


def _parameters(options: PlanOptions) -> Mapping[str, object]:
    if options.bins:
        return {**options.parameters, "bins": parse_bins(",".join(options.bins))}
    return options.parameters
