"""gpt-oss: experts in MXFP4, attention sinks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import ClassVar

from quantailor.errors import ModelFormatError
from quantailor.models.convert.families.config import assumed, uint32
from quantailor.models.convert.families.experts import Experts
from quantailor.models.convert.families.family import LLAMA_NAMES, Key, Shape, Text
from quantailor.models.convert.families.rows import (
    MXFP4_BYTES,
    MXFP4_SIZE,
    PlannedTensor,
    Rows,
    array_rows,
    mxfp4_rows,
    picked,
    regrouped,
    slices,
    transposed,
)
from quantailor.models.json_files import INTACT, JsonObject, mapping
from quantailor.models.safetensors_file import READABLE, StoredArray
from quantailor.records import MetadataValue, TensorInfo

_EXPERTS = re.compile(r"^model\.layers\.(\d{1,6})\.mlp\.experts\.(gate_up_proj|down_proj)(_bias|_blocks|_scales)?$")
_PARTS: Mapping[str, tuple[str, ...]] = {"gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"), "down_proj": ("ffn_down_exps",)}
"""Rows of gate and up alternate in one matrix."""
_FILE_TYPE_MXFP4 = 38
_ROPE: JsonObject = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


class GptOss(Experts):
    """`GptOssForCausalLM`."""

    architecture = "gpt-oss"
    defaults = (
        assumed(vocab=201088, width=2880, feed_forward=2880, layers=36, heads=64, kv_heads=8, head_dim=64, context=131072)
        | assumed(eps=1e-5, rope_base=150000.0, sliding_window=128, num_local_experts=128, num_experts_per_tok=4)
        | {"rope_parameters": _ROPE}
    )
    layer_names: ClassVar[Mapping[str, str]] = {
        **{key: name for key, name in LLAMA_NAMES.items() if not key.startswith("mlp.")},
        "post_attention_layernorm": "post_attention_norm",
        "self_attn.sinks": "attn_sinks",
        "mlp.router": "ffn_gate_inp",
    }
    keys = (Key("attention.sliding_window", "sliding_window"), Key("expert_feed_forward_length", "intermediate_size"))
    expert_count_key = "num_local_experts"
    quantizations = ("mxfp4",)
    vocabulary_kind = "bpe"
    needs_output = True

    def layer(self) -> dict[str, Shape]:
        """Sinks, a norm of its own name, and biases."""
        width, inner, count = self.config.count("hidden_size"), self.config.count("intermediate_size"), self.n_experts
        routed = self.routed(inner)
        del routed["ffn_norm.weight"]
        return {
            **self.attention(),
            **routed,
            "attn_output.bias": (width,),
            "attn_sinks.weight": (self.n_heads,),
            "post_attention_norm.weight": (width,),
            "ffn_gate_inp.bias": (count,),
            "ffn_gate_exps.bias": (count, inner),
            "ffn_up_exps.bias": (count, inner),
            "ffn_down_exps.bias": (count, width),
        }

    @property
    def _is_mxfp4(self) -> bool:
        return mapping(self.config.get("quantization_config")).get("quant_method") == "mxfp4"

    def entries(self, file_type: MetadataValue) -> dict[str, MetadataValue]:
        return super().entries(uint32(_FILE_TYPE_MXFP4) if self._is_mxfp4 else file_type)

    def _texts(self, arrays: Mapping[str, StoredArray]) -> list[Text]:
        """The MXFP4 experts come first; their blocks follow their scales, which stand for both."""
        texts = super()._texts(arrays)
        self._blocks = {text.name: text.array for text in texts if text.name.endswith("_proj_blocks")}
        packed = [text for text in texts if text.name.endswith("_proj_scales")]
        if len(packed) != len(self._blocks):
            raise ModelFormatError(f"{self.config.place}'s experts have {len(self._blocks)} blocks and {len(packed)} scales", remedy=INTACT)
        return packed + [text for text in texts if not text.name.endswith(("_proj_blocks", "_proj_scales"))]

    def _planned(self, text: Text, target: str) -> Iterable[PlannedTensor]:
        match = _EXPERTS.match(text.name)
        if match is None:
            yield from super()._planned(text, target)
            return
        layer, names, kind = int(match[1]), _PARTS[match[2]], match[3]
        if layer >= self.n_layers:
            raise self.unknown(text.array)
        for number, name in enumerate(names):
            place = f"blk.{layer}.{name}"
            if kind == "_scales":
                yield self._mxfp4(text, f"{place}.weight", number, len(names))
            elif kind == "_bias":
                yield self._bias(text, f"{place}.bias", number, len(names))
            else:
                yield self._turned(text, f"{place}.weight", number, len(names), target)

    def _mxfp4(self, text: Text, name: str, number: int, step: int) -> PlannedTensor:
        scales, blocks = text.array, self._blocks.get(text.name.removesuffix("_scales") + "_blocks")
        shape = scales.shape
        if blocks is None or blocks.shape != (*shape, MXFP4_BYTES - 1) or {blocks.dtype, scales.dtype} != {"U8"} or len(shape) != 3:
            raise ModelFormatError(f"{scales.name} in {scales.file.path} does not fit its blocks", remedy=INTACT)
        n_experts, n_rows, n_blocks = shape
        if n_experts != self.n_experts or n_rows % step or 0 in shape:
            raise ModelFormatError(f"{scales.name} in {scales.file.path} has the shape {shape}", remedy=INTACT)
        rows = _every(mxfp4_rows(blocks, scales, n_blocks * MXFP4_SIZE), number, step)
        size = n_experts * (n_rows // step) * n_blocks * MXFP4_BYTES
        return PlannedTensor(TensorInfo(name, (n_experts, n_rows // step, n_blocks * MXFP4_SIZE), "MXFP4", size), rows)

    def _bias(self, text: Text, name: str, number: int, step: int) -> PlannedTensor:
        shape = self._experts_shape(text, 2, step)
        self._rows(text.array)  # refuses shapes and types that cannot be read
        if text.array.dtype not in READABLE:
            raise self.unknown(text.array)
        numbers = _every(array_rows(text.array, 1), number, step)
        return self._tensor(name, regrouped(numbers, shape[1] // step), (shape[0], shape[1] // step), "F32")

    def _turned(self, text: Text, name: str, number: int, step: int, target: str) -> PlannedTensor:
        """Experts in 16 bits are (n_experts, n_in, n_out)."""
        n_experts, n_in, n_out = self._experts_shape(text, 3, step)
        rows = _every(transposed(self._rows(text.array), n_in), number, step)
        return self._tensor(name, rows, (n_experts, n_out // step, n_in), target)

    def _experts_shape(self, text: Text, n_dims: int, step: int) -> tuple[int, ...]:
        shape = text.array.shape
        if len(shape) != n_dims or shape[0] != self.n_experts or shape[-1] % step:
            raise ModelFormatError(f"{text.array.name} in {text.array.file.path} has the shape {shape}", remedy=INTACT)
        return shape

    def _check_sizes(self, tensors: Mapping[str, TensorInfo]) -> None:
        super()._check_sizes(tensors)
        if self._is_mxfp4 and not self._blocks:
            raise ModelFormatError(f"{self.config.place} describes MXFP4 experts, the files hold none", remedy=INTACT)


def _every(rows: Rows, number: int, step: int) -> Rows:
    return rows if step == 1 else picked(rows, rows.n_rows // step, slices(step, 1, number))
