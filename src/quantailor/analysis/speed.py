"""What a token takes, as a sum over the matrices that it is multiplied with (METHODS 10).

    seconds(mix) = seconds(reference) + sum over tensors of n_elements x slope(group, type)

The reference has every such matrix at one type. A slope is what an element takes at a type less what it takes in the reference: it comes
from one file in which all tensors of a group have the type and all others are the reference's, timed in turns with the reference. What
attention, norms and the like take is in the reference's seconds and need not be known.

Groups have kernels, or a way through the model, of their own: dense products; experts, of which a token meets a few; and the output, which
a prompt needs for its last token alone. Embeddings that are only looked up cost nothing. How many experts a token meets is a factor of the
group that is in its slopes.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantailor.ggml import library
from quantailor.models.source import ModelSource
from quantailor.numerics import Doubles
from quantailor.qtypes import LAST_RESORT, never_quantized
from quantailor.records import Estimate, SpeedOf, TensorInfo, Timing

DEFINITION_VERSION = 1
REFERENCE = "Q8_0"
"""The type that all matrices of the reference have where its block divides their rows."""
SPEEDS: tuple[SpeedOf, SpeedOf] = ("prompt", "generation")
_EXPERTS = "_exps."
_OTHERS_LEFT_OUT = ("general.", "tokenizer.", "quantize.", "split.", "quantailor.")
"""What metadata says without changing what is calculated."""
DISTURBED = 1.1
"""A reference that takes so many times what it took at its best ran on a busy machine."""
QUIET_SHARE, LEAST_TURNS = 1 / 3, 3
"""Of the turns of two files, those that count."""
_TO_SD = 1.4826
"""From the median distance to the median to the standard deviation of a normal distribution."""
_OF_MEDIAN = math.sqrt(math.pi / 2)
"""The standard error of a median over that of a mean."""


def structure(source: ModelSource) -> str:
    """A digest of shapes and hyperparameters: models with the same take the same time at the same types."""
    said = {key: entry.value for key, entry in source.metadata.items() if not key.startswith(_OTHERS_LEFT_OUT)}
    shapes = {tensor.name: tensor.shape for tensor in source.tensors}
    text = json.dumps([source.architecture, said, shapes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def groups(source: ModelSource) -> dict[str, str]:
    """Tensor -> "dense", "experts" or "output", of those whose type is a choice and that a token is multiplied with."""
    n_layers, n_further = (_number(source, key) for key in ("block_count", "nextn_predict_layers"))
    last = n_layers - n_further if n_layers else None
    has_output = any(tensor.name == "output.weight" for tensor in source.tensors)
    found = {}
    for tensor in source.tensors:
        is_further = last is not None and tensor.layer is not None and tensor.layer >= last
        if never_quantized(tensor, source.architecture) is None and not is_further and (group := _group(tensor, has_output=has_output)):
            found[tensor.name] = group
    return found


def _group(tensor: TensorInfo, *, has_output: bool) -> str | None:
    if tensor.name == "output.weight" or (tensor.name == "token_embd.weight" and not has_output):
        return "output"
    if "token_embd" in tensor.name:
        return None
    return "experts" if _EXPERTS in tensor.name else "dense"


def _number(source: ModelSource, key: str) -> int:
    entry = source.metadata.get(f"{source.architecture}.{key}")
    return entry.value if entry is not None and isinstance(entry.value, int) else 0


def reference_types(source: ModelSource) -> dict[str, str]:
    """Tensor -> type of the reference, of every tensor that is in a group."""
    qtype = library.types()[REFERENCE]
    return {name: REFERENCE if qtype.divides(source.tensor(name).n_cols) else LAST_RESORT for name in groups(source)}


def timing_of(reading: Doubles, writing: Doubles, quiet: tuple[float, float] | None = None) -> Timing:
    """From seconds of the reference and of a file that ran in turns, (n_turns, 2) each, of prompts and of what was written.

    `quiet` is what the reference takes of both at most while the machine is not busy, where that is known.
    """
    limits = quiet or (math.inf, math.inf)
    prompt, generation = (_ratio(seconds, limit) for seconds, limit in zip((reading, writing), limits, strict=True))
    return Timing(prompt, generation, *(float(np.quantile(seconds[:, 0], QUIET_SHARE / 2)) for seconds in (reading, writing)))


def quiet_limits(timings: Mapping[str, Timing]) -> tuple[float, float] | None:
    """What the reference takes at most, per token of a prompt and of what follows, while the machine is not busy; None without timings."""
    if not timings:
        return None
    prompt, generation = (DISTURBED * min(timing.reference_s(of) for timing in timings.values()) for of in SPEEDS)
    return prompt, generation


def quieter(one: Timing, other: Timing) -> Timing:
    """Of two timings of one file the prompt and the generation that each came when the reference was faster."""
    prompt = min((one, other), key=lambda timing: timing.reference_prompt_s)
    generation = min((one, other), key=lambda timing: timing.reference_generation_s)
    return Timing(prompt.prompt, generation.generation, prompt.reference_prompt_s, generation.reference_generation_s)


def disturbed(timings: Mapping[str, Timing]) -> list[str]:
    """Files that were timed while the reference was slower than it can be, which a busy machine does."""
    limits = dict(zip(SPEEDS, quiet_limits(timings) or (math.inf, math.inf), strict=True))
    return [name for name, timing in timings.items() if any(timing.reference_s(of) > limits[of] for of in SPEEDS)]


def _ratio(seconds: Doubles, limit: float) -> Estimate:
    """The median ratio of neighbours, and its standard error, of the turns in which the machine was least busy.

    Types do not suffer alike from what else a machine does: some kernels share out their rows among threads beforehand, and wait for
    the last. Turns are chosen by the product of both times, which favours neither file; where enough have a reference within `limit`,
    from these.
    """
    within = seconds[seconds[:, 0] <= limit]
    both = np.log(within if len(within) >= LEAST_TURNS else seconds)
    quiet = np.argsort(both.sum(axis=1), kind="stable")[: max(LEAST_TURNS, round(QUIET_SHARE * len(both)))]
    logs = both[quiet, 1] - both[quiet, 0]
    middle = float(np.median(logs))
    spread = _TO_SD * float(np.median(np.abs(logs - middle)))
    return Estimate(math.exp(middle), math.exp(middle) * spread * _OF_MEDIAN / math.sqrt(len(logs)))


@dataclass(frozen=True)
class SpeedModel:
    """The sum of the module's docstring, for one model structure on one machine."""

    tensors: Mapping[str, tuple[str, int]]
    """Tensor -> (group, elements), of those that a token is multiplied with."""
    reference: Mapping[str, str]
    """Their types in the reference."""
    reference_s: Mapping[SpeedOf, float]
    """Seconds per token of the reference."""
    slopes: Mapping[tuple[str, str], Mapping[SpeedOf, float]]
    """(group, type) -> what an element takes more than in the reference, in seconds per token."""
    errors: Mapping[SpeedOf, float | None]
    """How far predictions of random mixes were off, relative; None where none was timed."""

    def seconds(self, types: Mapping[str, str], of: SpeedOf) -> float:
        """Per token, at these types (tensor -> type; others than the model's matrices do not count). Raises KeyError as `part` does."""
        return self.reference_s[of] + math.fsum(self.part(name, types[name], of) for name in self.tensors)

    def part(self, tensor: str, type_name: str, of: SpeedOf) -> float:
        """What a tensor takes at a type more than in the reference, in seconds per token. Raises KeyError for a type not timed."""
        if tensor not in self.tensors or type_name == self.reference[tensor]:
            return 0.0
        group, n_elements = self.tensors[tensor]
        return n_elements * self.slopes[group, type_name][of]

    def is_timed(self, tensor: str, type_name: str) -> bool:
        """Whether the time of a type is known where the tensor is; a tensor that costs nothing has every type's."""
        if tensor not in self.tensors or type_name == self.reference[tensor]:
            return True
        return (self.tensors[tensor][0], type_name) in self.slopes

    def untimed(self, types: Mapping[str, str]) -> tuple[str, ...]:
        """Those of the types whose time is not known where they are."""
        return tuple(dict.fromkeys(types[name] for name in self.tensors if not self.is_timed(name, types[name])))


