"""Which of several options are worth taking: those no other beats, and the lower convex hull among them.

An option has a size and a cost (bytes and damage, or bits and error). Both functions take them in any order and give
indices in order of rising size; among equals the first is kept.
"""

from __future__ import annotations

from collections.abc import Sequence


def undominated(sizes: Sequence[float], costs: Sequence[float]) -> list[int]:
    """Indices of the options that no other one beats in both size and cost."""
    kept: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda index: (sizes[index], costs[index])):
        if not kept or costs[index] < costs[kept[-1]]:
            kept.append(index)
    return kept


def lower_hull(sizes: Sequence[float], costs: Sequence[float]) -> list[int]:
    """Indices of the options on the lower convex hull: from one to the next, less and less cost is saved per unit of size."""

    def saved_per_unit(small: int, large: int) -> float:
        return (costs[small] - costs[large]) / (sizes[large] - sizes[small])

    points: list[int] = []
    for index in undominated(sizes, costs):
        while len(points) >= 2 and saved_per_unit(points[-2], points[-1]) <= saved_per_unit(points[-1], index):
            points.pop()
        points.append(index)
    return points
