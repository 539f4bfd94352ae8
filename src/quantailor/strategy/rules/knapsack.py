"""The multiple-choice knapsack: one option per group, least damage within a number of bytes.

How it is solved, and why more bytes never give a worse answer:

1. Each group's options are reduced to their convex hull in (bytes, damage). Going up the hulls in the order
   of damage saved per byte gives the *chain*: a fixed sequence of solutions, each the true optimum for
   exactly its own bytes (Lagrange). Any budget lies between two neighbours of the chain, its *segment*, and
   the line between them is a lower bound (the linear relaxation).
2. Within a segment, bytes are left over. Every other solution is the lower neighbour plus deviations; a
   deviation of db bytes and dd damage costs `r = dd + price * db >= 0` above the line. Dynamic programming over
   the groups, cheapest deviation first, keeps the undominated states (bytes, r). A state with r >= `gap`, the
   largest distance of the staircase found so far above the line, can improve nothing; so can no option.
   As the staircase closes in on the line, the core of options that matter shrinks to nothing.
3. The staircase of a segment does not depend on the budget, and neither do the chain's points: reading off the
   last step that fits is therefore monotone in the budget, whatever limits were put on the search.

The method follows the core idea of Pisinger, "A minimal algorithm for the multiple-choice knapsack problem"
(EJOR 83, 1995), with a whole segment solved instead of one budget.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantailor.numerics import Doubles, Integers
from quantailor.strategy.rules.hull import lower_hull

TOLERANCE = 1e-6
"""The search may stop when the staircase is this close to the bound, relative to the damage."""
WORK_LIMIT = 28_000_000
"""States times options that one segment may look at; bounds time and memory."""
MIN_STATES = 2_000
MAX_STATES = 200_000
STAIRS_PER_STATE = 2
"""Steps kept of a staircase, for each state kept."""


@dataclass(frozen=True, slots=True)
class Options:
    """One group's options: bytes and damage, aligned, in any order."""

    sizes: Integers
    """(n_options,)"""
    damages: Doubles
    """(n_options,), none negative."""


@dataclass(frozen=True, slots=True)
class Packing:
    """The option chosen in each group."""

    picks: tuple[int, ...]
    size: int
    damage: float
    lower_bound: float
    """No choice within these bytes does less damage than this."""
    price: float
    """Damage that one more byte would save, from the segment's line; 0 where nothing is left to buy."""


@dataclass(frozen=True, slots=True)
class _Step:
    price: float
    group: int
    option: int
    """The option after the step."""


