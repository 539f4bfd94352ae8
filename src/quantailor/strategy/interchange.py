"""Strategies in the forms that other programs read: llama.cpp's `--tensor-type-file`, ik_llama.cpp's `--custom-q`.

llama-quantize reads the file word by word, each `PATTERN=TYPE`, with no comments. It lower-cases the patterns and takes
the first that is found anywhere in a tensor's name, so a line for one tensor is anchored at both ends, and what lower
case, spaces, commas or "=" would break is written as a hexadecimal escape. ik_llama.cpp takes the same expressions in
one argument, separated by commas; tensors of one role and type share an expression there, because arguments have a
limited length.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from quantailor.errors import StrategyError
from quantailor.records import Strategy, layer_of

EMBEDDINGS = "token_embd.weight"
EMBEDDINGS_PER_LAYER = "per_layer_token_embd.weight"
OUTPUT = "output.weight"

MISSING_IN_IK = frozenset({"TQ1_0", "TQ2_0", "NVFP4", "Q1_0", "Q2_0"})
"""Types of llama.cpp that ik_llama.cpp does not have."""

_SPECIAL = frozenset(r".[]{}()*+?^$|\/")
_PLAIN = re.compile(r"[a-z0-9_-]")


def type_word(type_name: str) -> str:
    """A type as ggml spells it itself: "Q4_K" gives "q4_K". ik_llama.cpp knows no other spelling."""
    return re.sub(r"_k$", "_K", type_name.lower())


def exact_pattern(text: str) -> str:
    """An expression that matches this text and no other, also after it was lower-cased."""
    return f"^{_escaped(text)}$"


def _escaped(text: str) -> str:
    return "".join(map(_escaped_letter, text))


def _escaped_letter(letter: str) -> str:
    if _PLAIN.fullmatch(letter):
        return letter
    if letter in _SPECIAL:
        return f"\\{letter}"
    return f"\\x{ord(letter):02x}" if ord(letter) < 0x80 else letter


def all_types(strategy: Strategy, source_types: Mapping[str, str]) -> dict[str, str]:
    """The type of every tensor in `source_types` (tensor -> its type in the base) that the strategy's file has.

    Tensors that the strategy does not name keep their type, which llama-quantize has to be given.
    """
    chosen = strategy.types
    return {name: chosen.get(name, type_name) for name, type_name in source_types.items()}


def tensor_type_lines(types: Strategy | Mapping[str, str]) -> list[str]:
    """One line `^name$=type` per tensor, in the strategy's order, for llama-quantize's `--tensor-type-file`."""
    return [f"{exact_pattern(name)}={type_word(type_name)}" for name, type_name in _types(types).items()]


def type_switches(types: Strategy | Mapping[str, str]) -> tuple[str, ...]:
    """The switches that llama-quantize has for the embeddings and the output, which go before any pattern.

    Older versions of it heed patterns for blocks only. One that would also take hold of another table (the embeddings
    per layer, where their type differs) is left out: the patterns tell those apart.
    """
    type_of, named = _types(types), []
    embeddings = type_of.get(EMBEDDINGS)
    if embeddings is not None and type_of.get(EMBEDDINGS_PER_LAYER, embeddings) == embeddings:
        named += ["--token-embedding-type", type_word(embeddings)]
    if OUTPUT in type_of:
        named += ["--output-tensor-type", type_word(type_of[OUTPUT])]
    return tuple(named)


def ik_custom_q(types: Strategy | Mapping[str, str]) -> str:
    """The argument of ik_llama.cpp's `--custom-q`: `regex=type`, separated by commas.

    Raises:
        StrategyError: a type that ik_llama.cpp does not have.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    rules = []
    for name, type_name in _types(types).items():
        if type_name in MISSING_IN_IK:
            raise StrategyError(f"{name} has the type {type_name}, which ik_llama.cpp lacks", remedy="Choose another type for it")
        layer = layer_of(name)
        if layer is None:
            rules.append(f"{exact_pattern(name)}={type_word(type_name)}")
        else:
            groups.setdefault((name.removeprefix(f"blk.{layer}."), type_name), []).append(layer)
    rules += [_layers_rule(rest, type_name, layers) for (rest, type_name), layers in groups.items()]
    return ",".join(rules)


def _layers_rule(rest: str, type_name: str, layers: list[int]) -> str:
    numbers = str(layers[0]) if len(layers) == 1 else f"({'|'.join(map(str, sorted(layers)))})"
    return rf"^blk\.{numbers}\.{_escaped(rest)}$={type_word(type_name)}"


def _types(types: Strategy | Mapping[str, str]) -> Mapping[str, str]:
    return types.types if isinstance(types, Strategy) else types
