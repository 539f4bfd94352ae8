"""Whether a step can start: disk and memory that it needs at the least, against what the machine has.

Every figure is a lower bound, so that nothing is refused that would run: small files, the database and llama.cpp's own
buffers are left out, what an earlier run may have left counts as there, and where something cannot be known nothing is said.

    memory    importance matrices, covariances and verdicts map the model's file: its pages can give way. A model larger than all
              memory would be read from disk again for every chunk of a verdict, which is refused; for importance matrices and
              covariances chunks run side by side, layer by layer. Probes, sweeps and refinements write into the weights, so these
              must fit beside the rest. Measuring and building stream rows and need next to nothing.
    disk      what goes to one filesystem is added up. A download asks the hub for its sizes and looks for room by itself; what
              comes after it is looked at once the model is here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantailor.costs import machine
from quantailor.costs.model_size import ModelSize
from quantailor.present import words


@dataclass(frozen=True, slots=True)
class Needs:
    """What a step needs at the least."""

    disk: tuple[tuple[Path, int], ...] = ()
    """(place, bytes) of what will be written and is not there."""
    memory_bytes: int = 0
    """What cannot give way."""
    mapped_bytes: int = 0
    """Files that are mapped and read again and again."""
    can_do_without: str = ""
    """What to do where memory cannot hold it, beside taking a smaller model."""

    def __add__(self, other: Needs) -> Needs:
        """One after the other: what is written stays, memory is given back."""
        memory, mapped = max(self.memory_bytes, other.memory_bytes), max(self.mapped_bytes, other.mapped_bytes)
        most = self if self.memory_bytes + self.mapped_bytes >= other.memory_bytes + other.mapped_bytes else other
        return Needs((*self.disk, *other.disk), memory, mapped, most.can_do_without)


def run_as_it_is(size: ModelSize, n_ctx: int, n_gpu_layers: int) -> Needs:
    """A model that is run without changing it, and whose outputs are wanted."""
    mapped = 0 if n_gpu_layers else size.tensor_bytes
    return Needs(memory_bytes=size.context_bytes(n_ctx), mapped_bytes=mapped, can_do_without="do without a verdict (--no-verify)")


def run_layer_by_layer(size: ModelSize, n_ctx: int) -> Needs:
    """A model that is run without changing it, and whose outputs are not wanted: its file may be larger than memory."""
    return Needs(memory_bytes=size.context_bytes(n_ctx))


MOST_TOGETHER = 64
_SHARE_TOGETHER = 0.5
"""Of the free memory, for chunks that run side by side: the rest is for pages of the file, sums and what llama.cpp holds besides."""


def n_together(size: ModelSize, n_ctx: int, n_gpu_layers: int, *, sums_bytes: int = 0) -> int:
    """How many chunks run side by side, so that the file is read from disk once for all of them.

    One, unless the model is larger than the free memory without `sums_bytes`; one on a GPU, which holds its layers.
    """
    free = machine.free_memory_bytes()
    if n_gpu_layers or free is None or size.tensor_bytes + size.chunk_bytes(n_ctx) + sums_bytes <= free:
        return 1
    return max(1, min(MOST_TOGETHER, int(_SHARE_TOGETHER * (free - sums_bytes)) // size.chunk_bytes(n_ctx)))


def run_with_swaps(size: ModelSize, n_ctx: int, n_gpu_layers: int, *, rests_at_8_bits: bool = False) -> Needs:
    """A model whose weights are exchanged; on a GPU they need no memory here."""
    n_bytes = size.resting_bytes if rests_at_8_bits else size.tensor_bytes
    halved = "" if rests_at_8_bits else "probe it at 8 bits (--rest q8_0), "
    ways = f"{halved}put layers on other machines (--rpc), or plan without probes (--basis ranking)"
    return Needs(memory_bytes=size.context_bytes(n_ctx) + (0 if n_gpu_layers else n_bytes), can_do_without=ways)


def shortfalls(home: Path, needs: Needs) -> tuple[str, ...]:
    """What is missing, one sentence each; empty where the step can start, or where that cannot be known. `home` is Quantailor's."""
    return (*_disk_shortfalls(home, needs), *_memory_shortfalls(needs))


def _disk_shortfalls(home: Path, needs: Needs) -> Iterator[str]:
    by_filesystem: dict[int | None, list[tuple[Path, int]]] = defaultdict(list)
    for place, n_bytes in needs.disk:
        by_filesystem[machine.filesystem(place)].append((place, n_bytes))
    for filesystem, rows in by_filesystem.items():
        needed, free = sum(n_bytes for _, n_bytes in rows), machine.free_disk_bytes(rows[0][0])
        if filesystem is None or free is None or needed <= free:
            continue
        place = max(rows, key=lambda row: row[1])[0]
        at_home = place.is_relative_to(home)
        where, elsewhere = (home, "set QUANTAILOR_HOME") if at_home else (place.parent, "write it elsewhere")
        yield f"needs {words.size(needed)} on {where}, {words.size(free)} free: free {words.size(needed - free)} or {elsewhere}"


def _memory_shortfalls(needs: Needs) -> Iterator[str]:
    free, total = machine.free_memory_bytes(), machine.total_memory_bytes()
    ways = f", {needs.can_do_without}" if needs.can_do_without else ""
    if free is not None and needs.memory_bytes > free:
        missing = words.size(needs.memory_bytes - free)
        yield (
            f"needs {words.size(needs.memory_bytes)} of memory, {words.size(free)} free: "
            f"free {missing} (close other programs) or take a smaller model{ways}"
        )
    elif total is not None and needs.mapped_bytes + needs.memory_bytes > total:
        needed = words.size(needs.mapped_bytes + needs.memory_bytes)
        yield f"needs {needed} of memory, this machine has {words.size(total)}: take a smaller model or a larger machine{ways}"
