"""What the plain records work out for themselves: ids of mixes, parts of a model."""

from __future__ import annotations

import pytest

from quantailor.records import Mix, part_of

TYPES = {"blk.0.attn_q.weight": "Q4_K", "blk.1.attn_q.weight": "Q6_K", "output.weight": "Q8_0"}


def test_equal_mixes_have_equal_ids_in_whatever_order() -> None:
    assert Mix.of(TYPES).id == Mix.of(dict(reversed(TYPES.items()))).id
    assert Mix.of(TYPES).types == TYPES


@pytest.mark.parametrize(
    "other",
    [
        {**TYPES, "output.weight": "Q6_K"},
        {**TYPES, "token_embd.weight": "Q8_0"},
        {name: type_name for name, type_name in TYPES.items() if name != "output.weight"},
        {**TYPES, "blk.0.attn_q.weight": "Q6_K", "blk.1.attn_q.weight": "Q4_K"},
    ],
)
def test_different_mixes_have_different_ids(other: dict[str, str]) -> None:
    assert Mix.of(other).id != Mix.of(TYPES).id


def test_small_mixes_are_readable() -> None:
    assert Mix.of({"output.weight": "Q8_0"}).id == "output.weight=Q8_0"
    assert Mix.of({}).id == ""


def test_a_mix_does_not_change_with_the_types_it_was_made_of() -> None:
    types = dict(TYPES)
    mix = Mix.of(types)
    types.clear()
    assert mix.types == TYPES


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("output.weight", "output"),
        ("token_embd.weight", "embeddings"),
        ("output_norm.weight", "embeddings"),
        ("per_layer_token_embd.weight", "embeddings"),
        ("blk.0.attn_output.weight", "blocks"),
        ("blk.31.ffn_down_exps.weight", "blocks"),
    ],
)
def test_the_part_of_a_model_a_tensor_belongs_to(name: str, part: str) -> None:
    assert part_of(name) == part
