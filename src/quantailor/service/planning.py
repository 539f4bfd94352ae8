"""From measurements to a strategy whose file size is known to the byte."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantailor import build as building
from quantailor.analysis.importance.imatrix import Imatrix, quantizer_importance
from quantailor.analysis.prediction import damage_for, predict_kld
from quantailor.analysis.weight_errors.measure import DEFINITION_VERSION, MeasureSettings
from quantailor.control import Control, NullControl
from quantailor.errors import OutputError, StrategyError
from quantailor.ggml import library
from quantailor.ggml.reference import preset_name, preset_types
from quantailor.models.source import ModelSource
from quantailor.records import Basis, Cell, Strategy, TensorCells, TensorInfo, WeightError
from quantailor.service import knowledge, tasks
from quantailor.service.knowledge import Knowledge
from quantailor.service.results import PlanResult
from quantailor.service.tasks import Method, PlanOptions
from quantailor.service.workspace import OpenedModel, Workspace, header_path, quantizable_tensors
from quantailor.store import MeasurementKey, StrategyRecord
from quantailor.strategy import file as strategy_file
from quantailor.strategy.choose import ModelFacts, select
from quantailor.strategy.constraints import Constraints, parse_allowed, parse_bits, parse_budget, parse_pin, parse_tie
from quantailor.strategy.rules.bins import parse_bins

UNUSUAL_TYPES = frozenset({"TQ1_0", "TQ2_0", "Q1_0", "Q2_0", "MXFP4", "NVFP4"})
"""Types that a plan uses only where the user allows them: made for weights trained that way, or run by few backends."""

_TESTS = {"second-difference": "second_difference"}
_PENALTIES = {"damage": "damage_per_byte", "max_error": "max_abs_error"}


def plan_rule(method: Method, rule: str | None = None, options: Sequence[str] = ()) -> tasks.Rule:
    """A rule from what a user typed.

    Args:
        method: the rule's name.
        rule: its short form: "TEST[:THRESHOLD]" for knees, "PENALTY[:START]" for greedy, "10=Q6_K,..." for bins.
        options: "NAME=VALUE" pairs, the rule's parameters.

    Raises:
        StrategyError: a form that cannot be read.
    """
    parameters: dict[str, float | str] = {}
    bins: tuple[str, ...] = ()
    if method == "knee" and rule:
        test, _, threshold = rule.partition(":")
        parameters["test"] = _TESTS.get(test, test)
        if threshold:
            parameters["base"] = _number("the knee's threshold", threshold)
    elif method == "greedy" and rule:
        penalty, _, start = rule.partition(":")
        parameters["penalty"] = _PENALTIES.get(penalty, penalty)
        if start:
            parameters["start"] = start.upper()
    elif method == "bins" and rule:
        bins = tuple(part.strip() for part in rule.split(","))
        parse_bins(rule)
    for option in options:
        name, separator, value = option.partition("=")
        if not separator:
            raise StrategyError(f"the option {option!r} is not of the form NAME=VALUE", remedy="Write for example epsilon=3")
        parameters[name.strip()] = _value(value.strip())
    return tasks.Rule(method=method, parameters=parameters, bins=bins)


def _number(what: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise StrategyError(f"{what} is {text!r}, which is no number", remedy="Write for example relative:300") from None


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def plan(
    workspace: Workspace,
    base: Path,
    options: PlanOptions,
    *,
    imatrix: str = tasks.AUTO,
    exhaustive: bool | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    control: Control | None = None,
    origin: str | None = None,
) -> PlanResult:
    """Choose a type for every tensor of `base` from what the store has measured.

    Args:
        base: the model that was measured.
        options: rule, target and constraints.
        imatrix: which measurements to use: those with the newest importance matrix ("auto", where there are any), without ("none"),
            or with that file.
        exhaustive: which measurements to use; None takes those with the most cells.
        output: where to save the strategy, as YAML or JSON by its name.
        overwrite: replace an existing file.
        control: told when it is done.
        origin: where the model came from, for the result.

    Raises:
        StrategyError: there are no measurements, or no strategy meets target and constraints.
    """
    control = control or NullControl()
    if output is not None and output.exists() and not overwrite:
        raise OutputError(f"{output} exists", remedy="Choose another name, or give --force")
    with workspace.model(base) as model:
        found = measured(workspace, model, imatrix, exhaustive)
        matrix = workspace.imatrix(model.fingerprint, found.key.imatrix) if found.key.imatrix else None
        known = _wanted_knowledge(workspace, model, found, options)
        tables = found.tables if known is None else probed_tables(model.source, found, known)
        strategy, preset_size = solve(Evidence(model, found, known, tables, matrix), options)
        control.advance(1, 1)
        document = strategy_file.dumps(strategy)
        workspace.store.record_strategy(StrategyRecord.of(model.fingerprint, strategy.method, document))
        if output is not None:
            strategy_file.write(strategy, output, overwrite=overwrite)
        return dataclasses.replace(_result(strategy, output, preset_size), origin=origin)


@dataclass(frozen=True)
class Evidence:
    """What a plan rests on."""

    model: OpenedModel
    found: Measured
    known: Knowledge | None
    """None plans by weight error alone."""
    tables: Sequence[TensorCells]
    matrix: Imatrix | None


def solve(at: Evidence, options: PlanOptions, *, knees: Mapping[str, str] | None = None) -> tuple[Strategy, int | None]:
    """The strategy for these options, its size exact, and the preset's size where it is "as large as" one.

    `knees` are the tensors' own within the options' constraints, where the caller has them. Raises StrategyError.
    """
    target, preset_size = _target(at.model, options, at.matrix, at.known)
    strategy = select(
        at.tables,
        model=model_facts(at.model, at.tables),
        method=options.method,
        target=target,
        parameters=_parameters(options),
        constraints=constraints_of(options),
        inputs=inputs_of(at.found, at.known),
        basis=basis_of(at.known),
        exact_size=lambda planned: building.predict_layout(at.model.source, planned, imatrix=at.matrix).size_bytes,
        knees=knees,
    )
    return with_kld(strategy, at.known), preset_size


def _result(strategy: Strategy, output: Path | None, preset_size: int | None) -> PlanResult:
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
    )


# What is known


@dataclass(frozen=True)
class Measured:
    """One measurement of a model: its key, its cells, and the rules' input made of weight errors alone."""

    key: MeasurementKey
    cells: Sequence[WeightError]
    tables: Sequence[TensorCells]

    @property
    def is_exhaustive(self) -> bool:
        """Whether every row was measured."""
        return self.key.settings == MeasureSettings(exhaustive=True).key


