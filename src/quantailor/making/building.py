"""A source and a strategy become a GGUF file: rows are read, quantized in threads and written in order.

Memory stays at a few blocks of rows per thread whatever the size of the model. Tensor bytes equal what
`llama_model_quantize` writes for the same type and importance matrix, and so do the order of the tensors and the
metadata; the strategy itself is added under `quantailor.*`. The size of the file is known before a row is read.

ggml's quantizers see every slice of a tensor (an expert) with its own importances, so no block crosses a slice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import logging
import re
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

from quantailor.analysis.importance.imatrix import Imatrix, holds, quantize_metadata
from quantailor.analysis.quantize import BlockBytes, BlockWork, blocks_of
from quantailor.analysis.rounding.rounding import PLAIN, Rounding
from quantailor.control import QUIET, Control
from quantailor.errors import OutputError, StrategyMismatchError, TypeUnavailableError
from quantailor.files import refuse_own_input, state_of, writing
from quantailor.ggml import codec, library
from quantailor.models.gguf_writer import FileLayout, GGUFWriter, layout
from quantailor.models.identity import fingerprint as fingerprint_of
from quantailor.models.opening import model_files, open_model
from quantailor.models.source import ModelSource
from quantailor.processes.crews import HERE, Executor, ModelFiles
from quantailor.qtypes import QType, never_quantized, unavailable
from quantailor.records import MetadataValue, Prediction, Strategy, TensorInfo, bits_per_weight
from quantailor.strategy.file import dumps

logger = logging.getLogger(__name__)


QUANTIZATION_VERSION = 2

_FTYPE_NAMES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}
_ROUNDING_INPUTS = ("rounding", "covariances")
_BLOCK_NUMBER = re.compile(r"^blk\.(\d+)")


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A file, or the parts of one, that was written and checked."""

    paths: tuple[Path, ...]
    size_bytes: int
    tensor_bytes: int
    bits_per_weight: float
    kept: tuple[str, ...]
    """Tensors that could be quantized but that the strategy does not name: they keep their type."""


def output_tensors(source: ModelSource, types: Mapping[str, str], *, imatrix: Imatrix | None = None) -> list[TensorInfo]:
    """The tensors of the file to be built, with the types they will have; those not in `types` keep theirs.

    They come in the order of llama-quantize's output: what is outside the blocks, then block by block, by name.

    Raises:
        StrategyMismatchError: `types` names a tensor that the model does not have.
        TypeUnavailableError: a tensor cannot take the type chosen for it.
    """
    missing = types.keys() - {tensor.name for tensor in source.tensors}
    if missing:
        raise StrategyMismatchError(f"the strategy names {min(missing)}, which {source.name} does not have", remedy="Plan for this model")
    return [_retyped(source, tensor, types.get(tensor.name, tensor.type_name), imatrix) for tensor in output_order(source)]


def output_order(source: ModelSource) -> list[TensorInfo]:
    """The source's tensors as llama-quantize's output has them: what is outside the blocks, then block by block, by name."""

    def position(tensor: TensorInfo) -> tuple[int, bytes]:
        match = _BLOCK_NUMBER.match(tensor.name)
        return int(match.group(1)) if match else -1, tensor.name.encode()

    return sorted(source.tensors, key=position)


def _retyped(source: ModelSource, tensor: TensorInfo, type_name: str, imatrix: Imatrix | None) -> TensorInfo:
    if type_name == tensor.type_name:
        return tensor
    qtypes = library.types()
    qtype = qtypes.get(type_name)
    if qtype is None:
        raise TypeUnavailableError(
            f"{tensor.name} cannot be {type_name}: ggml has no such type", remedy=f"Choose one of {', '.join(qtypes)}"
        )
    if reason := unavailable(tensor, qtype, architecture=source.architecture, has_imatrix=holds(imatrix, tensor), qtypes=qtypes):
        raise TypeUnavailableError(f"{tensor.name} cannot be {type_name}: {reason}", remedy="Choose another type for it")
    return qtype.retyped(tensor)


