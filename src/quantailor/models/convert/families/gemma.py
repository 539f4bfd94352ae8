"""Gemma 2 and the text model of Gemma 3."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from quantailor.models.convert.families.config import assumed, float32, uint32
from quantailor.models.convert.families.family import LLAMA_NAMES, QK_NORMS, Family, Key, Shape, Text
from quantailor.models.convert.families.rope import no_such_rope, rope_metadata
from quantailor.models.convert.families.rows import PlannedTensor, Rows, plus_one
from quantailor.models.safetensors_file import StoredArray
from quantailor.records import MetadataValue

_NORMS: dict[str, str] = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


class Gemma2(Family):
    """`Gemma2ForCausalLM`: norms that multiply by 1 + weight, around attention and feed-forward; capped logits."""

    architecture = "gemma2"
    defaults = (
        assumed(vocab=256000, width=2304, feed_forward=9216, layers=26, heads=8, kv_heads=4, head_dim=256)
        | assumed(context=8192, eps=1e-6, rope_base=10000.0, sliding_window=4096, tie_word_embeddings=True)
        | assumed(final_logit_softcapping=30.0, attn_logit_softcapping=50.0)
    )
    layer_names: ClassVar[Mapping[str, str]] = LLAMA_NAMES | _NORMS
    keys: ClassVar[Sequence[Key]] = (
        Key("attn_logit_softcapping", "attn_logit_softcapping", "float32"),
        Key("final_logit_softcapping", "final_logit_softcapping", "float32"),
        Key("attention.sliding_window", "sliding_window"),
    )
    activations = ("gelu_pytorch_tanh", "gelu", "gelu_new")
    vocabulary_kind = "gemma"

    def common(self) -> dict[str, MetadataValue]:
        count = self.config.count
        return {
            "context_length": uint32(count("max_position_embeddings")),
            "embedding_length": uint32(count("hidden_size")),
            "block_count": uint32(self.n_layers),
            "feed_forward_length": uint32(count("intermediate_size")),
            "attention.head_count": uint32(self.n_heads),
            "attention.head_count_kv": uint32(self.n_kv_heads),
            "attention.layer_norm_rms_epsilon": float32(self.config.number("rms_norm_eps")),
        }

    def outer(self) -> dict[str, Shape]:
        """The output is the embedding."""
        return {name: shape for name, shape in super().outer().items() if name != "output.weight"}

    def layer(self) -> dict[str, Shape]:
        width = self.config.count("hidden_size")
        return {**super().layer(), "post_attention_norm.weight": (width,), "post_ffw_norm.weight": (width,)}

    def _texts(self, arrays: Mapping[str, StoredArray]) -> list[Text]:
        """Without the copy of the embedding that some checkpoints carry."""
        return [text for text in super()._texts(arrays) if text.name != "lm_head.weight"]

    def _rows(self, array: StoredArray) -> Rows:
        rows = super()._rows(array)
        return plus_one(rows) if array.name.endswith("norm.weight") else rows


class Gemma3(Gemma2):
    """`Gemma3ForCausalLM`, `Gemma3ForConditionalGeneration`: two ropes, norms of query and key, no capping."""

    architecture = "gemma3"
    defaults = Gemma2.defaults | assumed(vocab=262208, context=131072, final_logit_softcapping=None, attn_logit_softcapping=None)
    layer_names: ClassVar[Mapping[str, str]] = LLAMA_NAMES | _NORMS | QK_NORMS
    keys = (Key("final_logit_softcapping", "final_logit_softcapping", "float32", optional=True),)

    def outer(self) -> dict[str, Shape]:
        return Family.outer(self)

    def attention(self) -> dict[str, Shape]:
        return {**super().attention(), **self.head_norms()}

    def _first(self) -> Iterable[PlannedTensor]:
        return ()

    def common(self) -> dict[str, MetadataValue]:
        return Family.common(self)

    def entries(self, file_type: MetadataValue) -> dict[str, MetadataValue]:
        entries = super().entries(file_type)
        if self.config.get("sliding_window_pattern") != 1:
            entries["attention.sliding_window"] = uint32(self.config.count("sliding_window"))
        return entries

    def _rope_entries(self) -> dict[str, MetadataValue]:
        full, local = self.config.ropes({"full_attention": 1_000_000.0, "sliding_attention": 10_000.0})
        if local["rope_type"] != "default":
            raise no_such_rope(self.config, local["rope_type"], " for sliding attention")
        entries = rope_metadata(self.config, full, self.notes)
        entries["rope.freq_base_swa"] = float32(self.config.above_zero("rope_theta", local["rope_theta"]))
        return entries

    def _planned(self, text: Text, target: str) -> Iterable[PlannedTensor]:
        """Rows of the embedding beyond the vocabulary are left out."""
        shape = text.array.shape
        if text.name == "model.embed_tokens.weight" and len(shape) == 2 and shape[0] > self.vocab_size:
            yield self._tensor("token_embd.weight", self._rows(text.array), (self.vocab_size, shape[1]), target)
        else:
            yield from super()._planned(text, target)

    def _texts(self, arrays: Mapping[str, StoredArray]) -> list[Text]:
        return Family._texts(self, arrays)
