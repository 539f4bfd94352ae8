"""One door to every rule: tables and a target in, a `Strategy` with its prediction out.

    select(tables, model=ModelFacts(...), method="optimal", target={"size_bytes": 4_500_000_000})

Targets: `size_bytes` (the whole file), `bits_per_weight` (all tensors of the file), `damage`; other keys, such as
`like`, are kept for the record. Parameters are the method's own keyword options, e.g. {"test": "relative"}.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantailor.errors import InfeasibleError, StrategyError, StrategyMismatchError
from quantailor.records import Basis, Prediction, Strategy, TensorCells, TensorChoice
from quantailor.strategy.constraints import ALIGNMENT, Constraints, apply, padded
from quantailor.strategy.importance import with_importance
from quantailor.strategy.rules import bins, greedy, knee, optimal

METHODS = ("optimal", "knee", "greedy", "bins")
TARGETS = ("size_bytes", "bits_per_weight", "damage")
PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "optimal": (),
    "knee": ("test", "base", "epsilon", "error"),
    "greedy": ("start", "penalty", "max_rmse_growth", "important_percentile", "important_max_error"),
    "bins": ("bins",),
}
"""Options of each method, beside `importance_type`, which all take."""
IMPORTANCE_TYPE = "importance_type"

_MAX_REFINEMENTS = 12
_MANY_TENSORS = 400
"""From here on a look at the header's size comes before the search, which then needs to be done but once or twice."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a strategy must know of the model beside its quantizable tensors."""

    fingerprint: str
    name: str
    architecture: str
    fixed_bytes: int = 0
    """Everything in the file but the tensors of the tables: header, other tensors, padding."""
    fixed_tensor_bytes: int = 0
    """Bytes of the other tensors alone."""
    fixed_elements: int = 0
    """Weights of the other tensors."""


@dataclass(frozen=True, slots=True)
class _Task:
    tables: Sequence[TensorCells]
    constraints: Constraints
    options: Mapping[str, Any]
    budget_bytes: int | None
    max_damage: float | None
    fixed_bytes: int
    align: int
    solver: optimal.Solver | None = None
    """Of the method "optimal"."""


@dataclass(frozen=True, slots=True)
class _Found:
    choices: tuple[TensorChoice, ...]
    outcome: Mapping[str, object]


def select(
    tables: Sequence[TensorCells],
    *,
    model: ModelFacts,
    method: str = "optimal",
    target: Mapping[str, str | int | float] | None = None,
    parameters: Mapping[str, object] | None = None,
    constraints: Constraints | None = None,
    inputs: Mapping[str, str | int | float | None] | None = None,
    basis: Basis = "ranking only",
    exact_size: Callable[[Strategy], int] | None = None,
    knees: Mapping[str, str] | None = None,
    align: int = ALIGNMENT,
) -> Strategy:
    """Choose a type for every tensor of `tables`.

    Args:
        tables: quantizable tensors with their cells; `importance` is filled in where all are 0.
        model: facts for the record and the size.
        method: one of `METHODS`.
        target: what is asked for; see the module docstring. "knee" and "bins" may do without.
        parameters: the method's options, see `PARAMETERS`.
        constraints: the user's limits; they hold in every method.
        inputs: where the figures came from, for the record.
        basis: what the damage figures rest on.
        exact_size: the size of the file that a strategy would give, where the header depends on the strategy
            itself; the budget then shrinks by the excess until the file fits.
        knees: every tensor's own knee within the constraints, where the caller has them; else they are found here.
        align: bytes to which each tensor's data is padded.

    Raises:
        InfeasibleError: nothing meets the target and the constraints.
        StrategyError: an unknown method, target or parameter, or cells that are no numbers.
    """
    limits, goal = constraints or Constraints(), dict(target or {})
    options = _options(method, parameters or {})
    _check(tables)
    known = _important(tables, options.pop(IMPORTANCE_TYPE, None))
    task = _task(known, model, limits, options, goal, align)
    if method == "optimal":
        task = replace(task, solver=optimal.Solver(known, limits, align=task.align))
    inputs_kept = dict(inputs or {})
    own_knees = knees_within(known, limits, align=align) if knees is None else knees

    def told(found: _Found) -> Strategy:
        strategy = Strategy(
            model_fingerprint=model.fingerprint,
            model_name=model.name,
            architecture=model.architecture,
            method=method,
            tensors=tuple(replace(choice, knee=own_knees.get(choice.name)) for choice in found.choices),
            target=goal,
            parameters=_recorded(parameters or {}, limits, found.outcome),
            inputs=inputs_kept,
            basis=basis,
        )
        return replace(strategy, prediction=predict(strategy.types, known, model=model, basis=basis, align=align))

    rule = _RULES[method]
    if exact_size is None:
        return told(rule(task))
    return _fitted(task, lambda task: told(rule(task)), told, exact_size, goal.get("size_bytes"))


