"""One model's measurements held in memory, for choosing by hand and by rule in quick succession.

`plan` answers once; a desk answers as often as a slider moves. Both take the same road (`planning.solve`), so a desk's
strategies are `plan`'s. A desk also works on what is measured so far: tensors that are not measured yet keep their type.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from quantailor.analysis.importance.imatrix import holds
from quantailor.app.choosing.comparing import TensorDiff, tensor_difference
from quantailor.errors import StrategyMismatchError
from quantailor.evidence import measurements
from quantailor.evidence.damages import basis_of, expected_tables, inputs_of, probed_tables, with_kld_of
from quantailor.evidence.knowledge import load_knowledge
from quantailor.evidence.measurements import Measured, model_facts, roundings_measured
from quantailor.evidence.speeds import known_speeds, predicted_speed
from quantailor.files import Closing
from quantailor.ggml import library
from quantailor.making import building
from quantailor.present import words
from quantailor.qtypes import availability
from quantailor.records import Cell, Grounds, PredictedSpeed, Prediction, Strategy, TensorCells, TensorChoice, TensorInfo
from quantailor.session import AUTO, OpenedModel, Workspace, quantizable_tensors
from quantailor.steps import plan
from quantailor.steps.checks.limits import constraints_of
from quantailor.steps.plan import Evidence, PlanOptions
from quantailor.strategy import choose
from quantailor.strategy.constraints import matches, padded
from quantailor.strategy.rules.optimal import OptimumBySize

BY_HAND = "set by hand"
KEPT = "kept from before"
NOT_MEASURED = "not measured yet, stays as it is"
_KEPT_DIALS = 4
Pins = Mapping[str, str]
"""Tensor -> type that it keeps."""
NO_PINS: Pins = {}


@dataclass(frozen=True, slots=True)
class PlannerTensor(TensorInfo):
    """A tensor whose type is a choice, as the base has it."""

    cells: tuple[Cell, ...]
    """Measured types by rising bits per weight; empty while nothing is measured."""
    knee: str | None


@dataclass(frozen=True, slots=True)
class Preview:
    """Types with what they come to; the file's size is exact but for a few kilobytes of header."""

    types: Mapping[str, str]
    prediction: Prediction


@dataclass(frozen=True, slots=True)
class Difference:
    """Two choices side by side."""

    ours: Prediction
    theirs: Prediction
    tensors: tuple[TensorDiff, ...]
    """The largest difference in bytes first."""
    our_speed: PredictedSpeed | None = None
    their_speed: PredictedSpeed | None = None
    """On this machine; None where a type was not timed."""


