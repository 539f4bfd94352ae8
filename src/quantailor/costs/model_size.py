"""How large a model is in the ways that decide what work on it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantailor.analysis.scores.base_logp import LARGE_BYTES
from quantailor.analysis.scores.resting import resting_bytes
from quantailor.ggml.runtime import PART_BYTES
from quantailor.models.source import ModelSource
from quantailor.qtypes import IMATRIX_EXEMPT, never_quantized
from quantailor.records import TensorInfo

_F16_BYTES = 2
_F32_BYTES = 4
_N_WIDEST = 8
"""As many inputs of the widest matrix take about what all take that are held at once."""

QUICK_TYPES = ("Q2_K", "Q3_K", "Q4_0", "Q5_0", "Q6_K", "Q8_0")
"""Types that ggml rounds to quickly, with and without blocks of 256; of the others some take a hundred times as long."""
LARGE_MODEL_WEIGHTS = 100_000_000
"""From so many on, rounding all weights takes longer than running a chunk."""


@dataclass(frozen=True)
class ModelSize:
    """Counts of one model."""

    tensors: tuple[TensorInfo, ...]
    """Those whose type is a choice."""
    tensor_bytes: int
    """Of all tensors as they are stored."""
    resting_bytes: int
    """Of all tensors as they rest at 8 bits."""
    n_weights: int
    """Of `tensors`."""
    n_all_weights: int
    n_active: int
    """Weights that a token is multiplied with in the blocks: those of the experts it goes through, of all others all."""
    n_output: int
    """Weights of the matrix that gives the logits; it runs only where logits are wanted."""
    n_vocab: int
    output_input_bytes: int
    """What the output matrix is multiplied with at one position, in the matrix' precision."""
    n_inputs: int
    """Inputs of all matrices, expert by expert: what an importance matrix has figures for."""
    kv_bytes_per_token: int
    widest: int
    """Columns or rows of the widest matrix of a block."""
    is_bfloat: bool
    """Stored in BF16, so that probes let it rest in F16."""

    @property
    def is_large(self) -> bool:
        """As of the function of that name."""
        return self.n_all_weights >= LARGE_MODEL_WEIGHTS

    @classmethod
    def of(cls, source: ModelSource) -> ModelSize:
        """Read from the header; no weights are read."""
        tensors = tuple(tensor for tensor in source.tensors if never_quantized(tensor, source.architecture) is None)
        by_name = {tensor.name: tensor for tensor in source.tensors}
        embeddings = by_name.get("token_embd.weight")
        output = by_name.get("output.weight", embeddings)
        blocks = [tensor for tensor in tensors if tensor.name not in IMATRIX_EXEMPT]
        return cls(
            tensors=tensors,
            tensor_bytes=sum(tensor.size_bytes for tensor in source.tensors),
            resting_bytes=resting_bytes(source),
            n_weights=sum(tensor.n_elements for tensor in tensors),
            n_all_weights=sum(tensor.n_elements for tensor in source.tensors),
            n_active=sum(round(tensor.n_elements * _active_share(source, tensor)) for tensor in blocks),
            n_output=0 if output is None else output.n_elements,
            n_vocab=0 if embeddings is None else embeddings.n_rows,
            output_input_bytes=0 if output is None else output.n_cols * (_F32_BYTES if output.type_name == "F32" else _F16_BYTES),
            n_inputs=sum(tensor.n_cols * tensor.n_slices for tensor in blocks),
            kv_bytes_per_token=_kv_bytes_per_token(source),
            widest=max((max(tensor.n_cols, tensor.shape[-2]) for tensor in blocks if len(tensor.shape) > 1), default=0),
            is_bfloat=any(tensor.type_name == "BF16" for tensor in tensors),
        )

    def score_flops(self, n_ctx: int, *, base_is_held: bool = False) -> float:
        """Floating point operations of one chunk with logits for its second half, and the base's unless they are kept or `base_is_held`."""
        n_outputs = 2 if self.computes_base_again(n_ctx) and not base_is_held else 1
        return self.decode_flops(n_ctx) + 2.0 * n_outputs * self.n_output * n_ctx / 2

    def computes_base_again(self, n_ctx: int) -> bool:
        """Whether the base's log-probabilities are too large to be kept on disk (`analysis.base_logp`)."""
        return 2 * _n_scored(n_ctx) * self.n_vocab > LARGE_BYTES

    def decode_flops(self, n_ctx: int) -> float:
        """Floating point operations of one chunk without logits."""
        return 2.0 * self.n_active * n_ctx

    def logits_bytes(self, n_ctx: int) -> int:
        """Logits of the second half of a chunk, in 32 bits."""
        return _F32_BYTES * self.n_vocab * n_ctx // 2

    def part_bytes(self, n_ctx: int) -> int:
        """Those of them that a processor computes at a time (`LoadedModel.logit_parts`)."""
        return min(self.logits_bytes(n_ctx), max(PART_BYTES, _F32_BYTES * self.n_vocab))

    def context_bytes(self, n_ctx: int) -> int:
        """What llama.cpp holds beside the weights at the least: keys, values, logits."""
        return self.kv_bytes_per_token * n_ctx + self.part_bytes(n_ctx)

    def chunk_bytes(self, n_ctx: int) -> int:
        """What llama.cpp holds, nearly, for one chunk that runs with others: keys, values, all its logits, and inputs of some matrices."""
        return self.kv_bytes_per_token * n_ctx + 2 * self.logits_bytes(n_ctx) + _N_WIDEST * _F32_BYTES * self.widest * n_ctx

    def scoring_bytes(self, n_ctx: int) -> int:
        """What scoring a chunk holds beside the model and llama.cpp's context."""
        codes = self.logits_bytes(n_ctx) // 2 if self.computes_base_again(n_ctx) else 0
        return codes + 4 * self.part_bytes(n_ctx)

    def base_logp_bytes(self, n_ctx: int) -> int:
        """One chunk of the base's log-probabilities on disk (`analysis.base_logp`): two bytes per token of the vocabulary, or inputs."""
        per_position = self.output_input_bytes + 24 if self.computes_base_again(n_ctx) else 2 * self.n_vocab + 16
        return _n_scored(n_ctx) * per_position

    def bytes_at(self, bits_per_weight: float) -> int:
        """All tensors that can be quantized at so many bits."""
        return math.floor(self.n_weights * bits_per_weight / 8)


