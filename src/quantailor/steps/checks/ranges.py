"""Which values the numbers of every step may have, whichever face they come from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from quantailor.errors import OptionError

RANGES: Mapping[str, tuple[float, float]] = {
    "n_threads": (1, 512),
    "n_gpu_layers": (0, 10_000),
    "n_ctx": (32, 131_072),
    "chunks": (1, 1_000_000),
    "mix_chunks": (1, 1_000_000),
    "prompts": (2, 100_000),
    "probe_chunks": (1, 1_000_000),
    "imatrix_chunks": (1, 1_000_000),
    "mixes": (0, 10_000),
    "anchors": (0, 3),
    "weighing": (0, 10_000),
    "target_error": (0.001, 1),
    "seconds": (1, 1e8),
    "passes": (1, 1_000_000_000),
    "total_passes": (1, 1_000_000_000),
    "swaps": (0, 100_000),
    "size_bytes": (1, 2**60),
    "memory_bytes": (2**20, 2**60),
    "split_max_bytes": (1, 2**60),
    "bits_per_weight": (0.001, 32),
    "kld_nats": (1e-30, 1e6),
}
"""Field of a step -> smallest and largest value."""


def check_ranges(options: object) -> None:
    """Look at every number of a step and of the records in it. Raises OptionError for one that is out of range."""
    if not dataclasses.is_dataclass(options):
        return
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and field.name in RANGES:
            low, high = RANGES[field.name]
            if not (math.isfinite(value) and low <= value <= high):
                raise OptionError(f"{field.name} is {value}", remedy=f"Give a number from {low:,} to {high:,}")
        check_ranges(value)
