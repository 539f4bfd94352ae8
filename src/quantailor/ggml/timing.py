"""How long llama.cpp takes for tokens: two model files run in turns, so that whatever else a machine does slows both alike.

Files run as users' programs run them: weights mapped, and copied into the layouts that processors multiply faster where llama.cpp does so
by itself. On a machine that others use, too, nearly every run is interrupted by something, and always a little later. Each file therefore
runs a few times in a row, of which the fastest counts, and then it is the other one's turn: what is measured is the ratio of neighbours.
"""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from quantailor.control import QUIET, Control
from quantailor.files import Closing
from quantailor.ggml import library
from quantailor.ggml.devices import Devices
from quantailor.ggml.generating import Writer
from quantailor.numerics import Doubles, Tokens
from quantailor.processes.messages import doing

N_PROMPT, N_WRITTEN = 64, 32
"""Tokens of a prompt, which run at once, and of what is written after it, one at a time."""
_PROMPTS_IN_A_ROW, _TOKENS_IN_A_ROW = 4, 8
_SEED = 7
_MODEL_NAME = re.compile(r"^model name\s*:\s*(.+)$", re.MULTILINE)


class Race(Closing):
    """Two models that are loaded side by side, in the memory of both.

    Args:
        paths: GGUF files.
        n_threads: None takes all processors.
        devices: what takes layers from the processor.

    Raises:
        InferenceError: llama.cpp cannot run one of them.
    """

    def __init__(self, paths: tuple[Path, Path], *, n_threads: int | None, devices: Devices) -> None:
        self._models: list[_Timed] = []
        try:
            for path in paths:
                self._models.append(_Timed(path, n_ctx=N_PROMPT + N_WRITTEN, n_threads=n_threads, devices=devices))
            rng = np.random.default_rng(_SEED)
            self._prompt: Tokens = rng.integers(0, self._models[0].n_vocab, N_PROMPT).astype(np.int32)
            self._written: Tokens = rng.integers(0, self._models[0].n_vocab, N_WRITTEN).astype(np.int32)
            for model in self._models:  # what is mapped is read from the disk now
                model.read(self._prompt)
                model.write(self._written[:1], N_PROMPT)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release both models."""
        for model in self._models:
            model.close()
        self._models = []

    def laps(
        self,
        seconds: float,
        *,
        least: int,
        most: int,
        patience: float = 1.0,
        quiet: tuple[float, float] | None = None,
        control: Control = QUIET,
    ) -> tuple[Doubles, Doubles]:
        """Run both in turns for about so long, between `least` and `most` laps.

        Args:
            seconds: for all laps.
            least: laps at the least.
            most: laps at most.
            patience: so many times the seconds may be used where the machine is busy.
            quiet: what the first model takes, per token of a prompt and of what follows, where it is not; half as many turns as the
                least laps are to be no slower.
            control: asked between laps.

        Returns:
            Seconds per token: of prompts, (n_laps, 2), and of what is written after them, (n_turns, 2); each the fastest of its turn.
        """
        reading, writing = list[list[float]](), list[list[float]]()
        doing("timing tokens")
        begin = time.perf_counter()
        while True:
            taken = time.perf_counter() - begin
            is_enough = quiet is None or all(
                2 * sum(turn[0] <= limit for turn in turns) >= least for turns, limit in zip((reading, writing), quiet, strict=True)
            )
            if len(reading) >= least and (taken >= seconds * (1 if is_enough else patience) or (is_enough and len(reading) >= most)):
                break
            control.check()
            order = (0, 1) if len(reading) % 2 == 0 else (1, 0)
            reading.append(self._turn(order, lambda model: [model.read(self._prompt) for _ in range(_PROMPTS_IN_A_ROW)]))
            for start in range(0, N_WRITTEN, _TOKENS_IN_A_ROW):
                tokens = self._written[start : start + _TOKENS_IN_A_ROW]
                writing.append(self._turn(order, partial(_Timed.write, tokens=tokens, position=N_PROMPT + start)))
        return np.array(reading), np.array(writing)

    def _turn(self, order: Sequence[int], run: Callable[[_Timed], Sequence[float]]) -> list[float]:
        found = [0.0, 0.0]
        for number in order:
            found[number] = min(run(self._models[number]))
        return found


class _Timed(Writer):
    """A model that says how long it took."""

    def read(self, prompt: Tokens) -> float:
        """Seconds per token of a prompt, (n_prompt,), with which its memory begins anew."""
        begin = time.perf_counter()
        self.decode(prompt, first=len(prompt) - 1)
        self._llama.llama_synchronize(self._context)
        return (time.perf_counter() - begin) / len(prompt)

    def write(self, tokens: Tokens, position: int) -> list[float]:
        """Seconds of each of some tokens, (n_tokens,), from a place on."""
        at, seconds = time.perf_counter(), []
        for number, token in enumerate(tokens.tolist()):
            begin = at
            self.after(token, position + number)
            at = time.perf_counter()
            seconds.append(at - begin)
        return seconds


def processor_name() -> str:
    """What this machine's processor calls itself; its architecture where it does not."""
    try:
        found = _MODEL_NAME.search(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def kernels(devices: Devices) -> str:
    """What of a machine and of llama.cpp decides how fast a type is, beside threads and layers: processor, its instructions, the build."""
    return "; ".join((processor_name(), library.processor(), devices.engine))
