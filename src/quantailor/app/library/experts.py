"""The experts of a mixture: how the router spreads a text over them, and how much each layer's matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantailor.analysis.importance.imatrix import Imatrix, ImatrixEntry
from quantailor.app.choosing.comparing import what_is_known
from quantailor.errors import ImatrixError, UnsupportedModelError
from quantailor.evidence.grounds import command_line
from quantailor.models.source import ModelSource
from quantailor.numerics import Doubles, Integers
from quantailor.records import Estimate, Sensitivity, TensorInfo
from quantailor.session import AUTO, OpenedModel, Workspace


@dataclass(frozen=True, slots=True)
class ExpertTensor:
    """All experts' matrices of one role in one layer."""

    tensor: str
    role: str
    size_bytes: int
    importance: tuple[float, ...]
    """Each expert's share of the sum of squared inputs of this tensor."""
    alpha: Estimate | None
    """Nats per unit of weighted error; None where it was not probed."""
    alpha_status: str
    """"measured", "drowned" (then alpha is an upper bound), "not in the graph" or "not probed"."""


@dataclass(frozen=True, slots=True)
class ExpertLayer:
    """How one layer's router spreads the calibration tokens."""

    layer: int
    n_routed: int
    """Tokens times experts per token."""
    shares: tuple[float, ...]
    """Each expert's share of them."""
    importance: tuple[float, ...]
    """Each expert's share of the sum of squared inputs over the layer's expert tensors."""
    normalized_entropy: float
    """Of the shares: 1 where all experts are used alike, 0 where one takes all."""
    unseen: tuple[int, ...]
    """Experts that no calibration token reached."""
    tensors: tuple[ExpertTensor, ...]


@dataclass(frozen=True, slots=True)
class ExpertsReport:
    """The experts of a mixture, layer by layer."""

    model_name: str
    n_experts: int
    n_used: int
    """Experts that each token is routed to; 0 where the model does not say."""
    imatrix_fingerprint: str
    datasets: tuple[str, ...]
    n_tokens: int
    """Of the calibration text."""
    probed: bool
    layers: tuple[ExpertLayer, ...]


_SUFFIXES = ("_exps", "_chexps")
"""How GGUF ends the roles of tensors that hold a matrix per routed expert."""


def experts(workspace: Workspace, base: Path, *, imatrix: str = AUTO) -> ExpertsReport:
    """How calibration tokens spread over the experts of each layer, and how sensitive their tensors are.

    `imatrix` is the importance matrix that counted the tokens: "auto" (the model's own), or a file.

    Raises:
        UnsupportedModelError: the model has no experts.
        ImatrixError: there is no importance matrix, or it does not count tokens per expert.
    """
    with workspace.model(base, allow_requantize=True) as model:
        tensors = expert_tensors(model.source)
        if not tensors:
            raise UnsupportedModelError(
                f"{model.source.name} is dense: it has no experts", remedy="Give a mixture of experts, such as a Mixtral or a Qwen MoE"
            )
        matrix = _matrix(workspace, model, imatrix)
        known = what_is_known(workspace, model, matrix.fingerprint, "auto").knowledge
        return _report(model.source, tensors, matrix, {} if known is None else known.sensitivities)


def expert_tensors(source: ModelSource) -> list[TensorInfo]:
    """The tensors that hold a matrix per routed expert, in file order."""
    return [tensor for tensor in source.tensors if tensor.layer is not None and tensor.role.endswith(_SUFFIXES) and tensor.n_slices > 1]


def _matrix(workspace: Workspace, model: OpenedModel, wanted: str) -> Imatrix:
    found = workspace.imatrices.choose(model, wanted)
    if found is None:
        raise ImatrixError(
            f"there is no importance matrix for {model.source.name}, which would count each expert's tokens",
            remedy=f"Compute one with `{command_line(workspace, 'imatrix', model.source.location)}`, or give a file",
        )
    return found


