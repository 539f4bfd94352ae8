"""What all families share: from a configuration and its arrays to GGUF metadata and tensors.

A family is mostly tables: names of arrays, keys of metadata. What its tables cannot say it overrides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from quantailor.errors import AlreadyQuantizedError, ModelFormatError, UnsupportedModelError
from quantailor.models.convert.checkpoint import START_FROM, plain_name, whose_name
from quantailor.models.convert.families.attention import attention_notes, reads_both_ways, refuse_rotated_part
from quantailor.models.convert.families.config import ROPE_KEYS, Config, float32, uint32
from quantailor.models.convert.families.rope import llama3_tensor, no_such_rope, rope_metadata
from quantailor.models.convert.families.rows import (
    ITEM_BYTES,
    PlannedTensor,
    Rows,
    array_rows,
    float8_rows,
    head_order,
    picked,
    regrouped,
)
from quantailor.models.convert.vocabulary import VOCABULARIES
from quantailor.models.json_files import INSIST, INTACT, JsonObject, mapping
from quantailor.models.safetensors_file import FLOAT8, READABLE, StoredArray
from quantailor.records import MetadataValue, TensorInfo

MAX_HEAD_DIM, MAX_LAYERS, MAX_VOCABULARY = 1 << 16, 10_000, 1 << 22
"""Beyond any model; what is counted up to them fits in memory."""
FILE_TYPES = {"F16": 1, "BF16": 32}
_IGNORED = (
    *(".attention.masked_bias", ".attention.bias", ".masked_bias", ".causal_mask", ".position_ids"),
    *(".rotary_emb.inv_freq", ".rotary_emb.original_inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached"),
)
"""Ends of the names of what a model computes from its configuration, which older programs saved as well."""
_ACTIVATION_SCALES = (
    *(".activation_scale", "_activation_scale", ".input_scale", ".input_scale_ub", ".output_scale"),
    *(".k_scale", ".v_scale", ".kv_scale", ".q_scale", ".prob_scale", ".prob_output_scale"),
)
_WEIGHT_SCALES = ("_scale_inv", "_scale")
"""Ends of the names of 8-bit matrices' scales, after the matrix's own name; all are multiplied."""
_OTHER_MODALITIES = re.compile(
    r"^(model\.)?(vision_tower|vision_model|visual|audio_tower|multi_modal_projector|embed_vision|embed_audio|mm_projector|"
    r"vision_embed_tokens|embed_tokens_extend|image_newline|img_processor)\b"
)
_FULL = ("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight")
_LAYER = re.compile(r"^model\.layers\.(\d{1,6})\.(.+?)(?:\.(weight|bias))?$")

LLAMA_NAMES: dict[str, str] = {
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
QK_NORMS: dict[str, str] = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


def _block_size(quantization: object) -> object:
    """Rows and columns that share a scale, as quantization_config says; None where it does not."""
    entry = mapping(quantization)
    groups = [mapping(mapping(group).get("weights")) for group in mapping(entry.get("config_groups")).values()]
    return entry.get("weight_block_size", next((group["block_structure"] for group in groups if group.get("block_structure")), None))


def _without_ones(shape: Shape) -> Shape:
    """A shape without the slices that GGUF does not tell from none."""
    return shape[next((place for place, count in enumerate(shape) if count != 1), len(shape)) :]


def outtype(arrays: Iterable[StoredArray]) -> str:
    """The type of matrices: that of the first 16-bit matrix, F16 where there is none."""
    return next((array.dtype for array in arrays if len(array.shape) > 1 and array.dtype in FILE_TYPES), "F16")


Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Key:
    """A value of config.json under its name in GGUF; an optional one is left out where it is null."""

    name: str
    source: str
    kind: str = "uint32"
    optional: bool = False

    def entry(self, config: Config) -> dict[str, MetadataValue]:
        """The entry, or nothing. Raises ModelFormatError for a value of another kind."""
        value = config.get(self.source)
        if value is None and self.optional:
            return {}
        if self.kind == "float32":
            return {self.name: float32(config.number(self.source))}
        return {self.name: uint32(config.as_count(self.source, value))}


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Why arrays are left out."""

    where: str
    """What their names begin with, for example "vision_tower"."""
    why: str
    """Follows the number of arrays and their place: "they ..."."""