class Planner(Closing):
    """See the module docstring. Any thread may use it; short calls wait for each other."""

    def __init__(self, workspace: Workspace, model: OpenedModel, found: Measured, resources: ExitStack) -> None:
        self._resources, self._lock = resources, threading.RLock()
        # What follows from the weight errors is kept, the errors themselves are not: they take as much memory again.
        self.model, self.found = model, dataclasses.replace(found, cells=(), tables=())
        known = load_knowledge(workspace, model, found.key, found.cells)
        matrix = workspace.imatrices.read(model.fingerprint, found.key.imatrix) if found.key.imatrix else None
        tables = expected_tables(model.source, found, matrix) if known is None else probed_tables(model.source, found, known)
        self._evidence = Evidence(model, self.found, known, tables, matrix, known_speeds(workspace, model.source))
        self._cells = {table.name: {cell.type_name: cell for cell in table.cells} for table in tables}
        self._facts = model_facts(model, tables)
        self._optima: OrderedDict[str, OptimumBySize] = OrderedDict()
        self._knees: OrderedDict[str, dict[str, str]] = OrderedDict()
        self._header_excess = 0
        self.measured = frozenset(self._cells)
        """The tensors that have measurements."""
        self.state = planner_state(workspace, model.fingerprint)
        """What the store held when this was opened; another value means that there is more to know."""

    @classmethod
    def open(cls, workspace: Workspace, base: Path, *, imatrix: str = AUTO, rounding: str = AUTO) -> Self:
        """Open a model's desk; `rounding` is as of `evidence.measurements.measured`. Raises StrategyError where nothing is measured."""
        with ExitStack() as resources:
            model = resources.enter_context(workspace.model(base))
            found = measurements.measured(workspace, model, imatrix, rounding=rounding, partial=True)
            return cls(workspace, model, found, resources.pop_all())

    def close(self) -> None:
        """Close the model's file."""
        self._resources.close()

    @property
    def basis(self) -> str:
        """ "probes", or "ranking only"."""
        return "ranking only" if self._evidence.known is None else "probes"

    @property
    def rounding(self) -> str:
        """`Rounding.key` of the measurement that it works with."""
        return self.found.key.rounding

    @property
    def is_compensated(self) -> bool:
        """Whether its strategies are for compensated rounding: the measurement's."""
        return bool(self.found.key.swapped)

    @property
    def grounds(self) -> Grounds | None:
        """What predictions stand on; None for weight errors alone."""
        return None if self._evidence.known is None else self._evidence.known.grounds

    @property
    def knows_speeds(self) -> bool:
        """Whether types were timed on this machine."""
        return self._evidence.speeds is not None

    def speed(self, types: Mapping[str, str]) -> PredictedSpeed | None:
        """What a file with these types, and the model's own elsewhere, will reach here; None where one of them was not timed."""
        return predicted_speed(self._evidence.speeds, self.model.source, types)

    @property
    def n_unmeasured(self) -> int:
        """Tensors that wait to be measured."""
        return len(quantizable_tensors(self.model.source)) - len(self._cells)

    @property
    def n_elements(self) -> int:
        """All weights of the model."""
        return sum(tensor.n_elements for tensor in self.model.source.tensors)

    @cached_property
    def tensors(self) -> tuple[PlannerTensor, ...]:
        """Every tensor whose type is a choice, in file order."""
        knees = self.knees(PlanOptions())
        return tuple(
            PlannerTensor(
                tensor.name,
                tensor.shape,
                tensor.type_name,
                tensor.size_bytes,
                tuple(sorted(self._cells.get(tensor.name, {}).values(), key=lambda cell: cell.bits_per_weight)),
                knees.get(tensor.name),
            )
            for tensor in quantizable_tensors(self.model.source)
        )

    def first_type(self, name: str) -> str:
        """The type of a measured tensor that nobody has chosen yet: its base's, or, where that was not measured, the closest to it."""
        cells, base_type = self._cells[name], self.model.source.tensor(name).type_name
        return base_type if base_type in cells else min(cells.values(), key=lambda cell: (cell.damage, cell.size_bytes)).type_name

    def not_offered(self, name: str) -> dict[str, str]:
        """Type -> why the tensor cannot take it."""
        qtypes, source = library.types(), self.model.source
        tensor = source.tensor(name)
        has = holds(self._evidence.matrix, tensor)
        reasons = availability(tensor, architecture=source.architecture, has_imatrix=has, qtypes=qtypes)
        return {type_name: reason for type_name, reason in reasons.items() if reason is not None}

    def size_range(self, options: PlanOptions, pins: Pins = NO_PINS) -> tuple[int, int]:
        """Bytes of the smallest and of the largest useful file within the options' limits. Raises StrategyError."""
        with self._lock:
            optimum = self._optimum(options, pins)
            fixed = self._facts.fixed_bytes + self._header_excess
            return optimum.smallest + fixed, optimum.largest + fixed

    def solve(self, options: PlanOptions, pins: Pins = NO_PINS) -> Strategy:
        """The strategy that `plan` gives for these options; `pins` hold tensors, by their names, at types. Raises StrategyError."""
        evidence, knees = dataclasses.replace(self._evidence, tables=self._pinned(pins)), self.knees(options)
        strategy, _ = plan.solve(evidence, options, knees=knees)  # takes seconds where there are thousands of tensors: others need not wait
        with self._lock:
            self._note_header(strategy)
            if not pins:
                return strategy
            return self._priced(dataclasses.replace(strategy, tensors=tuple(_marked(choice, pins) for choice in strategy.tensors)))

    def preview(self, options: PlanOptions, size_bytes: int, pins: Pins = NO_PINS) -> Preview:
        """About what `solve` gives at that size, in milliseconds; by the optimal rule whatever the options' rule."""
        with self._lock:
            types = self._optimum(options, pins).types(size_bytes - self._facts.fixed_bytes - self._header_excess)
            return self.evaluate(types)

    def evaluate(self, types: Mapping[str, str]) -> Preview:
        """What types come to; tensors that are not named keep theirs. Raises StrategyMismatchError."""
        with self._lock:
            full = {name: types.get(name, self.model.source.tensor(name).type_name) for name in self._cells}
            predicted = choose.predict(full, self._evidence.tables, model=self._facts, basis=basis_of(self._evidence.known))
            with_header = dataclasses.replace(predicted, file_size_bytes=predicted.file_size_bytes + self._header_excess)
            return Preview(full, with_kld_of(with_header, self._evidence.known, full))

    def difference(self, ours: Mapping[str, str], theirs: Mapping[str, str]) -> Difference:
        """Two choices of types side by side. Raises StrategyMismatchError where one holds a type that was not measured."""
        with self._lock:
            a, b = self.evaluate(ours), self.evaluate(theirs)
            found = [
                tensor_difference(self.model.source.tensor(name), type_name, b.types[name])
                for name, type_name in a.types.items()
                if b.types[name] != type_name
            ]
            ranked = tuple(sorted(found, key=lambda item: -abs(item.bytes_more)))
            return Difference(a.prediction, b.prediction, ranked, self.speed(a.types), self.speed(b.types))

    def by_hand(self, types: Mapping[str, str], pins: Pins, origin: Strategy) -> Strategy:
        """A strategy with these very types, its size exact.

        Args:
            types: tensor -> type.
            pins: tensors whose type is the user's.
            origin: what it was edited from: its target and limits are kept, and its reasons where the type is still its.
        """
        with self._lock:
            full, known = self.evaluate(types).types, {choice.name: choice for choice in origin.tensors}
            knees = self.knees(PlanOptions())
            choices = []
            for name, type_name in full.items():
                before = known.get(name)
                reason = before.reason if before is not None and before.type_name == type_name else KEPT
                choice = TensorChoice(name, type_name, reason, damage=self._cells[name][type_name].damage, knee=knees.get(name))
                choices.append(_marked(choice, pins))
            method = origin.parameters.get("edited_from", origin.method)
            strategy = dataclasses.replace(
                origin,
                method="manual",
                tensors=tuple(choices),
                parameters={**origin.parameters, "edited_from": method},
                inputs=inputs_of(self.found, self._evidence.known),
                basis=basis_of(self._evidence.known),
                prediction=None,
            )
            return self._priced(strategy)

    def waits_for(self, choice: TensorChoice) -> bool:
        """Whether a choice keeps a tensor as it is that is not measured yet."""
        waiting = {tensor.name: tensor.type_name for tensor in quantizable_tensors(self.model.source) if tensor.name not in self._cells}
        return waiting.get(choice.name) == choice.type_name

    def whole(self, strategy: Strategy) -> Strategy:
        """The strategy with every tensor whose type is a choice: those that wait to be measured stay as they are."""
        named = strategy.types
        waiting = [
            TensorChoice(tensor.name, tensor.type_name, NOT_MEASURED)
            for tensor in quantizable_tensors(self.model.source)
            if tensor.name not in named
        ]
        if not waiting or strategy.prediction is None:
            return strategy
        full = dataclasses.replace(strategy, tensors=(*strategy.tensors, *waiting))
        size = building.predict_layout(self.model.source, full, imatrix=self._evidence.matrix).size_bytes
        return dataclasses.replace(full, prediction=dataclasses.replace(strategy.prediction, file_size_bytes=size))

    def current(self, strategy: Strategy) -> Strategy:
        """A strategy of this model with what is predicted for it now: itself, unless more was measured or it tells no prediction."""
        with self._lock:
            before, now = strategy.prediction, self.evaluate(strategy.types).prediction
            if before is not None and _is_same(before.damage, now.damage) and _is_same(before.kld_nats, now.kld_nats):
                return strategy
            tensors = tuple(
                dataclasses.replace(choice, damage=self._cells[choice.name][choice.type_name].damage)
                for choice in strategy.tensors
                if choice.name in self._cells
            )
            inputs, basis = inputs_of(self.found, self._evidence.known), basis_of(self._evidence.known)
            return self._priced(dataclasses.replace(strategy, tensors=tensors, inputs=inputs, basis=basis))

    def check(self, name: str, type_name: str) -> None:
        """Raise StrategyMismatchError where a tensor cannot take a type, or was not measured at it."""
        cells = self._cells.get(name)
        if cells is None:
            raise StrategyMismatchError(f"{name} is not measured", remedy="Wait for the measurement, or start one")
        if type_name not in cells:
            reason = self.not_offered(name).get(type_name, f"it was not measured at {type_name}")
            raise StrategyMismatchError(f"{name} cannot be {type_name}: {reason}", remedy=f"It can be {', '.join(cells)}")

    @property
    def known_types(self) -> frozenset[str]:
        """Names of the types there are."""
        return frozenset(library.types())

    def refuse_other_model(self, strategy: Strategy) -> None:
        """Raise StrategyMismatchError, with the difference, where a strategy was made for another model."""
        if strategy.model_fingerprint == self.model.fingerprint:
            return
        ours, theirs = set(self._cells), set(strategy.types)
        difference = [
            f"{words.plural(len(names), 'tensor')} {what}, {min(names)} among them"
            for names, what in ((theirs - ours, "that it names are not in this model"), (ours - theirs, "of this model are not in it"))
            if names
        ] or ["its tensors have the same names, but other weights"]
        name = strategy.model_name or strategy.model_fingerprint[:12]
        raise StrategyMismatchError(
            f"the strategy was made for {name}, not for {self.model.source.name}: {'; '.join(difference)}",
            remedy="Open the model it was made for, or plan anew",
        )

    def matching(self, pattern: str) -> tuple[str, ...]:
        """The measured tensors that a pattern selects (see `strategy.constraints`). Raises StrategyError."""
        return tuple(name for name in self._cells if matches(pattern, name))

    def holding(self, text: str) -> tuple[str, ...]:
        """The tensors that a box of text means: what it selects as a pattern, else those whose names hold it. Raises StrategyError."""
        wanted = text.strip().lower()
        return self.matching(wanted) or tuple(name for name in self._cells if wanted in name.lower())

    def knees(self, options: PlanOptions) -> dict[str, str]:
        """Every tensor's own knee within the options' limits."""
        with self._lock:
            limits = constraints_of(options)
            key = repr(limits)
            if key not in self._knees:
                self._knees[key] = choose.knees_within(self._evidence.tables, limits)
                _trim(self._knees)
            return self._knees[key]

    def tables(self) -> Sequence[TensorCells]:
        """What rules see."""
        return self._evidence.tables

    def _pinned(self, pins: Pins) -> Sequence[TensorCells]:
        """The tables with nothing left to choose for pinned tensors."""
        for name, type_name in pins.items():
            self.check(name, type_name)
        return [
            dataclasses.replace(table, cells=(table.cell(pins[table.name]),)) if table.name in pins else table
            for table in self._evidence.tables
        ]

    def _optimum(self, options: PlanOptions, pins: Pins) -> OptimumBySize:
        limits = constraints_of(options)
        key = f"{limits!r} {sorted(pins.items())}"
        if key not in self._optima:
            self._optima[key] = OptimumBySize(self._pinned(pins), limits)
            _trim(self._optima)
        return self._optima[key]

    def _priced(self, strategy: Strategy) -> Strategy:
        predicted = self.evaluate(strategy.types).prediction
        size = building.predict_layout(self.model.source, strategy, imatrix=self._evidence.matrix).size_bytes
        priced = dataclasses.replace(strategy, prediction=dataclasses.replace(predicted, file_size_bytes=size))
        self._note_header(priced)
        return priced

    def _note_header(self, strategy: Strategy) -> None:
        """Remember how much larger the header is than the facts say: the strategy itself is in it."""
        if strategy.prediction is not None:
            padded_bytes = sum(padded(self._cells[name][type_name].size_bytes) for name, type_name in strategy.types.items())
            self._header_excess = strategy.prediction.file_size_bytes - padded_bytes - self._facts.fixed_bytes