def speed_model(
    source: ModelSource,
    timings: Mapping[str, Timing],
    mixes: Collection[tuple[str, Mapping[str, str]]],
    *,
    cut: tuple[int, int] | None,
) -> SpeedModel | None:
    """The model that timings give; None where there are none yet.

    Args:
        source: the model.
        timings: name of a file (see `single`, `FEWER_LAYERS`, and those of `mixes`) -> what it took.
        mixes: (name, types) of whole mixes, by which the error is told.
        cut: where files have the model's first layers alone: how many, and how many `FEWER_LAYERS` has.
    """
    of_group = groups(source)
    n_kept = None if cut is None else cut[0]
    elements = {name: source.tensor(name).n_elements for name in of_group}
    kept = {name for name in of_group if n_kept is None or (source.tensor(name).layer or 0) < n_kept}
    if not timings or (cut is not None and FEWER_LAYERS not in timings):
        return None
    reference = reference_types(source)
    here = {of: _typical([timing.reference_s(of) for timing in timings.values()]) for of in SPEEDS}
    slopes: dict[tuple[str, str], dict[SpeedOf, float]] = {}
    for group in dict.fromkeys(of_group.values()):
        for type_name in library.types():
            if (timing := timings.get(single(group, type_name))) is not None:
                changed = takers(source, group, type_name, kept)
                n_changed = sum(elements[name] for name in changed)
                slopes[group, type_name] = {of: here[of] * (timing.ratio(of).value - 1) / n_changed for of in SPEEDS}
    part = SpeedModel({name: (of_group[name], elements[name]) for name in kept}, reference, here, slopes, dict.fromkeys(SPEEDS))
    whole_s = here if cut is None else _of_all_layers(here, timings[FEWER_LAYERS], cut, _number(source, "block_count"))
    errors = {of: _error(part, timings, mixes, of) for of in SPEEDS}
    return SpeedModel({name: (group, elements[name]) for name, group in of_group.items()}, reference, whole_s, slopes, errors)


