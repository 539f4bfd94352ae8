"""One door to every rule: tables and a target in, a `Strategy` with its prediction out.

    select(tables, model=ModelFacts(...), method="optimal", target={"size_bytes": 4_500_000_000})

Targets: `size_bytes` (the whole file), `bits_per_weight` (all tensors of the file), `damage`; other keys, such as
`like`, are kept for the record. Parameters are the method's own keyword options, e.g. {"test": "relative"}.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from quantailor.errors import InfeasibleError, StrategyError, StrategyMismatchError
from quantailor.present import words
from quantailor.records import Basis, Prediction, Strategy, TensorCells, TensorChoice
from quantailor.strategy.constraints import ALIGNMENT, Constraints, apply, padded, plain
from quantailor.strategy.importance import with_importance
from quantailor.strategy.pace import TimeLimit
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

_FINE_STEPS = 12
"""So often a budget shrinks by what was too much; then by ever more, so that the search ends."""
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
    """What a rule is asked for."""

    tables: Sequence[TensorCells]
    method: str
    options: Mapping[str, object]
    constraints: Constraints
    budget_bytes: int | None
    max_damage: float | None
    fixed_bytes: int
    align: int


Outcome = tuple[tuple[TensorChoice, ...], Mapping[str, object]]
"""Choices, and what a rule found beside them, for the record."""
Target = Mapping[str, str | int | float]


class _TooSmallError(Exception):
    """The smallest file is larger than was asked for."""

    def __init__(self, smallest_bytes: int) -> None:
        super().__init__(smallest_bytes)
        self.smallest_bytes = smallest_bytes


def select(
    tables: Sequence[TensorCells],
    *,
    model: ModelFacts,
    method: str = "optimal",
    target: Target | None = None,
    parameters: Mapping[str, object] | None = None,
    constraints: Constraints | None = None,
    inputs: Mapping[str, str | int | float | None] | None = None,
    basis: Basis = "ranking only",
    exact_size: Callable[[Strategy], int] | None = None,
    knees: Mapping[str, str] | None = None,
    time: TimeLimit | None = None,
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
        time: what a token may take; for the method "optimal".

    Raises:
        InfeasibleError: nothing meets the target and the constraints.
        StrategyError: an unknown method, target or parameter, or cells that are not numbers.
    """
    limits, goal, settings = constraints or Constraints(), dict(target or {}), dict(parameters or {})
    options = _options(method, settings)
    _check(tables)
    if time is not None and method != "optimal":
        raise StrategyError(f"{method} cannot hold a speed", remedy="Use the method optimal")
    common_type = options.pop(IMPORTANCE_TYPE, None)
    if common_type is not None or not any(tensor.importance > 0 for tensor in tables):
        tables = with_importance(tables, type_name=None if common_type is None else str(common_type))
    task = _task(tables, model, method, options, limits, goal)
    solver = optimal.Solver(tables, limits, align=task.align, time=time) if method == "optimal" else None
    knees = knees_within(tables, limits) if knees is None else knees
    size_of = exact_size or _size

    def described(outcome: Outcome, asked: Target) -> Strategy:
        choices, findings = outcome
        strategy = Strategy(
            model_fingerprint=model.fingerprint,
            model_name=model.name,
            architecture=model.architecture,
            method=method,
            tensors=tuple(replace(choice, knee=knees.get(choice.name)) for choice in choices),
            target=asked,
            parameters=_recorded(settings, limits, findings),
            inputs=dict(inputs or {}),
            basis=basis,
        )
        return replace(strategy, prediction=predict(strategy.types, tables, model=model, basis=basis))

    def fitted(asked: Target) -> Strategy:
        planned = replace(task, budget_bytes=int(asked["size_bytes"]))
        return _fitted(planned, solver, lambda outcome: described(outcome, asked), size_of)

    if "size_bytes" in goal:
        try:
            return fitted(goal)
        except _TooSmallError as error:
            raise _too_small(goal, _size_that_works(fitted, error.smallest_bytes)) from None
    try:
        return _with_size(described(_run(task, solver), goal), size_of)
    except InfeasibleError as error:
        if error.smallest_bytes is None or "bits_per_weight" not in goal:
            raise
        elements = sum(tensor.n_elements for tensor in tables) + model.fixed_elements
        least = math.ceil(8e4 * (error.smallest_bytes + model.fixed_tensor_bytes) / elements) / 1e4
        message = (
            f"no strategy has {goal['bits_per_weight']:g} bits per weight or fewer: the smallest that the constraints allow has {least:g}"
        )
        raise InfeasibleError(message, remedy=f"Ask for {least:g} or more, or allow smaller types") from None