class Knapsack:
    """One set of groups, prepared for any number of budgets.

    `Knapsack(groups).within(size)` and `.down_to(damage)` answer; `.smallest` and `.least_damage` are the limits.
    """

    def __init__(self, groups: Sequence[Options], *, tolerance: float = TOLERANCE, work_limit: int = WORK_LIMIT) -> None:
        self._tolerance, self._work_limit = tolerance, work_limit
        self._groups = groups
        hulls = [lower_hull(options.sizes.tolist(), options.damages.tolist()) for options in groups]
        self._start = [points[0] for points in hulls]
        steps = [
            _Step(float((options.damages[low] - options.damages[high]) / (options.sizes[high] - options.sizes[low])), group, high)
            for group, (options, points) in enumerate(zip(groups, hulls, strict=True))
            for low, high in itertools.pairwise(points)
        ]
        self._steps = sorted(steps, key=lambda step: -step.price)
        self._sizes, self._damages = self._walk()
        self._latest: tuple[int, _Staircase] | None = None

    @property
    def smallest(self) -> int:
        """Bytes of the smallest solution."""
        return int(self._sizes[0])

    @property
    def least_damage(self) -> float:
        """Damage with unlimited bytes."""
        return float(self._damages[-1])

    def within(self, budget: int) -> Packing | None:
        """The least damage in at most `budget` bytes; None where not even the smallest solution fits."""
        if budget < self.smallest:
            return None
        position = int(np.searchsorted(self._sizes, budget, side="right")) - 1
        if position == len(self._steps):
            return self._chain_answer(position)
        staircase = self._staircase(position)
        index = int(np.searchsorted(staircase.sizes, budget - self._sizes[position], side="right")) - 1
        bound = float(self._damages[position] - staircase.price * (budget - self._sizes[position]))
        return self._answer(position, staircase, index, bound)

    def before(self, budget: int) -> Packing | None:
        """The last solution of the chain within `budget`, without search: among thousands of groups it leaves next to nothing unspent."""
        if budget < self.smallest:
            return None
        return self._chain_answer(int(np.searchsorted(self._sizes, budget, side="right")) - 1)

    def down_to(self, damage: float) -> Packing | None:
        """The fewest bytes with at most `damage`; None where the damage cannot be that low."""
        position = int(np.searchsorted(-self._damages, -damage, side="left"))
        if position > len(self._steps):
            return None
        if position == 0 or self._damages[position] == damage:
            return self._chain_answer(position)
        staircase = self._staircase(position - 1)
        stairs = np.flatnonzero(self._damages[position - 1] + staircase.damages <= damage)
        if not len(stairs):
            return self._chain_answer(position)
        index = int(stairs[0])
        bound = float(self._damages[position - 1] - staircase.price * staircase.sizes[index])
        return self._answer(position - 1, staircase, index, bound)

    def _walk(self) -> tuple[Integers, Doubles]:
        """Bytes and damage along the chain, (n_steps + 1,)."""
        picks = list(self._start)
        sizes = [sum(int(options.sizes[pick]) for options, pick in zip(self._groups, picks, strict=True))]
        changes = [math.fsum(float(options.damages[pick]) for options, pick in zip(self._groups, picks, strict=True))]
        for step in self._steps:
            options, before = self._groups[step.group], picks[step.group]
            sizes.append(sizes[-1] + int(options.sizes[step.option] - options.sizes[before]))
            changes.append(float(options.damages[step.option] - options.damages[before]))
            picks[step.group] = step.option
        return np.array(sizes, dtype=np.int64), np.maximum(np.cumsum(changes), 0.0)

    def _picks_at(self, position: int) -> list[int]:
        picks = list(self._start)
        for step in self._steps[:position]:
            picks[step.group] = step.option
        return picks

    def _damage_of(self, picks: Sequence[int]) -> float:
        return math.fsum(float(options.damages[pick]) for options, pick in zip(self._groups, picks, strict=True))

    def _chain_answer(self, position: int) -> Packing:
        picks = self._picks_at(position)
        price = self._steps[position].price if position < len(self._steps) else 0.0
        damage = self._damage_of(picks)
        return Packing(tuple(picks), int(self._sizes[position]), damage, damage, price)

    def _answer(self, position: int, staircase: _Staircase, index: int, bound: float) -> Packing:
        picks = self._picks_at(position)
        for group, option in staircase.deviations(index):
            picks[group] = option
        damage = self._damage_of(picks)
        size = int(self._sizes[position] + staircase.sizes[index])
        return Packing(tuple(picks), size, damage, damage if staircase.exact else min(bound, damage), staircase.price)

    def _staircase(self, position: int) -> _Staircase:
        """The staircase of a segment; the latest is kept, because budgets come close to each other."""
        if self._latest is None or self._latest[0] != position:
            self._latest = position, self._found_staircase(position)
        return self._latest[1]

    def _found_staircase(self, position: int) -> _Staircase:
        step = self._steps[position]
        picks = self._picks_at(position)
        length = int(self._sizes[position + 1] - self._sizes[position])
        allowed_gap = self._tolerance * float(self._damages[position + 1])
        search = _Search(step.price, length, allowed_gap)
        return search.run(self._deviations(picks, step, length * step.price), self._work_limit)

    def _deviations(self, picks: Sequence[int], step: _Step, gap: float) -> list[_Deviations]:
        """Per group the options that leave the chain by less than `gap`, the groups with the cheapest ones first."""
        deviations = []
        for group, (options, pick) in enumerate(zip(self._groups, picks, strict=True)):
            sizes = options.sizes - options.sizes[pick]
            costs = np.maximum(options.damages - options.damages[pick] + step.price * sizes, 0.0)
            costs[pick] = 0.0
            if group == step.group:
                costs[step.option] = 0.0
            useful = np.flatnonzero((costs < gap) & (np.arange(len(costs)) != pick))
            useful = useful[np.argsort(costs[useful], kind="stable")]
            if len(useful):
                deviations.append(_Deviations(group, useful, sizes[useful], costs[useful]))
        return sorted(deviations, key=lambda each: (each.group != step.group, float(each.costs[0]), each.group))