FEWER_LAYERS = "fewer layers"
"""The reference with still fewer layers than the other files have, where these are cut."""


def single(group: str, type_name: str) -> str:
    """What the file is called in which a group has a type."""
    return f"{group}={type_name}"


def takers(source: ModelSource, group: str, type_name: str, kept: Collection[str]) -> list[str]:
    """The tensors of a group, among some, that are changed to a type: its block divides their rows, and it is not the reference's."""
    qtype, reference = library.types()[type_name], reference_types(source)
    return [
        name
        for name, of in groups(source).items()
        if of == group and name in kept and reference[name] != type_name and qtype.divides(source.tensor(name).n_cols)
    ]


def _typical(seconds: Sequence[float]) -> float:
    """Of a reference that was timed again and again, on a machine that may have been busy: the first quartile."""
    return float(np.quantile(np.array(seconds), 0.25))


def _of_all_layers(here: Mapping[SpeedOf, float], fewer: Timing, cut: tuple[int, int], n_layers: int) -> dict[SpeedOf, float]:
    """The reference's seconds with all layers: each takes what those take that one file has and the other lacks."""
    n_kept, n_fewer = cut
    return {of: here[of] * (1 + (n_layers - n_kept) * (1 - fewer.ratio(of).value) / (n_kept - n_fewer)) for of in SPEEDS}


def _error(part: SpeedModel, timings: Mapping[str, Timing], mixes: Collection[tuple[str, Mapping[str, str]]], of: SpeedOf) -> float | None:
    logs = [
        math.log(part.seconds(types, of) / part.reference_s[of] / timings[name].ratio(of).value)
        for name, types in mixes
        if name in timings and not part.untimed(types)
    ]
    return math.sqrt(statistics.fmean(value**2 for value in logs)) if logs else None