def _fitted(
    task: _Task, solver: optimal.Solver | None, described: Callable[[Outcome], Strategy], exact_size: Callable[[Strategy], int]
) -> Strategy:
    """The rule's answer whose file, header and all, has at most `task.budget_bytes`. Raises _TooSmallError."""
    limit = task.budget_bytes or 0
    if (rough := _roughly(task, solver)) is not None:
        planned = described(rough)
        task = replace(task, budget_bytes=limit - max(0, exact_size(planned) - _size(planned)))
    # What the header takes more than was thought is taken from the budget, until the file fits or is the smallest.
    for attempt in itertools.count():
        is_smallest = False
        try:
            strategy = described(_run(task, solver))
        except InfeasibleError as error:
            if error.smallest_bytes is None:
                raise
            strategy, is_smallest = described(_run(replace(task, budget_bytes=error.smallest_bytes + task.fixed_bytes), solver)), True
        size = exact_size(strategy)
        if size <= limit:
            return _with_size(strategy, exact_size)
        if is_smallest:
            raise _TooSmallError(size)
        # From what this answer took, not from what it was allowed: else the same answer could come again.
        taken = min(task.budget_bytes or 0, _size(strategy))
        task = replace(task, budget_bytes=taken - ((size - limit) << max(0, attempt - _FINE_STEPS)))
    raise AssertionError("the smallest mix ends the search")


def _size_that_works(fitted: Callable[[Target], Strategy], size_bytes: int) -> int:
    """The size of the smallest file when that size is asked for, which its header says."""
    while True:
        try:
            fitted({"size_bytes": size_bytes})
        except _TooSmallError as error:
            size_bytes = error.smallest_bytes
        else:
            return size_bytes


def _too_small(goal: Target, smallest_bytes: int) -> InfeasibleError:
    what = f"{goal['size_bytes']:,} bytes" + (f", the size of {goal['like']}" if "like" in goal else "")
    return InfeasibleError(
        f"no strategy fits {what}: the smallest file that the constraints allow takes {smallest_bytes:,}",
        remedy=f"Ask for {smallest_bytes} bytes ({words.enough_mib(smallest_bytes)}) or more, or allow smaller types",
        smallest_bytes=smallest_bytes,
    )


def _size(strategy: Strategy) -> int:
    return 0 if strategy.prediction is None else strategy.prediction.file_size_bytes


def _with_size(strategy: Strategy, exact_size: Callable[[Strategy], int]) -> Strategy:
    if strategy.prediction is None:
        return strategy
    return replace(strategy, prediction=replace(strategy.prediction, file_size_bytes=exact_size(strategy)))


def knees_within(tables: Sequence[TensorCells], constraints: Constraints) -> dict[str, str]:
    """Every tensor's own knee among the types that the constraints leave it, as a diagnostic."""
    return knee.diagnostics(tables, apply(tables, constraints))


