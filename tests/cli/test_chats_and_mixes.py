"""Conversations and mixes of texts on the command line: calibrated on, verified on, told apart, refused where they are both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from commands import Command, validate

from small_base import write_small_base

QUICK = ("--n-ctx", 64, "--chunks", 24)
TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}"


def talk(path: Path, text: str) -> Path:
    """Conversations from a text: every two lines are a question and an answer."""
    lines = [line for line in text.splitlines() if line.strip()]
    turns = (zip(("user", "assistant"), pair, strict=True) for pair in zip(lines[::2], lines[1::2], strict=False))
    said = [{"messages": [{"role": role, "content": line} for role, line in turn]} for turn in turns]
    path.write_text("\n".join(map(json.dumps, said)), encoding="utf-8")
    return path


def mix(path: Path, **shares: float) -> Path:
    """A mix of the files of those names beside it."""
    texts = [{"file": next(path.parent.glob(f"{name}.*")).name, "share": share, "name": name} for name, share in shares.items()]
    path.write_text(yaml.safe_dump({"texts": texts}), encoding="utf-8")
    return path


@pytest.fixture
def base(tmp_path: Path, heldout_text: Path, calibration_text: Path) -> Path:
    held, seen = (path.read_text(encoding="utf-8")[:24000] for path in (heldout_text, calibration_text))
    talk(tmp_path / "chat.jsonl", seen[:12000])
    talk(tmp_path / "talk.jsonl", held[:12000])
    for name, text in (("prose", seen[12000:]), ("novel", held[12000:])):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    return write_small_base(tmp_path / "base.gguf", template=TEMPLATE)


def test_an_importance_matrix_of_conversations_is_computed_once_for_a_template(quantailor: Command, base: Path, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home", "--json")
    words = ("-f", tmp_path / "chat.jsonl", "--n-ctx", 64, "--chunks", 4, *home)
    first, again = (quantailor("imatrix", base, *words) for _ in range(2))
    assert first.result["datasets"] == ["chat.jsonl"]
    assert first.result["fingerprint"] == again.result["fingerprint"]
    other = write_small_base(tmp_path / "other.gguf", template=TEMPLATE.replace(": ", " says "))
    assert quantailor("imatrix", other, *words).result["fingerprint"] != first.result["fingerprint"]


@pytest.mark.slow
def test_a_verdict_tells_the_texts_of_a_mix_apart_and_refuses_what_was_seen(quantailor: Command, base: Path, tmp_path: Path) -> None:
    home, file = ("--home", tmp_path / "home"), tmp_path / "ours.gguf"
    seen = mix(tmp_path / "seen.yaml", prose=0.5, chat=0.5)
    quantailor("imatrix", base, "-f", seen, *QUICK, *home)
    quantailor("measure", base, "--types", "Q4_0,Q8_0", *home)
    quantailor("plan", base, "--bpw", 6, "--basis", "ranking", "-o", tmp_path / "s.yaml", *home)
    quantailor("build", base, tmp_path / "s.yaml", "-o", file, *home)
    words = ("verify", file, "--base", base, *QUICK, "--against", "Q4_0", *home)
    outcome = quantailor(*words, "-f", mix(tmp_path / "held.yaml", novel=0.7, talk=0.3), "--json", "-o", tmp_path / "verdict")
    validate(outcome.out)
    verdict = outcome.result["verdict"]
    apart = {each["name"]: each for each in verdict["domains"]}
    assert set(apart) == {"novel", "talk"}
    assert sum(each["n_chunks"] for each in apart.values()) == 24
    ours = [row["kind"] for row in verdict["rows"]].index("ours")
    together = sum(each["n_chunks"] * each["klds"][ours]["value"] for each in apart.values()) / 24
    assert together == pytest.approx(verdict["rows"][ours]["statistics"]["kld_mean"]["value"], rel=1e-6)
    assert "Mean KLD by text" in quantailor(*words, "-f", tmp_path / "held.yaml", "-o", tmp_path / "verdict").out
    stored = quantailor("verdicts", base, *home, "--json").result["verdicts"][0]["verdict"]
    assert stored["domains"] == verdict["domains"]

    for text in (tmp_path / "chat.jsonl", mix(tmp_path / "part.yaml", novel=0.5, prose=0.5)):
        name = "chat.jsonl" if text.suffix == ".jsonl" else "prose.txt"
        said = f"{name} is the text from which the file's importance matrix was computed"
        few = quantailor(*words, "-f", text, "-o", tmp_path / "few", "--force", "--json").result["verdict"]
        assert said in few["sentence"]
        many = quantailor("verify", file, "--base", base, "--n-ctx", 32, "--against", "Q4_0", *home, "-f", text, "-o", tmp_path / "many")
        assert said in many.error_line
        assert "Verify it on a text that it has not seen" in many.error_line


def test_make_refuses_to_hold_out_what_it_calibrates_on(quantailor: Command, base: Path, tmp_path: Path) -> None:
    seen = mix(tmp_path / "seen.yaml", prose=0.5, chat=0.5)
    words = ("make", base, "--bpw", 6, "-o", tmp_path / "out", "-f", seen, "--verify-text", tmp_path / "chat.jsonl")
    line = quantailor(*words, "--home", tmp_path / "home").error_line
    assert "chat.jsonl would be calibration text and held-out text at once" in line


def test_a_damaged_conversation_is_told_before_any_work(quantailor: Command, base: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"messages": []}', encoding="utf-8")
    line = quantailor("imatrix", base, "-f", tmp_path / "bad.jsonl", "--home", tmp_path / "home").error_line
    assert "line 1 of bad.jsonl is not a conversation" in line


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("half.jsonl", '{"messages": [{"role": "user", "content": "half a pair: \\ud800"}]}', "line 1 of half.jsonl is not a conversation"),
        ("half.yaml", 'texts: [{file: "\\ud800.txt"}]', "text 1 of half.yaml has a name that no file has: '\\ud800.txt'"),
        ("nul.yaml", 'texts: [{file: "a\\0b.txt"}]', "text 1 of nul.yaml has a name that no file has: 'a\\x00b.txt'"),
        ("white.txt", " \r\n\t" * 1000, "white.txt holds nothing but white space"),
    ],
)
def test_what_no_text_can_hold_is_told_in_one_line(
    name: str, text: str, said: str, quantailor: Command, base: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    line = quantailor("imatrix", base, "-f", tmp_path / name, "--chunks", 1, "--home", tmp_path / "home").error_line
    assert said in line.replace(f"{tmp_path}/", "")


def test_a_question_with_half_a_surrogate_pair_is_no_question(quantailor: Command, base: Path, tmp_path: Path) -> None:
    (tmp_path / "half.jsonl").write_text('{"question": "a \\ud800", "choices": ["b", "c"], "answer": 0}', encoding="utf-8")
    asked = ("verify", base, "--base", base, "--eval", "choices", "--choices", tmp_path / "half.jsonl", "--home", tmp_path / "home")
    assert "half.jsonl is not a question with choices and an answer" in quantailor(*asked).error_line


def test_a_template_that_is_not_utf_8_is_told(quantailor: Command, tmp_path: Path) -> None:
    model = write_small_base(tmp_path / "bytes.gguf", template="{% for m in messages %}QQQQ{{ m.content }}{% endfor %}")
    model.write_bytes(model.read_bytes().replace(b"QQQQ", b"\xff\xfe\xfd\xfc"))
    text = talk(tmp_path / "chat.jsonl", "one\ntwo\n" * 50)
    line = quantailor("imatrix", model, "-f", text, "--chunks", 1, "--home", tmp_path / "home").error_line
    assert "the model's chat template rejects conversation 1 of chat.jsonl: it has bytes that are not UTF-8" in line
