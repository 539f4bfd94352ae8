"""What a model is made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from quantailor.ggml import library
from quantailor.models.opening import open_model
from quantailor.models.source import ModelSource, fingerprint
from quantailor.qtypes import QType, availability
from quantailor.records import TensorInfo
from quantailor.service.results import ModelReport, TensorReport


def inspect(model: str | Path, *, imatrix_tensors: Collection[str] | None = None) -> ModelReport:
    """The structure of a GGUF file or a Hugging Face directory; no weights are read but a few sample rows.

    `imatrix_tensors` names the tensors an importance matrix holds; None shows what one would allow.
    Raises ModelError where the model cannot be read.
    """
    source = open_model(model)
    try:
        return _report(source, imatrix_tensors)
    finally:
        source.close()


def _report(source: ModelSource, imatrix_tensors: Collection[str] | None) -> ModelReport:
    qtypes = library.types()
    n_parameters = sum(tensor.n_elements for tensor in source.tensors)
    tensor_bytes = sum(tensor.size_bytes for tensor in source.tensors)
    return ModelReport(
        name=source.name,
        location=source.location,
        fingerprint=fingerprint(source),
        architecture=source.architecture,
        n_parameters=n_parameters,
        tensor_bytes=tensor_bytes,
        bits_per_weight=8 * tensor_bytes / n_parameters,
        is_quantized=any(qtypes[tensor.type_name].is_quantized for tensor in source.tensors if tensor.type_name in qtypes),
        config_files=source.config_files,
        metadata=dict(source.metadata),
        tensors=tuple(tensor_report(tensor, source.architecture, qtypes, imatrix_tensors) for tensor in source.tensors),
    )


def tensor_report(
    tensor: TensorInfo, architecture: str, qtypes: Mapping[str, QType], imatrix_tensors: Collection[str] | None
) -> TensorReport:
    """A tensor with the types it can take; `imatrix_tensors` as in `inspect`."""
    has_imatrix = imatrix_tensors is None or tensor.name in imatrix_tensors
    reasons = availability(tensor, architecture=architecture, has_imatrix=has_imatrix, qtypes=qtypes)
    return TensorReport(
        name=tensor.name,
        role=tensor.role,
        layer=tensor.layer,
        shape=tensor.shape,
        type_name=tensor.type_name,
        size_bytes=tensor.size_bytes,
        available_types=tuple(name for name, reason in reasons.items() if reason is None),
        unavailable_types={name: reason for name, reason in reasons.items() if reason is not None},
    )
