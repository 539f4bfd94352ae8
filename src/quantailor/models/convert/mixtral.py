"""The Mixtral family: Mistral with experts, which GGUF stacks into one tensor per matrix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from quantailor.errors import ModelFormatError
from quantailor.models.convert.llama import Llama
from quantailor.models.convert.mistral import Mistral
from quantailor.models.convert.planned import PlannedTensor
from quantailor.models.safetensors_file import StoredArray
from quantailor.records import MetadataValue

_EXPERT = re.compile(r"^model\.layers\.(\d{1,6})\.block_sparse_moe\.experts\.(\d{1,6})\.(w[123])\.weight$")
_MATRICES = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}


class Mixtral(Mistral):
    """`MixtralForCausalLM`."""

    defaults: Mapping[str, Any] = {
        **Mistral.defaults,
        "rms_norm_eps": 1e-5,
        "default_rope_theta": 1000000.0,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }
    implied_head_dim = False
    layer_names: Mapping[str, str] = {
        **{key: name for key, name in Llama.layer_names.items() if not key.startswith("mlp.")},
        "block_sparse_moe.gate": "ffn_gate_inp",
    }

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        super().__init__(values, place)
        self.n_experts = self.config.count("num_local_experts")
        self._waiting: dict[int, dict[tuple[str, int], StoredArray]] = {}

    def _planned(self, array: StoredArray, target: str) -> Iterable[PlannedTensor]:
        """Experts wait until their layer is complete; then its three stacks follow at once."""
        match = _EXPERT.match(array.name)
        if match is None:
            yield from super()._planned(array, target)
            return
        layer, expert = int(match[1]), int(match[2])
        if layer >= self.n_layers or expert >= self.n_experts:
            raise self.unknown(array)
        found = self._waiting.setdefault(layer, {})
        found[match[3], expert] = array
        if len(found) == 3 * self.n_experts:
            del self._waiting[layer]
            for key, name in _MATRICES.items():
                yield self._stack(f"blk.{layer}.{name}.weight", tuple(found[key, number] for number in range(self.n_experts)), target)

    def _stack(self, name: str, pieces: tuple[StoredArray, ...], target: str) -> PlannedTensor:
        if len({piece.shape for piece in pieces}) > 1:
            raise ModelFormatError(f"the experts of {name} have different shapes", remedy="Download the model again")
        infos = [self._info(name, piece, target, (len(pieces),)) for piece in pieces]
        return PlannedTensor(infos[0], pieces)

    def _check_whole(self) -> None:
        for layer, found in sorted(self._waiting.items()):
            raise ModelFormatError(
                f"layer {layer} has {len(found)} expert matrices, not {3 * self.n_experts}", remedy="Download the model again"
            )

    def _expert_metadata(self) -> dict[str, MetadataValue]:
        return {
            "expert_count": MetadataValue("uint32", self.n_experts),
            "expert_used_count": MetadataValue("uint32", self.config.count("num_experts_per_tok")),
        }