TOWER_WHY = "they process images or sound, for which llama.cpp needs a separate file; `--mmproj` makes it"


@dataclass(frozen=True, slots=True)
class Text:
    """An array of the text model under its name there."""

    name: str
    array: StoredArray


class Family:
    """One architecture; subclasses fill in the tables.

    Raises:
        ModelFormatError: a value of config.json is missing or of the wrong kind.
        UnsupportedModelError: an activation that llama.cpp does not compute for this architecture.
    """

    architecture: ClassVar[str]
    defaults: ClassVar[dict[str, Any]] = {}
    """What transformers assumes for absent keys."""
    outer_names: ClassVar[Mapping[str, str]] = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    layer_names: ClassVar[Mapping[str, str]] = LLAMA_NAMES
    keys: ClassVar[Sequence[Key]] = ()
    """Metadata after the common part."""
    rotates: ClassVar[bool] = False
    """Whether rows of the query and key matrices are interleaved for ggml's rope."""
    window_keys: ClassVar[Sequence[str]] = ()
    """Keys that together limit attention to the last `sliding_window` tokens, which llama.cpp does not for this architecture."""
    pools: ClassVar[bool] = False
    """Whether llama.cpp reads from the file how a text becomes one vector."""
    rotates_part: ClassVar[bool] = False
    """Whether `partial_rotary_factor` says how much of a head is rotated."""
    quantizations: ClassVar[Sequence[str]] = ()
    """Values of `quant_method` that are read beside 8-bit floats."""
    needs_output: ClassVar[bool] = False
    """Whether llama.cpp needs an output matrix of its own also where it is the embedding."""
    vocabulary_kind: ClassVar[str] = "either"
    """A key of `VOCABULARIES`."""

    activations: ClassVar[Sequence[str]] = ("silu", "swish")
    """Values of `hidden_act` for what llama.cpp computes."""

    def __init__(self, values: JsonObject, place: str) -> None:
        text = mapping(values.get("text_config"))
        # A text model that has a rope of its own has all of it.
        outer = {key: value for key, value in values.items() if key not in ROPE_KEYS or text.keys().isdisjoint(ROPE_KEYS)}
        self.config = Config({**outer, **text}, self.defaults, place)
        activation = self.config.get("hidden_act")
        if activation is not None and activation not in self.activations:
            raise UnsupportedModelError(
                f"{place} has hidden_act = {str(activation)[:40]!r}, and llama.cpp computes every {type(self).__name__} model with "
                f"{self.activations[0]}",
                remedy="No GGUF file can hold this model; if it was trained with that after all, correct config.json",
            )
        self.n_heads = self.config.count("num_attention_heads")
        self.n_kv_heads = self.config.optional_count("num_key_value_heads") or self.n_heads
        self.n_layers = self.config.count("num_hidden_layers", most=MAX_LAYERS)
        self.vocab_size = self.config.count("vocab_size")
        self.left_out: Mapping[str, LeftOut] = {}
        """Arrays that are not part of the text model, after `plan`."""
        self.notes: list[str] = self.config.overruled_ropes
        """What config.json says twice, and after `vocabulary` what the tokenizer has and the base has not."""
        self.pooling: int | None = None
        """How the directory says that texts become one vector each, as llama.cpp counts the ways; None for other models."""
        self._scales: dict[str, StoredArray] = {}
        if not self.rotates_part:
            refuse_rotated_part(self.config, type(self).__name__)
        self.notes += attention_notes(self.config, self.architecture, self.window_keys, self.n_layers)

    # Tensors

    def plan(self, arrays: Mapping[str, StoredArray]) -> list[PlannedTensor]:
        """All tensors of the base in file order.

        Raises:
            UnsupportedModelError: an array that this family does not have, or of a type we cannot read.
            AlreadyQuantizedError: 8-bit floats whose scales we do not know.
            ModelFormatError: a tensor is missing, or shapes contradict the configuration.
        """
        target = outtype(arrays.values())
        texts = self._texts(arrays)
        planned = [*self._first()]
        origins: dict[str, StoredArray] = {}
        for text in texts:
            for tensor in self._planned(text, target):
                planned.append(tensor)
                origins[tensor.info.name] = text.array
        self._check_whole()
        scaled = {text.array.name for text in texts if text.array.dtype in FLOAT8}
        for name, scale in self._scales.items():
            if name not in scaled:
                raise self.unknown(scale)
        self._check_sizes({tensor.info.name: tensor.info for tensor in planned})
        self._check_loadable({tensor.info.name: tensor.info for tensor in planned}, origins)
        return planned

    def _texts(self, arrays: Mapping[str, StoredArray]) -> list[Text]:
        """The text model's arrays; scales go to `_scales`, other parts to `left_out`."""
        texts, left_out = [], dict[str, LeftOut]()
        self._scales = {}
        for array in arrays.values():
            name = plain_name(array.name)
            matrix = next((array.name.removesuffix(end) for end in _WEIGHT_SCALES if array.name.endswith(f".weight{end}")), None)
            if (reason := self._left_out(name)) is not None:
                left_out[array.name] = reason
            elif matrix is not None or array.name.endswith("_scale_inv"):
                self._scales[matrix or array.name.removesuffix("_scale_inv")] = array
            elif not array.name.endswith(_IGNORED) and not array.name.endswith(_ACTIVATION_SCALES):
                texts.append(Text(name, array))
        self.left_out = left_out
        return texts

    def _left_out(self, name: str) -> LeftOut | None:
        """Why an array is left out; None for those of the text model that llama.cpp runs."""
        match = _OTHER_MODALITIES.match(name)
        return None if match is None else LeftOut(match[2], TOWER_WHY)

    def _first(self) -> Iterable[PlannedTensor]:
        """Tensors before all others: rope factors."""
        rope = self.config.rope
        if rope["rope_type"] == "llama3":
            if not self._has_factors:
                raise no_such_rope(self.config, "llama3")
            yield llama3_tensor(self.config, rope, self.rope_dim)

    @property
    def rope_dim(self) -> int:
        """Numbers of a head that are rotated. Raises ModelFormatError."""
        dim = self.config.optional_count("head_dim") or self.config.count("hidden_size") // self.n_heads
        if not 1 <= dim <= MAX_HEAD_DIM:
            raise self.config.wrong("head_dim", dim)
        return dim

    def _planned(self, text: Text, target: str) -> Iterable[PlannedTensor]:
        """The tensor or tensors of one array."""
        yield self._single(text, self.gguf_name(text), target)

    def _single(self, text: Text, name: str, target: str) -> PlannedTensor:
        rows, shape = self._rows(text.array), text.array.shape
        heads = self._heads(text.name)
        if heads is not None and shape:
            order = head_order(text.array, heads)
            if len(shape) == 1:
                rows = regrouped(picked(array_rows(text.array, 1), shape[0], order), shape[0])
            else:
                rows = picked(rows, rows.n_rows, order)
        return self._tensor(name, rows, shape, target)

    def _heads(self, name: str) -> int | None:
        """The number of heads whose rows are interleaved in this array."""
        if self.rotates and ".self_attn.q_proj." in name:
            return self.n_heads
        return self.n_kv_heads if self.rotates and ".self_attn.k_proj." in name else None

    def _rows(self, array: StoredArray) -> Rows:
        """An array's rows as numbers. Raises ModelFormatError, UnsupportedModelError, AlreadyQuantizedError."""
        if not array.shape or 0 in array.shape or len(array.shape) > 3:
            raise ModelFormatError(f"{array.name} in {array.file.path} has the shape {array.shape}", remedy=INTACT)
        if array.dtype in FLOAT8:
            return self._float8(array)
        if array.dtype not in READABLE:
            raise UnsupportedModelError(
                f"{array.name} in {array.file.path} has the dtype {array.dtype}", remedy="Use a BF16, F16, F32 or FP8 checkpoint"
            )
        return array_rows(array, array.shape[-1])

    def _float8(self, array: StoredArray) -> Rows:
        """A matrix with one scale, one for each row, or one for each block."""
        scale = self._scales.get(array.name)
        if scale is None or len(array.shape) != 2 or scale.dtype not in READABLE:
            raise AlreadyQuantizedError(
                f"{array.name} in {array.file.path} has the dtype {array.dtype} without scales that we know", remedy=START_FROM
            )
        rows, cols = array.shape
        size = _block_size(self.config.get("quantization_config"))
        per_row = size is None and scale.shape in ((rows,), (rows, 1))
        high, wide = (1, cols) if per_row else size if isinstance(size, list) and len(size) == 2 else (rows, cols)
        if type(high) is not int or type(wide) is not int or high < 1 or wide < 1:
            raise self.config.wrong("weight_block_size", size)
        expected = (-(-rows // high), -(-cols // wide))
        if scale.shape != expected and math.prod(scale.shape) != math.prod(expected):
            raise ModelFormatError(f"{scale.name} in {scale.file.path} has the shape {scale.shape}, not {expected}", remedy=INTACT)
        return float8_rows(array, cols, array_rows(scale, expected[1]), (min(high, rows), min(wide, cols)))

    def _tensor(self, name: str, rows: Rows, shape: tuple[int, ...], target: str) -> PlannedTensor:
        type_name = "F32" if len(shape) < 2 or name.endswith(_FULL) or not name.endswith(".weight") else target
        return PlannedTensor(TensorInfo(name, shape, type_name, math.prod(shape) * ITEM_BYTES[type_name]), rows)

    def gguf_name(self, text: Text) -> str:
        """The name in GGUF. Raises UnsupportedModelError for an array that this family does not have."""
        stem, _, suffix = text.name.rpartition(".")
        if stem in self.outer_names and suffix in ("weight", "bias"):
            return f"{self.outer_names[stem]}.{suffix}"
        match = _LAYER.match(text.name)
        if match and int(match[1]) < self.n_layers and match[2] in self.layer_names:
            return f"blk.{int(match[1])}.{self.layer_names[match[2]]}.{match[3] or 'weight'}"
        raise self.unknown(text.array)

    def unknown(self, array: StoredArray) -> UnsupportedModelError:
        match = _LAYER.match(array.name)
        if match and int(match[1]) == self.n_layers and match[2] in self.layer_names:
            return UnsupportedModelError(
                f"{self.config.place} has num_hidden_layers = {self.n_layers}, but {array.file.path} has a further layer, {array.name}",
                remedy="Correct num_hidden_layers, or leave the further layers out of the files",
            )
        if who := whose_name(array.name):
            return UnsupportedModelError(
                f"{array.file.path} has the tensor {array.name[:120]}: its tensors have {who} names, not those of transformers",
                remedy="Export the model to the format of transformers with the program that saved it, or download it in that format",
            )
        return UnsupportedModelError(
            f"{array.file.path} has the tensor {array.name[:120]}, which no {type(self).__name__} model of {self.n_layers} layers has",
            remedy="Save the language model alone, without heads, adapters and the state of training. " + INSIST,
        )

    def _check_whole(self) -> None:
        """Every array has been used."""

    def _check_sizes(self, tensors: Mapping[str, TensorInfo]) -> None:
        """The embedding and the layers are there and as large as the configuration says."""
        expected = (self.vocab_size, self.config.count("hidden_size"))
        embedding = tensors.get("token_embd.weight")
        if embedding is None or embedding.shape != expected:
            found, remedy = "is missing" if embedding is None else f"has the shape {embedding.shape}, not {expected}", INTACT
            if embedding is not None and embedding.shape[1:] == expected[1:]:
                remedy = f"Set vocab_size to {embedding.shape[0]} in config.json, if the tokenizer is this model's"
            raise ModelFormatError(f"the embedding that {self.config.place} describes {found}", remedy=remedy)
        layers = {tensor.layer for tensor in tensors.values()} - {None}
        if len(layers) != self.n_layers:
            raise ModelFormatError(f"{self.config.place} describes {self.n_layers} layers, the files hold {len(layers)}", remedy=INTACT)

    # What llama.cpp loads: each model's load_arch_tensors in llama.cpp's src/models

    def _check_loadable(self, tensors: Mapping[str, TensorInfo], origins: Mapping[str, StoredArray]) -> None:
        """Every tensor that llama.cpp needs is there and as large as it expects, and there is no other."""
        needed, optional = self.outer(), self.outer_optional()
        for layer, (has, may_have) in enumerate(self.layers()):
            needed |= {f"blk.{layer}.{name}": shape for name, shape in has.items()}
            optional |= {f"blk.{layer}.{name}": shape for name, shape in may_have.items()}
        for name in needed:
            if name not in tensors:
                raise self._missing(name)
        for name, tensor in tensors.items():
            expected, array = needed.get(name, optional.get(name)), origins.get(name)
            said = f"{array.name[:120]} in {array.file.path}" if array else f"{name} of {self.config.place}"
            if expected is None:
                raise UnsupportedModelError(
                    f"{said} is a tensor that llama.cpp does not have in a {self.architecture} model", remedy=INSIST
                )
            if _without_ones(tensor.shape) != _without_ones(expected):
                raise ModelFormatError(
                    f"{said} has the shape {array.shape if array else tensor.shape}, not the one that fits {self.config.place}",
                    remedy="Check config.json, or download the model again",
                )
        if self.n_heads % self.n_kv_heads:
            raise self.config.wrong("num_key_value_heads", self.n_kv_heads)

    def _missing(self, name: str) -> ModelFormatError:
        """The error for a tensor that is not there, under the name that its array would have."""
        stem, _, suffix = name.rpartition(".")
        _, block, key = stem.split(".", 2) if stem.startswith("blk.") else ("", "", stem)
        names, start = (self.layer_names, f"model.layers.{block}.") if block else (self.outer_names, "")
        stored = next((f"{start}{array}.{suffix}" for array, tensor in names.items() if tensor == key), name)
        place = self.config.place
        if name == "output.weight" and not self.needs_output:
            return ModelFormatError(
                f"{place} does not tie the output to the embedding, and the files have no output matrix ({stored})",
                remedy="Save or download the whole model (AutoModelForCausalLM), or set tie_word_embeddings where its makers tied them",
            )
        return ModelFormatError(
            f"the model that {place} describes lacks the tensor {stored}", remedy="Download the model again, all parts of it"
        )

    def outer(self) -> dict[str, Shape]:
        """Tensors beside the layers that llama.cpp needs, with their shapes."""
        width = self.config.count("hidden_size")
        shapes: dict[str, Shape] = {"token_embd.weight": (self.vocab_size, width), "output_norm.weight": (width,)}
        if self.needs_output or not self.config.get("tie_word_embeddings"):
            shapes["output.weight"] = (self.vocab_size, width)
        return shapes

    def outer_optional(self) -> dict[str, Shape]:
        """Tensors beside the layers that it takes as well."""
        return {"output.weight": (self.vocab_size, self.config.count("hidden_size"))}

    def layers(self) -> list[tuple[dict[str, Shape], dict[str, Shape]]]:
        """For each layer the tensors that it needs and those that it takes as well."""
        return [(self.layer(), self.layer_optional())] * self.n_layers

    def layer(self) -> dict[str, Shape]:
        """Tensors of a layer that it needs."""
        return {**self.attention(), **self.feed_forward()}

    def layer_optional(self) -> dict[str, Shape]:
        """Tensors of a layer that it takes as well."""
        return {"attn_q.bias": (self.query_rows,), "attn_k.bias": (self.key_rows,), "attn_v.bias": (self.key_rows,)}

    @property
    def head_rows(self) -> int:
        """Rows of a head."""
        return self.head_dim or self.config.count("hidden_size") // self.n_heads

    @property
    def query_rows(self) -> int:
        return self.n_heads * self.head_rows

    @property
    def key_rows(self) -> int:
        return self.n_kv_heads * self.head_rows

    def attention(self) -> dict[str, Shape]:
        """The half of a layer that attends."""
        width = self.config.count("hidden_size")
        return {
            "attn_norm.weight": (width,),
            "attn_q.weight": (self.query_rows, width),
            "attn_k.weight": (self.key_rows, width),
            "attn_v.weight": (self.key_rows, width),
            "attn_output.weight": (width, self.query_rows),
        }

    def head_norms(self) -> dict[str, Shape]:
        """Norms of each query and key head, for families that have them."""
        return {"attn_q_norm.weight": (self.head_rows,), "attn_k_norm.weight": (self.head_rows,)}

    def feed_forward(self) -> dict[str, Shape]:
        """The other half."""
        width, inner = self.config.count("hidden_size"), self.config.count("intermediate_size")
        return {
            "ffn_norm.weight": (width,),
            "ffn_gate.weight": (inner, width),
            "ffn_up.weight": (inner, width),
            "ffn_down.weight": (width, inner),
        }

    # Metadata

    def vocabulary(self, folder: Path, config: JsonObject) -> dict[str, MetadataValue]:
        """`tokenizer.*` in file order. Raises ModelError where there is no tokenizer that the family knows."""
        size = self.config.count("vocab_size", most=MAX_VOCABULARY)
        return VOCABULARIES[self.vocabulary_kind](folder, config, size, self.notes)

    def metadata(self, file_type: str) -> dict[str, MetadataValue]:
        """The architecture's keys and `general.file_type` in file order."""
        entries = self.entries(uint32(FILE_TYPES[file_type]))
        return {key if key.startswith("general.") else f"{self.architecture}.{key}": value for key, value in entries.items()}

    def leading(self) -> dict[str, MetadataValue]:
        """Metadata right after the architecture's name."""
        return {}

    def entries(self, file_type: MetadataValue) -> dict[str, MetadataValue]:
        """The same without the architecture's name."""
        entries = self.common()
        if (dim := self.head_dim) is not None:
            entries["attention.key_length"] = entries["attention.value_length"] = uint32(dim)
        entries["general.file_type"] = file_type
        if self.pooling is not None and self.pools:
            entries["pooling_type"] = uint32(self.pooling)
        for key in self.keys:
            entries |= key.entry(self.config)
        if reads_both_ways(self.config):
            entries["attention.causal"] = MetadataValue("bool", False)
        return entries

    def common(self) -> dict[str, MetadataValue]:
        """Sizes, rope, norms and experts."""
        count, config = self.config.count, self.config
        return {
            "block_count": uint32(self.n_layers),
            "context_length": uint32(count("max_position_embeddings")),
            "embedding_length": uint32(count("hidden_size")),
            "feed_forward_length": uint32(count("intermediate_size")),
            "attention.head_count": uint32(self.n_heads),
            "attention.head_count_kv": uint32(self.n_kv_heads),
            **self._rope_entries(),
            "attention.layer_norm_rms_epsilon": float32(config.number("rms_norm_eps")),
            **self._expert_entries(),
        }

    @property
    def head_dim(self) -> int | None:
        """The size of a head where it is written: only where config.json says it."""
        return self.config.optional_count("head_dim")

    def _rope_entries(self) -> dict[str, MetadataValue]:
        return rope_metadata(self.config, self.config.rope, self.notes, factors=self._has_factors)

    @property
    def _has_factors(self) -> bool:
        """Whether llama.cpp has a tensor for the factors of llama3."""
        return "rope_freqs.weight" in self.outer_optional()

    def _expert_entries(self) -> dict[str, MetadataValue]:
        return {}
