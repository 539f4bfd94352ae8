"""What files answer to evaluations: the first token that differs is that of their own text; choices are llama-perplexity's.

The golden answers are of llama-perplexity, from the same commit of llama.cpp as llama-cpp-python 0.3.36; the commands are in the file.
"""

from __future__ import annotations

import json
import struct
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tools.choices import binary, hellaswag, lines, questions, winogrande

from quantailor.analysis.corpus import load_corpus
from quantailor.analysis.evals import choices, greedy
from quantailor.analysis.evals.asking import ask
from quantailor.analysis.evals.questions import Question, read_questions
from quantailor.errors import CorpusError
from quantailor.ggml.generating import Writer
from quantailor.ggml.reference import quantize_reference
from quantailor.models.opening import open_model
from quantailor.numerics import Tokens
from quantailor.session import CHOICES

GOLDEN = Path(__file__).parent.parent / "golden" / "choices-books-llama.json"
GOLDEN_FORMATS = GOLDEN.with_name("choices-formats-books-llama.json")


@pytest.fixture(scope="module")
def prompts(books_llama_base: Path, heldout_text: Path) -> list[Tokens]:
    source = open_model(books_llama_base)
    found = greedy.prompts(source, books_llama_base, heldout_text, load_corpus(books_llama_base, heldout_text), 24)
    source.close()
    return found


@pytest.fixture(scope="module")
def quantized(books_llama_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense model as llama.cpp's fastest preset."""
    return quantize_reference(books_llama_base, tmp_path_factory.mktemp("reference") / "Q4_0.gguf", preset="Q4_0")


def written(path: Path, prompts: list[Tokens]) -> list[Tokens]:
    with Writer(path, n_ctx=96, n_threads=1) as model:
        return [model.continuation(prompt, greedy.N_WRITTEN) for prompt in prompts]


@pytest.mark.slow
def test_a_file_differs_from_the_base_where_its_own_text_does(books_llama_base: Path, quantized: Path, prompts: list[Tokens]) -> None:
    of_base, own = written(books_llama_base, prompts), written(quantized, prompts)
    items = [greedy.Following(prompt, text) for prompt, text in zip(prompts, of_base, strict=True)]
    answers: dict[str, list[float]] = {"base": [], "q": []}
    for label, answer in ask({"base": books_llama_base, "q": quantized}, items, n_threads=1):
        answers[label] += answer.values
    agreed = [next((float(n) for n in range(32) if a[n] != b[n]), 32.0) for a, b in zip(of_base, own, strict=True)]
    assert answers["q"] == agreed
    assert len(set(agreed)) > 5
    assert answers["base"] == [32.0] * len(prompts)


def test_what_is_answered_is_not_asked_again(books_llama_base: Path, prompts: list[Tokens]) -> None:
    items = [greedy.Writing(prompt) for prompt in prompts[:3]]
    found = [answer for _, answer in ask({"base": books_llama_base}, items, done={"base": [1]}, n_threads=1)]
    assert [answer.index for answer in found] == [0, 2]
    assert found[1].values == tuple(written(books_llama_base, prompts[2:3])[0])
    assert list(ask({"base": Path("gone")}, items, done={"base": [0, 1, 2]})) == []


def test_prompts_lie_evenly_in_the_text_and_do_not_overlap(books_llama_base: Path, heldout_text: Path, prompts: list[Tokens]) -> None:
    corpus = load_corpus(books_llama_base, heldout_text)
    stride = corpus.tokens.size // len(prompts)
    assert len(prompts) == 24
    for index, prompt in enumerate(prompts):
        assert np.array_equal(prompt[1:], corpus.tokens[index * stride + 1 : index * stride + 64])
        assert prompt[0] == (corpus.bos if corpus.bos is not None else corpus.tokens[index * stride])
    assert greedy.key_of(prompts) != greedy.key_of(prompts[:-1])


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["", "Q3_K_M"])
def test_choices_are_those_of_llama_perplexity(books_llama_base: Path, heldout_text: Path, tmp_path: Path, preset: str) -> None:
    """Of multiple choice, of HellaSwag, which asks the same questions, and of Winogrande."""
    golden, formats = (json.loads(path.read_text(encoding="utf-8")) for path in (GOLDEN, GOLDEN_FORMATS))
    path = quantize_reference(books_llama_base, tmp_path / "q.gguf", preset=preset) if preset else books_llama_base
    shipped, name = questions(heldout_text.read_text(encoding="utf-8")), preset or "F16"
    (tmp_path / "h.txt").write_text(hellaswag(shipped), encoding="utf-8")
    (tmp_path / "w.csv").write_text(winogrande(shipped), encoding="utf-8")
    asked, of_hellaswag, of_winogrande = (read_questions(place) for place in (CHOICES, tmp_path / "h.txt", tmp_path / "w.csv"))
    assert asked.sha256 == golden["questions_sha256"]
    with closing(open_model(books_llama_base)) as source:
        items, same, further = (choices.tokenized(source, books_llama_base, each) for each in (asked, of_hellaswag, of_winogrande))
    assert [tuple(item.choices) for item in of_hellaswag.items] == [each.choices for each in shipped]
    assert [item.right for item in of_hellaswag.items] == [item.right for item in asked.items]
    assert list(map(tokens_of, same)) == list(map(tokens_of, items)), "so that one set of answers is both's"

    answers = [answer.values for _, answer in ask({"file": path}, items, n_threads=1)]
    right = [int(np.argmax(values)) in item.right for values, item in zip(answers, asked.items, strict=True)]
    close = [bool(np.diff(np.sort(values))[-1] < 0.01) for values in answers]
    wanted = golden["right"][name]
    assert [is_right for is_right, is_close in zip(right, close, strict=True) if not is_close] == [
        mark == "1" for mark, is_close in zip(wanted, close, strict=True) if not is_close
    ]
    assert sum(right) / len(right) > 0.25 + 5 * (0.25 * 0.75 / len(right)) ** 0.5, "clearly above chance"
    assert abs(sum(right) - formats["hellaswag_percent"][name] * 3) <= sum(close)

    expected = np.array(formats["winogrande"][name])
    values = [answer.values for _, answer in ask({"file": path}, further[: len(expected)], n_threads=1)]
    assert np.array(values) == pytest.approx(expected, abs=0.02)