def plain_metadata(source: ModelSource, types: Mapping[str, str], *, imatrix: Imatrix | None = None) -> dict[str, MetadataValue]:
    """The metadata that llama-quantize writes: the source's, and what it knows of types and importance matrix."""
    metadata = {key: value for key, value in source.metadata.items() if not key.startswith("split.")}
    added: dict[str, str | int] = {
        "general.quantization_version": QUANTIZATION_VERSION,
        "general.file_type": file_type(source, types),
        **(quantize_metadata(imatrix) if imatrix else {}),
    }
    return _with_added(metadata, added)


def output_metadata(source: ModelSource, strategy: Strategy, *, imatrix: Imatrix | None = None) -> dict[str, MetadataValue]:
    """The metadata of the file to be built: llama-quantize's and the strategy.

    The strategy is written without its prediction: the prediction holds the file's size, which depends on this text.
    """
    text = dumps(strategy, format="json", include_prediction=False)
    added: dict[str, str | int] = {"quantailor.version": _version(), "quantailor.strategy": text}
    return _with_added(plain_metadata(source, strategy.types, imatrix=imatrix), added)


def as_rounded(strategy: Strategy, rounding: Rounding) -> Strategy:
    """The strategy as a file that is rounded like this records it: whether errors are compensated, and with which covariances."""
    if rounding.compensated and rounding.covariances is not None:
        said: dict[str, str] = {"rounding": "compensated", "covariances": rounding.covariances.fingerprint[:16]}
    elif strategy.inputs.get("rounding") == "compensated":
        said = {"rounding": "plain"}
    else:
        return strategy
    return _rounded(strategy, said)


def rounded_like(strategy: Strategy, other: Strategy) -> Strategy:
    """The strategy with what another one records of rounding."""
    return _rounded(strategy, {key: value for key, value in other.inputs.items() if key in _ROUNDING_INPUTS})


def _rounded(strategy: Strategy, said: Mapping[str, str | int | float | None]) -> Strategy:
    if said == {key: value for key, value in strategy.inputs.items() if key in _ROUNDING_INPUTS}:
        return strategy
    others = {key: value for key, value in strategy.inputs.items() if key not in _ROUNDING_INPUTS}
    prediction, (before, after) = strategy.prediction, (inputs.get("rounding", "plain") for inputs in (strategy.inputs, said))
    if before != after and prediction is not None and prediction.kld_nats is not None:
        reason = f"the types were planned for {before} rounding, and the file's is {after}"
        prediction = dataclasses.replace(prediction, kld_nats=None, kld_interval_nats=None, no_prediction=reason)
    return dataclasses.replace(strategy, inputs={**others, **said}, prediction=prediction)


def _with_added(metadata: dict[str, MetadataValue], added: Mapping[str, str | int]) -> dict[str, MetadataValue]:
    """With these keys at the end, replaced where they were there before."""
    for key, value in added.items():
        metadata.pop(key, None)
        metadata[key] = MetadataValue("string" if isinstance(value, str) else "uint32", value)
    return metadata


@cache
def _version() -> str:
    try:
        return importlib.metadata.version("quantailor")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def file_type(source: ModelSource, types: Mapping[str, str]) -> int:
    """llama.cpp's number for the type that most weights have."""
    weights: Counter[str] = Counter()
    for tensor in source.tensors:
        if never_quantized(tensor, source.architecture) is None:
            weights[types.get(tensor.name, tensor.type_name)] += tensor.n_elements
    name = max(weights, key=lambda name: (weights[name], name), default="F32")
    return library.presets().get(_FTYPE_NAMES.get(name, name), 0)