def predict(
    types: Mapping[str, str],
    tables: Sequence[TensorCells],
    *,
    model: ModelFacts,
    basis: Basis = "ranking only",
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
            measured = ", ".join(cell.type_name for cell in tensor.cells)
            raise StrategyMismatchError(
                f"{tensor.name} has not been measured at {types[tensor.name]}", remedy=f"Known: {measured}"
            ) from None
    data = sum(cell.size_bytes for cell in cells) + model.fixed_tensor_bytes
    elements = sum(tensor.n_elements for tensor in tables) + model.fixed_elements
    return Prediction(
        file_size_bytes=sum(padded(cell.size_bytes) for cell in cells) + model.fixed_bytes,
        tensor_bytes=data,
        bits_per_weight=8 * data / elements if elements else 0.0,
        damage=math.fsum(cell.damage for cell in cells),
        basis=basis,
    )


# --- reading the request


def _options(method: str, parameters: Mapping[str, object]) -> dict[str, object]:
    if method not in METHODS:
        raise StrategyError(f"there is no method {method!r}", remedy=f"Known: {', '.join(METHODS)}")
    allowed = (*PARAMETERS[method], IMPORTANCE_TYPE)
    for name in parameters:
        if name not in allowed:
            raise StrategyError(f"{method} has no parameter {name!r}", remedy=f"Known: {', '.join(allowed)}")
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


def _task(
    tables: Sequence[TensorCells],
    model: ModelFacts,
    method: str,
    options: Mapping[str, object],
    limits: Constraints,
    goal: Mapping[str, str | int | float],
) -> _Task:
    given = {key: _number(key, goal[key]) for key in TARGETS if key in goal}
    if len(given) > 1:
        raise StrategyError(f"several targets were given: {', '.join(given)}", remedy="Give one")
    if bits := given.get("bits_per_weight"):
        elements = sum(tensor.n_elements for tensor in tables) + model.fixed_elements
        room = math.floor(bits * elements / 8) - model.fixed_tensor_bytes
        # Bits per weight count data without padding, and no header.
        return _Task(tables, method, options, limits, room, None, fixed_bytes=0, align=1)
    size = given.get("size_bytes")
    return _Task(tables, method, options, limits, None if size is None else int(size), given.get("damage"), model.fixed_bytes, ALIGNMENT)


def _number(key: str, value: str | int | float) -> float:
    if isinstance(value, str) or not math.isfinite(value) or value < 0 or (key != "damage" and value == 0):
        raise StrategyError(f"the target {key} is {value!r}", remedy="Give a positive number")
    return value


def _recorded(parameters: Mapping[str, object], limits: Constraints, outcome: Mapping[str, object]) -> dict[str, object]:
    record = {key: plain(value) for key, value in parameters.items() if value is not None}
    if limits_set := limits.as_parameters():
        record["constraints"] = limits_set
    if outcome:
        record["outcome"] = dict(outcome)
    return record


# --- the rules

_RULES: Mapping[str, Callable[..., tuple[TensorChoice, ...]]] = {"knee": knee.choose, "greedy": greedy.choose, "bins": bins.choose}


def _run(task: _Task, solver: optimal.Solver | None) -> Outcome:
    if solver is not None:
        return _of_solution(solver.solve(budget_bytes=task.budget_bytes, max_damage=task.max_damage, fixed_bytes=task.fixed_bytes))
    if task.max_damage is not None:
        raise StrategyError(f"{task.method} cannot aim at a damage", remedy="Use the method optimal, or give a size")
    if task.method == "greedy" and task.budget_bytes is None:
        raise StrategyError("greedy needs a target", remedy="Give a size or bits per weight")
    room = {"budget_bytes": task.budget_bytes, "fixed_bytes": task.fixed_bytes, "align": task.align}
    return _RULES[task.method](task.tables, constraints=task.constraints, **room, **task.options), {}


def _roughly(task: _Task, solver: optimal.Solver | None) -> Outcome | None:
    """A mix near the answer, to see what header it gives; None where only the rule itself knows."""
    if solver is None or task.budget_bytes is None or len(task.tables) < _MANY_TENSORS:
        return None
    solution = solver.roughly(task.budget_bytes, task.fixed_bytes)
    return None if solution is None else _of_solution(solution)


def _of_solution(solution: optimal.Solution) -> Outcome:
    findings: dict[str, object] = {"lower_bound": solution.lower_bound} if math.isfinite(solution.lower_bound) else {}
    if solution.price is not None:
        findings["price_per_byte"] = solution.price
    return solution.choices, findings
