"""Evaluations in a verdict: figures, differences that are paired over items, and what is said of them."""

from __future__ import annotations

import dataclasses

import pytest
from test_judging import scores

from quantailor.making.evals import Evaluated
from quantailor.making.judging import ScoredFile, make_verdict
from quantailor.present.evals import eval_tables
from quantailor.records import EvalItem, RowKind, Verdict
from quantailor.store.encoding import verdict_from_json, verdict_to_json

N = 200


def answers(*each: tuple[float, ...]) -> list[EvalItem]:
    """The given answers, again and again."""
    return [EvalItem(index, each[index % len(each)]) for index in range(N)]


GREEDY = Evaluated(
    "greedy",
    "prose.txt",
    "0" * 64,
    {"base": answers((32,)), "mine": answers((32,), (20,)), "Q4_K_M": answers((32,), (10,)), "Q3_K_M": answers((20,), (32,))},
)
CHOICES = Evaluated(
    "choices",
    "questions.jsonl",
    "1" * 64,
    {
        "base": answers((-1, -2), (-2, -1)),
        "mine": answers((-1, -2), (-2, -1)),
        "Q4_K_M": answers((-1, -2)),
        "Q3_K_M": answers((-2, -1), (-1, -2)),
    },
    right=((0,), (0,)) * (N // 2),
)


def verdict(*evals: Evaluated, **kinds: RowKind) -> Verdict:
    files = [ScoredFile("base", "base", 16_000_000, 16.0, scores(0.0))]
    for label, size in (("mine", 5_000_000), ("Q4_K_M", 5_100_000), ("Q3_K_M", 4_000_000)):
        files.append(ScoredFile(label, kinds.get(label, "ours" if label == "mine" else "reference"), size, 5.0, scores(0.01)))
    return make_verdict(
        files, scores(1e-7, n_chunks=8), model_fingerprint="f" * 64, corpus_name="t", corpus_sha256="0" * 64, n_ctx=512, evals=evals
    )


def test_greedy_figures_are_paired_over_prompts() -> None:
    (found,) = verdict(GREEDY).evals
    assert [(row.label, row.score.value, row.agreement.value) for row in found.rows] == [
        *(("base", 32, 1), ("mine", 26, 0.5), ("Q4_K_M", 21, 0.5), ("Q3_K_M", 26, 0.5)),
    ]
    to_q4, to_q3 = found.comparisons
    assert (to_q4.reference, to_q4.score.value, to_q4.outcome, to_q4.agreement.interval) == ("Q4_K_M", 5, "better", (0, 0))
    assert to_q4.score.interval == pytest.approx((4.3, 5.7), abs=0.15), "mine is 10 tokens ahead at every second prompt"
    assert (to_q3.score.value, to_q3.outcome) == (0, "no better")
    said = "Its greedy text is the base's for 26.0 of 32 tokens (25.2 to 26.8; 50 % of 200 prompts to the end): "
    assert said + "better than Q4_K_M (21.0), no better than Q3_K_M (26.0)." in verdict(GREEDY).sentence


def test_choices_are_right_or_as_the_base_chooses() -> None:
    (found,) = verdict(CHOICES).evals
    assert [(row.score.value, row.agreement.value) for row in found.rows] == [(0.5, 1), (0.5, 1), (1, 0.5), (0.5, 0)]
    assert [each.outcome for each in found.comparisons] == ["worse", "no better"]
    said = "It answers 50 % of 200 questions right (43 % to 57 %; the base 50 %), 100 % as the base does: "
    assert said + "worse than Q4_K_M (100 %), no better than Q3_K_M (50 %)." in verdict(CHOICES).sentence


def test_every_two_files_are_compared_where_several_are_judged() -> None:
    found = verdict(GREEDY, CHOICES, Q4_K_M="rival")
    assert [[(each.file, each.reference) for each in one.comparisons] for one in found.evals] == [
        [("mine", "Q4_K_M"), ("mine", "Q3_K_M"), ("Q4_K_M", "Q3_K_M")]
    ] * 2
    assert "The greedy text of Q4_K_M is the base's for 21.0 of 32 tokens" in found.sentence


def test_few_items_claim_nothing() -> None:
    few = {label: items[:99] for label, items in GREEDY.answers.items()}
    found = verdict(dataclasses.replace(GREEDY, answers=few))
    assert "too few to claim anything; 100 are needed." in found.sentence
    assert "better than Q4_K_M (21" not in found.sentence


def test_a_verdict_keeps_them_and_one_without_shows_none() -> None:
    found = verdict(GREEDY, CHOICES)
    assert verdict_from_json(verdict_to_json(found)) == found
    assert [len(table.rows) for table in eval_tables(found)] == [4, 4]
    greedy, choices = eval_tables(found)
    assert greedy.rows[2] == ("Q4_K_M", *greedy.rows[2][1:3], greedy.rows[2][3])
    assert greedy.rows[2][3].startswith("+5.00 [+4.")
    assert choices.rows[0][1].startswith("50.0 % [")
    assert eval_tables(verdict()) == []
