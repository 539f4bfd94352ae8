"""Rotary position embeddings: metadata of their scaling and the tensors of frequency factors."""

from __future__ import annotations

import math

import numpy as np

from quantailor.errors import ModelFormatError, UnsupportedModelError
from quantailor.models.convert.families.config import COMPLETE, LONG_ROPE, Config, float32, uint32
from quantailor.models.convert.families.rows import PlannedTensor, constant
from quantailor.models.json_files import INSIST, JsonObject
from quantailor.records import MetadataValue


def no_such_rope(config: Config, kind: object, layers: str = "") -> UnsupportedModelError:
    """The error for a rope type that llama.cpp cannot turn some `layers` of a family by."""
    what = f"{config.place} has the rope type {str(kind)[:40]!r}{layers}, which llama.cpp does not have for this family"
    return UnsupportedModelError(what, remedy=INSIST)


def rope_metadata(
    config: Config, rope: JsonObject, notes: list[str], *, long: bool = False, factors: bool = False
) -> dict[str, MetadataValue]:
    """`rope.scaling.*` and `rope.freq_base` of full attention; `long` where the family knows longrope, `factors` where it knows llama3.

    What llama.cpp cannot do is told in `notes`.

    Raises:
        UnsupportedModelError: a rope type that llama.cpp has no keys for.
        ModelFormatError: a value that is not a number, or none that a rope can have.
    """
    kind, factor = rope["rope_type"], rope.get("factor")
    entries: dict[str, MetadataValue] = {}
    if factor is None and kind in ("linear", "yarn"):
        raise ModelFormatError(f"{config.place} has the rope type {kind} without a factor", remedy=COMPLETE)
    base = config.above_zero("rope_theta", rope["rope_theta"])
    if kind == "dynamic":
        length = config.get("max_position_embeddings")
        notes.append(f"llama.cpp has no dynamic rope scaling: it is left out, and texts beyond {length} tokens are not stretched")
    if kind in ("linear", "yarn") and factor is not None:
        entries["rope.scaling.type"] = MetadataValue("string", kind)
        entries["rope.scaling.factor"] = float32(config.above_zero("factor", factor))
    if kind == "yarn" and factor is not None:
        entries.update(_yarn_metadata(config, rope))
    if long and kind in LONG_ROPE:
        entries["rope.scaling.type"] = MetadataValue("string", "longrope")
    if kind not in ("default", "linear", "yarn", "dynamic", *(LONG_ROPE if long else ()), *(("llama3",) if factors else ())):
        raise no_such_rope(config, kind)
    entries["rope.freq_base"] = float32(base)
    return entries


def _yarn_metadata(config: Config, rope: JsonObject) -> dict[str, MetadataValue]:
    length = config.as_count("original_max_position_embeddings", rope.get("original_max_position_embeddings"))
    entries = {"rope.scaling.original_context_length": uint32(length)}
    attention = rope.get("attention_factor", rope.get("attn_factor"))
    for key, value in (
        ("ext_factor", rope.get("extrapolation_factor")),
        ("attn_factor", attention),
        ("beta_fast", rope.get("beta_fast")),
        ("beta_slow", rope.get("beta_slow")),
    ):
        if value is not None:
            entries[f"rope.scaling.yarn_{key}"] = float32(config.as_number(key, value))
    return entries


def llama3_tensor(config: Config, rope: JsonObject, dim: int) -> PlannedTensor:
    """Llama 3.1's frequency factors (arXiv:2407.21783; transformers' rope type "llama3"). Raises ModelFormatError."""
    number = config.as_number
    base = config.above_zero("rope_theta", rope["rope_theta"])
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if missing := next((key for key in keys if rope.get(key) is None), None):
        raise ModelFormatError(f"{config.place} has the rope type llama3 without {missing}", remedy=COMPLETE)
    factor, low, high, length = (number(key, rope[key]) for key in keys)
    if factor <= 0 or low <= 0 or high <= low:
        raise config.wrong("rope_parameters", rope)
    with np.errstate(all="ignore"):
        factors = llama3_factors(dim, base, factor, low, high, length)
    if not np.isfinite(factors).all():
        raise config.wrong("rope_parameters", rope)
    return constant("rope_freqs.weight", factors)


def llama3_factors(dim: int, base: float, factor: float, low: float, high: float, length: float) -> list[float]:
    """What each frequency is divided by: 1 for short wavelengths, `factor` for long ones, a blend between."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    # Float32 steps and reciprocals in torch's order, so that the last bit agrees; powers are rounded correctly.
    one = np.float32(1)
    frequencies = one / np.power(base, exponents.astype(np.float64)).astype(np.float32)
    factors = []
    for frequency in frequencies:
        wavelength = one / frequency * np.float32(2 * math.pi)
        if wavelength < length / high:
            factors.append(1.0)
        elif wavelength > length / low:
            factors.append(factor)
        else:
            smooth = (one / wavelength * np.float32(length) - np.float32(low)) / np.float32(high - low)
            factors.append(float(one / ((one - smooth) / np.float32(factor) + smooth)))
    return factors
