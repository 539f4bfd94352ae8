"""Published chat templates and vocabularies: conversations give the tokens that transformers' `apply_chat_template` gives."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from published import write_published
from upstream import llama_cpp_sources

from quantailor.analysis import chats
from quantailor.analysis.chats import read_conversations
from quantailor.analysis.corpus import tokenize_chat
from quantailor.models.convert.base import write_base
from quantailor.models.opening import open_model

pytestmark = pytest.mark.oracle

TEMPLATES = {
    "meta-llama-Llama-3.1-8B-Instruct": "llama-bpe",
    "Qwen-Qwen2.5-7B-Instruct": "qwen2",
    "Qwen-Qwen3-0.6B": "qwen2",
    "google-gemma-2-2b-it": "llama-bpe",
    "ibm-granite-granite-3.3-2B-Instruct": "qwen2",
    "HuggingFaceTB-SmolLM3-3B": "llama-bpe",
    "microsoft-Phi-3.5-mini-instruct": "qwen2",
}
NO_SYSTEM = ("google-gemma-2-2b-it",)
N_CONVERSATIONS = 50
TOOL = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}}}
TAKES_TOOLS = ("Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B")


class Then:
    """A clock that stands where ours does."""

    @staticmethod
    def now() -> Any:
        """The time that templates are told."""
        return chats.DATE


def conversations(text: str, *, system: bool, tools: bool) -> list[dict[str, Any]]:
    """Up to four turns each, of lines of a text, code, other scripts, odd spaces and what looks like special tokens."""
    odd = [
        "def f(x):\n    return x  # <|im_end|>",
        "日本語のテキスト 🙂",
        "  two  spaces \n\n",
        "<s>[INST] no [/INST]",
        "naïve café — 12.5 %",
    ]
    lines = itertools.cycle([line.strip() for line in text.splitlines() if line.strip()][:400] + odd)
    found = []
    for number in range(N_CONVERSATIONS):
        said = [{"role": "system", "content": next(lines)}] if system and number % 3 == 0 else []
        for _ in range(number % 4 + 1):
            said += [{"role": "user", "content": next(lines)}, {"role": "assistant", "content": odd[number % 5] + next(lines)}]
        found.append({"messages": said, **({"tools": [TOOL]} if tools and number % 5 == 0 else {})})
    return found


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_are_those_of_transformers(name: str, heldout_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    llama_cpp = llama_cpp_sources()
    folder = write_published(TEMPLATES[name], llama_cpp, tmp_path)
    template = (llama_cpp / "models" / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    base = write_base(open_model(folder), tmp_path / "base.gguf")
    said = conversations(heldout_text.read_text(encoding="utf-8"), system=name not in NO_SYSTEM, tools=name in TAKES_TOOLS)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Then)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    expected = [tokenizer.apply_chat_template(each["messages"], tools=each.get("tools"), tokenize=True, return_dict=False) for each in said]
    tokens, _, _ = tokenize_chat(base, read_conversations("\n".join(map(json.dumps, said)), "said.jsonl"), "said.jsonl")
    assert [each.tolist() for each in tokens] == expected
