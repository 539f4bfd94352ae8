"""Turns 16-bit checkpoints into FP8 and MXFP4 ones, and keeps what their weights stand for beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

REFERENCE = "reference"
BLOCK = 32
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def reference_of(folder: Path) -> Path:
    """The 16-bit checkpoint that a quantized one stands for, or the checkpoint itself."""
    return folder / REFERENCE if (folder / REFERENCE).is_dir() else folder


def quantize_float8(folder: Path) -> dict[str, Any]:
    """Matrices of the layers as E4M3 with a scale per block of 32 x 32. Returns what config.json gains."""
    import torch
    from safetensors.torch import load_file, save_file  # type: ignore[import-not-found]

    arrays, quantized = load_file(folder / "model.safetensors"), {}
    for name, array in arrays.items():
        if not name.endswith("_proj.weight") and not name.endswith("_mqa.weight"):
            quantized[name] = array
            continue
        rows, cols = -(-array.shape[0] // BLOCK), -(-array.shape[1] // BLOCK)
        padded = torch.zeros(rows * BLOCK, cols * BLOCK)
        padded[: array.shape[0], : array.shape[1]] = array.float()
        blocks = padded.reshape(rows, BLOCK, cols, BLOCK)
        scale = blocks.abs().amax(dim=(1, 3)) / 448
        codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        meant = (codes.float() * scale[:, None, :, None]).reshape(padded.shape)[: array.shape[0], : array.shape[1]]
        quantized[name] = codes.reshape(padded.shape)[: array.shape[0], : array.shape[1]].contiguous()
        quantized[name + "_scale_inv"] = scale.contiguous()
        arrays[name] = meant.to(torch.bfloat16).contiguous()
    save_file(arrays, folder / REFERENCE / "model.safetensors", {"format": "pt"})
    save_file(quantized, folder / "model.safetensors", {"format": "pt"})
    return {
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    }


def quantize_mxfp4(folder: Path) -> dict[str, Any]:
    """Random MXFP4 experts in place of the 16-bit ones. Returns what config.json gains."""
    import torch
    from safetensors.torch import load_file, save_file

    arrays, quantized = load_file(folder / "model.safetensors"), {}
    values = torch.tensor([*_FP4, *(-value for value in _FP4)])
    for name, array in arrays.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            quantized[name] = array
            continue
        n_experts, n_in, n_out = array.shape
        codes = torch.randint(0, 16, (n_experts, n_out, n_in // BLOCK, BLOCK))
        scales = torch.randint(118, 123, (n_experts, n_out, n_in // BLOCK))
        meant = values[codes] * torch.exp2(scales.float() - 127)[..., None]
        arrays[name] = meant.reshape(n_experts, n_out, n_in).transpose(1, 2).to(torch.bfloat16).contiguous()
        quantized[name + "_blocks"] = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8).contiguous()
        quantized[name + "_scales"] = scales.to(torch.uint8).contiguous()
    save_file(arrays, folder / REFERENCE / "model.safetensors", {"format": "pt"})
    save_file(quantized, folder / "model.safetensors", {"format": "pt"})
    return {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
