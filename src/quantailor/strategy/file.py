"""The strategy file: YAML for people, JSON for programs, the same content in both.

A file names every quantizable tensor with its type; everything else says where the choice came from. By
hand it may be as short as

    model: {fingerprint: 3f6c...}
    tensors:
      blk.0.attn_q.weight: Q4_K
      output.weight: {type: Q6_K, reason: I want it so}

with a line for every tensor whose type is a choice: one that is left out is refused, not kept in silence.

Files are checked against the pydantic models below, whose JSON Schema is `docs/strategy.schema.json`. What
YAML allows but a strategy has no use for is refused: anchors, duplicate keys, dates, infinities.
Saving what was loaded gives the same bytes again.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, JsonValue, ValidationError, field_validator, model_validator
from pydantic_core import CoreSchema

from quantailor import files
from quantailor.errors import StrategyError, StrategyFormatError
from quantailor.present import words
from quantailor.records import Basis, Prediction, Strategy, TensorChoice
from quantailor.strategy.constraints import plain

FORMAT_VERSION = 2
"""1 knows no rounding but ggml's own: files that ask for no other are still written as 1."""
MAX_FILE_BYTES = 64 * 2**20
MAX_DEPTH = 24
"""Levels of nesting; a strategy needs five."""

ROUNDINGS = ("plain", "compensated")
"""What `inputs.rounding` may be; left out, it is plain."""

FileFormat = Literal["yaml", "json"]

_HEADER = "# A Quantailor strategy: which type each tensor gets. Types may be edited by hand; `quantailor build` reads this file.\n"
_FastLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
if TYPE_CHECKING:
    from yaml import SafeDumper as _FastDumper
else:
    _FastDumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class _Model(_Section):
    fingerprint: str = Field(min_length=1, description="Fingerprint of the base model; `quantailor inspect` shows it.")
    name: str = Field(default="", description="The model's name, for people.")
    architecture: str = Field(default="", description="`general.architecture`, for example llama.")


class _Prediction(_Section):
    file_size_bytes: int = Field(ge=0, description="Size of the file that `build` writes, exact.")
    tensor_bytes: int = Field(ge=0, description="Bytes of all tensors.")
    bits_per_weight: float = Field(ge=0, description="8 x tensor bytes / weights, over all tensors of the file.")
    damage: float = Field(description="The objective: the sum over all tensors.")
    basis: Basis = "ranking only"
    kld_nats: float | None = Field(default=None, description="Predicted mean KL divergence from the base, nats.")
    kld_interval_nats: tuple[float, float] | None = None
    no_prediction: str | None = Field(default=None, description="Why probes predict no KL divergence, where they do not.")


class _Tensor(_Section):
    type: str = Field(min_length=1, description="ggml type, for example Q4_K.")
    damage: float = Field(default=0.0, description="This tensor's share of the objective.")
    pinned: bool = Field(default=False, description="Set by the user, not by the method.")
    knee: str | None = Field(default=None, description="The type at this tensor's own knee, as a diagnostic.")
    price_range: tuple[float, float | None] | None = Field(
        default=None, description="Prices (damage per byte) between which the optimum keeps this type; null means no upper end."
    )
    reason: str = Field(default="", description="Why, in plain words.")

    @model_validator(mode="before")
    @classmethod
    def _from_shorthand(cls, data: object) -> object:
        return {"type": data, "reason": "written by hand"} if isinstance(data, str) else data

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, object]:
        full = handler.resolve_ref_schema(handler(core_schema))
        return {"anyOf": [{"type": "string", "minLength": 1, "description": "Shorthand: the type alone."}, full]}