def tokens_of(item: choices.Choosing) -> tuple[object, ...]:
    """All that an answer depends on."""
    return item.beginning.tolist(), [end.tolist() for end in item.ends], item.n_uncounted


def test_few_words_after_the_choices_leave_the_choices_to_decide(books_llama_base: Path, tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_text('1,The _ sat.,cat,dog,2\n2,"He said, _ was far better than all of the others.",this,that,1\n')
    asked = read_questions(tmp_path / "w.csv")
    assert asked.items[1] == Question("He said, ", ("this", "that"), (0,), " was far better than all of the others.")
    source = open_model(books_llama_base)
    short, long = choices.tokenized(source, books_llama_base, asked)
    source.close()
    assert short.n_uncounted == (0, 0)
    assert min(long.n_uncounted) > 0


def test_all_choices_at_once_are_each_by_itself(books_llama_base: Path) -> None:
    source, asked = open_model(books_llama_base), read_questions(CHOICES)
    items = choices.tokenized(source, books_llama_base, asked)[:3]
    source.close()
    with Writer(books_llama_base, n_ctx=512, n_threads=1, n_branches=4) as model:
        for item in items:
            together = item.answer(model)
            alone = [choices.Choosing(item.beginning, (end,)).answer(model)[0] for end in item.ends]
            assert together == pytest.approx(alone, abs=2e-3)


def test_both_formats_hold_the_same_questions(tmp_path: Path, heldout_text: Path) -> None:
    shipped = questions(heldout_text.read_text(encoding="utf-8"))
    assert CHOICES.read_text(encoding="utf-8") == lines(shipped), "python -m tools.choices writes it"
    (tmp_path / "choices.bin").write_bytes(binary(shipped))
    assert read_questions(tmp_path / "choices.bin").items == read_questions(CHOICES).items == tuple(shipped)


def test_an_answer_may_be_the_choice_itself(tmp_path: Path) -> None:
    place = tmp_path / "q.jsonl"
    place.write_text('{"question": "The sky is", "choices": ["green", "blue"], "answer": "blue"}\n\n')
    assert read_questions(place).items == (Question("The sky is", ("green", "blue"), (1,)),)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("h.txt", "a\n0\nb\nc\nd\n", "has 5 lines, and HellaSwag six for each question"),
        ("h.txt", "a\nb\n0\nc\nd\ne\n", "line 2 of"),
        ("h.txt", "a\n4\nb\nc\nd\ne\n", "has the answer 4, and 4 choices. Give one from 0 to 3"),
        ("w.csv", "1,no place,a,b,1\n", "line 1 of"),
        ("w.csv", "1,a _ b,c,d,1\n2,a _ b,c,d,3\n", "line 2 of"),
        ("w.csv", "1,a _ b,c,d\n", "number,sentence,choice,choice,answer"),
        ("w.csv", "1,a _ b,,d,1\n", "has an empty choice"),
    ],
)
def test_damaged_tables_and_texts_are_refused(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CorpusError) as refused:
        read_questions(tmp_path / name)
    assert said in str(refused.value)


def test_json_lines_may_have_any_name(tmp_path: Path) -> None:
    for name in ("q.txt", "q.csv", "q"):
        (tmp_path / name).write_text(GOOD)
        assert read_questions(tmp_path / name).items == (Question("a", ("b", "c"), (1,)),)


GOOD = '{"question": "a", "choices": ["b", "c"], "answer": 1}'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no questions"),
        (b"\n \n", "has no questions"),
        (f"{GOOD}\nnot JSON\n".encode(), "line 2 of"),
        (b'{"question": "a", "choices": ["b", "c"]}', "line 1 of"),
        (b'["a"]', "line 1 of"),
        (GOOD.replace("1", "2").encode(), "has the answer 2, and 2 choices. Give one from 0 to 1"),
        (GOOD.replace("1", "-1").encode(), "has the answer -1, and 2 choices"),
        (GOOD.replace("1", '"x"').encode(), "has the answer x, which is none of its choices"),
        (GOOD.replace('"b", ', "").replace("1", "0").encode(), "has a list of 1 choices"),
        (GOOD.replace('"b"', '""').encode(), "has an empty choice"),
        (b"\xff\xfe", "is not UTF-8 (byte 0)"),
        (struct.pack("<3I", 2, 12, 20), "question 1 is cut off or damaged"),
        (struct.pack("<I", 0), "has no questions"),
    ],
)
def test_a_file_of_questions_that_cannot_be_used_is_told_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    place = tmp_path / "q.jsonl"
    place.write_bytes(content)
    with pytest.raises(CorpusError) as raised:
        read_questions(place)
    assert said in str(raised.value)
    assert str(place) in str(raised.value)
    assert "\n" not in str(raised.value)
