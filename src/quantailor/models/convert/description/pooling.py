"""How a directory of Sentence Transformers says that a text becomes one vector."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from quantailor.models.json_files import is_there, mapping, objects, parse_any_json, read_bytes, read_json_if_there

MODULES = "modules.json"
_WAYS = {"pooling_mode_mean_tokens": 1, "pooling_mode_cls_token": 2, "pooling_mode_lasttoken": 3}
"""The ways that llama.cpp has, as it counts them (`llama_pooling_type` in its llama.h)."""
_WORDS = {"mean": 1, "cls": 2, "lasttoken": 3}
"""The same where `pooling_mode` names one."""
NAMES = {1: "mean", 2: "cls", 3: "last"}
"""How its programs call them (`--pooling`)."""


def pooling_of(folder: Path) -> int | None:
    """The way of pooling that modules.json names; None for a model that is no embedding model, or pools in another way.

    Raises ModelError where a file cannot be read, or holds something else.
    """
    path = folder / MODULES
    if not is_there(path):
        return None
    modules = objects(parse_any_json(read_bytes(path), str(path)))
    place = next((module.get("path") for module in modules if str(module.get("type")).endswith("Pooling")), None)
    if not isinstance(place, str) or len(PurePosixPath(place).parts) != 1 or PurePosixPath(place).name != place:
        return None
    settings = mapping(read_json_if_there(folder / place / "config.json"))
    return next((number for key, number in _WAYS.items() if settings.get(key) is True), _WORDS.get(str(settings.get("pooling_mode"))))
