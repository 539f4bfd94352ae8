"""How much probes and sweeps have to do: chunks to run, weights to exchange, and how much of that the store has."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from quantailor.analysis.sensitivity import NULL_MIX, groups_of
from quantailor.costs.machine import Range
from quantailor.costs.model_size import QUICK_TYPES, ModelSize
from quantailor.costs.seconds import added, compensation_seconds, quantize_seconds
from quantailor.ggml import library
from quantailor.records import Mix, TensorInfo
from quantailor.steps.probe import (
    ALPHA_BITS,
    FIRST_CHUNKS,
    LEAST_BITS,
    LEAST_CHUNKS,
    ProbeStep,
    first_rounds,
)
from quantailor.steps.sweep import SweepStep
from quantailor.strategy.random_mixes import MIX_BITS

EXTRA_TYPES = 0.5
"""Types that a probe may have to try beyond those asked for, over all tensors; single ones may need more."""
_MIXED_TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ2_XXS", "IQ3_XXS", "IQ4_XS")
"""What whole mixes are made of, roughly."""


@dataclass(frozen=True, slots=True)
class SwapWork:
    """What is to be done at the least and at the most."""

    n_chunks: Range
    """Chunks to run, over all mixes."""
    exchange_seconds: Range
    """One thread's time to quantize what is put into the model."""
    n_base: float = 0.0
    """Of the chunks those of the base itself, which its stage does not count."""

    def within(self, passes: float) -> SwapWork:
        """The same where so many chunks are run at most."""
        shares = [min(1.0, passes / n) if n else 1.0 for n in self.n_chunks]
        chunks, seconds = self.n_chunks, self.exchange_seconds
        return SwapWork(
            (shares[0] * chunks[0], shares[1] * chunks[1]), (shares[0] * seconds[0], shares[1] * seconds[1]), shares[0] * self.n_base
        )


@dataclass(frozen=True, slots=True)
class Scored:
    """What the store has of one run."""

    counts: Mapping[str, int]
    """Mix -> chunks."""
    whole_mixes: Sequence[Mix] = ()
    probes_ended: bool = False
    """Whether the probes are as precise as was asked for."""


NOTHING = Scored({})


def _probe_types(tensors: Sequence[TensorInfo], wanted: Sequence[str], measured: Collection[str]) -> list[str]:
    """The types at which `probing` begins with these tensors."""
    can_take = [
        qtype for qtype in library.types().values() if qtype.is_quantized and all(qtype.divides(tensor.n_cols) for tensor in tensors)
    ]
    types = [qtype for qtype in can_take if qtype.name in wanted]
    if not any(qtype.bits_per_weight < ALPHA_BITS for qtype in types):
        others = [qtype for qtype in can_take if qtype.name in measured and qtype.bits_per_weight >= LEAST_BITS]
        types += sorted(others, key=lambda qtype: qtype.bits_per_weight)[:1]
    return list(dict.fromkeys(qtype.name for qtype in types))


def _put_seconds(tensors: Sequence[TensorInfo], type_name: str, *, compensated: bool) -> Range:
    """One thread's time to quantize these tensors once."""
    plain = quantize_seconds({type_name: sum(tensor.n_elements for tensor in tensors)}, n_threads=1)
    if not compensated:
        return plain, plain
    return added((plain, plain), compensation_seconds({tensor: [type_name] for tensor in tensors}, exhaustive=True, n_threads=1))


def single_work(
    size: ModelSize, task: ProbeStep, n_text_chunks: int, scored: Scored, measured: Collection[str], *, compensated: bool
) -> SwapWork:
    """Tensors or groups alone, in rounds, and the base against itself. `measured` are the types whose weight errors are known by then."""
    n_chunks = min(task.chunks, n_text_chunks)
    least, groups = min(LEAST_CHUNKS, n_chunks), groups_of(size.tensors, task.group)
    tensors = {tensor.name: tensor for tensor in size.tensors}
    fewest = most = least_seconds = most_seconds = 0.0
    fewest_rounds, n_rounds = (1 + max(0, math.ceil(math.log2(chunks / FIRST_CHUNKS))) for chunks in (least, n_chunks))
    for group in groups:
        members = [tensors[name] for name in group.tensors]
        for type_name in _probe_types(members, task.types, measured):
            done = min(scored.counts.get(group.mix(type_name).id, 0), n_chunks)
            low, high = _put_seconds(members, type_name, compensated=compensated)
            fewest, least_seconds = fewest + max(0, least - done), least_seconds + fewest_rounds * low * (done < least)
            most, most_seconds = most + n_chunks - done, most_seconds + 2 * n_rounds * high * (done < n_chunks)
    null = n_chunks - min(n_chunks, scored.counts.get(NULL_MIX.id, 0))
    if scored.probes_ended:
        return SwapWork((fewest + null, fewest + null), (least_seconds, 2 * least_seconds))
    extra = EXTRA_TYPES * len(groups) * n_chunks if most else 0
    return SwapWork((fewest + null, most + extra + null), (least_seconds, most_seconds))


