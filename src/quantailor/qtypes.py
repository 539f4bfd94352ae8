"""ggml types as data, and llama.cpp's rules about which tensor may take which.

The list of types and their block layouts come from the installed library (`quantailor.ggml.library.types`);
this module holds what the library does not export: the fallback for odd row widths, the tensors that are
never quantized, and which types need an importance matrix. All are facts of llama.cpp's `src/llama-quant.cpp`
(`tensor_type_fallback`, `tensor_allows_quantization`, `tensor_requires_imatrix`) at llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from quantailor.errors import TypeUnavailableError
from quantailor.records import TensorInfo

UNQUANTIZED = ("F32", "F16", "BF16")
"""Types that hold plain floats; a source of these is a base."""

UNTOUCHED = ("I8", "I16", "I32", "I64", "F64")
"""Types of tables and the like: no kernel multiplies them, nothing turns them into weights, and they stay as they are."""

LAST_RESORT = "F16"
"""What llama.cpp uses when neither a type nor its fallback divides the row."""

IMATRIX_REQUIRED = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"})
IMATRIX_EXEMPT = frozenset({"token_embd.weight", "per_layer_token_embd.weight", "output.weight"})

_FALLBACK = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}

_NEVER_QUANTIZED = (
    ("_norm.weight", "normalization weights"),
    ("ffn_gate_inp.weight", "the expert router"),
    ("ffn_gate_tid2eid.weight", "an integer routing table"),
    ("altup", "small AltUp weights"),
    ("laurel", "small Laurel weights"),
    ("per_layer_model_proj", "a small projection"),
    ("ssm_conv1d", "a small convolution"),
    ("shortconv.conv.weight", "a small convolution"),
    ("indexer.k_proj.weight", "a small indexer projection"),
    ("indexer.q_proj.weight", "a small indexer projection"),
    ("attn_rel_b.weight", "relative position biases"),
    (".position_embd", "position embeddings"),
    ("sam.pos_embd", "position embeddings"),
    ("sam.neck.", "a vision tensor"),
    ("sam.net_", "a vision tensor"),
    (".rel_pos", "relative positions"),
    (".patch_embd", "patch embeddings"),
    (".patch_merger", "a patch merger"),
    ("a.rvq.codebook", "an audio codebook"),
    ("mm.a.code_embd", "an audio codebook"),
    *(
        (f"time_mix_{part}.weight", "a small RWKV weight")
        for part in (
            *("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2"),
            *("decay_w1", "decay_w2", "lerp_fused"),
        )
    ),
)
_NEVER_QUANTIZED_NAMES = {"position_embd.weight": "position embeddings", "token_types.weight": "token types"}
_NEVER_QUANTIZED_BY_ARCHITECTURE = {
    "glm5-next": (
        *("hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate"),
        *("indexer_compressor_ape", "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight"),
        *("ssm_beta.weight", "attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight"),
    )
}


@dataclass(frozen=True, slots=True)
class QType:
    """One ggml type. `block_size` is in weights, `type_size` in bytes per block."""

    id: int
    name: str
    """As users write it: "Q4_K", "IQ2_XXS", "BF16"."""
    block_size: int
    type_size: int
    is_quantized: bool
    aborts_without_imatrix: bool = False
    """ggml ends the process when asked for this type without importance weights."""
    activation_block: int = 1
    """How many inputs of a matrix product share a scale when its weights have this type: ggml's CPU kernels round
    inputs to 8 bits, in blocks of 256 (`Q8_K`) or 32 (`Q8_0`, `Q8_1`); 1 where the inputs stay floats."""

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.type_size / self.block_size

    def divides(self, n_cols: int) -> bool:
        """Whether a row of `n_cols` weights is a whole number of blocks."""
        return n_cols > 0 and n_cols % self.block_size == 0

    def row_bytes(self, n_cols: int) -> int:
        """Bytes of one row. Raises TypeUnavailableError where the block does not divide the row."""
        if not self.divides(n_cols):
            raise TypeUnavailableError(f"a row of {n_cols} weights is not a multiple of {self.name}'s block of {self.block_size}")
        return n_cols // self.block_size * self.type_size

    def tensor_bytes(self, tensor: TensorInfo) -> int:
        """Bytes of the whole tensor at this type. Raises TypeUnavailableError as `row_bytes` does."""
        return self.row_bytes(tensor.n_cols) * tensor.n_rows

    def retyped(self, tensor: TensorInfo) -> TensorInfo:
        """The tensor at this type. Raises TypeUnavailableError as `row_bytes` does."""
        return replace(tensor, type_name=self.name, size_bytes=self.tensor_bytes(tensor))


def fallback(wanted: QType, n_cols: int, qtypes: Mapping[str, QType]) -> QType | None:
    """The type llama.cpp writes when `wanted` is asked for: itself, its fallback, or F16; None where it refuses."""
    if wanted.divides(n_cols):
        return wanted
    name = _FALLBACK.get(wanted.name, wanted.name if wanted.block_size <= 32 else None)
    if name is None:
        return None
    return qtypes[name] if qtypes[name].divides(n_cols) else qtypes[LAST_RESORT]


def never_quantized(tensor: TensorInfo, architecture: str) -> str | None:
    """Why llama.cpp leaves this tensor as it is, or None where it may be quantized."""
    if tensor.type_name in UNTOUCHED:
        return f"{tensor.type_name} holds {'64-bit floats' if tensor.type_name == 'F64' else 'integers'}, which are not weights"
    if tensor_dimensions(tensor) < 2:
        return "it has one dimension"
    if not tensor.name.endswith("weight"):
        return "its name does not end in 'weight'"
    if tensor.name in _NEVER_QUANTIZED_NAMES:
        return f"it holds {_NEVER_QUANTIZED_NAMES[tensor.name]}"
    for part, what in _NEVER_QUANTIZED:
        if part in tensor.name:
            return f"llama.cpp never quantizes it ({what})"
    for part in _NEVER_QUANTIZED_BY_ARCHITECTURE.get(architecture, ()):
        if part in tensor.name:
            return f"llama.cpp never quantizes it in {architecture}"
    return None


def tensor_dimensions(tensor: TensorInfo) -> int:
    """ggml's count of dimensions: trailing ones (our leading ones) do not count."""
    shape = list(tensor.shape)
    while len(shape) > 1 and shape[0] == 1:
        shape.pop(0)
    return len(shape)


