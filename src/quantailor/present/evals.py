"""Evaluations of a verdict as tables, the same for terminals, pages and cards."""

from __future__ import annotations

from dataclasses import dataclass

from quantailor.present import words
from quantailor.records import Eval, EvalFigure, Verdict


@dataclass(frozen=True, slots=True)
class EvalTable:
    """One evaluation of all files."""

    title: str
    columns: tuple[str, ...]
    """The first is left-aligned, all others are figures."""
    rows: tuple[tuple[str, ...], ...]


def eval_tables(verdict: Verdict) -> list[EvalTable]:
    """A table for each evaluation that was run; where one file is ours, the last column holds ours against each other."""
    return [_table(each, verdict) for each in verdict.evals]


def _table(found: Eval, verdict: Verdict) -> EvalTable:
    ours = [row.label for row in verdict.rows if row.kind == "ours"]
    beside = {each.reference: each.score for each in found.comparisons if [each.file] == ours}
    rows = []
    for row in found.rows:
        difference = _figure(found, beside[row.label], sign="+") if row.label in beside else ""
        rows.append((row.label, _figure(found, row.score), _share(row.agreement), *([difference] if beside else [])))
    greedy = found.name == "greedy"
    score = "tokens as the base writes (95 %)" if greedy else "right (95 %)"
    agreement = "prompts to the end (95 %)" if greedy else "chosen as by the base (95 %)"
    return EvalTable(title_of(found), ("file", score, agreement, *(["ours − its (95 %)"] if beside else [])), tuple(rows))


def title_of(found: Eval) -> str:
    """What was asked."""
    if found.name == "greedy":
        return f"Greedy text of 32 tokens after {words.plural(found.n_items, 'prompt')} of {found.items}"
    return f"{words.plural(found.n_items, 'question')} of {found.items}, by log-probability"


def _figure(found: Eval, figure: EvalFigure, *, sign: str = "") -> str:
    return (
        f"{figure.value:{sign}.2f} [{figure.interval[0]:{sign}.2f}, {figure.interval[1]:{sign}.2f}]"
        if found.name == "greedy"
        else _share(figure, sign=sign)
    )


def _share(figure: EvalFigure, *, sign: str = "") -> str:
    low, high = (100 * end for end in figure.interval)
    return f"{100 * figure.value:{sign}.1f} % [{low:{sign}.1f}, {high:{sign}.1f}]"