def _n_scored(n_ctx: int) -> int:
    return max(0, n_ctx - n_ctx // 2 - 1)


def _active_share(source: ModelSource, tensor: TensorInfo) -> float:
    """The share of a tensor's slices that a token goes through."""
    n_used = _number(source, "expert_used_count")
    return min(1.0, n_used / tensor.n_slices) if tensor.n_slices > 1 and n_used else 1.0


def _kv_bytes_per_token(source: ModelSource) -> int:
    """Keys and values in 16 bits; 0 where the header does not say how many."""
    n_heads, n_embd = _number(source, "attention.head_count"), _number(source, "embedding_length")
    n_kv = _number(source, "attention.head_count_kv") or n_heads
    length = _number(source, "attention.key_length") or (n_embd / n_heads if n_heads else 0)
    return int(2 * _F16_BYTES * _number(source, "block_count") * n_kv * length)


def _number(source: ModelSource, name: str) -> float:
    """A number of the header, the smallest of a list; 0 where there is none."""
    found = source.metadata.get(f"{source.architecture}.{name}")
    values = () if found is None else found.value if isinstance(found.value, tuple) else (found.value,)
    return min((float(value) for value in values if isinstance(value, int | float)), default=0.0)


def is_large(source: ModelSource) -> bool:
    """Whether rounding all of a model's weights takes longer than running a chunk."""
    return sum(tensor.n_elements for tensor in source.tensors) >= LARGE_MODEL_WEIGHTS