def _report(
    source: ModelSource, tensors: Sequence[TensorInfo], imatrix: Imatrix, sensitivities: Mapping[str, Sensitivity]
) -> ExpertsReport:
    layers = [_layer(number, members, imatrix, sensitivities) for number, members in _by_layer(tensors).items()]
    stored = source.metadata.get(f"{source.architecture}.expert_used_count")
    n_used = stored.value if stored is not None and isinstance(stored.value, int) else 0
    return ExpertsReport(
        model_name=source.name,
        n_experts=max(len(layer.shares) for layer in layers),
        n_used=n_used,
        imatrix_fingerprint=imatrix.fingerprint,
        datasets=imatrix.datasets,
        n_tokens=imatrix.chunk_count * imatrix.chunk_size,
        probed=any(tensor.name in sensitivities and sensitivities[tensor.name].probes for tensor in tensors),
        layers=tuple(layers),
    )


def _by_layer(tensors: Sequence[TensorInfo]) -> dict[int, list[TensorInfo]]:
    found: dict[int, list[TensorInfo]] = {}
    for tensor in tensors:
        if tensor.layer is not None:
            found.setdefault(tensor.layer, []).append(tensor)
    return dict(sorted(found.items()))


def _layer(number: int, tensors: Sequence[TensorInfo], imatrix: Imatrix, sensitivities: Mapping[str, Sensitivity]) -> ExpertLayer:
    entries = {tensor.name: _entry(imatrix, tensor) for tensor in tensors}
    counts = _counts(tensors, entries)
    squares = {name: entry.sum2.sum(axis=1, dtype=np.float64) for name, entry in entries.items()}
    shares = _shares(counts)
    return ExpertLayer(
        layer=number,
        n_routed=int(counts.sum()),
        shares=_plain(shares),
        importance=_plain(_shares(np.sum(list(squares.values()), axis=0))),
        normalized_entropy=_normalized_entropy(shares),
        unseen=tuple(int(index) for index in np.flatnonzero(counts == 0)),
        tensors=tuple(_tensor(tensor, squares[tensor.name], sensitivities.get(tensor.name)) for tensor in tensors),
    )


def _entry(imatrix: Imatrix, tensor: TensorInfo) -> ImatrixEntry:
    entry = imatrix.entries.get(tensor.name)
    if entry is None or len(entry.counts) != tensor.n_slices or entry.sum2.shape[0] != tensor.n_slices:
        what = "lacks" if entry is None else "does not count the tokens of each expert of"
        raise ImatrixError(
            f"the importance matrix {what} {tensor.name}",
            remedy="Compute one with `quantailor imatrix BASE`; files in the older .dat form have no counts per expert",
        )
    return entry


def _counts(tensors: Sequence[TensorInfo], entries: Mapping[str, ImatrixEntry]) -> Integers:
    """Tokens per expert: the same in all tensors of a layer, for they see the same routing."""
    first = entries[tensors[0].name].counts
    for tensor in tensors[1:]:
        if not np.array_equal(entries[tensor.name].counts, first):
            raise ImatrixError(
                f"the importance matrix counts other tokens for {tensor.name} than for {tensors[0].name}", remedy="Compute it again"
            )
    return first


def _tensor(tensor: TensorInfo, squares: Doubles, sensitivity: Sensitivity | None) -> ExpertTensor:
    return ExpertTensor(
        tensor=tensor.name,
        role=tensor.role,
        size_bytes=tensor.size_bytes,
        importance=_plain(_shares(squares)),
        alpha=None if sensitivity is None or not sensitivity.probes else sensitivity.alpha,
        alpha_status="not probed" if sensitivity is None else sensitivity.status,
    )


def _shares(values: Integers | Doubles) -> Doubles:
    """Parts of the whole; zeros where the whole is nothing."""
    total = float(values.sum())
    shares: Doubles = values / total if total > 0 else np.zeros(len(values))
    return shares


def _normalized_entropy(shares: Doubles) -> float:
    seen = shares[shares > 0]
    return float(-(seen * np.log(seen)).sum() / np.log(len(shares))) + 0.0 if len(shares) > 1 and seen.size else 0.0


def _plain(values: Doubles) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