@dataclass(frozen=True, slots=True)
class _Deviations:
    """What one group can do instead; `sizes` and `costs` are changes against the chain, cheapest first."""

    group: int
    options: Integers
    sizes: Integers
    costs: Doubles


@dataclass(frozen=True, slots=True)
class _Stage:
    """States after one group: where each came from and which deviation it took (-1: none)."""

    deviations: _Deviations
    parents: npt.NDArray[np.int32]
    taken: npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class _Staircase:
    """The best damage found for every number of bytes in a segment; bytes rise and damages fall."""

    price: float
    sizes: Integers
    damages: Doubles
    """Changes against the segment's lower end."""
    stages: tuple[_Stage, ...]
    stage_of: Integers
    state_of: Integers
    exact: bool

    def deviations(self, index: int) -> list[tuple[int, int]]:
        """(group, option) pairs that make the step `index`."""
        pairs = []
        state = int(self.state_of[index])
        for stage in self.stages[: int(self.stage_of[index]) + 1][::-1]:
            taken = int(stage.taken[state])
            if taken >= 0:
                pairs.append((stage.deviations.group, int(stage.deviations.options[taken])))
            state = int(stage.parents[state])
        return pairs


class _Search:
    """The dynamic program of one segment."""

    def __init__(self, price: float, length: int, allowed_gap: float) -> None:
        self._price, self._length, self._allowed_gap = price, length, allowed_gap
        self._stages: list[_Stage] = []
        self._sizes = np.zeros(1, dtype=np.int64)
        self._costs = np.zeros(1)
        # The staircase so far: bytes, damage, and where its state is kept; stage -1 is the lower end itself.
        self._stairs: tuple[Integers, Doubles, Integers, Integers] = (
            np.zeros(1, dtype=np.int64),
            np.zeros(1),
            np.full(1, -1, dtype=np.int64),
            np.zeros(1, dtype=np.int64),
        )
        self._gap = length * price

    def run(self, groups: Sequence[_Deviations], work_limit: int) -> _Staircase:
        """Work through the groups until no deviation can help, the gap is closed, or all are done."""
        n_options = sum(len(group.costs) + 1 for group in groups)
        limit = max(MIN_STATES, min(MAX_STATES, work_limit // max(1, n_options)))
        lowest, highest = _reach(groups)
        exact = True
        for number, group in enumerate(groups):
            if group.costs[0] >= self._gap:
                break
            if self._gap <= self._allowed_gap:
                exact = False
                break
            exact &= self._extend(number, group, lowest[number], highest[number], limit)
        return _Staircase(self._price, self._stairs[0], self._stairs[1], tuple(self._stages), self._stairs[2], self._stairs[3], exact)

    def _extend(self, number: int, group: _Deviations, lowest: int, highest: int, limit: int) -> bool:
        """Add one group; False where states had to be dropped."""
        parts, taken = [], []
        for index, cost in [(-1, 0.0), *enumerate(group.costs)]:
            alive = np.flatnonzero(self._costs + cost < self._gap)
            parts.append(alive)
            taken.append(np.full(len(alive), index))
        parents, choices = np.concatenate(parts), np.concatenate(taken)
        sizes = self._sizes[parents] + np.append(group.sizes, 0)[choices]
        costs = self._costs[parents] + np.append(group.costs, 0.0)[choices]
        reachable = np.flatnonzero((sizes + highest >= 0) & (sizes + lowest <= self._length))
        kept = reachable[_frontier(sizes[reachable], costs[reachable] - self._price * sizes[reachable])]
        complete = len(kept) <= limit
        if not complete:
            kept = self._thin(kept, sizes, costs, limit)
        self._stages.append(_Stage(group, parents[kept].astype(np.int32), choices[kept].astype(np.int16)))
        self._sizes, self._costs = sizes[kept], costs[kept]
        self._climb(number, limit)
        return complete

    def _thin(self, kept: Integers, sizes: Integers, costs: Doubles, limit: int) -> Integers:
        """Of states in order of bytes, the cheapest in each of `limit` equal spans of bytes; also the best new stairs."""
        first = _best_in_spans(sizes[kept], costs[kept], limit)
        inside = np.flatnonzero((sizes[kept] >= 0) & (sizes[kept] <= self._length))
        damages = costs[kept] - self._price * sizes[kept]
        held = np.searchsorted(self._stairs[0], sizes[kept[inside]], side="right") - 1
        better = inside[damages[inside] < self._stairs[1][held]]
        if len(better) > limit:
            better = better[_best_in_spans(sizes[kept[better]], damages[better], limit)]
        chosen: Integers = kept[np.union1d(first, better)]
        return chosen

    def _climb(self, number: int, limit: int) -> None:
        """Put the new states onto the staircase and measure its distance from the line."""
        inside = np.flatnonzero((self._sizes >= 0) & (self._sizes <= self._length))
        old = self._stairs
        sizes = np.concatenate([old[0], self._sizes[inside]])
        damages = np.concatenate([old[1], self._costs[inside] - self._price * self._sizes[inside]])
        stages = np.concatenate([old[2], np.full(len(inside), number)])
        states = np.concatenate([old[3], inside])
        kept = _frontier(sizes, damages)
        if len(kept) > STAIRS_PER_STATE * limit:
            kept = kept[np.union1d(0, _best_in_spans(sizes[kept], damages[kept], STAIRS_PER_STATE * limit))]
        self._stairs = (sizes[kept], damages[kept], stages[kept], states[kept])
        ends = np.append(self._stairs[0][1:], self._length)
        self._gap = float(np.max(self._stairs[1] + self._price * ends))


def _frontier(sizes: Integers, damages: Doubles) -> Integers:
    """Indices of the undominated points by rising size; of equal ones the first."""
    # The points come as a few ascending runs, which a stable sort only merges.
    order = np.argsort(sizes, kind="stable")
    best = np.minimum.accumulate(damages[order])
    better = order[np.append(True, best[1:] < best[:-1])[: len(order)]]
    kept: Integers = better[np.append(np.diff(sizes[better]) > 0, True)[: len(better)]]
    return kept


def _best_in_spans(sizes: Integers, values: Doubles, limit: int) -> Integers:
    """Indices of the least value in each of `limit` equal spans of (ascending) sizes."""
    span = (sizes - sizes[0]) * limit // (sizes[-1] - sizes[0] + 1)
    order = np.lexsort((values, span))
    best: Integers = order[np.append(True, np.diff(span[order]) > 0)]
    return best


def _reach(groups: Sequence[_Deviations]) -> tuple[Integers, Integers]:
    """For each group the least and the most bytes that all later ones together can add."""
    least = [min(0, int(group.sizes.min())) for group in groups]
    most = [max(0, int(group.sizes.max())) for group in groups]
    return (
        np.append(np.cumsum(least[::-1])[::-1][1:], 0).astype(np.int64),
        np.append(np.cumsum(most[::-1])[::-1][1:], 0).astype(np.int64),
    )
