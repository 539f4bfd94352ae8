"""A machine on which every type takes its own time an element, and timings of a model as they would be measured there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from quantailor.evidence.speeds import files_to_time, reference_file, timing_key
from quantailor.ggml import library
from quantailor.ggml.devices import PROCESSOR
from quantailor.models.opening import open_model
from quantailor.models.source import ModelSource
from quantailor.records import Estimate, Timing
from quantailor.session import Workspace

LAYER_S, REST_S = 2e-4, 5e-4
SLOW = ("IQ3_XXS", "IQ4_XS", "IQ3_S")


def element_s(type_name: str) -> float:
    """What an element takes there: bytes to be read, and for some types much to be calculated."""
    return 1e-10 * library.types()[type_name].bits_per_weight + (1e-9 if type_name in SLOW else 0.0)


def takes(source: ModelSource, types: Mapping[str, str]) -> float:
    """Seconds of a token, with types for the tensors that the file has; the output takes twice as long an element."""
    layers = {source.tensor(name).layer for name in types} - {None}
    weights = (source.tensor(name).n_elements * element_s(each) * (1 + (name == "output.weight")) for name, each in types.items())
    return REST_S + len(layers) * LAYER_S + math.fsum(weights)


def timings(source: ModelSource, types: Sequence[str], *, n_mixes: int, mixes_off: float = 1.0) -> dict[str, Timing]:
    """Everything that is timed of a model; a prompt's token takes a tenth, and what mixes take is off by a factor."""
    reference_s = takes(source, reference_file(source).types)
    found = {}
    for file in files_to_time(source, types, n_mixes):
        ratio = takes(source, file.types) / reference_s * (mixes_off if file.name.startswith("mix") else 1.0)
        found[file.name] = Timing(Estimate(ratio), Estimate(ratio), reference_s / 10, reference_s)
    return found


def record(home: Path, base: Path, types: Sequence[str] = ()) -> None:
    """Put them into a home, as timed with all processors; every type where none is named."""
    source = open_model(base)
    with Workspace.open(home) as workspace:
        for name, timing in timings(source, types or tuple(library.types()), n_mixes=3).items():
            workspace.store.record_timing(timing_key(source, None, PROCESSOR), name, timing)
    source.close()
