"""What files of every size would be worth, and where presets, other versions and built files lie beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantailor.app.choosing.drafts import Draft, list_drafts
from quantailor.app.choosing.planner import NO_PINS, Pins, Planner
from quantailor.app.products.builds import list_builds
from quantailor.errors import QuantailorError, StrategyMismatchError
from quantailor.evidence.presets import ladder
from quantailor.records import Prediction
from quantailor.session import AUTO, Workspace
from quantailor.steps.plan import PlanOptions

Kind = Literal["curve", "preset", "version", "file"]
LANDMARKS = ("Q2_K", "IQ3_XXS", "Q3_K_M", "IQ4_XS", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")
"""Presets that are shown."""
MANY_TENSORS = 1000
CARDS_GIB = (4, 6, 8, 12, 16, 24, 32, 48, 80)
CARD_SHARE = 0.85
"""Of a graphics card's memory, for the weights; the rest is for context and buffers."""


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """A file of some size, and what is predicted of it."""

    size_bytes: int
    value: float
    """Predicted KLD in nats, or damage where there is no prediction."""
    low: float | None = None
    """Ends of the 95 % interval."""
    high: float | None = None
    kind: Kind = "curve"
    label: str = ""


@dataclass(frozen=True, slots=True)
class Frontier:
    """The best mix of every size within a draft's limits and pins."""

    has_kld: bool
    """Whether values are predicted KLD; else damages."""
    points: tuple[FrontierPoint, ...]
    """By rising size and falling value."""


def frontier(desk: Planner, options: PlanOptions, pins: Pins = NO_PINS) -> Frontier:
    """The curve that the optimal rule gives. Raises StrategyError where the limits leave nothing."""
    low, high = desk.size_range(options, pins)
    n = 17 if len(desk.measured) > MANY_TENSORS else 41
    sizes = [int(low * (high / low) ** (at / (n - 1))) for at in range(n)]
    found = [desk.preview(options, size_bytes, pins).prediction for size_bytes in sizes]
    has_kld = all(each.kld_nats is not None for each in found)
    points: list[FrontierPoint] = []
    for each in found:
        point = point_of(each, has_kld=has_kld)
        if point is not None and (not points or (point.size_bytes > points[-1].size_bytes and point.value < points[-1].value)):
            points.append(point)
    return Frontier(has_kld, tuple(points))


def point_of(prediction: Prediction, *, has_kld: bool, kind: Kind = "curve", label: str = "") -> FrontierPoint | None:
    """Where a prediction lies; None where it has no such value."""
    value = prediction.kld_nats if has_kld else prediction.damage
    if value is None or value <= 0:
        return None
    low, high = prediction.kld_interval_nats if has_kld and prediction.kld_interval_nats else (None, None)
    return FrontierPoint(prediction.file_size_bytes, value, low, high, kind, label)


def landmarks(workspace: Workspace, desk: Planner, name: str, *, has_kld: bool) -> Iterator[FrontierPoint]:
    """Presets' types, the other versions of the draft `name`, and built files, as far as the desk can price them."""
    model = desk.model.fingerprint
    with suppress(QuantailorError):  # a model of which llama.cpp makes no preset
        presets = ladder(desk.model, workspace.imatrices.choose(desk.model, AUTO))
        for preset in LANDMARKS:
            if preset in presets:
                yield from _priced(desk, presets[preset], "preset", preset, has_kld=has_kld)
    for item in list_drafts(workspace, model):
        draft = None if item.name == name else Draft.load(workspace, desk, item.name)
        if draft is not None:
            yield from _priced(desk, draft.types_known_to(desk), "version", item.name, has_kld=has_kld)
    for built in list_builds(workspace, model) if has_kld else ():
        if built.predicted_kld_nats:
            low, high = built.predicted_interval_nats or (None, None)
            yield FrontierPoint(built.size_bytes, built.predicted_kld_nats, low, high, "file", Path(built.path).stem)


def _priced(desk: Planner, types: Mapping[str, str], kind: Kind, label: str, *, has_kld: bool) -> Iterator[FrontierPoint]:
    with suppress(StrategyMismatchError):  # one of its types is not measured
        known = {name: type_name for name, type_name in types.items() if name in desk.measured}
        point = point_of(desk.evaluate(known).prediction, has_kld=has_kld, kind=kind, label=label)
        if point is not None:
            yield point


def cards(low: int, high: int) -> list[tuple[str, int]]:
    """Memories of graphics cards, and the bytes of the largest file that each takes, as far as these lie between two sizes."""
    fitting = [(f"{gib} GB", int(gib * CARD_SHARE * 2**30)) for gib in CARDS_GIB]
    return [(label, n_bytes) for label, n_bytes in fitting if low < n_bytes < high]
