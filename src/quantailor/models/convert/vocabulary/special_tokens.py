"""Special token ids, whether they are added to a text, and chat templates."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantailor.errors import ModelFormatError
from quantailor.models.json_files import JsonObject, is_there, mapping, objects, read_json_if_there, read_text
from quantailor.records import MetadataValue

TEMPLATES = "additional_chat_templates"
"""A folder beside tokenizer_config.json."""
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_ID_KEYS: Mapping[str, str] = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "mask": "mask_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
    "prefix": "prefix_token_id",
    "suffix": "suffix_token_id",
    "middle": "middle_token_id",
}
_FILE_NAME = re.compile(r"[^{}\n]{1,200}\.(jinja2?|j2|json|txt)")
"""What is no template, which would have a brace."""
_ENDS = ("bos_token", "eos_token")
_ADDED = ("bos", "eos", "sep")


def special_metadata(folder: Path, config: JsonObject, vocab_size: int | None) -> dict[str, MetadataValue]:
    """Ids, `add_*_token`, chat templates and normalizer flags, in file order.

    Args:
        folder: the model.
        config: config.json.
        vocab_size: ids from here on are left out; None keeps all.
    """
    tokenizer = read_json_if_there(folder / "tokenizer.json")
    settings = dict(read_json_if_there(folder / "tokenizer_config.json"))
    has_settings = bool(settings)
    if "added_tokens_decoder" not in settings:
        # As transformers reads files of before it wrote that entry.
        named = read_json_if_there(folder / "special_tokens_map.json")
        settings.update({key: named[key] for key in _ENDS if settings.get(key) is None and content(named.get(key))})
    roles, added = list(ROLES), dict[str, bool]()
    if tokenizer:
        _post_processing(mapping(tokenizer.get("post_processor")), settings, has_settings, roles, added)
    tokens = objects(tokenizer.get("added_tokens"))
    ids = _ids(settings, tokens, [*tokens, *_further_tokens(folder, settings)], config, roles, added, folder)
    entries: dict[str, MetadataValue] = {}
    for role, number in ids.items():
        if role in _ID_KEYS and (vocab_size is None or number < vocab_size):
            entries[f"tokenizer.ggml.{_ID_KEYS[role]}"] = MetadataValue("uint32", number)
    for role, value in added.items():
        if role in _ADDED:
            entries[f"tokenizer.ggml.add_{role}_token"] = MetadataValue("bool", value)
    entries.update(_chat_templates(folder, settings))
    entries.update(_normalizer(mapping(tokenizer.get("normalizer"))))
    return entries


def content(entry: object) -> str | None:
    """A token's text: itself, or the `content` of its object."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def further_special(settings: JsonObject) -> tuple[str, ...]:
    """The texts of tokenizer_config.json's special tokens that have no role."""
    extra: list[object] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        stored = settings.get(key)
        extra += stored.values() if isinstance(stored, dict) else stored if isinstance(stored, list) else ()
    return tuple(text for item in extra if (text := content(item)) is not None)


def _further_tokens(folder: Path, settings: JsonObject) -> list[JsonObject]:
    """Texts with their ids that tokenizer_config.json and added_tokens.json hold."""
    decoder = mapping(settings.get("added_tokens_decoder")).items()
    further = [{"content": content(entry), "id": int(key)} for key, entry in decoder if key.isascii() and key.isdecimal() and len(key) < 10]
    beside = [{"content": text, "id": number} for text, number in read_json_if_there(folder / "added_tokens.json").items()]
    return [*further, *beside]


def _ids(
    settings: JsonObject,
    added_tokens: Sequence[JsonObject],
    all_tokens: Sequence[JsonObject],
    config: JsonObject,
    roles: Sequence[str],
    added: dict[str, bool],
    folder: Path,
) -> dict[str, int]:
    """Ids by role: those that tokenizer_config.json names come first, then config.json's own, then the end of generation_config.json.

    Where a text begins and ends is told by any file that has the token's id; other roles are told as llama.cpp's converter does, by
    tokenizer.json alone.
    """
    candidates: list[tuple[str, Any]] = []
    for role in roles:
        flag, text = settings.get(f"add_{role}_token"), content(settings.get(f"{role}_token"))
        if isinstance(flag, bool):
            added.setdefault(role, flag)
        if text is not None:
            tokens = all_tokens if role in ("bos", "eos") else added_tokens
            candidates.append((role, next((token.get("id") for token in tokens if token.get("content") == text), None)))
    text_model = mapping(config.get("text_config"))
    for key, role in ((f"{role}_token_id", role) for role in roles):
        stated = config.get(key) if config.get(key) is not None else text_model.get(key)
        # Of several ends, each of which ends a text, the first is the one that a file can name.
        candidates.append((role, stated[0] if role == "eos" and isinstance(stated, list) and stated else stated))
    chosen = read_json_if_there(folder / "generation_config.json").get("eos_token_id")
    candidates.append(("eos", chosen[0] if isinstance(chosen, list) and chosen else chosen))
    ids: dict[str, int] = {}
    for role, number in candidates:
        if type(number) is not int:
            continue
        if not 0 <= number < 2**32:
            raise ModelFormatError(f"{folder} has the {role} token id {str(number)[:40]}", remedy="Correct or remove it in config.json")
        ids.setdefault(role, number)
    return ids


