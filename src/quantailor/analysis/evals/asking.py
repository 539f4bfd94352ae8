"""Items put to files, one after the other, in the process that runs llama.cpp.

An item's answer depends on the file and the item alone, so that an evaluation may be stopped and taken up anywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from quantailor.control import QUIET, Control, ProgressCounter
from quantailor.ggml.devices import PROCESSOR, Devices
from quantailor.ggml.generating import Writer
from quantailor.processes import apart
from quantailor.processes.messages import doing
from quantailor.records import EvalItem


class Item(Protocol):
    """Something to ask a model."""

    @property
    def n_tokens(self) -> int:
        """Tokens of context that it takes."""

    @property
    def n_branches(self) -> int:
        """Sequences that it takes at once."""

    def answer(self, model: Writer) -> tuple[float, ...]:
        """What the model answers. Raises InferenceError."""


def ask(
    files: Mapping[str, Path],
    items: Sequence[Item],
    *,
    done: Mapping[str, Collection[int]] | None = None,
    control: Control = QUIET,
    n_threads: int | None = None,
    devices: Devices = PROCESSOR,
) -> Iterator[tuple[str, EvalItem]]:
    """The answers of every file to every item that it has not answered yet, each as soon as it is known.

    Args:
        files: label -> GGUF file.
        items: what is asked.
        done: label -> numbers of items that are answered already.
        control: asked before every item whether to go on; progress counts items of all files.
        n_threads: None takes all processors.
        devices: what takes layers from the processor.

    Raises:
        InferenceError: llama.cpp cannot load or run a file.
    """
    missing = {label: sorted(set(range(len(items))).difference((done or {}).get(label, ()))) for label in files}
    if any(missing.values()):
        control.check()
        yield from apart.stream(_answers, files, items, missing, n_threads, devices, control=control)


def _answers(
    files: Mapping[str, Path],
    items: Sequence[Item],
    missing: Mapping[str, Sequence[int]],
    n_threads: int | None,
    devices: Devices,
    *,
    control: Control,
) -> Iterator[tuple[str, EvalItem]]:
    """As `ask`; `missing` is label -> numbers."""
    n_ctx, n_branches = max(item.n_tokens for item in items), max(item.n_branches for item in items)
    progress = ProgressCounter(control, sum(map(len, missing.values())))
    for label, path in files.items():
        if missing[label]:
            with Writer(path, n_ctx=n_ctx, n_threads=n_threads, devices=devices, n_branches=n_branches) as model:
                for index in missing[label]:
                    doing(f"running item {index + 1} through {path}")
                    yield label, EvalItem(index, items[index].answer(model))
                    progress.add(1, f"{label}, item {index + 1}")