def knees_within(tables: Sequence[TensorCells], constraints: Constraints, *, align: int = ALIGNMENT) -> dict[str, str]:
    """Every tensor's own knee among the types that the constraints leave it, as a diagnostic."""
    return knee.diagnostics(tables, apply(tables, constraints, align=align))


def predict(
    types: Mapping[str, str],
    tables: Sequence[TensorCells],
    *,
    model: ModelFacts,
    basis: Basis = "ranking only",
    align: int = ALIGNMENT,
) -> Prediction:
    """Size and damage of any mix, for example one edited by hand. `types` maps every tensor of `tables` to a type.

    Raises:
        StrategyMismatchError: a tensor is missing, or has no cell for its type.
    """
    cells = []
    for tensor in tables:
        if tensor.name not in types:
            raise StrategyMismatchError(f"the strategy gives no type for {tensor.name}", remedy="Add it, or plan again")
        try:
            cells.append(tensor.cell(types[tensor.name]))
        except KeyError:
            known = ", ".join(cell.type_name for cell in tensor.cells)
            raise StrategyMismatchError(f"{tensor.name} has not been measured at {types[tensor.name]}", remedy=f"Known: {known}") from None
    data = sum(cell.size_bytes for cell in cells) + model.fixed_tensor_bytes
    elements = sum(tensor.n_elements for tensor in tables) + model.fixed_elements
    return Prediction(
        file_size_bytes=sum(padded(cell.size_bytes, align) for cell in cells) + model.fixed_bytes,
        tensor_bytes=data,
        bits_per_weight=8 * data / elements if elements else 0.0,
        damage=math.fsum(cell.damage for cell in cells),
        basis=basis,
    )


# --- reading the request


def _options(method: str, parameters: Mapping[str, object]) -> dict[str, Any]:
    if method not in METHODS:
        raise StrategyError(f"there is no method {method!r}", remedy=f"Known: {', '.join(METHODS)}")
    known = (*PARAMETERS[method], IMPORTANCE_TYPE)
    for name in parameters:
        if name not in known:
            raise StrategyError(f"{method} has no parameter {name!r}", remedy=f"Known: {', '.join(known)}")
    return {name: value for name, value in parameters.items() if value is not None}


def _check(tables: Sequence[TensorCells]) -> None:
    if not tables:
        raise StrategyError("the model has no tensor that can be quantized", remedy="Check the model with `inspect`")
    names = {tensor.name for tensor in tables}
    if len(names) < len(tables):
        raise StrategyError("a tensor is in the tables twice", remedy="Keep one table per tensor")
    for tensor in tables:
        if not tensor.cells:
            raise StrategyError(f"{tensor.name} has no measured type", remedy="Measure it first")
        for cell in tensor.cells:
            if not (math.isfinite(cell.damage) and cell.damage >= 0 and cell.size_bytes >= 0):
                raise StrategyError(f"{tensor.name} at {cell.type_name} has the damage {cell.damage:g}", remedy="Measure it again")


def _important(tables: Sequence[TensorCells], type_name: Any) -> Sequence[TensorCells]:
    if type_name is None and any(tensor.importance > 0 for tensor in tables):
        return tables
    return with_importance(tables, type_name=type_name)


def _task(
    tables: Sequence[TensorCells],
    model: ModelFacts,
    limits: Constraints,
    options: Mapping[str, Any],
    goal: Mapping[str, str | int | float],
    align: int,
) -> _Task:
    given = {key: _number(key, goal[key]) for key in TARGETS if key in goal}
    if len(given) > 1:
        raise StrategyError(f"several targets were given: {', '.join(given)}", remedy="Give one")
    if bits := given.get("bits_per_weight"):
        elements = sum(tensor.n_elements for tensor in tables) + model.fixed_elements
        room = math.floor(bits * elements / 8) - model.fixed_tensor_bytes
        # Bits per weight count data without padding, and no header.
        return _Task(tables, limits, options, room, None, 0, 1)
    size = given.get("size_bytes")
    return _Task(tables, limits, options, None if size is None else int(size), given.get("damage"), model.fixed_bytes, align)