def measured(workspace: Workspace, model: OpenedModel, imatrix: str, exhaustive: bool | None = None, *, partial: bool = False) -> Measured:
    """The measurement to work with; see `plan` and `tensor_tables` for the arguments. Raises StrategyError where there is none."""
    key = _measurement(workspace, model, imatrix, exhaustive)
    cells = workspace.store.cells(key, distributions=False)
    return Measured(key, cells, tensor_tables(model.source, cells, partial=partial))


def _wanted_knowledge(workspace: Workspace, model: OpenedModel, found: Measured, options: PlanOptions) -> Knowledge | None:
    """What probes say, where there are any and they are wanted."""
    if options.basis == "ranking" and options.kld_nats is None:
        return None
    known = knowledge.load(workspace, model, found.key.imatrix, found.cells)
    if known is None and (options.basis == "probes" or options.kld_nats is not None):
        raise StrategyError(f"{model.source.name} has not been probed", remedy=f"Run `quantailor probe {model.source.location}` first")
    return known


def probed_tables(source: ModelSource, found: Measured, known: Knowledge) -> list[TensorCells]:
    """The rules' input with the damages that probes give, nats."""
    qtypes = library.types()
    return [
        dataclasses.replace(
            table,
            cells=tuple(
                dataclasses.replace(cell, damage=known.damage(source.tensor(table.name), qtypes[cell.type_name], cell.weighted_mse).value)
                for cell in table.cells
            ),
        )
        for table in found.tables
    ]