def _post_processing(stored: JsonObject, settings: dict[str, Any], known: bool, roles: list[str], added: dict[str, bool]) -> None:
    """What the post-processor adds around a text decides over `add_*_token`."""
    if not settings.get("bos_token") and settings.get("cls_token"):
        settings["bos_token"] = settings["cls_token"]
    if not settings.get("eos_token") and settings.get("sep_token"):
        settings["eos_token"] = settings["sep_token"]
    for step in objects(stored.get("processors")) or ([dict(stored)] if stored else []):
        kind = step.get("type")
        if kind == "ByteLevel":
            added.setdefault("bos", False)
            added.setdefault("eos", False)
        elif kind == "TemplateProcessing":
            _template(objects(step.get("single")), settings, known, roles, added)


def _template(single: Sequence[JsonObject], settings: dict[str, Any], known: bool, roles: list[str], added: dict[str, bool]) -> None:
    if len(single) < 2:
        return
    first, last = (mapping(part.get("SpecialToken")).get("id") for part in (single[0], single[-1]))
    if isinstance(first, str) and first:
        named = [content(settings.get(f"{role}_token")) for role in ("bos", "cls")]
        if known and named[0] is None:
            settings["bos_token"] = named[0] = first
        added["bos"] = not known or first in named
    if isinstance(last, str) and last:
        eos = settings.get("eos_token")
        if known and last != content(eos):
            if "eot" not in roles:
                roles.append("eot")
                settings["eot_token"] = eos
            settings["eos_token"] = last
        added["eos"] = True


def _chat_templates(folder: Path, settings: JsonObject) -> dict[str, MetadataValue]:
    """Templates by name: those of files, else tokenizer_config.json's, as transformers chooses; others keep what nobody replaces.

    An empty template says nothing. Raises ModelFormatError for an entry that is none.
    """
    templates = _stored_templates(settings.get("chat_template"), folder / "tokenizer_config.json")
    if not templates:
        path = folder / "chat_template.json"
        templates = _stored_templates(read_json_if_there(path).get("chat_template"), path)
    files = [path for path in (folder / "chat_template.jinja",) if is_there(path)]
    read = {path: read_text(path) for path in (*files, *sorted((folder / TEMPLATES).glob("*.jinja")))}
    templates |= {"default" if path in files else path.stem: template for path, template in read.items() if template}
    for template in templates.values():
        if _FILE_NAME.fullmatch(template):
            raise ModelFormatError(
                f"{folder} has the chat template {template[:80]!r}, which is a file's name",
                remedy=f"Put the file's text there, or save it as {folder / 'chat_template.jinja'}",
            )
    named: dict[str, str] = {}
    for name, template in templates.items():
        plain = "".join(letter if letter in string.ascii_letters + string.digits else "_" for letter in name)
        if plain and plain != "default":
            named[plain] = template
    entries = {f"tokenizer.chat_template.{name}": MetadataValue("string", template) for name, template in named.items()}
    if named:
        entries["tokenizer.chat_templates"] = MetadataValue("array", tuple(sorted(named)), "string")
    if "default" in templates:
        entries["tokenizer.chat_template"] = MetadataValue("string", templates["default"])
    return entries


def _stored_templates(stored: object, path: Path) -> dict[str, str]:
    """Templates by name: a text, a list of objects with name and template, or an object by names."""
    if isinstance(stored, str):
        found: dict[str, Any] = {"default": stored}
    elif isinstance(stored, dict):
        found = stored
    elif stored is None or isinstance(stored, list):
        found = {str(one.get("name", "")): one.get("template") for one in objects(stored)}
    else:
        raise ModelFormatError(f"{path} has chat_template = {str(stored)[:80]!r}", remedy="Correct the entry, or take it out")
    return {name: template for name, template in found.items() if isinstance(template, str) and template}


def _normalizer(stored: JsonObject) -> dict[str, MetadataValue]:
    steps = objects(stored.get("normalizers")) if stored.get("type") == "Sequence" else [dict(stored)]
    flags: dict[str, Any] = {}
    for step in steps:
        if step.get("type") == "Lowercase":
            flags["lowercase"] = True
        elif step.get("type") == "StripAccents":
            flags["strip_accents"] = True
        elif step.get("type") == "BertNormalizer":
            flags.update({key: step[key] for key in ("lowercase", "strip_accents") if isinstance(step.get(key), bool)})
    return {f"tokenizer.ggml.normalizer.{key}": MetadataValue("bool", flags[key]) for key in ("lowercase", "strip_accents") if key in flags}
