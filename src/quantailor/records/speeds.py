"""How fast files run on one machine: what was timed, and what that predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quantailor.records.measurements import Estimate

SpeedOf = Literal["generation", "prompt"]
"""Tokens that are written one at a time, or those of a text that is read at once."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What one file takes over what the reference takes that ran in turns with it, with standard errors; and the latter in seconds."""

    prompt: Estimate
    generation: Estimate
    reference_prompt_s: float
    """Per token."""
    reference_generation_s: float

    def ratio(self, of: SpeedOf) -> Estimate:
        """One of the two."""
        return self.prompt if of == "prompt" else self.generation

    def reference_s(self, of: SpeedOf) -> float:
        """The reference's seconds per token."""
        return self.reference_prompt_s if of == "prompt" else self.reference_generation_s


@dataclass(frozen=True, slots=True)
class PredictedSpeed:
    """Tokens per second of a file on this machine, before it is built."""

    prompt_tokens_per_second: float
    generation_tokens_per_second: float
    prompt_error: float | None
    """Relative, one standard deviation: how far predictions of random mixes were off; None where no mixes were timed."""
    generation_error: float | None
    n_threads: int
    n_gpu_layers: int

    def tokens_per_second(self, of: SpeedOf) -> float:
        """One of the two."""
        return self.prompt_tokens_per_second if of == "prompt" else self.generation_tokens_per_second
