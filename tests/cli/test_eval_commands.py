"""`--eval`: files are asked more than their divergence; answers are kept, and what cannot be asked is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from commands import Command, validate
from test_chats_and_mixes import mix, talk

from gguf_models import write_gpt2
from quantailor.analysis.corpus import load_corpus
from quantailor.analysis.evals.greedy import prompts
from quantailor.ggml import runtime
from quantailor.models.opening import open_model
from quantailor.session import Workspace
from small_base import write_small_base

TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<s>assistant:{% endif %}"
QUICK = ("--n-ctx", 64, "--chunks", 4, "--threads", 1)
QUESTIONS = [{"question": f"Number {n} and", "choices": ["one", "two", "three"], "answer": n % 3} for n in range(4)]


@pytest.fixture
def base(tmp_path: Path, heldout_text: Path) -> Path:
    held = heldout_text.read_text(encoding="utf-8")
    talk(tmp_path / "talk.jsonl", "\n".join(line[:60] for line in held[:12000].splitlines()))
    (tmp_path / "novel.txt").write_text(held[12000:24000], encoding="utf-8")
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)), encoding="utf-8")
    return write_small_base(tmp_path / "base.gguf", template=TEMPLATE)


def n_answers(home: Path) -> int:
    with Workspace.open(home) as workspace:
        return len(workspace.store.result_rows()["answers"])


@pytest.mark.slow
def test_a_verdict_has_what_was_asked_and_asks_it_once(quantailor: Command, base: Path, tmp_path: Path) -> None:
    home, file = ("--home", tmp_path / "home"), tmp_path / "ours.gguf"
    assert quantailor("build", base, "Q4_0", "-o", file, "--imatrix", "none", *home).code == 0
    text = mix(tmp_path / "held.yaml", novel=0.5, talk=0.5)
    words = ("verify", file, "--base", base, "-f", text, *QUICK, "--against", "Q8_0", "-o", tmp_path / "verdict", *home)
    asked = ("--eval", "greedy,choices", "--prompts", 6, "--choices", tmp_path / "questions.jsonl")
    outcome = quantailor(*words, *asked, "--json")
    validate(outcome.out)
    verdict = outcome.result["verdict"]
    greedy, choices = verdict["evals"]
    assert (greedy["name"], greedy["n_items"], choices["name"], choices["n_items"]) == ("greedy", 6, "choices", 4)
    assert [row["label"] for row in greedy["rows"]] == [row["label"] for row in verdict["rows"]] == ["base", "ours", "Q8_0"]
    assert greedy["rows"][0]["score"]["value"] == 32
    assert choices["rows"][0]["agreement"]["value"] == 1
    assert [each["reference"] for each in choices["comparisons"]] == ["Q8_0"]
    assert "Its greedy text is the base's for" in verdict["sentence"]
    n = n_answers(tmp_path / "home")
    assert n == 6 * (1 + 2) + 4 * 3
    shown = quantailor(*words, "--eval", "choices", "--eval", "greedy", *asked[2:])
    assert n_answers(tmp_path / "home") == n
    assert "Greedy text of 32 tokens after 6 prompts of held.yaml" in shown.out
    assert "4 questions of questions.jsonl" in shown.out
    card = quantailor("card", file, "--base", base, *home).out
    assert "tokens as the base writes (95 %)" in card
    assert quantailor(*words, "--eval", "none", "--json").result["verdict"]["evals"] == []


def test_conversations_are_asked_for_their_last_answer(base: Path, tmp_path: Path) -> None:
    said = [{"role": role, "content": word} for role, word in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))]
    place = tmp_path / "said.jsonl"
    place.write_text(f"{json.dumps({'messages': said})}\n{json.dumps({'messages': said[:1]})}\n", encoding="utf-8")
    source = open_model(base)
    found = prompts(source, base, place, load_corpus(base, place), 10)
    source.close()
    asked = ("<s>user: a\n<s>assistant: b\n<s>user: c\n<s>assistant:", "<s>user: a\n<s>assistant:")
    with runtime.tokenizer(base) as vocabulary:
        assert [each.tolist() for each in found] == [vocabulary.tokenize(text, add_special=False, special=True).tolist() for text in asked]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--eval", "hellaswag"), "'hellaswag' is not an evaluation. Give greedy, choices or none"),
        (("--eval", "none,greedy"), "--eval none goes with no other"),
        (("--choices", "questions.jsonl"), "--choices names questions, but they are not asked. Add --eval choices"),
        (("--eval", "choices", "--choices", "gone.jsonl"), "cannot read"),
        (("--eval", "choices", "--choices", "empty.jsonl"), "empty.jsonl has no questions"),
        (("--eval", "choices", "--choices", "outside.jsonl"), "has the answer 3, and 3 choices. Give one from 0 to 2"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_runs(
    quantailor: Command, base: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "outside.jsonl").write_text(json.dumps({**QUESTIONS[0], "answer": 3}))
    placed = [tmp_path / word if word.endswith(".jsonl") else word for word in words]
    for command in (("verify", base, "--base", base), ("make", base, "--bpw", 6, "-o", tmp_path / "out")):
        outcome = quantailor(*command, *placed, "--home", tmp_path / "home")
        assert said in outcome.error_line
    assert quantailor("jobs", "list", "--home", tmp_path / "home", "--json").result == []


def nothing_ran(home: Path) -> bool:
    """Whether no weight was looked at and no reference begun."""
    with Workspace.open(home) as workspace:
        rows = workspace.store.result_rows()
    worked = ("cells", "chunk_scores", "imatrix_computations", "imatrix_progress", "answers", "mixes")
    return not any(rows[table] for table in worked) and not any((home / "references").glob("*"))


@pytest.mark.parametrize(
    ("eval", "text", "said"),
    [
        ("greedy", "long.jsonl", "with 32 that follow too long for the model's context of 512"),
        ("choices", "long questions.jsonl", "question 1 of long questions.jsonl has"),
        ("choices", "same.jsonl", "question 1 of same.jsonl has a choice that is the beginning of another"),
    ],
)
def test_what_does_not_fit_the_model_is_told_before_anything_is_scored(
    quantailor: Command, base: Path, tmp_path: Path, eval: str, text: str, said: str
) -> None:
    long = [{"role": "user", "content": "word " * 120}, {"role": "assistant", "content": "yes"}]
    (tmp_path / "long.jsonl").write_text(json.dumps({"messages": long}))
    (tmp_path / "long questions.jsonl").write_text(json.dumps({**QUESTIONS[0], "question": "word " * 120}))
    (tmp_path / "same.jsonl").write_text(json.dumps({**QUESTIONS[0], "choices": ["one", "one two"], "answer": 0}))
    words = (tmp_path / text,) if eval == "greedy" else (tmp_path / "novel.txt", "--choices", tmp_path / text)
    home = ("--home", tmp_path / "home")
    verified = quantailor("verify", base, "--base", base, "--eval", eval, "-f", *words, *QUICK, "--against", "Q8_0", *home)
    assert said in verified.error_line
    made = quantailor("make", base, "--bpw", 6, "--eval", eval, "--verify-text", *words, "-o", tmp_path / "out", "--threads", 1, *home)
    assert made.error_line == verified.error_line
    assert nothing_ran(tmp_path / "home")


@pytest.mark.parametrize(
    ("eval", "said"),
    [
        ("choices", "tokens, and the model a context of 36. Shorten it, or take it out"),
        ("greedy", "short has a context of 36 tokens, too short for a prompt of 8 and 32 that follow. Leave out --eval greedy"),
    ],
)
def test_a_model_of_few_positions_is_told_before_anything_is_scored(quantailor: Command, tmp_path: Path, eval: str, said: str) -> None:
    short, home = write_gpt2(tmp_path / "short.gguf", positions=36), ("--home", tmp_path / "home")
    words = ("verify", short, "--base", short, "--eval", eval, "--against", "Q8_0", "--chunks", 1, "--threads", 1, *home)
    assert said in quantailor(*words).error_line
    made = quantailor("make", short, "--bpw", 6, "--eval", eval, "-o", tmp_path / "out", "--threads", 1, *home)
    assert said in made.error_line
    assert nothing_ran(tmp_path / "home")


def test_make_refuses_a_model_that_cannot_be_verified_before_it_measures(quantailor: Command, tmp_path: Path) -> None:
    short = write_gpt2(tmp_path / "short.gguf", positions=16)
    how = ("--imatrix", "none", "--basis", "ranking", "-o", tmp_path / "out", "--home", tmp_path / "home")
    assert "short has 16 positions, too few to run it" in quantailor("make", short, "--bpw", 6, *how).error_line
    assert nothing_ran(tmp_path / "home")


@pytest.mark.slow
def test_make_asks_its_file_and_its_recipe_says_so(quantailor: Command, base: Path, tmp_path: Path) -> None:
    asked = ("--eval", "greedy", "--prompts", 5, "--verify-text", tmp_path / "novel.txt", "--chunks", 4, "--against", "")
    how = ("--imatrix", "none", "--rounding", "plain", "--basis", "ranking", "--types", "Q4_0,Q8_0", "--home", tmp_path / "home")
    made = quantailor("make", base, "--bpw", 7, *asked, *how, "-o", tmp_path / "out", "--json").result
    assert [each["name"] for each in made["verify"]["verdict"]["evals"]] == ["greedy"]
    told = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text(encoding="utf-8"))
    assert (told["eval"], told["prompts"]) == (["greedy"], 5)
    words = ("make", "-r", tmp_path / "out" / "recipe.yaml", "-o", tmp_path / "again", "--home", tmp_path / "home", "--json")
    assert [each["n_items"] for each in quantailor(*words).result["verify"]["verdict"]["evals"]] == [5]
    assert quantailor(*words, "--eval", "none").result["verify"]["verdict"]["evals"] == []