def predict_layout(
    source: ModelSource, strategy: Strategy, *, imatrix: Imatrix | None = None, split_max_bytes: int | None = None
) -> FileLayout:
    """The built file's parts, headers and offsets, exact to the byte; raises as `output_tensors` does."""
    tensors = output_tensors(source, strategy.types, imatrix=imatrix)
    return layout(output_metadata(source, strategy, imatrix=imatrix), tensors, split_max_bytes=split_max_bytes)


def plain_layout(source: ModelSource, types: Mapping[str, str], *, imatrix: Imatrix | None = None) -> FileLayout:
    """The layout of what llama-quantize itself writes for these types: the same without `quantailor.*` keys."""
    return layout(plain_metadata(source, types, imatrix=imatrix), output_tensors(source, types, imatrix=imatrix))


def predict(source: ModelSource, strategy: Strategy, *, imatrix: Imatrix | None = None, split_max_bytes: int | None = None) -> Prediction:
    """The strategy's exact size, and the damage that its choices add up to; raises as `output_tensors` does."""
    planned = predict_layout(source, strategy, imatrix=imatrix, split_max_bytes=split_max_bytes)
    return Prediction(
        file_size_bytes=planned.size_bytes,
        tensor_bytes=sum(tensor.size_bytes for tensor in planned.tensors),
        bits_per_weight=bits_per_weight(planned.tensors),
        damage=sum(choice.damage for choice in strategy.tensors),
        basis=strategy.basis,
    )


def verdict_paths(stem: Path) -> tuple[Path, ...]:
    """The files of a verdict: JSON, CSV and the graph as PNG and SVG."""
    return tuple(stem.with_name(f"{stem.name}{ending}") for ending in (".json", ".csv", ".png", ".svg"))


def build(
    source: ModelSource,
    strategy: Strategy,
    output: Path,
    *,
    rounding: Rounding = PLAIN,
    split_max_bytes: int | None = None,
    n_threads: int | None = None,
    control: Control = QUIET,
    overwrite: bool = False,
    fingerprint: str | None = None,
    verdict: Path | None = None,
    executor: Executor = HERE,
) -> BuildResult:
    """Write the file that `strategy` describes. A verdict on the file that it replaces goes in the same step.

    Args:
        source: the 16-bit model the strategy was made for.
        strategy: a type for each tensor; tensors it does not name keep theirs.
        output: where the file goes; parts of a split one get llama.cpp's `-00001-of-0000N` names.
        rounding: how weights become codes; the file says so, whatever the strategy says.
        split_max_bytes: tensor bytes per part; None writes one file.
        n_threads: None takes all processors; the bytes do not depend on it.
        control: asked between blocks whether to go on; progress counts bytes.
        overwrite: replace an existing file.
        fingerprint: the source's, read from it unless given.
        verdict: where the verdict on an earlier file is, beside the usual place; the path of its files without their endings.
        executor: who quantizes; the bytes do not depend on it, and this process writes them.

    Raises:
        StrategyMismatchError: the strategy was made for another model.
        TypeUnavailableError, ImatrixError: a tensor cannot take its type.
        NonFiniteWeightError: NaN or Inf among the weights.
        OutputError: the file cannot be written. Whatever fails, nothing is left under the final name.
    """
    ours = fingerprint or fingerprint_of(source)
    if strategy.model_fingerprint != ours:
        raise StrategyMismatchError(
            f"the strategy was made for {strategy.model_name} ({strategy.model_fingerprint[:12]}), not for {source.name} ({ours[:12]})",
            remedy="Plan again for this model",
        )
    strategy = as_rounded(strategy, rounding)
    refuse_own_input(output, source.files)
    planned = predict_layout(source, strategy, imatrix=rounding.imatrix, split_max_bytes=split_max_bytes)
    tensors, named = planned.tensors, strategy.types
    tensor_bytes = sum(tensor.size_bytes for tensor in tensors)
    kept = tuple(each.name for each in source.tensors if each.name not in named and never_quantized(each, source.architecture) is None)
    if kept:
        logger.info("%d tensors keep their type because the strategy does not name them: %s ...", len(kept), kept[0])
    with GGUFWriter(output, planned, overwrite=overwrite) as writer:
        _write_tensors(writer, source, planned, rounding, ours, n_threads=n_threads, control=control, executor=executor)
        for stem in (planned.paths(output)[0].with_suffix(".verdict"), *([] if verdict is None else [verdict])):
            for path in verdict_paths(stem):
                with writing(path):
                    path.unlink(missing_ok=True)
    _check_written(writer.paths, tensors, planned)
    return BuildResult(writer.paths, planned.size_bytes, tensor_bytes, bits_per_weight(tensors), kept)


