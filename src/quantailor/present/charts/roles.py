"""How a tensor's role is drawn: the same colour, stroke and mark on every screen, whatever other roles a model has."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

from quantailor.present.charts.colours import N_SERIES
from quantailor.present.charts.describe import Marker, Stroke

_KNOWN = (
    *("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "attn_qkv", "token_embd", "output"),
    *("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_inp", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"),
)
"""Roles that often come together lie less than `N_SERIES` apart, so that they differ in colour."""


@dataclass(frozen=True, slots=True)
class RoleLook:
    """What a role's line looks like."""

    colour: str
    """As `Palette.colour` knows it."""
    stroke: Stroke
    marker: Marker


def role_look(role: str) -> RoleLook:
    """Attention is solid, feed-forward dashed, all else dotted, so that colour is never the only difference between them."""
    place = _KNOWN.index(role) if role in _KNOWN else crc32(role.encode())
    stroke, marker = _FAMILIES.get(role.partition("_")[0], _OTHERS)
    return RoleLook(f"series {place % N_SERIES}", stroke, marker)


_FAMILIES: dict[str, tuple[Stroke, Marker]] = {"attn": ("solid", "circle"), "ffn": ("dashed", "diamond")}
_OTHERS: tuple[Stroke, Marker] = ("dotted", "hollow")
