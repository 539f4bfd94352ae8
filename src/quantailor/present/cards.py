"""What all model cards have in common: the front matter that the hub reads, tables, and the words for what nobody measured."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence

import yaml

from quantailor.present import words
from quantailor.present.evals import eval_tables
from quantailor.records import Estimate, MetadataValue, Verdict

REPO = re.compile(r"(?:https://huggingface\.co/)?(?P<id>[\w.-]+/[\w.-]+)/?")
NOT_MEASURED = (
    "speed, and memory beyond the file's size",
    "benchmarks of knowledge, reasoning or code",
    "other languages and long contexts",
)
_TASKS: Mapping[frozenset[str], str] = {
    frozenset(): "text-generation",
    frozenset({"images"}): "image-text-to-text",
    frozenset({"sound"}): "audio-text-to-text",
    frozenset({"images", "sound"}): "any-to-any",
}
"""The hub's names for what a model does, by what it takes beside text."""
_PLACES = ("general.source.repo_url", "general.source.url", "general.repo_url", "general.url")


def original(metadata: Mapping[str, MetadataValue]) -> str | None:
    """The original model's name on the hub, as a base's metadata name it."""
    matches = (REPO.fullmatch(str(metadata[key].value)) for key in _PLACES if key in metadata)
    return next((match["id"] for match in matches if match is not None), None)


def stated(metadata: Mapping[str, MetadataValue], key: str) -> tuple[str, ...]:
    """The texts under a key; none where it is missing, and where anybody wrote something else there."""
    return metadata[key].texts if key in metadata else ()


def front_matter(metadata: Mapping[str, MetadataValue], tags: Sequence[str], repo_id: str | None, takes: Collection[str] = ()) -> str:
    """What the hub reads: the original, its licence and languages as the model states them, tags, and what the model does.

    `takes` is what projectors beside it take: "images", "sound".
    """
    fields: dict[str, object] = {}
    if repo_id is not None:
        fields |= {"base_model": repo_id, "base_model_relation": "quantized"}
    for key, stored in (("license", "license"), ("license_name", "license.name"), ("license_link", "license.link")):
        if texts := stated(metadata, f"general.{stored}"):
            fields[key] = texts[0] if len(texts) == 1 else list(texts)
    if languages := stated(metadata, "general.languages"):
        fields["language"] = list(languages)
    task = _TASKS[frozenset(takes)]
    fields |= {"library_name": "gguf", "pipeline_tag": task, "tags": list(tags)}
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = (columns, ["---"] * len(columns), *rows)
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def projector_commands(model: str, projector: str, takes: Sequence[str]) -> tuple[str, ...]:
    """Commands that run a text model's file with a projector beside it, which takes "images" or "sound" or both."""
    files = shlex.join(("-m", model, "--mmproj", projector))
    asked = {"images": "--image picture.jpg -p 'What is in this picture?'", "sound": "--audio speech.wav -p 'What is said here?'"}
    return (*(f"llama-mtmd-cli {files} {asked[what]}" for what in takes if what in asked), f"llama-server {files}")


def projectors(model: str, found: Sequence[tuple[str, str, int, Sequence[str]]]) -> str:
    """The section on projectors that lie beside a text model's file.

    Args:
        model: the name of the text model's file.
        found: of each projector, of which there is one at least, the file's name, its type, its size in bytes, and what it takes.
    """
    rows = [(f"[{name}]({name})", type_name, words.size(size), " and ".join(takes)) for name, type_name, size, takes in found]
    name, _, _, takes = found[0]
    commands = "\n".join(projector_commands(model, name, takes))
    return (
        f"## With {' and '.join(takes) or 'a projector'}\n\nThe model's tower is a separate file, written by llama.cpp's converter; it "
        f"works with every file of the model, and was not measured:\n\n{table(('file', 'type', 'size', 'takes'), rows)}\n"
        f"```\n{commands}\n```\n"
    )


def with_error(value: Estimate, digits: int) -> str:
    """A figure with so many decimals and its standard error."""
    return f"{value.value:.{digits}f} ± {value.se:.{digits}f}"


def floor(verdict: Verdict) -> str:
    """What the base diverges from itself, below which figures say nothing, in a sentence."""
    found = words.figure(verdict.floor_kld_nats, 2)
    return f"The unquantized model compared with itself in the same way diverges by {found} nats."


def evaluations(verdict: Verdict) -> str:
    """Tables of what files did beside diverging; "" where they were not asked."""
    return "".join(
        f"\n{each.title}; intervals are from the bootstrap:\n\n{table(each.columns, each.rows)}" for each in eval_tables(verdict)
    )