class _Document(_Section):
    model_config = ConfigDict(title="Quantailor strategy")

    version: Literal[1, 2] = Field(default=1, description="Version of this file format: 2 where rounding is compensated.")
    model: _Model
    method: str = Field(default="manual", min_length=1, description="optimal, knee, greedy, bins, preset or manual.")
    basis: Basis = Field(default="ranking only", description="What the damage figures rest on.")
    target: dict[str, str | int | float] = Field(default={}, description="What was asked for.")
    parameters: dict[str, JsonValue] = Field(default={}, description="The method's options and the constraints.")
    inputs: dict[str, str | int | float | None] = Field(default={}, description="Where the figures came from.")
    prediction: _Prediction | None = None

    @field_validator("inputs")
    @classmethod
    def _known_rounding(cls, inputs: dict[str, str | int | float | None]) -> dict[str, str | int | float | None]:
        rounding = inputs.get("rounding")
        if rounding not in (None, *ROUNDINGS):
            raise ValueError(f"There is no rounding {_shown(rounding)}: it is {' or '.join(ROUNDINGS)}")
        return inputs

    tensors: dict[str, _Tensor] = Field(min_length=1, description="Tensor name -> type, with the reason.")


def schema() -> dict[str, object]:
    """The JSON Schema of a strategy file (draft 2020-12)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_Document.model_json_schema()}


def dumps(strategy: Strategy, *, format: FileFormat = "yaml", include_prediction: bool = True) -> str:
    """A strategy as text. Without its prediction where the text itself goes into the file whose size is predicted.

    Raises:
        StrategyFormatError: the strategy holds something that the format does not know.
    """
    document = _to_document(strategy, include_prediction=include_prediction)
    if format == "json":
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    document["tensors"] = {name: _Flow(entry) for name, entry in document["tensors"].items()}
    return _HEADER + yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31 - 1)


def loads(text: str, *, name: str = "the strategy", known_types: Collection[str] | None = None) -> Strategy:
    """A strategy from YAML or JSON text.

    Args:
        text: the file's content.
        name: how messages call it, usually the file name.
        known_types: names of the types there are; others are refused. None accepts any name.

    Raises:
        StrategyFormatError: names the line, the field, the value and what to do.
    """
    data = _parse(text, name)
    try:
        document = _Document.model_validate(data)
    except ValidationError as error:
        raise _explain(error, data, text, name) from None
    types = {tensor: _known_type(entry.type, tensor, text, name, known_types) for tensor, entry in document.tensors.items()}
    return _to_strategy(document, types)


def read(path: Path | str, *, known_types: Collection[str] | None = None) -> Strategy:
    """Load a strategy file; see `loads`. Raises StrategyError where the file cannot be read."""
    file = Path(path)
    try:
        files.refuse_streams(file)
        if file.stat().st_size > MAX_FILE_BYTES:
            raise StrategyFormatError(f"{file} is larger than any strategy", remedy="Give the YAML or JSON file that `plan` wrote")
        text = files.read_bytes(file).decode("utf-8-sig")
    except OSError as error:
        raise StrategyError(f"cannot read {file}: {error.strerror or error}", remedy="Check the path") from error
    except UnicodeDecodeError:
        raise StrategyFormatError(f"{file} is not UTF-8 text", remedy="Give the YAML or JSON file that `plan` wrote") from None
    return loads(text, name=str(file), known_types=known_types)


def write(strategy: Strategy, path: Path | str, *, overwrite: bool = False) -> Path:
    """Save a strategy, as JSON where the name ends in `.json`, else as YAML; the file appears whole or not at all.

    Raises:
        OutputError: the file exists and `overwrite` is not set, or it cannot be written.
    """
    file = Path(path)
    text = dumps(strategy, format="json" if file.suffix.lower() == ".json" else "yaml")
    return files.write_text(file, text, overwrite=overwrite)


# --- records to plain data and back


def _to_document(strategy: Strategy, *, include_prediction: bool) -> dict[str, Any]:
    prediction = strategy.prediction if include_prediction else None
    data = {
        "version": 2 if strategy.inputs.get("rounding") == "compensated" else 1,
        "model": {"fingerprint": strategy.model_fingerprint, "name": strategy.model_name, "architecture": strategy.architecture},
        "method": strategy.method,
        "basis": strategy.basis,
        "target": plain(strategy.target),
        "parameters": plain(strategy.parameters),
        "inputs": plain(strategy.inputs),
        "prediction": None if prediction is None else {key: getattr(prediction, key) for key in _Prediction.model_fields},
        "tensors": {choice.name: _tensor_entry(choice) for choice in strategy.tensors},
    }
    if len(strategy.types) != len(strategy.tensors):
        raise StrategyFormatError("the strategy names a tensor twice", remedy="Keep one entry per tensor")
    try:
        document = _Document.model_validate(data).model_dump(mode="json")
    except ValidationError as error:
        raise _explain(error, data, "", "the strategy") from None
    for optional in ("target", "parameters", "inputs", "prediction"):
        if not document[optional]:
            del document[optional]
    for name, entry in document["tensors"].items():
        document["tensors"][name] = {
            key: value for key, value in entry.items() if key in ("type", "damage", "reason") or value not in (None, False)
        }
    return document


def _tensor_entry(choice: TensorChoice) -> dict[str, object]:
    entry: dict[str, object] = {"type": choice.type_name, "damage": choice.damage, "pinned": choice.pinned, "knee": choice.knee}
    if choice.price_range is not None:
        low, high = choice.price_range
        entry["price_range"] = (low, None if math.isinf(high) else high)
    return {**entry, "reason": choice.reason}


def _to_strategy(document: _Document, types: Mapping[str, str]) -> Strategy:
    prediction = document.prediction
    return Strategy(
        model_fingerprint=document.model.fingerprint,
        model_name=document.model.name,
        architecture=document.model.architecture,
        method=document.method,
        tensors=tuple(_to_choice(name, entry, types[name]) for name, entry in document.tensors.items()),
        target=document.target,
        parameters=document.parameters,
        inputs=document.inputs,
        basis=document.basis,
        prediction=None if prediction is None else Prediction(**{key: getattr(prediction, key) for key in _Prediction.model_fields}),
    )


def _to_choice(name: str, entry: _Tensor, type_name: str) -> TensorChoice:
    price_range = None
    if entry.price_range is not None:
        low, high = entry.price_range
        price_range = (low, math.inf if high is None else high)
    return TensorChoice(name, type_name, entry.reason, entry.damage, entry.pinned, entry.knee, price_range)


# --- YAML


class _Flow(dict[str, object]):
    """A mapping that is written on one line."""


class _Dumper(_FastDumper):
    """Block style for the document, one line per tensor, short lists on one line; no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        del data
        return True