def rounding_choices(workspace: Workspace, fingerprint: str) -> dict[str, str]:
    """`Rounding.key` of every rounding that is measured of a model -> what to call it."""
    texts = {record.fingerprint[:16]: record.datasets for record in workspace.store.covariances(fingerprint)}
    keys = roundings_measured(workspace, fingerprint)
    kinds = Counter(_is_compensating(key) for key in keys)
    found = {}
    for key in keys:
        label, covariances = words.rounding(is_compensated=_is_compensating(key)), key.partition(":")[2]
        if kinds[_is_compensating(key)] > 1:
            seen = ", ".join(Path(name).name for name in texts.get(covariances, ()))
            label += f", covariances {covariances[:8]}{f' of {seen}' if seen else ''}" if covariances else ", without covariances"
        found[key] = label
    return found


def _is_compensating(key: str) -> bool:
    return key.startswith("compensated")


def planner_state(workspace: Workspace, fingerprint: str) -> tuple[object, ...]:
    """A value that changes when more is known of a model."""
    store = workspace.store
    counts = store.counts(fingerprint)
    measurements = tuple(sorted((dataclasses.astuple(key), count) for key, count in store.measurements(fingerprint).items()))
    matrices = tuple(record.fingerprint for record in store.imatrices(fingerprint))
    return measurements, counts.n_swept, counts.n_mixes, matrices, store.n_timings()


def _is_same(before: float | None, now: float | None) -> bool:
    if before is None or now is None:
        return before is now
    return math.isclose(before, now, rel_tol=1e-9)


def _marked(choice: TensorChoice, pins: Pins) -> TensorChoice:
    return dataclasses.replace(choice, pinned=True, reason=BY_HAND, price_range=None) if choice.name in pins else choice


def _trim(kept: OrderedDict[str, Any]) -> None:
    while len(kept) > _KEPT_DIALS:
        kept.popitem(last=False)
