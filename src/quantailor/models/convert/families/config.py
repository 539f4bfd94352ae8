"""config.json with the defaults that its family implies, and typed access to its values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from quantailor.errors import ModelFormatError
from quantailor.models.json_files import JsonObject, mapping
from quantailor.records import MetadataValue

MAX_COUNT = 2**31 - 1
COMPLETE = "Complete rope_parameters (or rope_scaling), or take the entry out where the model's makers did without"
_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Of layers that may have rope parameters of their own."""
LONG_ROPE = ("longrope", "su")
"""One rope type: Phi's first files have its other name."""
ROPE_KEYS = ("rope_theta", "rope_local_base_freq", "rope_parameters", "rope_scaling")


def float32(value: float) -> MetadataValue:
    """A float32 metadata value as a reader of the file sees it."""
    return MetadataValue("float32", float(np.float32(value)))


def uint32(value: int) -> MetadataValue:
    return MetadataValue("uint32", value)


_SHORT = {
    "vocab": "vocab_size",
    "width": "hidden_size",
    "feed_forward": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "context": "max_position_embeddings",
    "eps": "rms_norm_eps",
    "rope_base": "default_rope_theta",
}


def assumed(**values: Any) -> dict[str, Any]:
    """Values that transformers assumes for keys that config.json leaves out, the commonest under short names (`_SHORT`)."""
    return {_SHORT.get(key, key): value for key, value in values.items()}


def _is_same_type(one: object, other: object) -> bool:
    return one == other or (one in LONG_ROPE and other in LONG_ROPE)