def with_kld(strategy: Strategy, known: Knowledge | None) -> Strategy:
    """The strategy with its predicted KLD and 95 % interval, where probes tell."""
    if known is None or strategy.prediction is None:
        return strategy
    predicted = predict_kld(known.curve, strategy.prediction.damage)
    prediction = dataclasses.replace(
        strategy.prediction, kld_nats=predicted.kld_nats, kld_interval_nats=predicted.interval(0.95), basis="probes"
    )
    return dataclasses.replace(strategy, prediction=prediction)


def basis_of(known: Knowledge | None) -> Basis:
    """What damage figures rest on."""
    return "ranking only" if known is None else "probes"


def inputs_of(found: Measured, known: Knowledge | None) -> dict[str, str | int | float | None]:
    """Where a strategy's figures came from, for its record."""
    inputs: dict[str, str | int | float | None] = {"imatrix": found.key.imatrix or None, "measurement": found.key.settings}
    if known is not None:
        inputs |= {"probes": known.key.run, "probe_chunks": known.n_chunks}
    return inputs


def _measurement(workspace: Workspace, model: OpenedModel, imatrix: str, exhaustive: bool | None) -> MeasurementKey:
    """The measurement to plan with; see `plan`. Raises StrategyError where there is none."""
    counts = {
        key: count
        for key, count in workspace.store.measurements(model.fingerprint).items()
        if key.definition_version == DEFINITION_VERSION
        and (exhaustive is None or key.settings == MeasureSettings(exhaustive=exhaustive).key)
    }
    for wanted in _wanted_imatrices(workspace, model, imatrix):
        found = [key for key in counts if key.imatrix == wanted]
        if found:
            return max(found, key=lambda key: (counts[key], key.settings == MeasureSettings(exhaustive=True).key))
    raise StrategyError(f"nothing is measured for {model.source.name}", remedy=f"Run `quantailor measure {model.source.location}` first")


def _wanted_imatrices(workspace: Workspace, model: OpenedModel, imatrix: str) -> list[str]:
    if imatrix == tasks.AUTO:
        return [*(record.fingerprint for record in workspace.store.imatrices(model.fingerprint)), ""]
    chosen = workspace.choose_imatrix(model, imatrix)
    return ["" if chosen is None else chosen.fingerprint]


def tensor_tables(source: ModelSource, cells: Sequence[WeightError], *, partial: bool = False) -> list[TensorCells]:
    """The rules' input: every quantizable tensor with the types it may take; damage is `relative_mse x elements`.

    Raises StrategyError where a tensor is not measured; with `partial` it is left out, and keeps the type it has.
    """
    by_tensor: dict[str, list[Cell]] = {}
    tensors = {tensor.name: tensor for tensor in quantizable_tensors(source)}
    for cell in cells:
        if cell.unavailable is None and cell.relative_mse is not None and cell.tensor in tensors:
            by_tensor.setdefault(cell.tensor, []).append(_cell(tensors[cell.tensor], cell))
    missing = [name for name in tensors if name not in by_tensor]
    if missing and not (partial and by_tensor):
        raise StrategyError(
            f"{len(missing)} tensors are not measured, {missing[0]} among them", remedy=f"Run `quantailor measure {source.location}`"
        )
    return [TensorCells(name, tensor.n_elements, tuple(by_tensor[name])) for name, tensor in tensors.items() if name in by_tensor]


def _cell(tensor: TensorInfo, cell: WeightError) -> Cell:
    relative_mse = cell.relative_mse or 0.0
    return Cell(
        type_name=cell.type_name,
        size_bytes=cell.size_bytes,
        bits_per_weight=cell.bits_per_weight,
        damage=relative_mse * tensor.n_elements,
        relative_mse=relative_mse,
        weighted_mse=cell.weighted_mse or 0.0,
        rmse=cell.rmse or 0.0,
        max_abs_error=cell.max_abs_error or 0.0,
    )


def model_facts(model: OpenedModel, tables: Sequence[TensorCells]) -> ModelFacts:
    """What the rules must know beside the tables; the header's size is a lower estimate that `exact_size` corrects."""
    names = {table.name for table in tables}
    others = [tensor for tensor in model.source.tensors if tensor.name not in names]
    empty = building.plain_layout(model.source, {}).size_bytes
    data = sum(tensor.size_bytes for tensor in model.source.tensors)
    other_bytes = sum(tensor.size_bytes for tensor in others)
    return ModelFacts(
        fingerprint=model.fingerprint,
        name=model.source.name,
        architecture=model.source.architecture,
        fixed_bytes=empty - data + other_bytes,
        fixed_tensor_bytes=other_bytes,
        fixed_elements=sum(tensor.n_elements for tensor in others),
    )


