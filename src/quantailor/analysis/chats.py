"""Conversations as a model reads them: put into its own chat template, as transformers' `apply_chat_template` puts them.

A template is a program in Jinja that somebody else wrote: it runs in Jinja's sandbox, in the process that tokenizes. What it may use is
what transformers gives it: messages, tools, the names of special tokens, `raise_exception`, `tojson`, `strftime_now` and loop controls.
Only the date is another: the same one each time, so that the same conversations give the same tokens tomorrow.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantailor.errors import CorpusError
from quantailor.records import MetadataValue

if TYPE_CHECKING:
    from jinja2 import Environment
    from jinja2.nodes import Node
    from jinja2.parser import Parser

VERSION = "chat-1"
"""Of rendering: part of what tokens of conversations are filed under."""
SUFFIX = ".jsonl"
DATE = datetime.datetime(2025, 1, 1, 12)
"""What templates take for today."""
_TEMPLATE = "tokenizer.chat_template"
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask"}
"""Tokens as templates call them, and as metadata do."""
_SPEAKERS = {"human": "user", "gpt": "assistant"}
_REMEDY = 'Write one conversation per line: {"messages": [{"role": "user", "content": "..."}, ...]}'


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, and the tools that they may call."""

    messages: tuple[Mapping[str, object], ...]
    tools: tuple[object, ...] | None = None


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A model's templates by name, and its special tokens as they are called there."""

    sources: Mapping[str, str]
    special_tokens: Mapping[str, str]

    def text(self) -> str:
        """All that rendering depends on beside the conversations."""
        return json.dumps([VERSION, dict(self.sources), dict(self.special_tokens)], sort_keys=True)


def read_conversations(text: str, name: str) -> tuple[Conversation, ...]:
    """The conversations of a JSON Lines text: objects with `messages` (or ShareGPT's `conversations`) and perhaps `tools`.

    Raises CorpusError with the line that is none.
    """
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                found.append(_conversation(json_of(line)))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                raise CorpusError(f"line {number} of {name} is not a conversation", remedy=_REMEDY) from None
    return tuple(found)


def json_of(line: str) -> object:
    """What a line of JSON says. Raises ValueError where it is none, or has half of a surrogate pair, which no text can hold."""
    value = json.loads(line)
    if "\\ud" in line.lower():
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _conversation(value: Any) -> Conversation:
    stored = value if isinstance(value, list) else value["messages"] if "messages" in value else value["conversations"]
    messages = [message if "role" in message else _shared(message) for message in stored]
    if not messages or not all(isinstance(each["role"], str) and _may_be_said(each.get("content")) for each in messages):
        raise ValueError
    tools = None if isinstance(value, list) else value.get("tools")
    return Conversation(tuple(messages), None if tools is None else tuple(tools))


def _shared(message: Mapping[str, str]) -> dict[str, str]:
    return {"role": _SPEAKERS.get(message["from"], message["from"]), "content": message["value"]}


def _may_be_said(content: object) -> bool:
    return content is None or isinstance(content, str | list)


def chat_template(metadata: Mapping[str, MetadataValue], model: str) -> ChatTemplate:
    """What a GGUF file says of conversations. Raises CorpusError where it has no template."""
    sources = {
        key.removeprefix(_TEMPLATE).removeprefix(".") or "default": str(entry.value)
        for key, entry in metadata.items()
        if (key == _TEMPLATE or key.startswith(f"{_TEMPLATE}.")) and isinstance(entry.value, str)
    }
    if "default" not in sources:
        raise CorpusError(
            f"{model} has no chat template, so it cannot read conversations",
            remedy="Convert the model again with its tokenizer_config.json or chat_template.jinja, or give plain text",
        )
    tokens = metadata["tokenizer.ggml.tokens"].value if "tokenizer.ggml.tokens" in metadata else ()
    special = {}
    for name, key in _SPECIAL.items():
        entry = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if entry is not None and isinstance(entry.value, int) and isinstance(tokens, Sequence) and 0 <= entry.value < len(tokens):
            special[f"{name}_token"] = str(tokens[entry.value])
    return ChatTemplate(sources, special)


def rendered(template: ChatTemplate, conversations: Sequence[Conversation], name: str, *, to_answer: bool = False) -> list[str]:
    """Each conversation as text with special tokens written out; `to_answer` begins the assistant's next turn.

    Raises CorpusError where the template is damaged or refuses a conversation.
    """
    import jinja2

    environment = _environment()
    compiled = {}
    found = []
    for number, conversation in enumerate(conversations, 1):
        kind = "tool_use" if conversation.tools is not None and "tool_use" in template.sources else "default"
        try:
            if kind not in compiled:
                compiled[kind] = environment.from_string(template.sources[kind])
            found.append(
                compiled[kind].render(
                    messages=[dict(message) for message in conversation.messages],
                    tools=None if conversation.tools is None else list(conversation.tools),
                    documents=None,
                    add_generation_prompt=to_answer,
                    **template.special_tokens,
                )
            )
            found[-1].encode()
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            said = (str(error) or type(error).__name__).rstrip(".")
            if isinstance(error, UnicodeEncodeError):
                said = "it has bytes that are not UTF-8"
            raise CorpusError(
                f"the model's chat template rejects conversation {number} of {name}: {said}",
                remedy="Change that conversation or take it out; some templates allow no system message, or require speakers to alternate",
            ) from None
    return found


def _environment() -> Environment:
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what an assistant says, and adds nothing."""

        def __init__(self, environment: Environment) -> None:
            super().__init__(environment)
            self.tags = {"generation"}

        def parse(self, parser: Parser) -> Node | list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = DATE.strftime
    return environment


def _to_json(value: object, indent: int | None = None, separators: tuple[str, str] | None = None, *, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
