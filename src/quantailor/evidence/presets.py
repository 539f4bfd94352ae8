"""llama.cpp's presets of one model: the types they give its tensors, how large they are, and which lie around a size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from quantailor.analysis.importance.imatrix import Imatrix, quantizer_importance
from quantailor.errors import InferenceError
from quantailor.ggml import library
from quantailor.ggml.reference import preset_types, types_by_preset
from quantailor.making import building
from quantailor.making.judging import EQUAL_SIZE
from quantailor.models.gguf_writer import PartLayout
from quantailor.models.source import ModelSource
from quantailor.numerics import Floats
from quantailor.qtypes import UNTOUCHED, needs_imatrix
from quantailor.records import TensorCells
from quantailor.session import OpenedModel, header_path

LADDER = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_XXS", "Q2_K", "IQ2_M", "IQ2_XXS", "IQ1_S")
"""The presets that most published files are made with, from large to small."""

FARTHEST = 8.0
"""Without probes, an error of more than so many times that of the preset counts more than it is expected to."""

Types = Mapping[str, str]
"""Tensor -> type, of every tensor of a model."""
_known: dict[tuple[str, str], dict[str, Types]] = {}
"""(model, importance matrix) -> preset -> types: asking llama.cpp takes a process."""
_sizes: dict[tuple[str, str], dict[str, int]] = {}
"""(model, importance matrix) -> preset -> size of its file: every plan without probes asks for all of them."""


def types_of_preset(model: OpenedModel, preset: str, imatrix: Imatrix | None) -> Types:
    """The type that llama.cpp's preset gives each tensor with this importance matrix, those included that keep theirs."""
    known = _known.get(_key(model, imatrix), {})
    if preset in known:
        return known[preset]
    with header_path(model) as header:
        return _whole(model, preset_types(header, preset, imatrix=_importances(model, imatrix)))


def preset_of(source: ModelSource, types: Mapping[str, str]) -> str:
    """The preset that is called after the type which most weights have, as `general.file_type` names it; "F32" where there is none."""
    number = building.file_type(source, types)
    return next((name for name, known in library.presets().items() if known == number), "F32")


def preset_size_bytes(model: OpenedModel, preset: str, imatrix: Imatrix | None) -> int:
    """Size of the file that llama-quantize would write for a preset with this importance matrix, without writing it."""
    return building.plain_layout(model.source, types_of_preset(model, preset, imatrix), imatrix=imatrix).size_bytes


def preset_sizes(model: OpenedModel, presets: Iterable[str], imatrix: Imatrix | None) -> dict[str, int]:
    """`preset_size_bytes` of several, whose headers have one length and are therefore encoded once."""
    sizes = _sizes.setdefault(_key(model, imatrix), {})
    part: PartLayout | None = None
    wanted = tuple(presets)
    for preset in wanted:
        if preset in sizes:
            continue
        types = types_of_preset(model, preset, imatrix)
        if part is None:
            (part,) = building.plain_layout(model.source, types, imatrix=imatrix).parts
        tensors = tuple(building.output_tensors(model.source, types, imatrix=imatrix))
        sizes[preset] = dataclasses.replace(part, tensors=tensors).size_bytes
    return {preset: sizes[preset] for preset in wanted}


def ladder(model: OpenedModel, imatrix: Imatrix | None) -> Mapping[str, Types]:
    """The types of every preset of `LADDER` that llama.cpp can make of this model with this importance matrix."""
    key = _key(model, imatrix)
    if key not in _known:
        importances = _importances(model, imatrix)
        with header_path(model) as header:
            found = types_by_preset(header, LADDER, imatrix=importances)
        _known[key] = {
            preset: _whole(model, types)
            for preset, types in found.items()
            if all(name in (importances or ()) or not needs_imatrix(name, library.types()[type_name]) for name, type_name in types.items())
        }
    return _known[key]


