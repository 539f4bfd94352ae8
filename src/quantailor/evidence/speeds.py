"""What is known of how fast a model's files run on this machine: which timings count, what they predict, what is still to be timed."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantailor.analysis.speed import (
    DEFINITION_VERSION,
    FEWER_LAYERS,
    SpeedModel,
    groups,
    reference_types,
    single,
    speed_model,
    structure,
    takers,
)
from quantailor.ggml import library
from quantailor.ggml.devices import Devices
from quantailor.ggml.timing import kernels
from quantailor.models.source import ModelSource
from quantailor.records import PredictedSpeed
from quantailor.session import Workspace
from quantailor.store import ReferenceFile, TimingKey

MOST_ELEMENTS = 500_000_000
"""A model with more weights is timed by its first layers."""
_MIX, _OF = "mix ", " of "


@dataclass(frozen=True)
class Speeds:
    """What a model's types take here."""

    model: SpeedModel
    n_threads: int
    n_gpu_layers: int

    def predicted(self, types: Mapping[str, str]) -> PredictedSpeed | None:
        """Of a file with these types (tensor -> type, of all that are in a group); None where one of them was not timed."""
        if self.model.untimed(types):
            return None
        prompt, generation = (1 / self.model.seconds(types, of) for of in ("prompt", "generation"))
        errors = self.model.errors
        return PredictedSpeed(prompt, generation, errors["prompt"], errors["generation"], self.n_threads, self.n_gpu_layers)


def timing_key(source: ModelSource, n_threads: int | None, devices: Devices) -> TimingKey:
    """Under what timings of a model's structure are filed."""
    threads = n_threads or os.cpu_count() or 1
    return TimingKey(structure(source), kernels(devices), threads, devices.n_gpu_layers, DEFINITION_VERSION)


def speeds_of(workspace: Workspace, source: ModelSource, key: TimingKey) -> Speeds | None:
    """What the timings of a key say; None where there are none."""
    timings = workspace.store.timings(key)
    mixes = [(name, mix_types(source, name)) for name in timings if name.startswith(_MIX)]
    model = speed_model(source, timings, mixes, cut=cut_of(source))
    return None if model is None else Speeds(model, key.n_threads, key.n_gpu_layers)


def known_speeds(workspace: Workspace, source: ModelSource) -> Speeds | None:
    """What is known on this machine: with all its processors, else with whatever most files were timed with; None where nothing is."""
    if not workspace.store.n_timings():
        return None
    usual = timing_key(source, None, Devices())
    found: list[tuple[int, int, TimingKey]] = [(usual.n_threads, 0, usual)]
    for devices in (Devices(), Devices(-1)):
        key = timing_key(source, None, devices)
        rows = workspace.store.timed_with(key.structure, key.kernels, DEFINITION_VERSION)
        found += [(threads, layers, TimingKey(key.structure, key.kernels, threads, layers, DEFINITION_VERSION)) for threads, layers in rows]
    return next((speeds for *_, key in found if (speeds := speeds_of(workspace, source, key)) is not None), None)


def speed_at(workspace: Workspace, place: str | Path, types: Mapping[str, str]) -> PredictedSpeed | None:
    """What the model at a place will reach with types for some of its tensors, the others as they are; None where that is not known."""
    if not workspace.store.n_timings():
        return None  # without opening the model
    with workspace.source(place) as source:
        return predicted_speed(known_speeds(workspace, source), source, types)


def speeds_of_files(workspace: Workspace, source: ModelSource, files: Mapping[str, Path | ReferenceFile]) -> dict[str, PredictedSpeed]:
    """What files of a model will reach, label -> speed, by the types in their headers; without those of which that is not known.

    Raises ModelError where a file cannot be read.
    """
    speeds, found = known_speeds(workspace, source), dict[str, PredictedSpeed]()
    if speeds is None:
        return found
    for label, file in files.items():
        predicted = predicted_speed(speeds, source, file.types if isinstance(file, ReferenceFile) else _types_of(workspace, file))
        if predicted is not None:
            found[label] = predicted
    return found


def _types_of(workspace: Workspace, path: Path) -> dict[str, str]:
    with workspace.source(path) as file:
        return {tensor.name: tensor.type_name for tensor in file.tensors}


