"""What a strategy must respect, whatever the rule: pins, allowed types, bit limits, ties, separate budgets.

Patterns select tensors. A pattern is a glob (`*`, `?`, `[...]`; case matters) that must match a tensor's whole
name, its name without `.weight`, or its role:

    output.weight, output          one tensor
    attn_v                         that role in every layer
    ffn_*                          every role that begins so
    blk.[0-3].*                    layers 0 to 3
    role:attn_v, name:blk.0.*      only roles, only names
    layer:0-3                      those layers

A rule with a pattern replaces the overall one. Where patterns overlap, the narrower one is an exception to the wider: a tensor's
whole name, or a pattern all of whose tensors the other selects too. Other overlaps are contradictions unless both say the same.
So are a pin outside the bits, or outside the types of a pattern, that another rule allows; a pin may leave the overall list of
types. Tied tensors get one type that all of them can take. Contradictions are refused by name.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Self, TypeVar

from quantailor.errors import InfeasibleError, StrategyError
from quantailor.present import words
from quantailor.records import Cell, TensorCells, layer_of, role_of

ALIGNMENT = 32
"""Bytes that a tensor's data is padded to in a GGUF file."""

T = TypeVar("T")

_QKV = ("attn_q", "attn_k", "attn_v")
_GATE_UP = re.compile(r"^ffn_(?:gate|up)(_exps|_shexp|_chexps)?$")


class BitsOfType(float):
    """Bits per weight that were given by the name of a type, which messages repeat."""

    type_name: str

    @classmethod
    def of(cls, type_name: str, bits: float) -> Self:
        """The bits of that type."""
        found = cls(bits)
        found.type_name = type_name
        return found

    def __str__(self) -> str:
        return self.type_name


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes that all tensors matching a pattern may take together, for example those that a GPU holds."""

    pattern: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Constraints:
    """The user's limits; see the module docstring for patterns and precedence. Nothing is limited by default."""

    pins: Mapping[str, str] = field(default_factory=dict)
    """Pattern -> type."""
    allowed: tuple[str, ...] = ()
    """Types (globs such as "Q*_K" too) for tensors that no pattern below matches; empty allows all."""
    allowed_by_pattern: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    min_bits: float | None = None
    max_bits: float | None = None
    min_bits_by_pattern: Mapping[str, float] = field(default_factory=dict)
    max_bits_by_pattern: Mapping[str, float] = field(default_factory=dict)
    ties: tuple[str, ...] = ()
    """"qkv", "gate_up", "layer", "role", or "re:REGEX": tensors whose names match with equal groups."""
    budgets: tuple[Budget, ...] = ()

    def as_parameters(self) -> dict[str, object]:
        """The limits that are set, as plain data for a strategy's record."""
        values = {item.name: plain(getattr(self, item.name)) for item in dataclasses.fields(self) if item.name != "budgets"}
        values["budgets"] = {budget.pattern: budget.size_bytes for budget in self.budgets}
        return {key: value for key, value in values.items() if value not in (None, [], {})}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Constraints:
        """The limits that `as_parameters` wrote. Raises StrategyError where a record holds something else."""
        names = {item.name for item in dataclasses.fields(cls)}
        if unknown := sorted(set(parameters) - names):
            raise StrategyError(f"the strategy has the unknown constraint {unknown[0]}", remedy="Plan again")
        values = {key: _as_tuples(value) for key, value in parameters.items()}
        if budgets := values.get("budgets"):
            values["budgets"] = tuple(Budget(pattern, int(size)) for pattern, size in budgets.items())
        return cls(**values)


def plain(value: object) -> object:
    """Mappings, sequences and number subclasses as what YAML and JSON know."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return float(value) if isinstance(value, float) else value


def _as_tuples(value: Any) -> Any:
    """Lists of a record as tuples, also within a mapping."""
    if isinstance(value, Mapping):
        return {key: _as_tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that share one type, or a single tensor; `cells` hold sums over the tensors, padding included."""

    tensors: tuple[TensorCells, ...]
    cells: tuple[Cell, ...]
    """Ascending by size; types that every tensor of the group may take."""
    pins: tuple[str | None, ...] = ()
    """Per tensor the pattern that pinned it, or None."""
    tie: str | None = None

    @property
    def name(self) -> str:
        return self.tensors[0].name if len(self.tensors) == 1 else f"{self.tensors[0].name} and {len(self.tensors) - 1} tied to it"

    @property
    def importance(self) -> float:
        """The most important tensor's."""
        return max(tensor.importance for tensor in self.tensors)

    def bytes_in(self, pattern: str, cell: Cell, align: int) -> int:
        """Bytes that the tensors matching `pattern` take at a cell's type."""
        return sum(padded(tensor.cell(cell.type_name).size_bytes, align) for tensor in self.tensors if matches(pattern, tensor.name))


