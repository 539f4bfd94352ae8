"""What measuring is expected to gain, from what files were worth after so many passes on the models that were tried (docs/FRONTIER.md)."""

from __future__ import annotations

from bisect import bisect_right

_PASSES = (0, 8, 16, 32, 64, 128, 256)
_SHARES = (
    (0.499, 0.472, 0.471, 0.471, 0.465, 0.457, 0.456),
    (0.512, 0.438, 0.429, 0.442, 0.439, 0.456, 0.450),
)
"""Of each model: the geometric mean, over sizes, of a file's KLD over that of llama.cpp's preset of its size."""
_ROUND = "with plain rounding, on the two small models that were tried"


def expected_gain(passes: float) -> str:
    """What plans are expected to be worth after so many passes, in a sentence."""
    at = bisect_right(_PASSES, passes) - 1
    without, found = _span(0), _span(at)
    if not at:
        return f"Plans without a pass had {without} of the KL divergence of llama.cpp's presets of their size, {_ROUND}."
    presets = "the KL divergence of llama.cpp's presets of their size"
    return f"Plans from as many passes had {found} of {presets} ({without} without a pass), {_ROUND}."


def _span(at: int) -> str:
    shares = sorted(model[at] for model in _SHARES)
    return f"{shares[0]:.2f} to {shares[-1]:.2f}"
