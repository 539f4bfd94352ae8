"""A model with thousands of tensors whose weights are a hole in a sparse file: only its header takes room."""

from __future__ import annotations

from pathlib import Path

from quantailor.ggml import library
from quantailor.models.gguf_format import aligned, encode_header
from quantailor.records import MetadataValue, TensorInfo

ALIGNMENT = 32
N_EMBD = 512
N_FF = 1408
"""No multiple of 256: K and IQ types are out where it is a row's width."""
N_VOCAB = 4096
_NORMS = ("attn_norm", "attn_q_norm", "attn_k_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
_SQUARE = ("attn_q", "attn_output", "attn_gate", "ssm_in", "ssm_out")
_NARROW = ("attn_k", "attn_v", "attn_q_a", "attn_kv_a_mqa", "attn_kv_b", "ffn_gate_inp")
_WIDE = ("ffn_gate", "ffn_up", "ffn_gate_shexp", "ffn_up_shexp")
_BLOCK = {
    **{f"{role}.weight": (N_EMBD,) for role in _NORMS},
    **{f"{role}.weight": (N_EMBD, N_EMBD) for role in _SQUARE},
    **{f"{role}.weight": (N_EMBD // 4, N_EMBD) for role in _NARROW},
    **{f"{role}.weight": (N_FF, N_EMBD) for role in _WIDE},
    **{f"{role}.weight": (N_EMBD, N_FF) for role in ("ffn_down", "ffn_down_shexp")},
}
_OUTSIDE = {"token_embd.weight": (N_VOCAB, N_EMBD), "output_norm.weight": (N_EMBD,), "output.weight": (N_VOCAB, N_EMBD)}


def write_large_model(path: Path, n_tensors: int = 5000) -> None:
    """Write a GGUF file of a Llama with so many tensors (at least 3); all weights are zero."""
    tensors = _tensors(n_tensors)
    header = encode_header(_metadata(n_tensors), tensors)
    size = sum(aligned(tensor.size_bytes, ALIGNMENT) for tensor in tensors)
    with path.open("wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + size)


def _tensors(n_tensors: int) -> list[TensorInfo]:
    shapes = list(_OUTSIDE.items())
    for layer in range(-(-n_tensors // len(_BLOCK))):
        shapes += [(f"blk.{layer}.{name}", shape) for name, shape in _BLOCK.items()]
    return [_tensor(name, shape) for name, shape in shapes[:n_tensors]]


def _tensor(name: str, shape: tuple[int, ...]) -> TensorInfo:
    type_name = "F32" if len(shape) == 1 else "F16"
    rows = shape[0] if len(shape) > 1 else 1
    return TensorInfo(name, shape, type_name, library.types()[type_name].row_bytes(shape[-1]) * rows)


def _metadata(n_tensors: int) -> dict[str, MetadataValue]:
    numbers = {
        "block_count": max(1, (n_tensors - len(_OUTSIDE)) // len(_BLOCK)),
        "context_length": 512,
        "embedding_length": N_EMBD,
        "feed_forward_length": N_FF,
        "attention.head_count": 8,
        "attention.head_count_kv": 2,
    }
    return {
        "general.architecture": MetadataValue("string", "llama"),
        "general.name": MetadataValue("string", f"large-{n_tensors}"),
        "general.license": MetadataValue("string", "mit"),
        **{f"llama.{key}": MetadataValue("uint32", value) for key, value in numbers.items()},
        "llama.attention.layer_norm_rms_epsilon": MetadataValue("float32", 1e-5),
        **_vocabulary(),
    }


def _vocabulary() -> dict[str, MetadataValue]:
    """A SentencePiece vocabulary of bytes and made-up words."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["\u2581", *map(chr, range(33, 127))]
    words += [f"\u2581w{number}" for number in range(N_VOCAB - len(words))]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (N_VOCAB - 259)]
    return {
        "tokenizer.ggml.model": MetadataValue("string", "llama"),
        "tokenizer.ggml.tokens": MetadataValue("array", tuple(words), "string"),
        "tokenizer.ggml.scores": MetadataValue("array", tuple(-float(number) for number in range(N_VOCAB)), "float32"),
        "tokenizer.ggml.token_type": MetadataValue("array", tuple(kinds), "int32"),
        "tokenizer.ggml.bos_token_id": MetadataValue("uint32", 1),
        "tokenizer.ggml.eos_token_id": MetadataValue("uint32", 2),
        "tokenizer.chat_template": MetadataValue("string", "{% for message in messages %}\n{{ message.content }}\n{% endfor %}"),
    }
