"""A base that rests at 8 bits while mixes are measured: half the memory, with its own log-probabilities as reference.

Its weights rest in Q8_0, but for those of the output matrix, whose logits are the reference, and those that no block fits. What is swapped
in is quantized from the weights as they are stored. Kernels of Q8_0 round the inputs of every product to 8 bits, and any change in the
model, however small, leads to other roundings downstream. That puts a floor under every divergence, much the same for all tensors and
types, which does not add up. A few tensors at a type whose own damage drowns in it tell how large it is, and it is taken off. Types of
`DROWNED_BITS` and more cannot be told from it, nor what kernels cost by rounding inputs.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from quantailor.ggml import library
from quantailor.ggml.observing import OUTPUT_MATRICES
from quantailor.models.source import ModelSource
from quantailor.qtypes import never_quantized
from quantailor.records import ChunkScore, Mix, TensorInfo

Rest = Literal["16", "q8_0"]
"""What a base rests in: as it is stored (or as finely), or at 8 bits."""
RESTING = "Q8_0"
RESTS = "base at 8 bits"
"""The stage that writes such a base."""
DROWNED_BITS = 6.0
"""Bits per weight from which on a type's damage drowns in the floor."""
UNSURE_BITS, SURE_FLOORS = 4.0, 10.0
"""From so many bits on a score tells something only where it is so many floors."""
FLOOR_TYPE, N_FLOOR_PROBES = "Q6_K", 4
"""What tells the floor: so many of the smallest tensors, from all over the depth, at a type that drowns."""
FLOOR_SPREAD = 0.4
"""How far the floor of one tensor lies from that of others: what is left below, relative to it, is not known."""
_MOST = 0.9
"""Of a divergence the floor takes no more."""


def is_told(type_name: str, rest: str) -> bool:
    """Whether a probe at a type tells anything beside a base that rests in `rest` (`SwapKey.rest`)."""
    return not rest or library.types()[type_name].bits_per_weight < DROWNED_BITS


def resting_types(source: ModelSource) -> Mapping[str, str]:
    """Tensor -> the type that it rests in, of those that rest at 8 bits."""
    qtypes = library.types()
    names = {tensor.name for tensor in source.tensors}
    output = next((name for name in OUTPUT_MATRICES if name in names), "")

    def rests(tensor: TensorInfo) -> bool:
        is_choice = never_quantized(tensor, source.architecture) is None and tensor.name != output
        return is_choice and qtypes[RESTING].divides(tensor.n_cols) and not qtypes[tensor.type_name].is_quantized

    return {tensor.name: RESTING for tensor in source.tensors if rests(tensor)}


def resting_bytes(source: ModelSource) -> int:
    """Of all tensors as they rest."""
    qtype, resting = library.types()[RESTING], resting_types(source)
    return sum(qtype.retyped(tensor).size_bytes if tensor.name in resting else tensor.size_bytes for tensor in source.tensors)


def floor_mixes(tensors: Sequence[TensorInfo]) -> list[Mix]:
    """What tells the floor, of these tensors."""
    blocks = [tensor for tensor in tensors if tensor.layer is not None and library.types()[FLOOR_TYPE].divides(tensor.n_cols)]
    least = min((tensor.n_elements for tensor in blocks), default=0)
    small = [tensor.name for tensor in blocks if tensor.n_elements == least]
    places = {round(at * (len(small) - 1) / (N_FLOOR_PROBES - 1)) for at in range(N_FLOOR_PROBES)} if small else set[int]()
    return [Mix.of({small[place]: FLOOR_TYPE}) for place in sorted(places)]


def floor_nats(drowned: Sequence[Sequence[ChunkScore]]) -> float:
    """The floor, nats per token, by the scores of single tensors at types that drown in it; 0 where there are none."""
    return statistics.median(_mean(scores) for scores in drowned) if drowned else 0.0


def is_sure(type_name: str, scores: Sequence[ChunkScore], floor: float) -> bool:
    """Whether scores of a probe at a type tell more of it than of the floor, nats."""
    return library.types()[type_name].bits_per_weight < UNSURE_BITS or _mean(scores) >= SURE_FLOORS * floor


def above_floor(scores: Sequence[ChunkScore], floor: float) -> list[ChunkScore]:
    """The same without what any change gives beside a resting base, nats."""
    share = 1.0 - min(_MOST, floor / _mean(scores)) if _mean(scores) > 0 else 1.0
    return [replace(score, kld_sum=share * score.kld_sum) for score in scores]


def _mean(scores: Sequence[ChunkScore]) -> float:
    return sum(score.kld_sum for score in scores) / max(1, sum(score.n_tokens for score in scores))