def whole_work(size: ModelSize, task: ProbeStep, n_text_chunks: int, scored: Scored, *, compensated: bool) -> SwapWork:
    """Whole mixes in memory and as files, and the base's own run on their chunks."""
    n_chunks = min(task.mix_chunks, n_text_chunks)
    done = sum(min(n_chunks, scored.counts.get(mix.id, 0)) for mix in scored.whole_mixes)
    n_mixes = min(task.mixes, len(scored.whole_mixes) or task.mixes)  # fewer where a model cannot hit every size
    left = max(0, n_mixes * n_chunks - done)
    if not left:
        return SwapWork((0.0, 0.0), (0.0, 0.0))
    base_runs = n_chunks * (2 if size.is_bfloat and task.anchors else 1)
    files = task.anchors * n_chunks
    types = QUICK_TYPES if size.is_large else _MIXED_TYPES
    each = [_put_seconds(size.tensors, name, compensated=compensated) for name in types]
    one_mix = [sum(end) / len(each) for end in zip(*each, strict=True)]
    n_put = left / n_chunks + task.anchors
    n_runs = left + base_runs + files
    return SwapWork((n_runs, n_runs), (n_put * one_mix[0] / 2, n_put * one_mix[1] * 2), base_runs)


def passes_of_mixes(tensors: Sequence[TensorInfo], task: ProbeStep, n_passes: int) -> int:
    """Of the first so many passes those of whole mixes: rounds in their order, then half of what these leave."""
    done, left, n_chunks, of_mixes = set[tuple[str, bool, int]](), n_passes, 0, 0
    for group, n_types, is_first, mix_chunks in first_rounds(tensors, task):
        new = {(each.name, is_first, number) for each in groups_of(tensors, group) for number in range(n_types)} - done
        done |= new
        left -= min(left, len(new))
        more = max(0, min(mix_chunks, task.mix_chunks) - n_chunks)
        whole = min(left, (task.mixes + task.anchors) * more)
        left, n_chunks, of_mixes = left - whole, n_chunks + more, of_mixes + whole
    return of_mixes + left // 2


def sweep_work(size: ModelSize, task: SweepStep, n_text_chunks: int, scored: Scored, *, compensated: bool) -> SwapWork:
    """What is left of a sweep; tensors that take no part in the graph are counted too, so it may be less."""
    n_chunks = min(task.chunks, n_text_chunks)
    n_left, low, high = 0, 0.0, 0.0
    for tensor, type_name in sweep_cells(size, task):
        done = min(n_chunks, scored.counts.get(Mix.of({tensor.name: type_name}).id, 0))
        if done < n_chunks:
            n_left += n_chunks - done
            seconds = _put_seconds([tensor], type_name, compensated=compensated)
            low, high = low + seconds[0], high + 2 * seconds[1]
    return SwapWork((n_left, n_left), (low, high))


def sweep_cells(size: ModelSize, task: SweepStep) -> list[tuple[TensorInfo, str]]:
    """The quantized types that every tensor can take."""
    qtypes = library.types()
    wanted = [qtypes[name] for name in task.types if qtypes[name].is_quantized]
    return [(tensor, qtype.name) for tensor in size.tensors for qtype in wanted if qtype.divides(tensor.n_cols)]


def n_base_chunks(task: ProbeStep | SweepStep, n_text_chunks: int) -> int:
    """Chunks of which the base's log-probabilities are kept."""
    wanted = max(task.chunks, task.mix_chunks) if isinstance(task, ProbeStep) else task.chunks
    return min(n_text_chunks, wanted)


def anchor_bits() -> float:
    """Bits per weight of the largest anchor that is built as a file, for a while."""
    return max(8.5, MIX_BITS[1])