def _number(key: str, value: str | int | float) -> float:
    if isinstance(value, str) or not math.isfinite(value) or value < 0 or (key != "damage" and value == 0):
        raise StrategyError(f"the target {key} is {value!r}", remedy="Give a positive number")
    return value


def _recorded(parameters: Mapping[str, object], limits: Constraints, outcome: Mapping[str, object]) -> dict[str, object]:
    record = {key: _plain(value) for key, value in parameters.items() if value is not None}
    if plain := limits.as_parameters():
        record["constraints"] = plain
    if outcome:
        record["outcome"] = dict(outcome)
    return record


def _plain(value: object) -> object:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _fitted(
    task: _Task,
    choose: Callable[[_Task], Strategy],
    told: Callable[[_Found], Strategy],
    exact_size: Callable[[Strategy], int],
    limit: str | int | float | None,
) -> Strategy:
    """The choice whose file fits: what the header takes more than was thought is taken from the budget."""
    if limit is not None and (rough := _roughly(task)) is not None:
        strategy = told(rough)
        task = replace(task, budget_bytes=int(limit) - max(0, exact_size(strategy) - _estimated_size(strategy)))
    for _ in range(_MAX_REFINEMENTS):
        strategy = choose(task)
        estimated, size = _estimated_size(strategy), exact_size(strategy)
        strategy = _with_size(strategy, size)
        if task.budget_bytes is None or limit is None or size <= int(limit):
            return strategy
        # From what this answer took, not from what it was allowed: else the same answer could come again.
        task = replace(task, budget_bytes=min(task.budget_bytes, estimated) - (size - int(limit)))
    raise InfeasibleError(f"no strategy was found whose file has at most {limit} bytes", remedy="Allow a few kilobytes more")


def _estimated_size(strategy: Strategy) -> int:
    return 0 if strategy.prediction is None else strategy.prediction.file_size_bytes


def _with_size(strategy: Strategy, size: int) -> Strategy:
    prediction = strategy.prediction
    return strategy if prediction is None else replace(strategy, prediction=replace(prediction, file_size_bytes=size))


# --- the rules


def _optimal(task: _Task) -> _Found:
    solver = task.solver or optimal.Solver(task.tables, task.constraints, align=task.align)
    return _of_solution(solver.solve(budget_bytes=task.budget_bytes, max_damage=task.max_damage, fixed_bytes=task.fixed_bytes))


def _roughly(task: _Task) -> _Found | None:
    """A mix near the answer, to see what header it gives; None where only the rule itself can tell."""
    if task.solver is None or task.budget_bytes is None or len(task.tables) < _MANY_TENSORS:
        return None
    solution = task.solver.roughly(task.budget_bytes, task.fixed_bytes)
    return None if solution is None else _of_solution(solution)


def _of_solution(solution: optimal.Solution) -> _Found:
    outcome: dict[str, object] = {"lower_bound": solution.lower_bound} if math.isfinite(solution.lower_bound) else {}
    if solution.price is not None:
        outcome["price_per_byte"] = solution.price
    return _Found(solution.choices, outcome)


def _knee(task: _Task) -> _Found:
    return _Found(knee.choose(task.tables, budget_bytes=_size_only("knee", task), **_shared(task), **task.options), {})


def _greedy(task: _Task) -> _Found:
    budget = _size_only("greedy", task)
    if budget is None:
        raise StrategyError("greedy needs a target", remedy="Give a size or bits per weight")
    return _Found(greedy.choose(task.tables, budget_bytes=budget, **_shared(task), **task.options), {})


def _bins(task: _Task) -> _Found:
    return _Found(bins.choose(task.tables, budget_bytes=_size_only("bins", task), **_shared(task), **task.options), {})


def _size_only(method: str, task: _Task) -> int | None:
    if task.max_damage is not None:
        raise StrategyError(f"{method} cannot aim at a damage", remedy="Use the method optimal, or give a size")
    return task.budget_bytes


def _shared(task: _Task) -> dict[str, Any]:
    return {"constraints": task.constraints, "fixed_bytes": task.fixed_bytes, "align": task.align}


_RULES: Mapping[str, Callable[[_Task], _Found]] = {"optimal": _optimal, "knee": _knee, "greedy": _greedy, "bins": _bins}
