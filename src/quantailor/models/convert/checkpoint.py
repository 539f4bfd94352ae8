"""What keeps a checkpoint from being converted by anybody, told from names and headers before anything is set up or downloaded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from quantailor.errors import AlreadyQuantizedError, ModelFormatError, UnsupportedModelError
from quantailor.files import START_BYTES
from quantailor.models.json_files import JsonObject, mapping
from quantailor.models.random_access import refuse_missing, refuse_stand_in, unreadable
from quantailor.models.safetensors_file import StoredArray

READABLE_METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors", "modelopt")
"""Values of `quant_method` whose matrices may be 8-bit floats beside their scales, which we read."""
UPSTREAM_METHODS = (*READABLE_METHODS, "mxfp4", "bitnet")
"""Those that llama.cpp's converter expands, for families that it alone knows."""
_ASKED_METHODS = (*UPSTREAM_METHODS, "gptq")
"""The same where the converter was asked for by name."""

_NAMES = (
    *("GPTQ", "AWQ", "HQQ", "EETQ", "AQLM", "FP8", "MXFP4", "VPTQ", "SpQR", "AutoRound", "ModelOpt", "BitNet", "HIGGS", "Quark", "Quanto"),
    *("MLX", "bitsandbytes"),
)
_TITLES = {name.lower(): name for name in _NAMES} | {"exl2": "ExLlamaV2", "exl3": "ExLlamaV3"}
_TITLES |= {"auto-round": "AutoRound", "intel/auto-round": "AutoRound"}
_MARKS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("bitsandbytes", re.compile(r"\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+|SCB|weight_format)$")),
    ("HQQ", re.compile(r"\.W_q$")),
    ("AQLM", re.compile(r"\.codebooks$")),
    ("GPTQ", re.compile(r"\.g_idx$")),
    ("AWQ", re.compile(r"\.(qweight|qzeros)$")),
    ("ExLlamaV2", re.compile(r"\.q_(weight|groups|perm|invperm)$")),
    ("ExLlamaV3", re.compile(r"\.trellis$")),
    ("compressed-tensors", re.compile(r"\.(weight_(packed|zero_point|shape|global_scale)|bitmask)$")),
    ("SpQR", re.compile(r"\.(dense_weights|col_vals)$")),
    ("ModelOpt", re.compile(r"\.weight_scale_2$")),
    ("VPTQ", re.compile(r"\.(res_)?centroids\b")),
    ("QuIP#", re.compile(r"\.Qidxs$")),
    ("Quanto", re.compile(r"\.weight\._(data|scale)$")),
    ("torchao", re.compile(r"(\.tensor_impl\.|_weight_qdata$|\.weight_qdata$|:_data$)")),
    ("EETQ", re.compile(r"\.weight_scales$")),
)
"""How arrays that go with packed weights are called; the order decides where several fit."""
_ENTRIES = ("quantization_config", "quantization")
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")

_NO_CODES = ("bias", "mask", "ids", "index")

_ADAPTER = re.compile(
    r"(^|\.)(lora_[A-Za-z]|lora_(?:embedding_[AB]|magnitude_vector|down|up)|base_layer|ia3_l|hada_w\d_[ab]|lokr_w\d\w*|oft_[rR]|boft_\w|"
    r"vera_lambda_\w|modules_to_save|original_module|prompt_encoder|prompt_embeddings)(\.|$)"
)
_INNER = {"_orig_mod": "torch.compile", "_fsdp_wrapped_module": "FSDP", "_checkpoint_wrapped_module": "activation checkpointing"}
_OUTER = {"module": "data-parallel training", "_forward_module": "Lightning", "base_model": "PEFT", "pretrained_model": "TRL"}
_EMBEDDING = re.compile(r"^((?:[\w-]+\.)*?)(?:model\.)?embed_tokens\.weight$")

_FOREIGN: Mapping[str, re.Pattern[str]] = {
    "Meta's": re.compile(r"(^|\.)(attention\.w[qkvo]|feed_forward\.w[123]|attention_norm|ffn_norm)\."),
    "torchtune's": re.compile(r"(^|\.)(attn\.([qkv]_proj|output_proj)|sa_norm|mlp_norm|mlp\.w[123])\."),
    "Megatron's": re.compile(r"(^|\.)(decoder\.layers\.|linear_qkv\.|linear_proj\.|linear_fc[12]\.|word_embeddings\.)"),
    "Meta's or torchtune's": re.compile(r"(^|\.)tok_embeddings\."),
}
"""How programs whose checkpoints hold the same models call arrays of theirs."""

START_FROM = "Start from the 16-bit model"


def plain_name(name: str) -> str:
    """An array's name as the language model has it: not below `language_model`, and below `model` as with an output on top."""
    name = name.replace("language_model.", "", 1)
    return f"model.{name}" if name.startswith(("embed_tokens.", "layers.", "norm.")) else name


def whose_name(name: str) -> str | None:
    """Whose naming an array has that is not transformers', as in "Megatron's names"; None where that is not known."""
    return next((who for who, pattern in _FOREIGN.items() if pattern.search(name)), None)


def refuse_files(paths: Iterable[Path]) -> None:
    """Raise ModelError for a link to nothing and for what stands in place of a file among small files, which need not be there."""
    for path in paths:
        try:
            refuse_missing(path)
            if path.is_file():
                with path.open("rb") as stream:
                    refuse_stand_in(path, stream.read(START_BYTES))
        except OSError as error:
            raise unreadable(path, error) from error