class Config:
    """Values of one configuration; an absent key takes the family's default, a null one has no value."""

    def __init__(self, values: JsonObject, defaults: JsonObject, place: str) -> None:
        self.place = place
        self._values, self._stated = {**defaults, **values}, values.keys()
        if values.get("rope_scaling"):
            self._values["rope_parameters"] = values.get("rope_parameters")

    def get(self, key: str) -> Any:
        """The raw value, None where there is none."""
        return self._values.get(key)

    def count(self, key: str, *, most: int = MAX_COUNT) -> int:
        """A positive integer. Raises ModelFormatError."""
        value = self.get(key)
        if type(value) is not int or not 1 <= value <= most:
            raise self.wrong(key, value)
        return value

    def optional_count(self, key: str) -> int | None:
        return None if self.get(key) is None else self.count(key)

    def number(self, key: str) -> float:
        """A finite number. Raises ModelFormatError."""
        return self.as_number(key, self.get(key))

    def as_number(self, key: str, value: object) -> float:
        """A value as a finite number. Raises ModelFormatError, which names `key`."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, value, ", which is no number")
        if abs(value) > 1e38 or not math.isfinite(value):
            raise self.wrong(key, value)
        return float(value)

    def above_zero(self, key: str, value: object) -> float:
        """A value as a positive number. Raises ModelFormatError, which names `key`."""
        number = self.as_number(key, value)
        if number <= 0:
            raise self.wrong(key, number)
        return number

    def as_count(self, key: str, value: object) -> int:
        """A value as a whole number, which may be written as a float (8192.0). Raises ModelFormatError."""
        number = self.as_number(key, value)
        if not 0 <= number <= MAX_COUNT:
            raise self.wrong(key, value)
        return int(number)

    def wrong(self, key: str, value: Any, why: str = "") -> ModelFormatError:
        return ModelFormatError(f"{self.place} has {key} = {str(value)[:80]!r}{why}", remedy="Check the file or download the model again")

    @property
    def overruled_ropes(self) -> list[str]:
        """What config.json says twice and differently of rotations, in words, with what is taken."""
        return [*self._overruled_bases(), *self._overruled_lengths(), *self._overruled_types()]

    def _overruled_bases(self) -> list[str]:
        """Bases of rotation that contradict the entry which transformers 5 takes them from; earlier versions take these."""
        stored, scaling = self._objects("rope_parameters"), self._objects("rope_scaling")
        entries = (
            ("rope_theta", "rope_parameters", stored),
            ("rope_theta", "rope_scaling", scaling),
            ("rope_theta", "rope_parameters.full_attention", mapping(stored.get("full_attention"))),
            ("rope_local_base_freq", "rope_parameters.sliding_attention", mapping(stored.get("sliding_attention"))),
        )
        return [
            f"config.json has {key} = {str(self.get(key))[:40]} and, in {place}, rope_theta = {str(entry['rope_theta'])[:40]}: the latter "
            "is taken, as transformers 5 does; its earlier versions take the former, so remove the wrong one"
            for key, place, entry in entries
            if None not in (self.get(key), entry.get("rope_theta")) and self.get(key) != entry["rope_theta"]
        ]

    def _overruled_lengths(self) -> list[str]:
        """Lengths that a model was trained for first, in an entry, where transformers takes the one beside it."""
        outer = self.get("original_max_position_embeddings")
        assumed = "" if "original_max_position_embeddings" in self._stated else ", which transformers assumes"
        return [
            f"{place} of config.json has original_max_position_embeddings = {str(entry['original_max_position_embeddings'])[:40]}, and "
            f"beside it the value is {str(outer)[:40]}{assumed}: the latter is taken, as transformers does; correct the wrong one"
            for place, entry in self._entries()
            if None not in (outer, entry.get("original_max_position_embeddings")) and outer != entry["original_max_position_embeddings"]
        ]

    def _overruled_types(self) -> list[str]:
        return [
            f"{place} of config.json has rope_type = {str(entry['rope_type'])[:40]!r} and type = {str(entry['type'])[:40]!r}: the former "
            "is taken, as transformers does; remove the wrong one"
            for place, entry in self._entries()
            if entry.get("rope_type") and entry.get("type") and not _is_same_type(entry["rope_type"], entry["type"])
        ]

    def _entries(self) -> list[tuple[str, JsonObject]]:
        stored = self._objects("rope_parameters")
        kinds = [(f"rope_parameters.{kind}", mapping(stored.get(kind))) for kind in sorted(_KINDS & stored.keys())]
        return [*(kinds or [("rope_parameters", stored)]), ("rope_scaling", self._objects("rope_scaling"))]

    @property
    def rope(self) -> dict[str, Any]:
        """Rope parameters of all layers: `rope_parameters` and the older `rope_scaling`, with `rope_theta` beside them.

        Raises ModelFormatError where they contradict each other.
        """
        stored = self._objects("rope_parameters")
        if _KINDS & stored.keys():
            kinds = [self._object(f"rope_parameters.{kind}", stored.get(kind)) for kind in sorted(_KINDS & stored.keys())]
            if any(kind != kinds[0] for kind in kinds):
                raise self.wrong("rope_parameters", stored)
            stored = kinds[0]
        rope = self._merged(stored, self._objects("rope_scaling"))
        rope.setdefault("rope_theta", self.get("rope_theta") if self.get("rope_theta") is not None else self.get("default_rope_theta"))
        if rope["rope_type"] in ("llama3", "yarn", *LONG_ROPE):
            outer = self.get("original_max_position_embeddings")
            rope.setdefault("original_max_position_embeddings", self.get("max_position_embeddings"))
            if outer is not None:
                rope["original_max_position_embeddings"] = outer
        return rope

    def ropes(self, bases: Mapping[str, float]) -> list[dict[str, Any]]:
        """Rope parameters of each kind of layer, in the order of `bases`; older files hold those of full attention alone.

        Raises ModelFormatError.
        """
        stored, outer = self._objects("rope_parameters"), self._objects("rope_scaling")
        older = {"full_attention": ("rope_theta", outer), "sliding_attention": ("rope_local_base_freq", {})}
        ropes = []
        for kind, base in bases.items():
            key, scaling = older[kind]
            flat = stored if kind == "full_attention" and not _KINDS & stored.keys() else {}
            rope = self._merged(self._object("rope_parameters", stored.get(kind)) or flat, scaling)
            rope.setdefault("rope_theta", self.get(key) if self.get(key) is not None else base)
            ropes.append(rope)
        return ropes

    def _merged(self, newer: JsonObject, older: JsonObject) -> dict[str, Any]:
        """What `rope_parameters` and `rope_scaling` say together; the type "default" says nothing. Raises ModelFormatError."""
        sides = []
        for side in (newer, older):
            kind = side.get("rope_type") or side.get("type")
            plain = {key: value for key, value in side.items() if key not in ("rope_type", "type")}
            sides.append(plain if kind in (None, "default") else {**plain, "rope_type": kind})
        for key in sides[0].keys() & sides[1].keys():
            if sides[0][key] != sides[1][key] and not (key == "rope_type" and _is_same_type(*(side[key] for side in sides))):
                said = [str(side[key])[:40] for side in sides]
                raise ModelFormatError(
                    f"{self.place} has {key} = {said[0]!r} in rope_parameters and {said[1]!r} in rope_scaling",
                    remedy="Keep the right one of the two entries",
                )
        rope = {"rope_type": "default", **sides[0], **sides[1]}
        if rope.get("factor") not in (None, 1) and not any(side.get("rope_type") or side.get("type") for side in (newer, older)):
            raise ModelFormatError(
                f"{self.place} has the rope factor {str(rope['factor'])[:40]} and no rope type that says what it means", remedy=COMPLETE
            )
        return rope

    def _objects(self, key: str) -> JsonObject:
        """An object, empty where there is none. Raises ModelFormatError."""
        return self._object(key, self.get(key))

    def _object(self, key: str, value: object) -> JsonObject:
        if value and not isinstance(value, dict):
            raise self.wrong(key, value)
        return mapping(value)
