"""`general.*`: what a model directory says of its name, origin and licence, in the order that llama.cpp's converter writes."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantailor.errors import ModelFormatError
from quantailor.models.convert.description.model_card import model_card, texts_in
from quantailor.models.convert.description.model_names import given_name, parse_model_name, title
from quantailor.models.convert.families.config import float32
from quantailor.models.json_files import JsonObject, read_json_if_there
from quantailor.records import MetadataValue, TensorInfo

_SAMPLING: Sequence[tuple[str, str, tuple[str, ...]]] = (
    ("sequence", "string", ("sequence",)),
    ("top_k", "int32", ("top_k",)),
    ("top_p", "float32", ("top_p",)),
    ("min_p", "float32", ("min_p",)),
    ("xtc_probability", "float32", ("xtc_probability",)),
    ("xtc_threshold", "float32", ("xtc_threshold",)),
    ("temp", "float32", ("temperature",)),
    ("penalty_last_n", "int32", ("penalty_last_n",)),
    ("penalty_repeat", "float32", ("penalty_repeat", "repetition_penalty")),
    ("mirostat", "int32", ("mirostat",)),
    ("mirostat_tau", "float32", ("mirostat_tau",)),
    ("mirostat_eta", "float32", ("mirostat_eta",)),
)
_CARD_KEYS: Mapping[str, tuple[str, ...]] = {
    "name": ("name", "model_name"),
    "author": ("author", "model_author", "model_creator"),
    "version": ("version", "model_version"),
    "organization": ("organization", "model_organization"),
    "finetune": ("finetune", "model_finetune"),
    "basename": ("basename", "model_basename", "model_type"),
    "description": ("description", "model_description"),
    "size_label": ("size_label", "model_size_label"),
    "license": ("license",),
    "license.name": ("license_name",),
    "license.link": ("license_link",),
    "source.url": ("url", "model_url"),
    "source.doi": ("doi", "model_doi"),
    "source.uuid": ("uuid", "model_uuid"),
    "source.repo_url": ("repo_url", "model_repo_url"),
}
"""In file order."""
_ORIGIN_KEYS = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")


def described(folder: Path, config: JsonObject, tensors: Sequence[TensorInfo]) -> dict[str, MetadataValue]:
    """Everything between `general.type` and the architecture's own keys."""
    total = sum(tensor.n_elements for tensor in tensors)
    card = model_card(folder)
    values = _values(folder, config, card, total)
    values.setdefault("size_label", size_label(tensors))
    entries = _sampling(folder)
    for key in _CARD_KEYS:
        if values.get(key):
            entries[f"general.{key}"] = MetadataValue("string", values[key])
    entries.update(_origins("base_model", _first(card, "base_model", "base_models", "base_model_sources"), total))
    entries.update(_origins("dataset", _first(card, "datasets", "dataset", "dataset_sources"), total))
    for key, sources in (("tags", ("tags", "pipeline_tag")), ("languages", ("languages", "language"))):
        texts = tuple(
            text for source in sources for text in texts_in(_norwegian(card.get(source)) if key == "languages" else card.get(source))
        )
        if texts:
            entries[f"general.{key}"] = MetadataValue("array", texts, "string")
    return entries