# What is asked for


def _target(
    model: OpenedModel, options: PlanOptions, imatrix: Imatrix | None, known: Knowledge | None
) -> tuple[dict[str, str | int | float], int | None]:
    """The target, and the preset's size where it is "as large as"."""
    if options.kld_nats is not None and known is not None:
        return {"kld_nats": options.kld_nats, "damage": damage_for(known.curve, options.kld_nats)}, None
    if options.like is not None:
        preset = preset_name(options.like)
        size = preset_size_bytes(model, preset, imatrix)
        return {"like": preset, "size_bytes": size}, size
    if options.size_bytes is not None:
        return {"size_bytes": options.size_bytes}, None
    if options.bits_per_weight is not None:
        return {"bits_per_weight": options.bits_per_weight}, None
    return {}, None


def target_of(options: PlanOptions) -> dict[str, str | int | float]:
    """What was asked for, as it was said."""
    said = {
        "size_bytes": options.size_bytes,
        "bits_per_weight": options.bits_per_weight,
        "like": options.like,
        "kld_nats": options.kld_nats,
    }
    return {key: value for key, value in said.items() if value is not None}


def preset_size_bytes(model: OpenedModel, preset: str, imatrix: Imatrix | None) -> int:
    """Size of the file that llama-quantize would write for a preset with this importance matrix, without writing it."""
    importances = None
    if imatrix is not None:
        vectors = {tensor.name: quantizer_importance(imatrix, tensor) for tensor in model.source.tensors}
        importances = {name: vector.reshape(-1) for name, vector in vectors.items() if vector is not None}
    with header_path(model) as header:
        types = preset_types(header, preset, imatrix=importances)
    return building.plain_layout(model.source, types, imatrix=imatrix).size_bytes


def _parameters(options: PlanOptions) -> Mapping[str, object]:
    if options.bins:
        return {**options.parameters, "bins": parse_bins(",".join(options.bins))}
    return options.parameters


def constraints_of(options: PlanOptions) -> Constraints:
    """The limits that the options spell out. Raises StrategyError for one that cannot be read."""
    allowed = [parse_allowed(text) for text in options.allow]
    minimum, maximum = ([_bits(text) for text in texts] for texts in (options.minimum, options.maximum))
    overall = tuple(name for pattern, names in allowed if pattern is None for name in names)
    usual = tuple(name for name in library.types() if name not in UNUSUAL_TYPES)
    return Constraints(
        pins=dict(_typed(*parse_pin(text)) for text in options.pins),
        allowed=tuple(name.upper() for name in overall) or usual,
        allowed_by_pattern={pattern: tuple(name.upper() for name in names) for pattern, names in allowed if pattern is not None},
        min_bits=_overall(minimum),
        max_bits=_overall(maximum),
        min_bits_by_pattern={pattern: bits for pattern, bits in minimum if pattern is not None},
        max_bits_by_pattern={pattern: bits for pattern, bits in maximum if pattern is not None},
        ties=tuple(parse_tie(text) for text in options.ties),
        budgets=tuple(parse_budget(text) for text in options.budgets),
    )


def _typed(pattern: str, type_name: str) -> tuple[str, str]:
    if type_name.upper() not in library.types():
        raise StrategyError(f"there is no type {type_name}, to which {pattern} is pinned", remedy=f"Known: {', '.join(library.types())}")
    return pattern, type_name.upper()


def _overall(limits: Sequence[tuple[str | None, float]]) -> float | None:
    return next((bits for pattern, bits in limits if pattern is None), None)


def _bits(text: str) -> tuple[str | None, float]:
    """A limit in bits, or by a type's name: "3.5", "Q4_K", "ffn_down=Q4_K"."""
    pattern, separator, value = text.rpartition("=")
    qtype = library.types().get(value.strip().upper())
    return parse_bits(text if qtype is None else f"{pattern}{separator}{qtype.bits_per_weight}")