def predicted_speed(speeds: Speeds | None, source: ModelSource, types: Mapping[str, str]) -> PredictedSpeed | None:
    """The same of a model that is open, by what is known of its speed."""
    own = {tensor.name: tensor.type_name for tensor in source.tensors}
    return None if speeds is None else speeds.predicted({**own, **types})


def cut_of(source: ModelSource) -> tuple[int, int] | None:
    """How many layers timed files have, and how many the one has that tells what a layer takes; None where they have all.

    The first layers that hold every role are kept, and more as long as there is room.
    """
    of_group = groups(source)
    layers: dict[int, list[str]] = {}
    for name in of_group:
        if (layer := source.tensor(name).layer) is not None:
            layers.setdefault(layer, []).append(name)
    sizes = {layer: sum(source.tensor(name).n_elements for name in names) for layer, names in layers.items()}
    n_layers = len(layers)
    is_plain = set(layers) == set(range(n_layers)) and f"{source.architecture}.nextn_predict_layers" not in source.metadata
    if sum(sizes.values()) <= MOST_ELEMENTS or not is_plain:
        return None
    roles = {source.tensor(name).role for names in layers.values() for name in names}
    seen: set[str] = set()
    room, n_kept = MOST_ELEMENTS, 0
    for layer in range(n_layers):
        if seen == roles and n_kept >= 2 and sizes[layer] > room:
            break
        seen |= {source.tensor(name).role for name in layers[layer]}
        room, n_kept = room - sizes[layer], n_kept + 1
    return None if n_kept >= n_layers else (n_kept, n_kept // 2)


def mix_names(types: Sequence[str], n_mixes: int) -> list[str]:
    """What random mixes of these types are called, from which `mix_types` makes them."""
    return [f"{_MIX}{number}{_OF}{','.join(types)}" for number in range(n_mixes)]


def mix_types(source: ModelSource, name: str) -> dict[str, str]:
    """Tensor -> type of a random mix, of every tensor in a group: any of its types whose block divides the rows."""
    number, _, listed = name.removeprefix(_MIX).partition(_OF)
    generator = random.Random(int(number))  # noqa: S311 (statistics, not secrets)
    qtypes, known = library.types(), [each for each in listed.split(",") if each in library.types()]
    types = reference_types(source)
    for tensor in types:
        able = [each for each in known if qtypes[each].divides(source.tensor(tensor).n_cols)]
        types[tensor] = generator.choice(able) if able else types[tensor]
    return types


@dataclass(frozen=True, slots=True)
class TimedFile:
    """One file that is timed."""

    name: str
    types: Mapping[str, str]
    """Tensor -> type, of every tensor in a group that the file has."""
    n_layers: int | None
    """None for all."""

    @property
    def label(self) -> str:
        """The name without the types that a mix is drawn from."""
        return self.name.partition(_OF)[0]


def reference_file(source: ModelSource) -> TimedFile:
    """What all others are timed against."""
    cut = cut_of(source)
    return _file(source, "reference", reference_types(source), None if cut is None else cut[0])


def files_to_time(source: ModelSource, type_names: Sequence[str], n_mixes: int) -> list[TimedFile]:
    """Everything that is timed of a model for these types, in order: fewer layers where it is cut, then group by group, then mixes."""
    cut, reference = cut_of(source), reference_file(source)
    found = [] if cut is None else [_file(source, FEWER_LAYERS, reference_types(source), cut[1])]
    for group in dict.fromkeys(groups(source).values()):
        for type_name in type_names:
            if changed := takers(source, group, type_name, reference.types):
                types = {**reference.types, **dict.fromkeys(changed, type_name)}
                found.append(TimedFile(single(group, type_name), types, reference.n_layers))
    drawn = [name for name in type_names if library.types()[name].is_quantized] or type_names
    return found + [_file(source, name, mix_types(source, name), reference.n_layers) for name in mix_names(drawn, n_mixes)]


def _file(source: ModelSource, name: str, types: Mapping[str, str], n_layers: int | None) -> TimedFile:
    def is_there(tensor: str) -> bool:
        layer = source.tensor(tensor).layer
        return n_layers is None or layer is None or layer < n_layers

    return TimedFile(name, {tensor: type_name for tensor, type_name in types.items() if is_there(tensor)}, n_layers)
