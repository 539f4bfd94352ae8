"""A strategy in the making: a rule's answer, the user's edits on top, undo and redo, kept in the store after every change.

Editing a tensor sets its type and pins it: solving again leaves it alone. Edits change nothing else, so the size moves with
them; `solve` spends or saves the rest. Every change is one step of undo, however many tensors it touches.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from quantailor import files
from quantailor.app.choosing.planner import Planner
from quantailor.errors import StoreError, StrategyError
from quantailor.evidence.measurements import roundings_measured
from quantailor.evidence.roundings import named_rounding
from quantailor.evidence.strategies import read_strategy, require_whole, rounding_of
from quantailor.records import Prediction, RoundingWish, Strategy
from quantailor.session import AUTO, Workspace
from quantailor.steps.checks.limits import pins_of
from quantailor.steps.plan import PlanOptions
from quantailor.strategy import file as strategy_file
from quantailor.strategy.constraints import decided

DEFAULT_NAME = "draft"
MAX_UNDO = 200
ALL_BITS = 32.0
"""A target that any mix meets."""
_VERSION = 1


@dataclass(frozen=True, slots=True)
class _State:
    """One moment of a draft."""

    options: PlanOptions
    types: Mapping[str, str]
    pins: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Step:
    """What one change changed: a tensor's type or pin before and after (None: not pinned), and the options."""

    label: str
    types: Mapping[str, tuple[str, str]]
    pins: Mapping[str, tuple[str | None, str | None]]
    options: tuple[PlanOptions, PlanOptions] | None


@dataclass(frozen=True, slots=True)
class DraftInfo:
    """A draft in a list."""

    name: str
    changed: str
    """UTC, ISO 8601."""
    n_steps: int
    """Steps that can be undone."""
    n_pinned: int


@dataclass(frozen=True, slots=True)
class EditResult:
    """A strategy file that was edited."""

    path: str
    n_changed: int
    n_pinned: int
    prediction: Prediction