def build_preset(
    source: ModelSource,
    preset: str,
    types: Mapping[str, str],
    output: Path,
    *,
    imatrix: Imatrix | None = None,
    fingerprint: str,
    n_threads: int | None = None,
    control: Control = QUIET,
    executor: Executor = HERE,
) -> None:
    """Write a preset as llama.cpp's own quantizer does, byte for byte; `types` are those that it gives. Replaces a file.

    Raises as `build` does.
    """
    metadata = plain_metadata(source, types, imatrix=imatrix)
    metadata["general.file_type"] = MetadataValue("uint32", library.presets()[preset])
    planned, rounding = layout(metadata, output_tensors(source, types, imatrix=imatrix)), Rounding(imatrix)
    with GGUFWriter(output, planned, overwrite=True) as writer:
        _write_tensors(writer, source, planned, rounding, fingerprint, n_threads=n_threads, control=control, executor=executor)
    _check_written(writer.paths, planned.tensors, planned)


def _write_tensors(
    writer: GGUFWriter,
    source: ModelSource,
    planned: FileLayout,
    rounding: Rounding,
    fingerprint: str,
    *,
    n_threads: int | None,
    control: Control,
    executor: Executor,
) -> None:
    """Quantize the tensors of an open file and write them, in the order in which they come; raises as `build` does."""
    path = Path(source.location)
    work = BlockWork(ModelFiles(path, fingerprint, state_of(model_files(path))), rounding, n_threads, source)
    numbers = {tensor.name: number for number, tensor in enumerate(planned.tensors)}
    row_bytes = {tensor.name: tensor.size_bytes // max(1, tensor.n_rows) for tensor in planned.tensors}
    try:
        with executor.on(work) as crew:
            pieces = crew.do(list(blocks_of(planned.tensors, rounding)), control=control)
            with contextlib.closing(cast("Generator[BlockBytes, None, None]", pieces)):
                for piece in pieces:
                    writer.place(numbers[piece.name], piece.start * row_bytes[piece.name], piece.data)
    finally:
        rounding.forget()


def _check_written(paths: Sequence[Path], tensors: Sequence[TensorInfo], planned: FileLayout) -> None:
    """Read the file back: its size, its tensors and the outer rows of each. Removes it and raises OutputError when it is not as planned."""
    try:
        size_bytes = sum(path.stat().st_size for path in paths)
        if size_bytes != planned.size_bytes:
            raise OutputError(f"{paths[0]} has {size_bytes} bytes instead of {planned.size_bytes}", remedy="Check the disk")
        with contextlib.closing(open_model(paths[0])) as written:
            if list(written.tensors) != list(tensors):
                raise OutputError(f"{paths[0]} does not hold the tensors that were written", remedy="Check the disk")
            _check_rows(written, library.stored_types())
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise


def _check_rows(written: ModelSource, qtypes: Mapping[str, QType]) -> None:
    for tensor in written.tensors:
        for row in {0, tensor.n_rows - 1}:
            if not codec.is_valid(written.raw_rows(tensor.name, row, row + 1), qtypes[tensor.type_name]):
                raise OutputError(f"{written.location} holds broken rows of {tensor.name}", remedy="Check the disk")