def padded(size_bytes: int, align: int = ALIGNMENT) -> int:
    """A size rounded up to a multiple of `align`."""
    return -(-size_bytes // align) * align


def matches(pattern: str, tensor_name: str) -> bool:
    """Whether a pattern selects a tensor; the module docstring says how."""
    kind, _, rest = pattern.partition(":")
    role = role_of(tensor_name)
    if kind == "role":
        return fnmatchcase(role, rest)
    if kind == "name":
        return fnmatchcase(tensor_name, rest)
    if kind == "layer":
        return _in_layers(rest, layer_of(tensor_name), pattern)
    return any(fnmatchcase(text, pattern) for text in (tensor_name, tensor_name.removesuffix(".weight"), role))


def _in_layers(text: str, layer: int | None, pattern: str) -> bool:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if not match:
        raise StrategyError(f"{pattern} is not a range of layers", remedy="Write layer:3 or layer:0-3")
    low, high = int(match[1]), int(match[2] or match[1])
    return layer is not None and low <= layer <= high


# --- from the command line's strings


def parse_pin(text: str) -> tuple[str, str]:
    """`attn_v=Q6_K` -> ("attn_v", "Q6_K"). Raises StrategyError for other forms."""
    return _split(text, "PATTERN=TYPE, for example attn_v=Q6_K")


def parse_allowed(text: str) -> tuple[str | None, tuple[str, ...]]:
    """`Q4_K,Q5_K` -> (None, types); `role:ffn_down=Q4_K,Q5_K` -> ("role:ffn_down", types). Raises StrategyError for other forms."""
    pattern, separator, types = text.rpartition("=")
    names = tuple(name.strip() for name in types.split(",") if name.strip())
    if not names or (separator and not pattern.strip()):
        raise StrategyError(f"{text!r} allows no type", remedy="Write TYPE,TYPE or PATTERN=TYPE,TYPE")
    return (pattern.strip() or None, names)


def parse_bits(text: str) -> tuple[str | None, float]:
    """`4.5` -> (None, 4.5); `output=6` -> ("output", 6.0). Raises StrategyError for other forms."""
    pattern, separator, number = text.rpartition("=")
    try:
        bits = float(number)
    except ValueError:
        bits = math.nan
    if not 0 < bits < math.inf or (separator and not pattern.strip()):
        raise StrategyError(f"{text!r} is not a number of bits per weight", remedy="Write 4.5 or PATTERN=4.5")
    return (pattern.strip() or None, bits)


def parse_tie(text: str) -> str:
    """A predefined tie or `re:REGEX`, checked."""
    tie = text.strip()
    _tie_key(tie)
    return tie


def parse_budget(text: str) -> Budget:
    """`layer:0-15=4GiB` -> Budget. Raises StrategyError for other forms, OptionError for what is no size."""
    pattern, size = _split(text, "PATTERN=SIZE, for example layer:0-15=4GiB")
    return Budget(pattern, words.parse_size(size))


def _split(text: str, form: str) -> tuple[str, str]:
    pattern, separator, value = text.rpartition("=")
    if not separator or not pattern.strip() or not value.strip():
        raise StrategyError(f"{text!r} is not of the form {form}", remedy="Correct it")
    return pattern.strip(), value.strip()


# --- applying them


def apply(tables: Sequence[TensorCells], constraints: Constraints, *, align: int = ALIGNMENT) -> list[Group]:
    """Narrow every tensor's types and tie tensors together.

    Returns:
        Groups in the order of their first tensor; together they hold every tensor once.

    Raises:
        InfeasibleError: a tensor is left without a type, or a pattern matches nothing; names both.
        StrategyError: a pattern or tie that cannot be read.
    """
    names = [tensor.name for tensor in tables]
    deciding = _Deciding(
        _deciding("--pin", constraints.pins, names),
        _deciding("--allow", constraints.allowed_by_pattern, names),
        _deciding("--min", constraints.min_bits_by_pattern, names),
        _deciding("--max", constraints.max_bits_by_pattern, names),
    )
    _check_budgets(names, constraints.budgets)
    narrowed = [_narrow(tensor, constraints, deciding) for tensor in tables]
    if any(bits is None for bits in narrowed):
        raise _no_type_within(tables, constraints, deciding)
    groups: list[Group] = []
    for members, tie in _tied(names, constraints.ties):
        found = [each for index in members if (each := narrowed[index]) is not None]
        groups.append(_group(tuple(tensor for tensor, _ in found), tuple(pin for _, pin in found), tie, align))
    return groups


_By = Mapping[str, tuple[str, T]]
"""Tensor -> (the pattern that decides, its value)."""


@dataclass(frozen=True, slots=True)
class _Deciding:
    """Which pattern of each use decides about each tensor."""

    pins: _By[str]
    allowed: _By[tuple[str, ...]]
    low: _By[float]
    high: _By[float]


def decided(use: str, patterns: Mapping[str, T], names: Sequence[str]) -> dict[str, T]:
    """Tensor -> the value of the pattern that decides about it. Raises InfeasibleError for contradictions and for what matches nothing."""
    return {name: value for name, (_, value) in _deciding(use, patterns, names).items()}


def _deciding(use: str, patterns: Mapping[str, T], names: Sequence[str]) -> _By[T]:
    selected = {pattern: frozenset(name for name in names if matches(pattern, name)) for pattern in patterns}
    found: dict[str, tuple[str, T]] = {}
    for pattern, chosen in selected.items():
        if not chosen:
            message = f"the pattern of {_said(use, pattern, patterns[pattern])} matches no tensor"
            raise InfeasibleError(message, remedy="`inspect` lists the names that can be quantized")
        for name in chosen:
            other = found.get(name, (pattern, patterns[pattern]))[0]
            if _is_exception(pattern, other, selected, name):
                found[name] = (pattern, patterns[pattern])
            elif patterns[pattern] != patterns[other] and not _is_exception(other, pattern, selected, name):
                both = f"{_said(use, other, patterns[other])} and {_said(use, pattern, patterns[pattern])}"
                raise InfeasibleError(f"{both} contradict each other for {name}", remedy="Drop one of them")
    return found


def _is_exception(pattern: str, other: str, selected: Mapping[str, frozenset[str]], name: str) -> bool:
    return pattern in (other, name) or (other != name and selected[pattern] < selected[other])


def _said(use: str, pattern: str | None, value: object) -> str:
    """A rule as it is written on the command line."""
    text = ",".join(map(str, value)) if isinstance(value, tuple) else said_bits(value) if isinstance(value, float) else str(value)
    return f"{use} {pattern}={text}" if pattern else f"{use} {text}"


def said_bits(bits: float) -> str:
    """A limit as it was given: a number, or the name of a type."""
    return str(bits) if isinstance(bits, BitsOfType) else f"{bits:g}"


def _with_unit(bits: float) -> str:
    return f"the {float(bits):g} bits of {bits}" if isinstance(bits, BitsOfType) else f"{bits:g} bits"


def _check_budgets(names: Sequence[str], budgets: Sequence[Budget]) -> None:
    said: dict[str, int] = {}
    for budget in budgets:
        if not any(matches(budget.pattern, name) for name in names):
            message = f"the pattern of {_said('--budget', budget.pattern, budget.size_bytes)} matches no tensor"
            raise InfeasibleError(message, remedy="`inspect` lists the names that can be quantized")
        if said.setdefault(budget.pattern, budget.size_bytes) != budget.size_bytes:
            both = f"{_said('--budget', budget.pattern, said[budget.pattern])} and {_said('--budget', budget.pattern, budget.size_bytes)}"
            raise InfeasibleError(f"{both} contradict each other", remedy="Drop one of them")


def _narrow(tensor: TensorCells, constraints: Constraints, deciding: _Deciding) -> tuple[TensorCells, str | None] | None:
    """The tensor with the cells it may take, and the pattern that pinned it; None where none has the bits."""
    name = tensor.name
    low_pattern, low = deciding.low.get(name, (None, constraints.min_bits))
    high_pattern, high = deciding.high.get(name, (None, constraints.max_bits))
    if (pin := deciding.pins.get(name)) is not None:
        cell, pinned = _pinned(tensor, *pin), _said("--pin", *pin)
        for use, pattern, limit in (("--min", low_pattern, low), ("--max", high_pattern, high)):
            if limit is not None and (cell.bits_per_weight < limit if use == "--min" else cell.bits_per_weight > limit):
                message = (
                    f"{pinned} contradicts {_said(use, pattern, limit)}: {cell.type_name} has {cell.bits_per_weight:g} bits per weight"
                )
                raise InfeasibleError(f"{message} in {name}", remedy="Drop one of them")
        if name in deciding.allowed and not _is_among(cell.type_name, deciding.allowed[name][1]):
            raise InfeasibleError(f"{pinned} contradicts {_said('--allow', *deciding.allowed[name])} for {name}", remedy="Drop one of them")
        return dataclasses.replace(tensor, cells=(cell,)), pin[0]
    cells = _allowed_cells(tensor, constraints, deciding)
    fitting = [cell for cell in cells if (low is None or cell.bits_per_weight >= low) and (high is None or cell.bits_per_weight <= high)]
    return (dataclasses.replace(tensor, cells=tuple(fitting)), None) if fitting else None


def _allowed_cells(tensor: TensorCells, constraints: Constraints, deciding: _Deciding) -> list[Cell]:
    scope_pattern, types = deciding.allowed.get(tensor.name, (None, constraints.allowed))
    cells = [cell for cell in tensor.cells if not types or _is_among(cell.type_name, types)]
    if not cells:
        scope = f"the allowed types for {scope_pattern}" if scope_pattern else "the allowed types"
        raise InfeasibleError(f"{tensor.name} can take none of {scope} ({', '.join(types)})", remedy=f"It can take {_names(tensor.cells)}")
    return cells


def _no_type_within(tables: Sequence[TensorCells], constraints: Constraints, deciding: _Deciding) -> InfeasibleError:
    """The refusal of bits that a tensor cannot have, with bits that every tensor has for which the same limits decide."""
    limits: dict[str, tuple[tuple[str | None, float | None], tuple[str | None, float | None]]] = {
        tensor.name: (
            deciding.low.get(tensor.name, (None, constraints.min_bits)),
            deciding.high.get(tensor.name, (None, constraints.max_bits)),
        )
        for tensor in tables
        if tensor.name not in deciding.pins
    }
    failed = next(tensor for tensor in tables if tensor.name in limits and _narrow(tensor, constraints, deciding) is None)
    (low_pattern, low), (high_pattern, high) = limits[failed.name]
    said = [f"at least {_with_unit(low)}{_for(low_pattern)}"] if low is not None else []
    said += [f"at most {_with_unit(high)}{_for(high_pattern)}"] if high is not None else []
    offered = {
        tensor.name: [cell.bits_per_weight for cell in _allowed_cells(tensor, constraints, deciding)]
        for tensor in tables
        if tensor.name in limits
    }
    remedies = []
    if low is not None and max(offered[failed.name]) < low:
        most = min(max(bits) for name, bits in offered.items() if limits[name][0] == (low_pattern, low))
        remedies.append(f"Give {_said('--min', low_pattern, _rounded(most, math.floor))} or less")
    if high is not None and min(offered[failed.name]) > high:
        least = max(min(bits) for name, bits in offered.items() if limits[name][1] == (high_pattern, high))
        remedies.append(f"Give {_said('--max', high_pattern, _rounded(least, math.ceil))} or more")
    cells = sorted(_allowed_cells(failed, constraints, deciding), key=lambda cell: cell.bits_per_weight)
    types = ", ".join(f"{cell.type_name} ({cell.bits_per_weight:g})" for cell in cells)
    return InfeasibleError(f"{failed.name} has no type with {' and '.join(said)}", remedy=". ".join([*remedies, f"It may take {types}"]))


def _rounded(bits: float, rounding: Callable[[float], int]) -> float:
    return rounding(bits * 1e4) / 1e4


@lru_cache(maxsize=4096)
def _is_among(type_name: str, types: tuple[str, ...]) -> bool:
    return any(fnmatchcase(type_name, each) for each in types)


def _pinned(tensor: TensorCells, pattern: str, type_name: str) -> Cell:
    try:
        return tensor.cell(type_name)
    except KeyError:
        message = f"{tensor.name} cannot take {type_name}, to which {pattern} pins it"
        raise InfeasibleError(message, remedy=f"It can take {_names(tensor.cells)}") from None


def _for(pattern: str | None) -> str:
    return f" (for {pattern})" if pattern else ""


def _names(cells: Sequence[Cell]) -> str:
    return ", ".join(cell.type_name for cell in sorted(cells, key=lambda cell: cell.size_bytes))


def _tie_key(tie: str) -> Callable[[str], object]:
    """A function from a tensor's name to its tie group, None where it is in none."""
    if tie == "qkv":
        return lambda name: layer_of(name) if role_of(name) in _QKV else None
    if tie == "gate_up":
        return lambda name: (layer_of(name), match[1]) if (match := _GATE_UP.match(role_of(name))) else None
    if tie == "layer":
        return layer_of
    if tie == "role":
        return role_of
    if tie.startswith("re:"):
        try:
            expression = re.compile(tie[3:])
        except re.error as error:
            raise StrategyError(f"the tie {tie} is not a regular expression: {error}", remedy="Correct it") from None
        return lambda name: match.groups() if (match := expression.search(name)) else None
    raise StrategyError(f"there is no tie {tie!r}", remedy="Known: qkv, gate_up, layer, role, or re:REGEX")


def _tied(names: Sequence[str], ties: Sequence[str]) -> list[tuple[list[int], str | None]]:
    """Indices per group, in order of first member; ties that overlap merge."""
    leader = list(range(len(names)))

    def find(index: int) -> int:
        while leader[index] != index:
            index = leader[index]
        return index

    label: dict[int, str] = {}
    for tie in ties:
        key, first, n_bound = _tie_key(tie), dict[object, int](), 0
        for index, name in enumerate(names):
            if (value := key(name)) is not None:
                low, high = sorted((find(first.setdefault(value, index)), find(index)))
                leader[high] = low
                label[low] = tie
                n_bound += index != first[value]
        if not n_bound:
            raise InfeasibleError(f"the tie {tie} ties no two tensors", remedy="`inspect` lists their names")
    members: dict[int, list[int]] = {}
    for index in range(len(names)):
        members.setdefault(find(index), []).append(index)
    return [(group, label.get(root) if len(group) > 1 else None) for root, group in members.items()]


def _group(tensors: tuple[TensorCells, ...], pins: tuple[str | None, ...], tie: str | None, align: int) -> Group:
    if len(tensors) == 1:
        alone = [_padded(cell, align) for cell in tensors[0].cells]
        return Group(tensors, tuple(sorted(alone, key=lambda cell: (cell.size_bytes, cell.damage))), pins, tie)
    common = [
        cell.type_name
        for cell in tensors[0].cells
        if all(cell.type_name in {each.type_name for each in tensor.cells} for tensor in tensors[1:])
    ]
    if not common:
        said = sorted({_said("--pin", pin, tensor.cells[0].type_name) for tensor, pin in zip(tensors, pins, strict=True) if pin})
        by = f", given {' and '.join(said)}" if said else ""
        offers = "; ".join(f"{tensor.name}: {_names(tensor.cells)}" for tensor in tensors[:4])
        raise InfeasibleError(
            f"the tie {tie} leaves no common type for {len(tensors)} tensors{by} ({offers})", remedy="Drop the tie or widen the types"
        )
    cells = [_merged([tensor.cell(name) for tensor in tensors], [tensor.n_elements for tensor in tensors], align) for name in common]
    return Group(tensors, tuple(sorted(cells, key=lambda cell: (cell.size_bytes, cell.damage))), pins, tie)


def _padded(cell: Cell, align: int) -> Cell:
    size_bytes = padded(cell.size_bytes, align)
    return cell if size_bytes == cell.size_bytes else dataclasses.replace(cell, size_bytes=size_bytes)


def _merged(cells: Sequence[Cell], elements: Sequence[int], align: int) -> Cell:
    """One type over several tensors: sums of bytes and damage, means by elements, the largest maximum."""
    total = max(1, sum(elements))
    shares = [count / total for count in elements]
    return Cell(
        type_name=cells[0].type_name,
        size_bytes=sum(padded(cell.size_bytes, align) for cell in cells),
        bits_per_weight=sum(share * cell.bits_per_weight for share, cell in zip(shares, cells, strict=True)),
        damage=math.fsum(cell.damage for cell in cells),
        relative_mse=sum(share * cell.relative_mse for share, cell in zip(shares, cells, strict=True)),
        weighted_mse=sum(share * cell.weighted_mse for share, cell in zip(shares, cells, strict=True)),
        rmse=math.sqrt(sum(share * cell.rmse**2 for share, cell in zip(shares, cells, strict=True))),
        max_abs_error=max(cell.max_abs_error for cell in cells),
        output_mse=_mean_output([cell.output_mse for cell in cells], shares),
    )


def _mean_output(errors: Sequence[float | None], shares: Sequence[float]) -> float | None:
    known = [error for error in errors if error is not None]
    return math.fsum(map(operator.mul, shares, known)) if len(known) == len(errors) else None