def _quantization_of(config: JsonObject) -> JsonObject:
    """What config.json says of quantization, for the whole or the text model, under either name; an empty entry says nothing."""
    entries = (mapping(side.get(key)) for side in (config, mapping(config.get("text_config"))) for key in _ENTRIES)
    return next((entry for entry in entries if entry), {})


def refuse_arrays(
    config: JsonObject, arrays: Mapping[str, StoredArray], place: str, *, methods: tuple[str, ...] = (), asked: bool = False
) -> None:
    """Refuse what names, shapes and types give away.

    Args:
        config: config.json.
        arrays: all arrays by name.
        place: how messages call the checkpoint.
        methods: the values of `quant_method` that the family reads; empty for a family that llama.cpp's converter alone may know.
        asked: whether that converter was asked for.

    Raises:
        AlreadyQuantizedError: the weights are packed.
        ModelFormatError: arrays are empty.
        UnsupportedModelError: adapters beside their layers, names below a wrapper.
    """
    _refuse_quantized(config, arrays, place, methods, asked)
    empty = [name for name, array in arrays.items() if 0 in array.shape]
    if empty:
        raise ModelFormatError(
            f"{len(empty)} of {len(arrays)} tensors of {place} are empty, {empty[0][:120]} for one, as sharded training (ZeRO-3, FSDP) "
            "leaves them where the parts are not gathered",
            remedy="Gather the weights when saving (DeepSpeed: stage3_gather_16bit_weights_on_model_save, or zero_to_fp32.py)",
        )
    if adapter := next((name for name in arrays if _ADAPTER.search(name)), None):
        raise UnsupportedModelError(
            f"{place} has adapters that are not merged, {adapter[:120]} for one",
            remedy="Merge them into the model first (PEFT: merge_and_unload), and save that",
        )
    if wrapper := _wrapper(arrays):
        prefix, name, who = wrapper
        raise UnsupportedModelError(
            f"{place} has the tensor {name[:120]}: its names have the wrapper's prefix {prefix!r}{who}",
            remedy="Save the model inside the wrapper, or take the prefix off all names",
        )


def _wrapper(arrays: Mapping[str, StoredArray]) -> tuple[str, str, str] | None:
    """A prefix that does not belong to the model, a name with it, and where it comes from."""
    for name in arrays:
        parts = name.split(".")
        if inner := next((part for part in parts if part in _INNER), None):
            return f"{inner}.", name, f" of {_INNER[inner]}"
    first = next(iter(arrays), "")
    start = first.split(".")[0]
    if start in _OUTER and all(name.startswith(f"{start}.") for name in arrays):
        prefix = "base_model.model." if first.startswith("base_model.model.") else f"{start}."
        return prefix, first, f" of {_OUTER[start]}"
    if "model.embed_tokens.weight" in map(plain_name, arrays):
        return None
    for name in arrays:
        match = _EMBEDDING.match(plain_name(name))
        if match and match[1] and "layers." not in match[1]:
            return match[1], name, f" of {_OUTER[start]}" if start in _OUTER else ""
    return None


def _refuse_quantized(config: JsonObject, arrays: Mapping[str, StoredArray], place: str, methods: tuple[str, ...], asked: bool) -> None:
    entry = _quantization_of(config)
    method = entry.get("quant_method", "mlx" if {"group_size", "bits"} <= entry.keys() else None)
    if (asked or not methods) and method in (_ASKED_METHODS if asked else UPSTREAM_METHODS):
        return
    title = _TITLES.get(str(method).lower(), str(method)[:40])
    packed = _packed(arrays) or (None if "mxfp4" in methods else _codes(arrays))
    if packed is not None:
        name, mark = packed
        by = f" by {title if method else mark}" if method or mark else ""
        raise AlreadyQuantizedError(f"{place} is quantized{by} already: it has {name[:120]} ({arrays[name].dtype})", remedy=START_FROM)
    if entry and method not in methods:
        by = f" by {title}" if method else ""
        raise AlreadyQuantizedError(
            f"{place} is quantized{by} already, as quantization_config says",
            remedy=f"{START_FROM}; if these weights have 16 bits, take quantization_config out of config.json",
        )


def _packed(arrays: Mapping[str, StoredArray]) -> tuple[str, str] | None:
    """An array of packed weights or beside them, and the method that its name tells, empty where it tells none."""
    for mark, pattern in _MARKS:
        if name := next((name for name in arrays if pattern.search(name)), None):
            return name, mark
    for name, array in arrays.items():
        stem = name.removesuffix(".weight")
        if array.dtype in _INTEGERS and name != stem:
            return name, "MLX" if array.dtype == "U32" and f"{stem}.scales" in arrays else ""
    return None


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _codes(arrays: Mapping[str, StoredArray]) -> tuple[str, str] | None:
    """A matrix of integers in place of a module's weight and beside other arrays of it, its scales, by whatever names.

    Masks, positions and indexes are integers too.
    """
    modules, sizes = {_module(name) for name in arrays if name.endswith(".weight")}, Counter(map(_module, arrays))
    for name, array in arrays.items():
        module, is_matrix = _module(name), array.dtype in _INTEGERS and "64" not in array.dtype and len(array.shape) in (2, 3)
        if is_matrix and not name.endswith(_NO_CODES) and module and module not in modules and sizes[module] > 1:
            return name, ""
    return None
