"""Experts: GGUF stacks those of a layer into one tensor per matrix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import ClassVar

from quantailor.errors import ModelFormatError
from quantailor.models.convert.families.config import uint32
from quantailor.models.convert.families.family import Family, Shape, Text
from quantailor.models.convert.families.rows import PlannedTensor, picked, slices, stacked
from quantailor.models.json_files import INTACT, JsonObject
from quantailor.records import MetadataValue

_FUSED = re.compile(r"^model\.layers\.(\d{1,6})\.mlp\.experts\.(gate_up_proj|down_proj)(?:\.weight)?$")


class Experts(Family):
    """A family whose experts are arrays of their own, or one array per layer and matrix ("fused")."""

    expert_pattern: ClassVar[re.Pattern[str]] = re.compile(
        r"^model\.layers\.(\d{1,6})\.mlp\.experts\.(\d{1,6})\.(down_proj|gate_proj|up_proj)\.weight$"
    )
    matrices: ClassVar[Mapping[str, str]] = {"down_proj": "ffn_down_exps", "gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps"}
    """In file order."""
    expert_count_key: ClassVar[str] = "num_experts"
    """Where the configuration says it; `num_local_experts` is its newer name."""

    def __init__(self, values: JsonObject, place: str) -> None:
        super().__init__(values, place)
        newer = self.config.get("num_local_experts") is not None
        self.n_experts = self.config.count("num_local_experts" if newer else self.expert_count_key)
        self._waiting: dict[int, dict[tuple[str, int], Text]] = {}

    def _planned(self, text: Text, target: str) -> Iterable[PlannedTensor]:
        """Experts wait until their layer is complete; then its three stacks follow at once."""
        if fused := _FUSED.match(text.name):
            yield from self._split(text, int(fused[1]), fused[2], target)
            return
        match = self.expert_pattern.match(text.name)
        if match is None:
            yield from super()._planned(text, target)
            return
        layer, expert = int(match[1]), int(match[2])
        if layer >= self.n_layers or expert >= self.n_experts:
            raise self.unknown(text.array)
        waiting = self._waiting.setdefault(layer, {})
        waiting[match[3], expert] = text
        if len(waiting) == 3 * self.n_experts:
            del self._waiting[layer]
            for key, name in self.matrices.items():
                yield self._stack(f"blk.{layer}.{name}.weight", [waiting[key, number] for number in range(self.n_experts)], target)

    def _stack(self, name: str, experts: list[Text], target: str) -> PlannedTensor:
        first = experts[0].array
        for array in (expert.array for expert in experts):
            if array.shape != first.shape:
                raise ModelFormatError(
                    f"{array.name} in {array.file.path} has the shape {array.shape}, {first.name} {first.shape}", remedy=INTACT
                )
        return self._tensor(name, stacked([self._rows(expert.array) for expert in experts]), (len(experts), *first.shape), target)

    def _split(self, text: Text, layer: int, matrix: str, target: str) -> Iterable[PlannedTensor]:
        """(n_experts, 2 n_ff, n_embd) into its gate and up halves; (n_experts, n_embd, n_ff) as it is."""
        shape, rows = text.array.shape, self._rows(text.array)
        if layer >= self.n_layers or len(shape) != 3 or shape[0] != self.n_experts:
            raise self.unknown(text.array)
        if matrix == "down_proj":
            yield self._tensor(f"blk.{layer}.ffn_down_exps.weight", rows, shape, target)
            return
        half = shape[1] // 2
        if shape[1] % 2:
            raise ModelFormatError(f"{text.array.name} in {text.array.file.path} has the shape {shape}", remedy=INTACT)
        for number, name in enumerate(("ffn_gate_exps", "ffn_up_exps")):
            part = picked(rows, self.n_experts * half, slices(shape[1], half, number * half))
            yield self._tensor(f"blk.{layer}.{name}.weight", part, (self.n_experts, half, shape[2]), target)

    def routed(self, inner: int) -> dict[str, Shape]:
        """The router and its experts of `inner` columns, after their norm."""
        width, count = self.config.count("hidden_size"), self.n_experts
        return {
            "ffn_norm.weight": (width,),
            "ffn_gate_inp.weight": (count, width),
            "ffn_gate_exps.weight": (count, inner, width),
            "ffn_up_exps.weight": (count, inner, width),
            "ffn_down_exps.weight": (count, width, inner),
        }

    def _check_whole(self) -> None:
        for layer, waiting in sorted(self._waiting.items()):
            message = f"layer {layer} has {len(waiting)} expert matrices, not {3 * self.n_experts} as {self.config.place} says"
            raise ModelFormatError(message, remedy=INTACT)

    def _expert_entries(self) -> dict[str, MetadataValue]:
        return {
            "expert_count": uint32(self.n_experts),
            "expert_used_count": uint32(self.config.count("num_experts_per_tok")),
        }
