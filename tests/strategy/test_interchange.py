"""Strategies in other programs' words, and back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantailor.errors import StrategyError, StrategyFormatError
from quantailor.records import Strategy, TensorChoice
from quantailor.strategy.interchange import all_types, ik_custom_q, tensor_type_lines, type_switches
from quantailor.strategy.tensor_types import from_tensor_types

TYPES = ("Q4_K", "Q6_K", "IQ3_XXS", "Q8_0", "BF16")
NAMES = ("output.weight", "token_embd.weight", *(f"blk.{layer}.{role}.weight" for layer in (1, 11) for role in ("attn_q", "attn_qkv")))

names = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\u2028\u2029"), min_size=1, max_size=20)
mixes = st.dictionaries(names, st.sampled_from(TYPES), min_size=1, max_size=6)


def test_a_line_names_one_tensor_as_ggml_spells_types() -> None:
    types = {"blk.0.attn_q.weight": "Q4_K", "output.weight": "IQ3_XXS"}
    assert tensor_type_lines(types) == [r"^blk\.0\.attn_q\.weight$=q4_K", r"^output\.weight$=iq3_xxs"]


def test_a_strategy_keeps_its_order() -> None:
    strategy = Strategy("f", "m", "llama", "manual", tuple(TensorChoice(name, "Q4_K", "") for name in reversed(NAMES)))
    assert [line.rpartition("=")[2] for line in tensor_type_lines(strategy)] == ["q4_K"] * len(NAMES)
    assert list(from_tensor_types("\n".join(tensor_type_lines(strategy)), NAMES)) == list(NAMES)
    assert tensor_type_lines(strategy)[-1].startswith(r"^output\.")


def test_tensors_that_a_strategy_does_not_name_are_told_to_keep_their_type() -> None:
    strategy = Strategy("f", "m", "llama", "manual", (TensorChoice("output.weight", "Q6_K", ""),))
    assert all_types(strategy, {"output.weight": "BF16", "token_embd.weight": "BF16"}) == {
        "output.weight": "Q6_K",
        "token_embd.weight": "BF16",
    }


@given(mixes)
def test_any_names_come_back(types: dict[str, str]) -> None:
    lines = tensor_type_lines(types)
    assert not any(re.search(r"[A-Z\s]", line.rpartition("=")[0], re.ASCII) for line in lines)
    assert from_tensor_types("\n".join(lines), types) == types


@given(mixes)
def test_the_expressions_of_ik_tell_all_tensors_apart(types: dict[str, str]) -> None:
    assert from_ik(ik_custom_q(types), types) == types


def from_ik(argument: str, tensors: dict[str, str]) -> dict[str, str]:
    """As ik_llama.cpp reads it: parts at commas, the first expression that is found."""
    rules = [rule.partition("=") for rule in argument.split(",")]
    return {name: next(kind.upper() for pattern, _, kind in rules if re.search(pattern, name)) for name in tensors}


def test_ik_shares_an_expression_between_layers() -> None:
    types = {f"blk.{layer}.ffn_up.weight": "Q4_K" if layer % 3 else "IQ2_XS" for layer in range(400)}
    argument = ik_custom_q(types)
    assert argument.count("=") == 2
    assert len(argument) < 3000
    assert from_ik(argument, types) == types


def test_ik_lacks_some_types() -> None:
    with pytest.raises(StrategyError, match=r"output\.weight has the type NVFP4, which ik_llama\.cpp lacks"):
        ik_custom_q({"output.weight": "NVFP4"})


def test_embeddings_and_output_have_switches() -> None:
    assert type_switches(dict.fromkeys(NAMES, "Q6_K")) == ("--token-embedding-type", "q6_K", "--output-tensor-type", "q6_K")
    assert type_switches({"token_embd.weight": "Q6_K", "per_layer_token_embd.weight": "Q4_K"}) == ()


def test_the_first_expression_found_anywhere_decides_without_regard_to_case() -> None:
    found = from_tensor_types("  ATTN_QKV=q6_k  attn_q=Q4_0\n\n1\\.attn=q8_0", NAMES)
    assert found == {
        "blk.1.attn_q.weight": "Q4_0",
        "blk.1.attn_qkv.weight": "Q6_K",
        "blk.11.attn_q.weight": "Q4_0",
        "blk.11.attn_qkv.weight": "Q6_K",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("attn_q=q4_0\n; ours", r"types\.txt, line 2: ; is not of the form PATTERN=TYPE"),
        ("attn_q", r"line 1: attn_q is not of the form"),
        ("=q4_0", r"line 1: =q4_0 is not of the form"),
        ("\n\nattn_q=", r"line 3: attn_q= is not of the form"),
        ("attn_q=q9_z", r"line 1: there is no type q9_z\. Known: Q4_K"),
        ("a=q4_k\n(b=q6_k", r"line 2: \(b is not a regular expression"),
        ("[[:alpha:]]=q4_k", r"line 1: the expression \[\[:alpha:\]\] cannot be read here"),
        ("(?i)a=q4_k", r"line 1: the expression \(\?i\)a cannot be read here"),
    ],
)
def test_mistakes_are_named_with_their_line(text: str, message: str) -> None:
    with pytest.raises(StrategyFormatError, match=message):
        from_tensor_types(text, NAMES, name="types.txt", known_types=("Q4_0", *TYPES) if "q4_0" in text else TYPES)
