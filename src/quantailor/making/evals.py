"""Evaluations of a verdict's files: figures, differences that are paired over items, and what is said of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from quantailor import numerics
from quantailor.analysis.evals.greedy import N_WRITTEN
from quantailor.numerics import Doubles
from quantailor.present import words
from quantailor.records import Eval, EvalComparison, EvalFigure, EvalItem, EvalName, EvalRow, RowKind

MIN_ITEMS = 100
"""Fewer prompts or questions carry no claim."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What every file of a verdict answered."""

    name: EvalName
    items: str
    """Name of the text or file, for people."""
    sha256: str
    answers: Mapping[str, Sequence[EvalItem]]
    """Label -> its answers, the base's among them, all to the same items."""
    right: tuple[tuple[int, ...], ...] = ()
    """Of each question the numbers of its right choices."""


def judge(found: Evaluated, kinds: Mapping[str, RowKind]) -> Eval:
    """The figures of all files.

    Args:
        found: their answers.
        kinds: label -> kind, in the order of the verdict's rows.
    """
    base = next(label for label, kind in kinds.items() if kind == "base")
    columns = {label: _columns(found, found.answers[label], found.answers[base]) for label in kinds}
    judged = [label for label, kind in kinds.items() if kind in ("ours", "rival")]
    others = [label for label, kind in kinds.items() if kind != "base"]
    pairs = itertools.combinations(others, 2) if len(judged) > 1 else ((judged[0], each) for each in others if each != judged[0])
    return Eval(
        name=found.name,
        items=found.items,
        sha256=found.sha256,
        n_items=len(columns[base]),
        rows=tuple(EvalRow(label, *_figures(values)) for label, values in columns.items()),
        comparisons=tuple(_compare(file, other, columns[file] - columns[other]) for file, other in pairs),
    )


def _columns(found: Evaluated, answers: Sequence[EvalItem], base: Sequence[EvalItem]) -> Doubles:
    """Score and agreement of each item, (n_items, 2)."""
    if found.name == "greedy":
        agreed = np.array([each.values[0] for each in answers])
        return np.stack([agreed, agreed == N_WRITTEN], axis=1)
    chosen, wanted = ([int(np.argmax(each.values)) for each in all_answers] for all_answers in (answers, base))
    pairs = zip(chosen, wanted, found.right, strict=True)
    return np.array([(choice in right, choice == of_base) for choice, of_base, right in pairs], dtype=np.float64)


def _figures(columns: Doubles) -> list[EvalFigure]:
    return [EvalFigure(value, interval) for value, interval in numerics.bootstrap_means(columns)]


def _compare(file: str, reference: str, differences: Doubles) -> EvalComparison:
    score, agreement = _figures(differences)
    low, high = score.interval
    outcome: Literal["better", "no better", "worse"] = "better" if low > 0 else "worse" if high < 0 else "no better"
    return EvalComparison(file, reference, score, agreement, outcome)


def sentences(found: Eval, kinds: Mapping[str, RowKind]) -> str:
    """What is said of the files that are judged, beside those that are not."""
    judged = [row for row in found.rows if kinds[row.label] in ("ours", "rival")]
    return " ".join(_said(found, row, is_only=len(judged) == 1) for row in judged)


def _said(found: Eval, row: EvalRow, *, is_only: bool) -> str:
    base = next(each for each in found.rows if each.label == found.rows[0].label)
    low, high = row.score.interval
    if found.name == "greedy":
        whose = "Its greedy text" if is_only else f"The greedy text of {row.label}"
        ends = f"{words.percent(row.agreement.value, 0)} of {words.plural(found.n_items, 'prompt')} to the end"
        said = f"{whose} is the base's for {row.score.value:.1f} of {N_WRITTEN} tokens ({low:.1f} to {high:.1f}; {ends})"
    else:
        which = "It answers" if is_only else f"{row.label} answers"
        shares = f"{words.percent(low, 0)} to {words.percent(high, 0)}; the base {words.percent(base.score.value, 0)}"
        same = f"{words.percent(row.agreement.value, 0)} as the base does"
        said = f"{which} {words.percent(row.score.value, 0)} of {words.plural(found.n_items, 'question')} right ({shares}), {same}"
    beside = [each for each in found.comparisons if each.file == row.label]
    if found.n_items < MIN_ITEMS:
        return f"{said}: too few to claim anything; {MIN_ITEMS} are needed."
    if not is_only or not beside:
        return f"{said}."
    by_label = {each.label: each for each in found.rows}
    return f"{said}: {', '.join(f'{each.outcome} than {each.reference} ({_short(found, by_label[each.reference])})' for each in beside)}."


def _short(found: Eval, row: EvalRow) -> str:
    return f"{row.score.value:.1f}" if found.name == "greedy" else words.percent(row.score.value, 0)