def _represent_flow(dumper: yaml.SafeDumper, data: _Flow) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=True)


def _represent_list(dumper: yaml.SafeDumper, data: list[object]) -> yaml.Node:
    plain = all(not isinstance(item, (dict, list)) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=plain)


def _represent_text(dumper: yaml.SafeDumper, data: str) -> yaml.Node:
    # Outside double quotes PyYAML writes these as line breaks, which read back as spaces.
    style = '"' if any(character in data for character in "\n\r\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(_Flow, _represent_flow)
_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, _represent_list)


def _parse(text: str, name: str) -> object:
    try:
        return _parse_json(text) if text.lstrip().startswith("{") else _parse_yaml(text, name)
    except json.JSONDecodeError as error:
        raise StrategyFormatError(f"{name}, line {error.lineno}: {error.msg}", remedy="Correct the JSON there") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}, line {mark.line + 1}" if mark else name
        raise StrategyFormatError(f"{where}: {error.problem or error.context}", remedy="Correct the YAML there") from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise StrategyFormatError(f"{name} is neither YAML nor JSON: {error}", remedy="Give a file that `plan` wrote") from None


def _parse_json(text: str) -> object:
    def unique(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
        keys = dict(pairs)
        if len(keys) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise ValueError(f"the key {twice!r} is there twice")
        return keys

    def refuse(constant: str) -> object:
        raise ValueError(f"{constant} is not a number")

    return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)