@dataclass
class Draft:
    """See the module docstring; methods that change it return what they did, in words."""

    name: str
    options: PlanOptions
    origin: Strategy
    """The latest answer of a rule, or the file that was loaded: what is told of types that are still its."""
    types: dict[str, str]
    pins: dict[str, str] = field(default_factory=dict)
    done: list[_Step] = field(default_factory=list)
    undone: list[_Step] = field(default_factory=list)
    rounding: str = AUTO
    """What it is planned for, as of `evidence.measurements.measured`; no step of undo changes it."""
    _went_back: bool = True
    """Undo, redo or loading may have brought back a rule's very answer."""

    @classmethod
    def start(cls, desk: Planner, options: PlanOptions, *, name: str = DEFAULT_NAME) -> Self:
        """A new draft with the rule's answer. Raises StrategyError."""
        solved = desk.solve(options)
        return cls(name, options, solved, dict(solved.types))

    @classmethod
    def sketch(cls, desk: Planner, options: PlanOptions, size_bytes: int, *, name: str = DEFAULT_NAME) -> Self:
        """About what `start` gives at that size, at once: something to show until its answer is there. Raises StrategyError."""
        types = dict(desk.preview(options, size_bytes).types)
        source = desk.model.source
        origin = Strategy(desk.model.fingerprint, source.name, source.architecture, options.method, ())
        return cls(name, options, origin, types)

    # Changes

    def set_type(self, desk: Planner, names: Sequence[str], type_name: str) -> str:
        """Give tensors a type and pin them. Raises StrategyMismatchError, and changes nothing, where one cannot take it."""
        for name in names:
            desk.check(name, type_name)
        what = names[0] if len(names) == 1 else f"{len(names)} tensors"
        types, pins = {**self.types, **dict.fromkeys(names, type_name)}, {**self.pins, **dict.fromkeys(names, type_name)}
        return self._change(f"{what} to {type_name}", _State(self.options, types, pins))

    def pin(self, names: Iterable[str]) -> str:
        """Keep tensors at the types they have."""
        pins = {**self.pins, **{name: self.types[name] for name in names}}
        return self._change(f"pinned {len(pins) - len(self.pins)}", _State(self.options, self.types, pins))

    def unpin(self, names: Iterable[str]) -> str:
        """Leave tensors to the rule again; they change when it is next solved."""
        gone = set(names)
        pins = {name: type_name for name, type_name in self.pins.items() if name not in gone}
        return self._change(f"unpinned {len(self.pins) - len(pins)}", _State(self.options, self.types, pins))

    def solve(self, desk: Planner, options: PlanOptions) -> str:
        """Choose all tensors that are not pinned anew. Raises StrategyError, and changes nothing."""
        return self.accept(desk.solve(options, self.pins_known_to(desk)), options, self.pins)

    def accept(self, solved: Strategy, options: PlanOptions, pins: Mapping[str, str]) -> str:
        """Take over a rule's answer.

        Args:
            solved: the answer.
            options: what the rule was asked for.
            pins: the pins it was asked with; tensors whose pin has changed since keep what they have now.
        """
        self.origin = solved
        since = {name for name in self.pins.keys() | pins.keys() if self.pins.get(name) != pins.get(name)}
        answer = {name: type_name for name, type_name in solved.types.items() if name not in since}
        return self._change(_told(options), _State(options, {**self.types, **answer}, self.pins))

    def plan_for(self, rounding: str, solved: Strategy, options: PlanOptions, pins: Mapping[str, str]) -> str:
        """Plan for another rounding, with a rule's answer there; see `accept`."""
        self.rounding = rounding
        return self.accept(solved, options, pins)

    def take(self, desk: Planner, types: Mapping[str, str], label: str) -> str:
        """Take over the types of a preset or another draft. Raises StrategyMismatchError, and changes nothing."""
        wanted = {name: type_name for name, type_name in types.items() if name in self.types}
        for name, type_name in wanted.items():
            desk.check(name, type_name)
        return self._change(label, _State(self.options, {**self.types, **wanted}, {}))

    def load_file(self, desk: Planner, text: str, name: str) -> str:
        """Take over a strategy file's text, its pins included; see `load_strategy`."""
        return self.load_strategy(desk, strategy_file.loads(text, name=name, known_types=desk.known_types), name)

    def load_strategy(self, desk: Planner, strategy: Strategy, name: str) -> str:
        """Take over a strategy, its pins included. Raises StrategyError, and changes nothing, where it is another model's."""
        desk.refuse_other_model(strategy)
        require_whole(strategy, desk.model)
        # Tensors that wait to be measured stay as they are, which a strategy that was saved meanwhile says.
        strategy = dataclasses.replace(strategy, tensors=tuple(choice for choice in strategy.tensors if not desk.waits_for(choice)))
        for tensor, type_name in strategy.types.items():
            desk.check(tensor, type_name)
        self.origin = strategy
        pins = {choice.name: choice.type_name for choice in strategy.tensors if choice.pinned}
        return self._change(f"loaded {name}", _State(self.options, {**self.types, **strategy.types}, pins))

    def undo(self) -> str | None:
        """Take the latest change back; None where there is none."""
        if not self.done:
            return None
        step = self.done.pop()
        self.undone.append(step)
        self._apply(step, 0)
        self._went_back = True
        return f"undone: {step.label}"

    def redo(self) -> str | None:
        """Do again what was undone last; None where nothing was."""
        if not self.undone:
            return None
        step = self.undone.pop()
        self.done.append(step)
        self._apply(step, 1)
        self._went_back = True
        return f"redone: {step.label}"

    def _change(self, label: str, after: _State) -> str:
        types = {name: (self.types[name], type_name) for name, type_name in after.types.items() if self.types.get(name) != type_name}
        touched = {*self.pins, *after.pins}
        pins = {name: (self.pins.get(name), after.pins.get(name)) for name in touched if self.pins.get(name) != after.pins.get(name)}
        options = None if after.options == self.options else (self.options, after.options)
        if types or pins or options:
            step = _Step(label, types, pins, options)
            self.done = [*self.done, step][-MAX_UNDO:]
            self.undone = []
            self._apply(step, 1)
            self._went_back = False
        return label

    def _apply(self, step: _Step, side: int) -> None:
        self.types.update({name: pair[side] for name, pair in step.types.items()})
        for name, pair in step.pins.items():
            if (pinned := pair[side]) is None:
                self.pins.pop(name, None)
            else:
                self.pins[name] = pinned
        if step.options is not None:
            self.options = step.options[side]

    @property
    def history(self) -> tuple[str, ...]:
        """What was done and can be undone, the latest first."""
        return tuple(step.label for step in reversed(self.done))

    # What it comes to

    @property
    def is_compensated(self) -> bool:
        """Whether what it started from, a rule's answer or a file, was made for compensated rounding."""
        return rounding_of(self.origin) == "compensated"

    def types_known_to(self, desk: Planner) -> dict[str, str]:
        """The types of the tensors that have measurements there. A draft may hold more: those of another measurement."""
        return {name: type_name for name, type_name in self.types.items() if name in desk.measured}

    def pins_known_to(self, desk: Planner) -> dict[str, str]:
        """The pins of the tensors that have measurements there."""
        return {name: type_name for name, type_name in self.pins.items() if name in desk.measured}

    def strategy(self, desk: Planner) -> Strategy:
        """The draft as a strategy, its size exact: the rule's own, or the file's, where nothing was changed since."""
        types, pins = self.types_known_to(desk), self.pins_known_to(desk)
        if _is(self.origin, types, pins):
            self.origin = desk.current(self.origin)
            return self.origin
        if self._went_back and (again := self._solved_again(desk, pins)) is not None and _is(again, types, pins):
            self.origin = again
            return again
        return desk.by_hand(types, pins, self.origin)

    def reason(self, desk: Planner, name: str) -> str:
        """Why a tensor has its type, in words."""
        return next((choice.reason for choice in self.strategy(desk).tensors if choice.name == name), "it is not measured")

    def _solved_again(self, desk: Planner, pins: Mapping[str, str]) -> Strategy | None:
        """The rule's answer to the present options and pins, which it may be after undo; None where there is none."""
        try:
            return desk.solve(self.options, pins)
        except StrategyError:
            return None

    # Keeping it

    def save(self, workspace: Workspace, model: str, *, name: str | None = None) -> None:
        """Keep the draft under its name, or a copy under another, in place of what is there; see `SharedDraft` for edits."""
        workspace.store.record_draft(model, name or self.name, self.to_json())

    @classmethod
    def load(cls, workspace: Workspace, desk: Planner, name: str) -> Self | None:
        """The draft of that name with its undo; None where there is none. Tensors measured since have their first type.

        Raises StoreError where a newer version wrote it.
        """
        stored = workspace.store.draft(desk.model.fingerprint, name)
        return None if stored is None else cls.from_json(stored[0], name).covering(desk)

    @classmethod
    def from_json(cls, document: str, name: str) -> Self:
        """A draft as the store has it. Raises StoreError where a newer version wrote it."""
        try:
            found = _reader().validate_json(document)
        except ValidationError as error:
            raise StoreError(f"the draft {name!r} cannot be read", remedy="Update Quantailor, or delete the draft") from error
        origin = strategy_file.loads(found.origin, name=f"the draft {name!r}")
        return cls(name, found.options, origin, dict(found.types), dict(found.pins), list(found.done), list(found.undone), found.rounding)

    def covering(self, desk: Planner) -> Self:
        """The draft with a type for every measured tensor: itself, or a copy in which those measured since have their first type."""
        if desk.measured <= self.types.keys():
            return self
        copy = self.copy()
        copy.types.update({name: desk.first_type(name) for name in desk.measured - self.types.keys()})
        return copy

    def copy(self) -> Self:
        """A draft of its own that is equal."""
        return dataclasses.replace(self, types=dict(self.types), pins=dict(self.pins), done=list(self.done), undone=list(self.undone))

    def to_json(self) -> str:
        """The draft for the store."""
        origin = strategy_file.dumps(self.origin, format="json")
        document = _Document(_VERSION, self.options, self.types, self.pins, tuple(self.done), tuple(self.undone), origin, self.rounding)
        return json.dumps(dataclasses.asdict(document), separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class _Document:
    version: int
    options: PlanOptions
    types: Mapping[str, str]
    pins: Mapping[str, str]
    done: tuple[_Step, ...]
    undone: tuple[_Step, ...]
    origin: str
    rounding: str = AUTO


@functools.cache
def _reader() -> TypeAdapter[_Document]:
    """Made once: making it takes longer than reading a draft."""
    return TypeAdapter(_Document)


def _is(strategy: Strategy, types: Mapping[str, str], pins: Mapping[str, str]) -> bool:
    pinned = {choice.name: choice.type_name for choice in strategy.tensors if choice.pinned}
    return strategy.types == types and pinned == pins


def list_drafts(workspace: Workspace, model: str) -> list[DraftInfo]:
    """A model's drafts, the latest changed first."""
    found = []
    for name, changed in workspace.store.drafts(model):
        stored = workspace.store.draft(model, name)
        document = json.loads(stored[0]) if stored else {}
        when = datetime.fromtimestamp(changed, UTC).isoformat(timespec="seconds")
        found.append(DraftInfo(name, when, len(document.get("done", ())), len(document.get("pins", ()))))
    return found


def drafts_of(workspace: Workspace, base: Path) -> list[DraftInfo]:
    """The drafts of a model by its path."""
    with workspace.model(base) as model:
        return list_drafts(workspace, model.fingerprint)


def draft_rounding(workspace: Workspace, model: str, name: str) -> str:
    """What a draft is planned for, as of `evidence.measurements.measured`; "auto" where it says nothing, or that is measured no more."""
    stored = workspace.store.draft(model, name)
    found = AUTO if stored is None else str(json.loads(stored[0]).get("rounding", AUTO))
    return found if found in roundings_measured(workspace, model) else AUTO


@contextmanager
def desk_of_draft(workspace: Workspace, base: Path, name: str) -> Iterator[Planner]:
    """A model's desk with the measurement that a draft is planned for. Raises StrategyError where nothing is measured."""
    with workspace.model(base) as model:
        rounding = draft_rounding(workspace, model.fingerprint, name)
    with Planner.open(workspace, base, rounding=rounding) as desk:
        yield desk


def save_draft(workspace: Workspace, base: Path, name: str, output: Path, *, overwrite: bool = False) -> Strategy:
    """Write a draft as a strategy file. Raises StrategyError where there is none of that name, OutputError where it cannot be written."""
    with desk_of_draft(workspace, base, name) as desk:
        draft = Draft.load(workspace, desk, name)
        if draft is None:
            known = ", ".join(item.name for item in list_drafts(workspace, desk.model.fingerprint)) or "none"
            raise StrategyError(f"there is no draft {name!r}", remedy=f"Known: {known}")
        strategy = desk.whole(draft.strategy(desk))
    strategy_file.write(strategy, output, overwrite=overwrite)
    return strategy


def edit(
    workspace: Workspace,
    base: Path,
    strategy: Path,
    changes: Sequence[str],
    output: Path,
    *,
    imatrix: str = AUTO,
    rounding: RoundingWish = "auto",
    covariances: str = AUTO,
    overwrite: bool = False,
) -> EditResult:
    """Change types in a strategy file by pattern ("attn_v=Q6_K") and pin them.

    Args:
        workspace: what was measured.
        base: the model.
        strategy: the strategy's file.
        changes: "PATTERN=TYPE" each.
        output: where the edited strategy goes.
        imatrix: which measurements its figures are from, as `plan` takes it.
        rounding: what it is for from now on; "auto" is what it was made for.
        covariances: of the inputs: "auto", "none", or a file.
        overwrite: replace an existing file.

    Raises:
        StrategyError: a change that cannot be read, matches nothing or contradicts another, or a type that a tensor cannot take.
        CovarianceError: covariances that cannot be used.
        OutputError: the output exists.
    """
    files.refuse_existing(output, overwrite=overwrite)
    given = read_strategy(strategy)
    if rounding == AUTO and given.inputs:
        rounding = rounding_of(given)
    with workspace.model(base) as model:
        which = named_rounding(workspace, model, rounding, covariances)
    with Planner.open(workspace, base, imatrix=imatrix, rounding=which) as desk:
        draft = Draft.start(desk, PlanOptions(bits_per_weight=ALL_BITS))
        draft.load_strategy(desk, given, strategy.name)
        before = dict(draft.types)
        chosen = decided("--set", pins_of("--set", changes), tuple(before))
        for type_name in dict.fromkeys(chosen.values()):
            draft.set_type(desk, [name for name, wanted in chosen.items() if wanted == type_name], type_name)
        edited = desk.whole(draft.strategy(desk))
    strategy_file.write(edited, output, overwrite=overwrite)
    if edited.prediction is None:
        raise StrategyError("the strategy has no prediction")
    n_changed = sum(before[name] != type_name for name, type_name in draft.types.items())
    return EditResult(str(output), n_changed, len(draft.pins), edited.prediction)


def _told(options: PlanOptions) -> str:
    """What a rule was asked for, in words."""
    targets: dict[str, Any] = {
        "bytes": options.size_bytes,
        "bits per weight": options.bits_per_weight,
        "as large as": options.like,
        "nats": options.kld_nats,
    }
    said = ", ".join(f"{value:,} {what}" if isinstance(value, int) else f"{what} {value}" for what, value in targets.items() if value)
    return f"{options.method}, {said}" if said else options.method
