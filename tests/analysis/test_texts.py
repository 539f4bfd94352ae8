"""Conversations and mixes as tokens: what a template is given, what is refused, which chunk is of which text."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from quantailor.analysis.chats import ChatTemplate, read_conversations, rendered
from quantailor.analysis.corpus import Corpus, CorpusPart, chunks, domains, load_corpus
from quantailor.analysis.texts import parts_of
from quantailor.errors import CorpusError
from quantailor.ggml import runtime
from small_base import write_small_base

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}"
HELLO = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]


def render(source: str, *lines: object, **sources: str) -> list[str]:
    template = ChatTemplate({"default": source, **sources}, {"bos_token": "<s>", "eos_token": "</s>"})
    text = "\n".join(json.dumps(line) for line in lines)
    return rendered(template, read_conversations(text, "c.jsonl"), "c.jsonl")


def test_conversations_come_as_messages_as_shared_or_as_lists() -> None:
    shared = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]
    expected = "<user>Hello</s>\n<assistant>Hi</s>\n"
    assert render(PLAIN, {"messages": HELLO}, {"conversations": shared}, HELLO) == [expected] * 3


def test_templates_have_what_transformers_gives_them() -> None:
    source = (
        "{{ bos_token }}\n{%- for m in messages %}\n    {%- if loop.index > 1 %}{% break %}{% endif %}\n"
        "  {% generation %}{{ m | tojson }}{% endgeneration %}\n{%- endfor %}{{ strftime_now('%Y') }}{{ unknown is defined }}"
    )
    once, again = (render(source, HELLO) for _ in range(2))
    assert once == again == ['<s>{"role": "user", "content": "Hello"}2025False']


def test_tools_choose_their_own_template() -> None:
    with_tools = {"messages": HELLO, "tools": [{"name": "look"}]}
    assert render("plain", with_tools, HELLO, tool_use="{{ tools[0].name }}") == ["look", "plain"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('No system message here.') }}", "conversation 1 of c.jsonl: No system message here."),
        ("{% for %}", "rejects conversation 1 of c.jsonl"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)
def test_what_a_template_refuses_or_may_not_do_is_told(source: str, said: str) -> None:
    with pytest.raises(CorpusError) as caught:
        render(source, HELLO)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "line", ["{}", "[]", '{"messages": [{"content": "x"}]}', "7", '{"messages": [{"role": "user", "content": 7}]}', "{"]
)
def test_a_line_that_is_no_conversation_is_named(line: str) -> None:
    with pytest.raises(CorpusError, match=r"line 3 of c.jsonl is not a conversation. Write one conversation per line"):
        read_conversations(f"{json.dumps(HELLO)}\n\n{line}", "c.jsonl")


def write_chat_base(path: Path, template: str = PLAIN) -> Path:
    return write_small_base(path, template=template)


def test_special_tokens_are_parsed_and_the_template_is_part_of_what_tokens_are_filed_under(tmp_path: Path) -> None:
    chat = tmp_path / "chat.jsonl"
    chat.write_text("\n".join([json.dumps(HELLO)] * 3), encoding="utf-8")
    template = "{% for m in messages %}<s>{{ m.content }}{% endfor %}"
    base, other = (write_chat_base(tmp_path / name, source) for name, source in (("a.gguf", template), ("b.gguf", template + "\n")))
    corpus = load_corpus(base, chat)
    with runtime.tokenizer(base) as vocabulary:
        special = vocabulary.n_vocab - 1
        letters = [vocabulary.tokenize(word, add_special=False).tolist() for word in ("Hello", "Hi")]
    assert corpus.tokens.tolist() == [special, *letters[0], special, *letters[1]] * 3
    assert load_corpus(other, chat).sha256 != corpus.sha256 == load_corpus(base, chat).sha256


def test_a_model_without_a_template_says_so(small_base: Path, tmp_path: Path) -> None:
    chat = tmp_path / "chat.jsonl"
    chat.write_text(json.dumps(HELLO), encoding="utf-8")
    with pytest.raises(CorpusError, match="has no chat template"):
        load_corpus(small_base, chat)


def test_every_beginning_of_a_mix_has_about_its_shares() -> None:
    sizes = {"prose": 0.6, "chat": 0.3, "code": 0.1}
    parts = tuple(CorpusPart(name, share, np.full(64 * 500, number, np.int32)) for number, (name, share) in enumerate(sizes.items()))
    corpus = Corpus("mix.yaml", "", parts, None)
    rows = chunks(corpus, 64)
    assert corpus.n_chunks(64) == len(rows) > 800
    assert chunks(corpus, 64, limit=100).tolist() == rows[:100].tolist()
    for some in (rows[:30], rows[:200], rows[::2], rows[::4], rows[1::8]):
        counts = Counter(some[:, 1].tolist())
        assert all(abs(counts[number] / len(some) - share) < 0.05 for number, share in enumerate(sizes.values()))
    apart = domains(corpus, 64, 100)
    assert sorted(index for each in apart.values() for index in each) == list(range(100))
    assert all((rows[indexes, 1] == number).all() for number, indexes in enumerate(apart.values()))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("texts: [", "is not YAML"),
        ("prose.txt", "names no texts"),
        ("texts: []", "names no texts"),
        ("texts: [{file: prose.txt, weight: 2}]", "text 1 of .* cannot be read"),
        ("texts: [{file: prose.txt, share: 0}]", "the share of prose.txt in .* is 0. Give a number above 0"),
        ("texts: [prose.txt, prose.txt]", "has the file .* twice"),
        ("texts: [{file: a.txt, name: x}, {file: b.txt, name: x}]", "has the name x twice"),
        ("texts: [other.yaml]", "is a mix itself"),
    ],
)
def test_a_mix_that_cannot_be_read(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "mix.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(CorpusError, match=said):
        parts_of(tmp_path / "mix.yaml")


def test_a_mix_names_the_text_that_is_missing_or_too_short(small_base: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("word " * 2000, encoding="utf-8")
    (tmp_path / "mix.yaml").write_text("texts: [long.txt, {file: short.txt, name: code}]", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"cannot read .*short.txt"):
        load_corpus(small_base, tmp_path / "mix.yaml")
    (tmp_path / "short.txt").write_text("Too short.", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"code of mix\.yaml has \d+ tokens and fills no chunk of 512"):
        chunks(load_corpus(small_base, tmp_path / "mix.yaml"), 512)
