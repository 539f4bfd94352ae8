"""The quantized types that this machine's ggml has, as cases of a test."""

from __future__ import annotations

import pytest

from quantailor.ggml import library

SET_UP_LONG = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
"""ggml makes large tables for most of these first, seconds in each process, and the search for their vectors takes long to compile."""
QUANTIZED = [
    pytest.param(qtype, id=qtype.name, marks=[pytest.mark.slow] if qtype.name in SET_UP_LONG else [])
    for qtype in library.types().values()
    if qtype.is_quantized
]

every_quantized_type = pytest.mark.parametrize("qtype", QUANTIZED)
