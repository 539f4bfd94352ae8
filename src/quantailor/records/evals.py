"""What files do beside diverging: their answers to the items of an evaluation, and the figures that a verdict makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EvalName = Literal["greedy", "choices"]


@dataclass(frozen=True, slots=True)
class EvalItem:
    """What one file answered to one item of an evaluation: plain numbers, whose meaning the item knows."""

    index: int
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class EvalFigure:
    """A mean over items, or a difference of two, with its 95 % interval of the bootstrap over items."""

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class EvalRow:
    """What one file of a verdict reached."""

    label: str
    score: EvalFigure
    """greedy: tokens before the first difference from the base's text; choices: the share of questions answered right."""
    agreement: EvalFigure
    """The share of items where the file does all that the base does."""


@dataclass(frozen=True, slots=True)
class EvalComparison:
    """A file's figures less those of another, paired over items."""

    file: str
    reference: str
    score: EvalFigure
    agreement: EvalFigure
    outcome: Literal["better", "no better", "worse"]
    """Of the score: better or worse where its interval leaves out 0."""


@dataclass(frozen=True, slots=True)
class Eval:
    """One evaluation of all files of a verdict (METHODS 3)."""

    name: EvalName
    items: str
    """The name of the text that prompts were taken from, or of the file of questions."""
    sha256: str
    """Of what was asked."""
    n_items: int
    rows: tuple[EvalRow, ...]
    """One for each row of the verdict, in their order."""
    comparisons: tuple[EvalComparison, ...]
    """Ours against every other but the base; where several files were judged, every two."""