def _parse_yaml(text: str, name: str) -> object:
    root = _compose(text)
    if root is None:
        raise StrategyFormatError(f"{name} is empty", remedy="Give a file that `plan` wrote")
    stack = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if str(key.value) in seen:
                    where = f"{name}, line {key.start_mark.line + 1}"
                    raise StrategyFormatError(f"{where}: {key.value} is there twice", remedy="Keep one of them")
                seen.add(str(key.value))
                stack.append(value)
        elif isinstance(node, yaml.SequenceNode):
            stack += node.value
    constructor = yaml.constructor.SafeConstructor()
    return constructor.construct_document(root)


def _compose(text: str) -> yaml.Node | None:
    """The node tree; anchors and deep nesting are refused first, so that small files stay small in memory."""
    depth = 0
    for event in yaml.parse(text, Loader=_FastLoader):
        if isinstance(event, yaml.AliasEvent):
            raise _refusal("a reference to an anchor, which strategies do not use", event)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise _refusal(f"nested deeper than {MAX_DEPTH} levels", event)
    node: yaml.Node | None = yaml.compose(text, Loader=_FastLoader)
    return node


def _refusal(problem: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    mark: Any = event.start_mark
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


# --- messages


def _known_type(type_name: str, tensor: str, text: str, name: str, known_types: Collection[str] | None) -> str:
    if known_types is None or type_name in known_types:
        return type_name
    if type_name.upper() in known_types:
        return type_name.upper()
    where = _where(text, name, ("tensors", tensor))
    raise StrategyFormatError(f"{where}: {tensor} has the unknown type {type_name}", remedy=words.nearest(type_name, sorted(known_types)))


def _explain(error: ValidationError, data: object, text: str, name: str) -> StrategyFormatError:
    first = error.errors(include_url=False)[0]
    path = tuple(first["loc"])
    field = ".".join(str(part) for part in path) or "the file"
    where = _where(text, name, path)
    kind, value = first["type"], _shown(first["input"])
    if not isinstance(data, Mapping):
        return StrategyFormatError(f"{name} is not a strategy: it holds {value}", remedy="Give a file that `plan` wrote")
    if kind == "missing":
        return StrategyFormatError(f"{where}: {field} is missing", remedy="Add it, or let `plan` write the file")
    if path == ("version",):
        remedy = f"This program reads versions up to {FORMAT_VERSION}; update it for a newer one"
        return StrategyFormatError(f"{where}: the format version is {value}", remedy=remedy)
    if kind == "value_error":
        return StrategyFormatError(f"{where}: {first['ctx']['error']}", remedy="Correct it, or update this program for a newer file")
    if path == ("tensors",) and kind == "too_short":
        return StrategyFormatError(f"{where}: tensors is empty", remedy="Name at least one tensor")
    if kind == "extra_forbidden":
        return StrategyFormatError(f"{where}: there is no field {field}", remedy=_field_hint(path))
    quotes = ", or put it in quotes" if kind == "string_type" and isinstance(first["input"], (int, float, bool)) else ""
    return StrategyFormatError(f"{where}: {field} is {value}", remedy=f"{first['msg'].replace('Input should', 'It should')}{quotes}")


def _field_hint(path: tuple[int | str, ...]) -> str:
    sections: dict[str, type[_Section]] = {"model": _Model, "prediction": _Prediction, "tensors": _Tensor}
    section = sections.get(str(path[0]), _Document) if len(path) > 1 else _Document
    return f"Fields here are {', '.join(section.model_fields)}"


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _where(text: str, name: str, path: Sequence[int | str]) -> str:
    """`name, line N` of the deepest part of `path` that the text has."""
    try:
        node = _compose(text)
    except (yaml.YAMLError, ValueError):
        node = None
    if node is None:
        return name
    line = node.start_mark.line
    for part in path:
        child = next((pair for pair in _children(node) if pair[0] == part), None)
        if child is None:
            break
        _, line, node = child
    return f"{name}, line {line + 1}"


def _children(node: yaml.Node) -> list[tuple[int | str, int, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        return [(key.value, key.start_mark.line, value) for key, value in node.value]
    if isinstance(node, yaml.SequenceNode):
        return [(position, value.start_mark.line, value) for position, value in enumerate(node.value)]
    return []
