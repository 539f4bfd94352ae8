"""The Llama family: names, head order, rope factors and metadata."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from quantailor.errors import ModelFormatError, UnsupportedModelError
from quantailor.models.convert.config import Config, float32
from quantailor.models.convert.planned import ITEM_BYTES, PlannedTensor, check_heads
from quantailor.models.safetensors_file import READABLE, StoredArray
from quantailor.records import MetadataValue, TensorInfo

MAX_HEAD_DIM = 1 << 16
FILE_TYPES = {"F16": 1, "BF16": 32}
_IGNORED = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = re.compile(r"^model\.layers\.(\d{1,6})\.(.+)\.(weight|bias)$")


def outtype(arrays: Iterable[StoredArray]) -> str:
    """The type of matrices: that of the first 16-bit matrix, F16 where there is none."""
    return next((array.dtype for array in arrays if len(array.shape) > 1 and array.dtype in FILE_TYPES), "F16")


class Llama:
    """`LlamaForCausalLM`; subclasses say what differs."""

    architecture = "llama"
    defaults: Mapping[str, Any] = {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "default_rope_theta": 10000.0,
    }
    implied_head_dim = True
    """Whether an absent `head_dim` is worked out and then written."""
    layer_names: Mapping[str, str] = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        self.config = Config(values, self.defaults, place)
        self.n_heads = self.config.count("num_attention_heads")
        self.n_kv_heads = self.config.optional_count("num_key_value_heads") or self.n_heads
        self.n_layers = self.config.count("num_hidden_layers")
        self.vocab_size = self.config.count("vocab_size")
        stored = self.config.optional_count("head_dim")
        self.rope_dim = stored or self.config.count("hidden_size") // self.n_heads
        self.head_dim = stored or (self.rope_dim if self.implied_head_dim else None)
        if not 1 <= self.rope_dim <= MAX_HEAD_DIM:
            raise self.config.wrong("head_dim", self.rope_dim)

    # Tensors

    def plan(self, arrays: Mapping[str, StoredArray]) -> list[PlannedTensor]:
        """All tensors of the base in file order.

        Raises:
            UnsupportedModelError: an array that this family does not have, or of a type we cannot read.
            ModelFormatError: shapes that contradict the configuration.
        """
        target = outtype(arrays.values())
        planned = [*self._rope_factors()]
        for array in arrays.values():
            if not array.name.endswith(_IGNORED):
                planned.extend(self._planned(array, target))
        self._check_whole()
        self._check_sizes({tensor.info.name: tensor.info for tensor in planned})
        return planned

    def _planned(self, array: StoredArray, target: str) -> Iterable[PlannedTensor]:
        yield self._single(array, self.gguf_name(array), target)

    def _check_whole(self) -> None:
        """Every array has been used."""

    def _check_sizes(self, tensors: Mapping[str, TensorInfo]) -> None:
        """The embedding and the layers are there and as large as the configuration says."""
        expected = (self.vocab_size, self.config.count("hidden_size"))
        embedding = tensors.get("token_embd.weight")
        if embedding is None or embedding.shape != expected:
            found = "is missing" if embedding is None else f"has the shape {embedding.shape}, not {expected}"
            raise ModelFormatError(f"the embedding that {self.config.place} describes {found}", remedy="Download the model again")
        layers = {tensor.layer for tensor in tensors.values()} - {None}
        if len(layers) != self.n_layers:
            raise ModelFormatError(
                f"{self.config.place} describes {self.n_layers} layers, the files hold {len(layers)}", remedy="Download the model again"
            )

    def _single(self, array: StoredArray, name: str, target: str) -> PlannedTensor:
        heads = None
        if ".self_attn.q_proj." in array.name:
            heads = self.n_heads
        elif ".self_attn.k_proj." in array.name:
            heads = self.n_kv_heads
        if heads is not None and array.shape:
            check_heads(array, heads)
        return PlannedTensor(self._info(name, array, target, ()), (array,), heads)

    def _info(self, name: str, array: StoredArray, target: str, stack: tuple[int, ...]) -> TensorInfo:
        if array.dtype not in READABLE:
            raise UnsupportedModelError(
                f"{array.name} in {array.file.path} has the dtype {array.dtype}", remedy="Use a BF16, F16 or F32 checkpoint"
            )
        shape = (*stack, *array.shape)
        if not array.shape or 0 in shape or len(shape) > 3:
            raise ModelFormatError(f"{array.name} in {array.file.path} has the shape {array.shape}", remedy="Download the model again")
        full = len(shape) < 2 or name.endswith(("_norm.weight", "ffn_gate_inp.weight")) or not name.endswith(".weight")
        type_name = "F32" if full else target
        return TensorInfo(name, shape, type_name, math.prod(shape) * ITEM_BYTES[type_name])

    def gguf_name(self, array: StoredArray) -> str:
        """The name in GGUF. Raises UnsupportedModelError for an array that this family does not have."""
        stem, _, suffix = array.name.rpartition(".")
        if stem in _OUTER and suffix in ("weight", "bias"):
            return f"{_OUTER[stem]}.{suffix}"
        match = _LAYER.match(array.name)
        if match and int(match[1]) < self.n_layers and match[2] in self.layer_names:
            return f"blk.{int(match[1])}.{self.layer_names[match[2]]}.{match[3]}"
        raise self.unknown(array)

    def unknown(self, array: StoredArray) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{array.file.path} has the tensor {array.name[:120]}, which no {type(self).__name__} model of {self.n_layers} layers has",
            remedy="Convert it with llama.cpp's converter and give the GGUF file",
        )

    def _rope_factors(self) -> Iterable[PlannedTensor]:
        """Llama 3.1's frequency factors (arXiv:2407.21783; transformers' rope type "llama3")."""
        rope = self.config.rope
        if str(rope["rope_type"]).lower() != "llama3":
            return
        number = self.config.as_number
        base = number("rope_theta", rope["rope_theta"])
        factor, low, high, length = (
            number(key, rope.get(key, default))
            for key, default in (
                ("factor", 8.0),
                ("low_freq_factor", 1.0),
                ("high_freq_factor", 4.0),
                ("original_max_position_embeddings", 8192),
            )
        )
        if base <= 0 or factor <= 0 or low <= 0 or high <= low:
            raise self.config.wrong("rope_parameters", rope)
        with np.errstate(all="ignore"):
            factors = llama3_factors(self.rope_dim, base, factor, low, high, length)
        if not np.isfinite(factors).all():
            raise self.config.wrong("rope_parameters", rope)
        yield _constant("rope_freqs.weight", factors)

    # Metadata

    def metadata(self, file_type: str) -> dict[str, MetadataValue]:
        """`llama.*` and `general.file_type` in file order."""
        count, config = self.config.count, self.config
        entries: dict[str, MetadataValue] = {}
        for key, value in (
            ("block_count", self.n_layers),
            ("context_length", count("max_position_embeddings")),
            ("embedding_length", count("hidden_size")),
            ("feed_forward_length", count("intermediate_size")),
            ("attention.head_count", self.n_heads),
            ("attention.head_count_kv", self.n_kv_heads),
        ):
            entries[key] = MetadataValue("uint32", value)
        entries.update(self._rope_metadata())
        entries["attention.layer_norm_rms_epsilon"] = float32(config.number("rms_norm_eps"))
        entries.update(self._expert_metadata())
        if self.head_dim is not None:
            entries["attention.key_length"] = entries["attention.value_length"] = MetadataValue("uint32", self.head_dim)
        prefixed = {f"{self.architecture}.{key}": value for key, value in entries.items()}
        prefixed["general.file_type"] = MetadataValue("uint32", FILE_TYPES[file_type])
        prefixed[f"{self.architecture}.vocab_size"] = MetadataValue("uint32", self.vocab_size)
        prefixed[f"{self.architecture}.rope.dimension_count"] = MetadataValue("uint32", self.rope_dim)
        return prefixed

    def _expert_metadata(self) -> dict[str, MetadataValue]:
        return {}

    def _rope_metadata(self) -> dict[str, MetadataValue]:
        rope, number = self.config.rope, self.config.as_number
        kind, factor = rope["rope_type"], rope.get("factor")
        entries: dict[str, MetadataValue] = {}
        if kind in ("linear", "yarn") and factor is not None:
            entries["rope.scaling.type"] = MetadataValue("string", kind)
            entries["rope.scaling.factor"] = float32(number("factor", factor))
        if kind == "yarn" and factor is not None:
            length = self.config.as_count("original_max_position_embeddings", rope["original_max_position_embeddings"])
            entries["rope.scaling.original_context_length"] = MetadataValue("uint32", length)
            attention = rope.get("attention_factor", rope.get("attn_factor"))
            for key, value in (
                ("ext_factor", rope.get("extrapolation_factor")),
                ("attn_factor", attention),
                ("beta_fast", rope.get("beta_fast")),
                ("beta_slow", rope.get("beta_slow")),
            ):
                if value is not None:
                    entries[f"rope.scaling.yarn_{key}"] = float32(number(key, value))
        if kind not in ("default", "linear", "yarn", "llama3", "dynamic"):
            raise UnsupportedModelError(
                f"{self.config.place} has the rope type {str(kind)[:40]!r}", remedy="Convert it with llama.cpp's converter"
            )
        entries["rope.freq_base"] = float32(number("rope_theta", rope["rope_theta"]))
        return entries


def llama3_factors(dim: int, base: float, factor: float, low: float, high: float, length: float) -> list[float]:
    """What each frequency is divided by: 1 for short wavelengths, `factor` for long ones, a blend between."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    # Float32 steps and reciprocals in torch's order, so that the last bit agrees; powers are rounded correctly.
    one = np.float32(1)
    frequencies = one / np.power(base, exponents.astype(np.float64)).astype(np.float32)
    factors = []
    for frequency in frequencies:
        wavelength = one / frequency * np.float32(2 * math.pi)
        if wavelength < length / high:
            factors.append(1.0)
        elif wavelength > length / low:
            factors.append(factor)
        else:
            smooth = (one / wavelength * np.float32(length) - np.float32(low)) / np.float32(high - low)
            factors.append(float(one / ((one - smooth) / np.float32(factor) + smooth)))
    return factors


def _constant(name: str, values: list[float]) -> PlannedTensor:
    data = np.asarray(values, dtype=np.float32)
    return PlannedTensor(TensorInfo(name, data.shape, "F32", data.nbytes), constant=data.view(np.uint8))
