"""A model that never was, whose true damages are known, and scores of its probes with the noise that real ones have."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np

from quantailor.analysis.sensitivity import NULL_MIX, groups_of
from quantailor.evidence.knowledge import Knowledge, load_knowledge
from quantailor.ggml import library
from quantailor.jobs import Home
from quantailor.records import Cell, ChunkScore, Mix, TensorCells, TensorInfo, WeightError
from quantailor.session import OpenedModel, Workspace
from quantailor.store import MeasurementKey, SwapKey
from quantailor.strategy.rules.optimal import solve

ERRORS = {"IQ2_XXS": 0.11, "Q2_K": 0.065, "IQ3_XXS": 0.028, "Q3_K": 0.02, "Q4_K": 0.0046, "Q5_K": 0.0012, "Q6_K": 2.9e-4, "Q8_0": 2.9e-5}
"""`weighted_mse` of a usual tensor."""
ROLES = {"attn_q": 256, "attn_v": 128, "attn_output": 256, "ffn_up": 768, "ffn_down": 768}
N_LAYERS, N_CHUNKS, N_TOKENS = 6, 32, 255
FLIP_NATS = 1e-3
Probes = tuple[str, Sequence[str], Iterable[int]]
"""A grouping, the types, the chunks."""


class MadeUpModel:
    """Tensors, their true damages, and what probes of them score.

    Of the chunks, `foreign` ones are text that the base cannot read: there, errors matter elsewhere. `flips` is the chance that a chunk
    has a router near a tie that any change of a tensor turns over. That costs `FLIP_NATS` whatever the type, and once, however many change.
    Embeddings that are not `tied` to the output have a matrix of their own beside them.
    """

    def __init__(self, seed: int, *, foreign: Sequence[int] = (), flips: float = 0.0, tied: bool = True) -> None:
        rng = np.random.default_rng(seed)
        shapes = {"token_embd.weight": 2048} | {f"blk.{n}.{role}.weight": rows for n in range(N_LAYERS) for role, rows in ROLES.items()}
        shapes |= {} if tied else {"output.weight": 2048}
        self.tensors = [TensorInfo(name, (rows, 256), "BF16", 512 * rows) for name, rows in shapes.items()]
        self.foreign = frozenset(foreign)
        roles = {tensor.role: rng.normal(0, 0.6) for tensor in self.tensors}
        layers = rng.normal(0, 0.8, N_LAYERS)
        self.errors: dict[str, dict[str, float]] = {}
        self.damages: dict[tuple[str, str], float] = {}
        self._chunks = rng.normal(0, 0.25, N_CHUNKS)
        self._own: dict[str, list[float]] = {}
        for tensor in self.tensors:
            depth = 2.0 if tensor.layer is None else layers[tensor.layer]
            alpha = math.exp(-4 + roles[tensor.role] + depth + rng.normal(0, 0.5))
            noise = {256: 3e-4 * alpha * math.exp(rng.normal(0, 0.8)), 32: 8e-5 * alpha * math.exp(rng.normal(0, 0.5))}
            scale = math.exp(rng.normal(0, 0.2))
            self.errors[tensor.name] = {name: error * scale for name, error in ERRORS.items()}
            for name, error in self.errors[tensor.name].items():
                departure = math.exp(rng.normal(0, 0.12))
                self.damages[tensor.name, name] = departure * (alpha * error + noise[library.type_named(name).activation_block])
            spread = np.where(np.isin(np.arange(N_CHUNKS), list(foreign)), 1.5, 0.35)
            self._own[tensor.name] = np.exp(rng.normal(0, spread) - 0.06).tolist()
        ties = np.random.default_rng(1000 + seed).random((len(self.tensors), N_CHUNKS)) < flips
        self._flips = {tensor.name: row.tolist() for tensor, row in zip(self.tensors, ties, strict=True)}

    def truth(self, types: dict[str, str]) -> float:
        """The sum of the true damages, nats."""
        return math.fsum(self.damages[cell] for cell in types.items())

    def mean_chunk(self, chunks: Iterable[int]) -> float:
        """What these chunks cost beside others, all mixes alike; foreign ones left out."""
        return float(np.mean([math.exp(self._chunks[chunk]) for chunk in chunks if chunk not in self.foreign]))

    def score(self, mix: Mix, chunks: Iterable[int]) -> list[ChunkScore]:
        """What a mix scores; the same whoever asks."""
        noise = np.random.default_rng(zlib.crc32(mix.id.encode())).normal(0, 0.1, N_CHUNKS)
        found = []
        for chunk in chunks:
            damage = math.fsum(self.damages[cell] * self._own[cell[0]][chunk] for cell in mix.types.items())
            kld = damage * math.exp(self._chunks[chunk] + noise[chunk]) + FLIP_NATS * any(self._flips[name][chunk] for name in mix.types)
            nats = 13.0 if chunk in self.foreign else 3.0
            found.append(ChunkScore(chunk, N_TOKENS, nats * N_TOKENS, kld * N_TOKENS, 0, 0.0))
        return found

    def known(self, *probes: Probes, only: Collection[str] | None = None) -> Knowledge:
        """What these probes say, or those of single tensors that are named."""
        scores: dict[str, dict[int, ChunkScore]] = {NULL_MIX.id: {score.index: score for score in self.score(NULL_MIX, range(N_CHUNKS))}}
        for grouping, types, chunks in probes:
            for mix in (
                group.mix(name) for group in groups_of(self.tensors, grouping) if only is None or group.name in only for name in types
            ):
                scores.setdefault(mix.id, {}).update({score.index: score for score in self.score(mix, chunks)})
        rows = {mix: list(found.values()) for mix, found in scores.items()}
        key = SwapKey("model", "imatrix", "text", 512, "as built", "finer")
        store = SimpleNamespace(mixes=lambda model, purpose: [], mix_scores=lambda wanted: rows if wanted == key else {})
        store.swap_runs, store.measurements = lambda model: [key], lambda model: {}
        store.scored_mixes, store.locations = lambda wanted: {}, lambda kind, wanted: []
        source = SimpleNamespace(tensors=tuple(self.tensors), architecture="llama", metadata={}, location="base.gguf")
        source.rows = lambda name, start, stop: np.ones((stop - start, 256), np.float32)
        cells = [
            WeightError(tensor.name, name, 0, 4.0, weighted_mse=error)
            for tensor in self.tensors
            for name, error in self.errors[tensor.name].items()
        ]
        source.tensor = {tensor.name: tensor for tensor in self.tensors}.__getitem__
        imatrices = SimpleNamespace(stored=lambda model: [], path=lambda model, imatrix: Path(imatrix), intact=lambda model, imatrix: None)
        workspace = SimpleNamespace(store=store, home=Home(Path("home")), imatrices=imatrices)
        model = SimpleNamespace(fingerprint="model", source=source)
        found = load_knowledge(
            cast("Workspace", workspace), cast("OpenedModel", model), MeasurementKey("model", "imatrix"), cells, evidence=key
        )
        assert found is not None
        return found

    def plan(self, known: Knowledge | None, bits: float) -> dict[str, str]:
        """The optimum at so many bits per weight, by what is known, or by the truth."""
        qtypes, tables = library.types(), []
        for tensor in self.tensors:
            cells = []
            for name, error in self.errors[tensor.name].items():
                damage = self.damages[tensor.name, name] if known is None else known.damage(tensor, qtypes[name], error).value
                cells.append(Cell(name, qtypes[name].tensor_bytes(tensor), qtypes[name].bits_per_weight, damage))
            tables.append(TensorCells(tensor.name, tensor.n_elements, tuple(cells)))
        budget = int(bits * sum(tensor.n_elements for tensor in self.tensors) / 8)
        return {choice.name: choice.type_name for choice in solve(tables, budget_bytes=budget).choices}