def needs_imatrix(tensor_name: str, qtype: QType) -> bool:
    """Whether llama.cpp cannot write this type for this tensor without importances.

    It refuses some types, but for embeddings and output; of these, ggml's own quantizers end the process for some.
    """
    return qtype.aborts_without_imatrix or (qtype.name in IMATRIX_REQUIRED and tensor_name not in IMATRIX_EXEMPT)


def unavailable(tensor: TensorInfo, qtype: QType, *, architecture: str, has_imatrix: bool, qtypes: Mapping[str, QType]) -> str | None:
    """Why `tensor` cannot take `qtype`, in one phrase for a user; None where it can.

    `has_imatrix` says whether the importance matrix holds this tensor. A tensor that is never quantized
    can only keep its own type.
    """
    return _unavailable(tensor, qtype, never_quantized(tensor, architecture), has_imatrix=has_imatrix, qtypes=qtypes)


def _unavailable(tensor: TensorInfo, qtype: QType, never: str | None, *, has_imatrix: bool, qtypes: Mapping[str, QType]) -> str | None:
    if qtype.name == tensor.type_name:
        return None
    if never is not None:
        return never
    if not qtype.divides(tensor.n_cols):
        instead = fallback(qtype, tensor.n_cols, qtypes)
        what = f"llama.cpp would write {instead.name} instead" if instead else "llama.cpp has no fallback for it"
        return f"row width {tensor.n_cols} is not a multiple of {qtype.name}'s block of {qtype.block_size}; {what}"
    if not has_imatrix and needs_imatrix(tensor.name, qtype):
        return f"{qtype.name} needs an importance matrix that holds this tensor"
    return None


def availability(tensor: TensorInfo, *, architecture: str, has_imatrix: bool, qtypes: Mapping[str, QType]) -> dict[str, str | None]:
    """Every type, in the order of `qtypes` -> None where `tensor` can take it, else why not; see `unavailable`."""
    never = never_quantized(tensor, architecture)
    return {name: _unavailable(tensor, qtype, never, has_imatrix=has_imatrix, qtypes=qtypes) for name, qtype in qtypes.items()}