def presets_around(model: OpenedModel, imatrix: Imatrix | None, sizes_bytes: Sequence[int], named: Sequence[str] = ()) -> tuple[str, ...]:
    """The presets to compare files of these sizes with, the largest first: for each the one as large as it, else the next on either side.

    Args:
        model: the base.
        imatrix: what the presets are made with.
        sizes_bytes: the files'.
        named: presets that are compared in any case.
    """
    names = dict.fromkeys((*ladder(model, imatrix), *named))
    sizes = preset_sizes(model, names, imatrix)
    found = {*named, *(name for size in sizes_bytes for name in around(sizes, size))}
    return tuple(sorted(found, key=lambda name: -sizes[name]))


def around(sizes: Mapping[str, int], size_bytes: int) -> tuple[str, ...]:
    """Of things with sizes, the one of this size (within 0.1 %), else the next smaller and the next larger one."""
    nearest = min(sizes, key=lambda name: abs(sizes[name] - size_bytes), default=None)
    if nearest is not None and abs(sizes[nearest] - size_bytes) <= EQUAL_SIZE * size_bytes:
        return (nearest,)
    below = max((name for name in sizes if sizes[name] < size_bytes), key=lambda name: sizes[name], default=None)
    above = min((name for name in sizes if sizes[name] > size_bytes), key=lambda name: sizes[name], default=None)
    return tuple(name for name in (below, above) if name is not None)


def near_a_preset(
    tables: Sequence[TensorCells], model: OpenedModel, imatrix: Imatrix | None, target: Mapping[str, str | int | float]
) -> Sequence[TensorCells]:
    """The tables of a plan without probes, with errors far above those of llama.cpp's preset of that size made dear.

    What is expected of a tensor can be wrong in a model of another kind; what the preset does there is known to be tolerable.
    """
    n_weights = sum(tensor.n_elements for tensor in model.source.tensors)
    size = float(target.get("size_bytes", 0)) or float(target.get("bits_per_weight", 0)) * n_weights / 8
    if not size:
        return tables
    try:
        types = types_of_preset(model, str(target["like"]), imatrix) if "like" in target else _below(model, imatrix, size)
    except InferenceError:
        return tables  # a model of which llama.cpp makes no preset
    return [_near(table, types[table.name]) for table in tables]


def _below(model: OpenedModel, imatrix: Imatrix | None, size_bytes: float) -> Types:
    """The largest preset that is not larger than that, else the smallest there is."""
    presets = ladder(model, imatrix)
    sizes = preset_sizes(model, presets, imatrix)
    fitting = [name for name in presets if sizes[name] <= size_bytes]
    return presets[max(fitting, key=lambda name: sizes[name]) if fitting else min(presets, key=lambda name: sizes[name])]


def _near(table: TensorCells, type_name: str) -> TensorCells:
    """With errors far above that of the preset's type, or of the measured type that is nearest in bits, made dear."""
    qtype = library.types().get(type_name)
    if qtype is None or not table.cells:
        return table
    alike = min(table.cells, key=lambda cell: (abs(cell.bits_per_weight - qtype.bits_per_weight), cell.type_name != type_name))
    limit = FARTHEST * alike.error
    if limit <= 0:
        return table
    cells = [dataclasses.replace(cell, damage=cell.damage * max(1.0, cell.error / limit) ** 2) for cell in table.cells]
    return dataclasses.replace(table, cells=tuple(cells))


def _key(model: OpenedModel, imatrix: Imatrix | None) -> tuple[str, str]:
    return model.fingerprint, "" if imatrix is None else imatrix.fingerprint


def _whole(model: OpenedModel, types: Types) -> dict[str, str]:
    tensors = model.source.tensors
    return {each.name: each.type_name if each.type_name in UNTOUCHED else types.get(each.name, each.type_name) for each in tensors}


def _importances(model: OpenedModel, imatrix: Imatrix | None) -> dict[str, Floats] | None:
    if imatrix is None:
        return None
    vectors = {tensor.name: quantizer_importance(imatrix, tensor) for tensor in model.source.tensors}
    return {name: vector.reshape(-1) for name, vector in vectors.items() if vector is not None}
