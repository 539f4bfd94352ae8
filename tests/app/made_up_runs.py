"""A home with made-up evidence: a small model whose weights are a hole in a file, errors that fall with bits, scores of known alphas."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from large_model import write_large_model

from quantailor.analysis.importance.imatrix import Imatrix, ImatrixEntry
from quantailor.analysis.sensitivity import NULL_MIX
from quantailor.analysis.weight_errors.measure import MeasureSettings
from quantailor.ggml import library
from quantailor.qtypes import unavailable
from quantailor.records import ChunkScore, Mix, TensorInfo, WeightError
from quantailor.session import OpenedModel, Workspace, quantizable_tensors
from quantailor.store import MeasurementKey, SwapKey

TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "IQ4_NL", "Q3_K", "Q2_K", "F16")
PROBES = ("Q2_K", "Q6_K", "Q8_0")
N_TOKENS = 256
NOISE = 2e-5


def write_model(path: Path) -> Path:
    """A Llama of two blocks."""
    write_large_model(path, 49)
    return path


def imatrix(model: OpenedModel, seed: int) -> Imatrix:
    """An importance matrix for a model."""
    entries = {
        tensor.name: ImatrixEntry(np.full((1, tensor.n_cols), seed + 1, np.float32), np.ones(1, np.int64))
        for tensor in quantizable_tensors(model.source)
    }
    return Imatrix(entries, datasets=(f"{seed}.txt",), chunk_count=1 + seed, chunk_size=512)


def matrix(workspace: Workspace, model: OpenedModel, seed: int) -> str:
    """Keep an importance matrix as the model's newest; its fingerprint."""
    made = imatrix(model, seed)
    workspace.imatrices.keep(model.fingerprint, made, imported=True)
    return made.fingerprint


def alpha_of(tensor: TensorInfo, salt: str = "") -> float:
    """Between 0.01 and 1, by the tensor's name; another salt gives another text's."""
    digest = hashlib.sha256(f"{salt}{tensor.name}".encode()).digest()
    return float(10.0 ** (digest[0] / 128 - 2))


def error_of(type_name: str, factor: float = 1.0) -> float:
    """Four times less per bit."""
    qtype = library.types()[type_name]
    return factor * float(4.0**-qtype.bits_per_weight) if qtype.is_quantized else 0.0


def measure(
    workspace: Workspace,
    model: OpenedModel,
    imatrix: str = "",
    *,
    factor: float = 1.0,
    rounding: str = "",
    output: float | None = None,
    settings: str = "",
) -> None:
    """Record weight errors with an importance matrix (by fingerprint, or ""); `output` is the factor of `output_mse`, if any.

    `settings` are those of a measurement, today's unless given.
    """
    tensors = quantizable_tensors(model.source)
    cells = [_cell(tensor, name, error_of(name, factor)) for tensor in tensors for name in _possible(tensor)]
    if output is not None:
        cells = [dataclasses.replace(cell, output_mse=error_of(cell.type_name, output)) for cell in cells]
    key = MeasurementKey(model.fingerprint, imatrix, settings or MeasureSettings().key_with(rounding), rounding=rounding)
    workspace.store.record_cells(key, cells)


def _possible(tensor: TensorInfo, among: Sequence[str] = TYPES) -> list[str]:
    qtypes = library.types()
    return [name for name in among if unavailable(tensor, qtypes[name], architecture="llama", has_imatrix=True, qtypes=qtypes) is None]


def _cell(tensor: TensorInfo, type_name: str, error: float) -> WeightError:
    qtype, rmse = library.types()[type_name], error**0.5
    size = qtype.tensor_bytes(tensor)
    cell = WeightError(tensor.name, type_name, size, qtype.bits_per_weight, n_rows_measured=64, n_rows_total=tensor.n_rows)
    return dataclasses.replace(cell, rmse=rmse, max_abs_error=4 * rmse, relative_mse=error, weighted_mse=error)


def probe(
    workspace: Workspace,
    model: OpenedModel,
    text: Path,
    imatrix: str = "",
    *,
    factor: float = 1.0,
    n_chunks: int = 8,
    n_mixes: int = 8,
    types: Sequence[str] = PROBES,
    only: str = "",
    salt: str = "",
    rounding: str = "",
) -> SwapKey:
    """Record what probes and whole mixes on a text would have found, where `factor` is that of the errors that were swapped in."""
    digest = hashlib.sha256(text.read_bytes()).hexdigest()
    workspace.store.record_location("text", digest, text)
    key = SwapKey(model.fingerprint, imatrix, digest, 512, "as built", "as stored", rounding=rounding)
    tensors = [tensor for tensor in quantizable_tensors(model.source) if only in tensor.name]
    mixes = [Mix.of({tensor.name: name}) for tensor in tensors for name in _possible(tensor, types)]
    dice = random.Random(0)
    whole = [Mix.of({tensor.name: dice.choice(_possible(tensor, TYPES[:-1])) for tensor in tensors}) for _ in range(n_mixes)]
    workspace.store.record_mixes(model.fingerprint, "curve", whole)
    found = {tensor.name: tensor for tensor in tensors}
    scores = [(NULL_MIX.id, score) for score in _scores(0.0, n_chunks)]
    for mix in (*mixes, *whole):
        kld = sum(alpha_of(found[name], salt) * (error_of(kind, factor) + NOISE) for name, kind in mix.types.items())
        scores += [(mix.id, score) for score in _scores(kld, n_chunks)]
    workspace.store.record_mix_scores(key, scores)
    return key


def _scores(kld: float, n_chunks: int) -> list[ChunkScore]:
    spread = (1 + 0.04 * (-1) ** at for at in range(n_chunks))
    return [ChunkScore(at, N_TOKENS, 500.0, kld * N_TOKENS * by, 200, 0.1) for at, by in enumerate(spread)]
