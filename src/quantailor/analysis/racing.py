"""One file timed against another, in a process of their own, for as long as it takes on a machine that may be busy."""

from __future__ import annotations

from pathlib import Path

from quantailor.analysis.speed import timing_of
from quantailor.control import QUIET, Control
from quantailor.ggml.devices import Devices
from quantailor.ggml.timing import Race
from quantailor.processes import apart
from quantailor.records import Timing

SECONDS, LEAST_LAPS, MOST_LAPS, PATIENCE = 5.0, 8, 60, 4.0
"""How long two files run in turns, and how many times as long where the machine is busy."""


def race(
    reference: Path,
    path: Path,
    quiet: tuple[float, float] | None,
    *,
    n_threads: int | None,
    devices: Devices,
    control: Control = QUIET,
) -> Timing:
    """What a file takes over what a reference takes.

    Args:
        reference: a GGUF file.
        path: another one.
        quiet: what the reference takes at most, per token of a prompt and of what follows, while the machine is not busy (`quiet_limits`).
        n_threads: None takes all processors.
        devices: what takes layers from the processor.
        control: asked between laps.

    Raises CrashError where llama.cpp ends its process, InferenceError where it cannot run a file.
    """
    with apart.holding(Race, (reference, path), n_threads=n_threads, devices=devices) as held:
        laps = held.call(Race.laps, SECONDS, least=LEAST_LAPS, most=MOST_LAPS, patience=PATIENCE, quiet=quiet, control=control)
    return timing_of(*laps, quiet)