def size_label(tensors: Sequence[TensorInfo]) -> str:
    """The number of parameters in short: "8.4M"; with experts "8x4.5M", where one expert is counted."""
    experts = [tensor for tensor in tensors if "_exps." in tensor.name and len(tensor.shape) > 2]
    per_expert = sum(tensor.n_elements // tensor.shape[-3] for tensor in experts)
    shared = sum(tensor.n_elements for tensor in tensors) - sum(tensor.n_elements for tensor in experts)
    label = _rounded(shared + per_expert)
    return f"{sum(tensor.shape[-3] for tensor in experts) // len(experts)}x{label}" if experts else label


def _rounded(count: int) -> str:
    scale, suffix = next(((scale, suffix) for scale, suffix in ((1e-12, "T"), (1e-9, "B"), (1e-6, "M")) if count * scale > 1), (1e-3, "K"))
    scaled = count * scale
    decimals = max(2 - len(str(round(scaled)).lstrip("0")), 0)
    return f"{scaled:.{decimals}f}{suffix}"


def _sampling(folder: Path) -> dict[str, MetadataValue]:
    path = folder / "generation_config.json"
    stored = read_json_if_there(path)
    entries: dict[str, MetadataValue] = {}
    for key, value_type, sources in _SAMPLING:
        source = next((source for source in sources if source in stored), key)
        value = stored.get(source)
        if value is None:
            continue
        if not _fits(value, value_type):
            raise ModelFormatError(f"{path} has {source} = {str(value)[:80]!r}", remedy="Correct the value or remove the file")
        if value_type == "float32":
            entries[f"general.sampling.{key}"] = float32(value)
        else:
            entries[f"general.sampling.{key}"] = MetadataValue(value_type, int(value) if value_type == "int32" else value)
    return entries


def _fits(value: object, value_type: str) -> bool:
    """Whether a sampling default is of the type that its key has in GGUF."""
    if value_type == "string":
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**31:
        return False
    return value_type != "int32" or value == int(value)


def _values(folder: Path, config: JsonObject, card: JsonObject, total: int) -> dict[str, Any]:
    """The model card's values, then what the configuration's and the folder's name tell."""
    values: dict[str, Any] = {key: _text(folder, card, *sources) for key, sources in _CARD_KEYS.items()}
    path_name = config.get("_name_or_path")
    names = [path_name] if isinstance(path_name, str) and path_name and path_name.count("/") <= 1 else []
    for text in (*names, given_name(folder)):
        named = asdict(parse_model_name(text, total))
        named["name"] = title(named.pop("full"))
        named["organization"] = named["organization"] and title(named["organization"])
        values |= {key: value for key, value in named.items() if values.get(key) is None}
    values["name"] = values["name"] or given_name(folder)
    return {key: value for key, value in values.items() if value is not None}


def _origins(kind: str, stored: Any, total: int) -> dict[str, MetadataValue]:
    """`general.base_model.*` or `general.dataset.*`."""
    if stored is None:
        return {}
    items = [stored] if isinstance(stored, str) else stored if isinstance(stored, list) else []
    records = [item if isinstance(item, dict) else _origin(item, total) for item in items if isinstance(item, dict) or texts_in(item)]
    records = [record for record in records if any(texts_in(record.get(key)) for key in _ORIGIN_KEYS)]
    if not records:
        return {}
    entries = {f"general.{kind}.count": MetadataValue("uint32", len(records))}
    for number, record in enumerate(records):
        for key in _ORIGIN_KEYS:
            if texts_in(record.get(key)):
                entries[f"general.{kind}.{number}.{key}"] = MetadataValue("string", record[key])
    return entries


def _origin(text: str, total: int) -> dict[str, Any]:
    """What a Hugging Face id or an address tells."""
    is_address = text.startswith(("http://", "https://", "ssh://"))
    match = re.match(r"https?://huggingface.co/([^/]+/[^/]+)$", text) if is_address else None
    if is_address and match is None:
        return {"repo_url": text}
    parsed = parse_model_name(match[1] if match else text, total)
    record: dict[str, Any] = {"name": title(parsed.full), "version": parsed.version}
    if parsed.organization is not None:
        record["organization"] = title(parsed.organization)
        record["repo_url"] = f"https://huggingface.co/{parsed.organization}/{parsed.full}"
    return {**record, "repo_url": text} if is_address else record


def _first(values: JsonObject, *keys: str) -> Any:
    return next((values[key] for key in keys if values.get(key) is not None), None)


def _norwegian(value: object) -> object:
    """Languages with "no" where a program took it for a boolean."""
    if isinstance(value, list):
        return ["no" if item is False else item for item in value]
    return "no" if value is False else value


def _text(folder: Path, card: JsonObject, *keys: str) -> str | None:
    """The first of these keys that a card fills in; None where it fills in none. Raises ModelFormatError for what is no text."""
    key = next((key for key in keys if card.get(key) not in (None, "", [])), None)
    if key is None:
        return None
    value = card[key]
    texts = texts_in(value) if key == "license" else [value] if isinstance(value, str) else []
    if not texts and not isinstance(value, str):
        remedy = "Write one text there, or remove it" if isinstance(value, dict | list) else "Put it in quotation marks"
        shown = reprlib.repr(value) if isinstance(value, dict | list) else str(value)  # aliases make small files of endless lists
        raise ModelFormatError(f"README.md in {folder} has {key} = {shown[:80]}, which is not text", remedy=remedy)
    return ",".join(texts) if "".join(texts).strip() else None
