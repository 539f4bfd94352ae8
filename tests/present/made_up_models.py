"""Models that never were, with figures that could be: for reports and comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from quantailor.present.report import ImatrixFacts, LabelledStrategy, ReportData
from quantailor.present.report.damage import predicted_kld
from quantailor.records import (
    Comparison,
    Curve,
    CurvePoint,
    Estimate,
    FidelityStatistics,
    Prediction,
    Sensitivity,
    Strategy,
    SwapCell,
    TensorChoice,
    TensorInfo,
    Verdict,
    VerdictRow,
    WeightError,
)

# type, bits per weight, weighted_mse of a typical tensor
TYPES = (
    *(("IQ1_S", 1.5625, 0.21), ("IQ2_XXS", 2.0625, 0.11), ("IQ2_XS", 2.3125, 0.088), ("Q2_K", 2.625, 0.075), ("IQ2_S", 2.5, 0.072)),
    *(("IQ3_XXS", 3.0625, 0.036), ("Q3_K", 3.4375, 0.024), ("IQ3_S", 3.4375, 0.021), ("IQ4_XS", 4.25, 0.0075), ("Q4_0", 4.5, 0.0094)),
    *(("IQ4_NL", 4.5, 0.0073), ("Q4_K", 4.5, 0.0066), ("Q4_1", 5.0, 0.0071), ("Q5_0", 5.5, 0.0024), ("Q5_K", 5.5, 0.0017)),
    *(("Q6_K", 6.5625, 0.00043), ("Q8_0", 8.5, 0.00003)),
)
BITS = {name: bits for name, bits, _ in TYPES}
BLOCKS = {name: 32 if name in {"Q4_0", "Q4_1", "Q5_0", "Q8_0", "IQ4_NL"} else 256 for name in BITS}
WEIGHT = {"attn_v": 9.0, "ffn_down": 5.0, "attn_k": 1.2, "attn_q": 0.5, "output": 30.0, "token_embd": 0.4, "ffn_down_exps": 6.0}
DENSE: dict[str, tuple[int, ...]] = {
    "attn_q": (512, 512),
    "attn_k": (128, 512),
    "attn_v": (128, 512),
    "attn_output": (512, 512),
    "ffn_gate": (1536, 512),
    "ffn_up": (1536, 512),
    "ffn_down": (512, 1536),
}
MOE: dict[str, tuple[int, ...]] = {
    **{role: shape for role, shape in DENSE.items() if role.startswith("attn")},
    "ffn_gate_exps": (8, 768, 512),
    "ffn_up_exps": (8, 768, 512),
    "ffn_down_exps": (8, 512, 768),
}


def tensors_of(shapes: dict[str, tuple[int, ...]], n_layers: int) -> tuple[TensorInfo, ...]:
    """A model's quantizable tensors at 16 bits."""
    named: dict[str, tuple[int, ...]] = {"token_embd.weight": (8192, 512), "output.weight": (8192, 512)}
    named |= {f"blk.{layer}.{role}.weight": shape for layer in range(n_layers) for role, shape in shapes.items()}
    return tuple(TensorInfo(name, shape, "BF16", 2 * math.prod(shape)) for name, shape in named.items())


def weight_errors_of(
    tensors: Sequence[TensorInfo], rng: np.random.Generator, types: Sequence[tuple[str, float, float]] = TYPES
) -> list[WeightError]:
    """Every tensor at every type, and the plain float without an error."""
    found = []
    for tensor in tensors:
        scale = math.exp(rng.normal(0, 0.2))
        for name, bits, mse in types:
            size, error = int(tensor.n_elements * bits / 8), mse * scale
            found.append(
                WeightError(
                    tensor.name,
                    name,
                    size,
                    bits,
                    64,
                    tensor.n_rows,
                    relative_mse=1.1 * error,
                    weighted_mse=error,
                    weighted_mse_se=0.005 * error,
                )
            )
        found.append(WeightError(tensor.name, "BF16", tensor.size_bytes, 16, relative_mse=0.0, weighted_mse=0.0))
    return found


def sensitivities_of(tensors: Sequence[TensorInfo], rng: np.random.Generator) -> list[Sensitivity]:
    """Probes with one tensor that is drowned and one that is not in the graph."""
    found = []
    for index, tensor in enumerate(tensors):
        layer = tensor.layer or 0
        value = 0.05 * WEIGHT.get(tensor.role, 1.0) * math.exp(rng.normal(0, 0.6)) * (4 if layer == 0 else 1 / (1 + 0.2 * layer))
        noise = {32: float(value * 2e-5), 256: float(value * 4e-5)} if tensor.role != "token_embd" else {}
        status: Literal["measured", "drowned", "not in the graph"] = "measured"
        if index == len(tensors) // 2:
            status, value = "drowned", 0.0008
        if index == len(tensors) - 3:
            status, value, noise = "not in the graph", 0.0, {}
        se = 0.0 if status != "measured" else float(value * rng.uniform(0.02, 0.12))
        found.append(Sensitivity(tensor.name, status, Estimate(float(value), se), noise, "", ("Q2_K", "Q3_K")[: 1 + index % 2]))
    return found


def cells_of(weight_errors: Sequence[WeightError], sensitivities: Sequence[Sensitivity], rng: np.random.Generator) -> list[SwapCell]:
    """A sweep that agrees with the probes but for noise."""
    alphas = {sensitivity.tensor: sensitivity.alpha.value for sensitivity in sensitivities}
    found = []
    for error in weight_errors:
        if error.type_name != "BF16":
            kld = max(1e-7, alphas[error.tensor] * (error.weighted_mse or 0) * math.exp(rng.normal(0, 0.15)))
            se = 0.06 * kld + 2e-6
            found.append(
                SwapCell(error.tensor, error.type_name, 24, Estimate(kld, se), Estimate(12.4 + kld, 0.3), Estimate(kld, 0.7 * se + 1e-5))
            )
    return found


def curve_of(rng: np.random.Generator, n_memory: int = 24) -> Curve:
    """A fit with mixes in memory and built files."""
    curve = Curve(0.94, 0.48, 0.0004, 0.083, n_memory + 3)
    points = []
    for index in range(n_memory + 6):
        bits = float(rng.uniform(2.4, 6.2)) if index < n_memory else (2.7, 3.4, 4.25, 4.6, 5.6, 8.5)[index - n_memory]
        total = 2.2 * math.exp(-1.15 * (bits - 2.2))
        point = CurvePoint(f"mix:{index:032x}", "memory" if index < n_memory else "file", bits, total, Estimate(0.0))
        kld = predicted_kld(curve, point) * math.exp(rng.normal(0, 0.09))
        points.append(replace(point, measured=Estimate(kld, 0.05 * kld + 1e-5)))
    return replace(curve, points=tuple(points))


def verdict_of() -> Verdict:
    """Ours against three references."""

    def row(label: str, kind: Literal["base", "ours", "reference"], size: int, bits: float, kld: float) -> VerdictRow:
        nothing = Estimate(0.0)
        quality = (Estimate(kld, 0.03 * kld), kld / 2, kld * 5, kld * 9, kld * 30, Estimate(0.95 - kld, 0.0021), nothing)
        return VerdictRow(label, kind, size, bits, FidelityStatistics(220, 56320, Estimate(12.5 + kld, 0.31), nothing, *quality))

    def compared(reference: str, middle: float, size: float, outcome: Literal["better", "no better", "worse"]) -> Comparison:
        return Comparison(reference, middle, (middle - 0.1, middle + 0.12), size, outcome)

    rows = (
        *(row("base", "base", 53_000_000, 16.0, 0.0), row("ours.gguf", "ours", 15_300_000, 4.58, 0.0125)),
        *(row("Q8_0", "reference", 28_400_000, 8.5, 0.0002), row("Q4_K_M", "reference", 15_302_000, 4.58, 0.0192)),
        row("IQ4_XS", "reference", 14_100_000, 4.25, 0.0131),
    )
    comparisons = (
        *(compared("Q8_0", 4.1, 0.54, "worse"), compared("Q4_K_M", -0.43, 1.0, "better")),
        compared("IQ4_XS", -0.05, 1.085, "no better"),
    )
    sentence = "ours.gguf diverges from the base by 0.01250 ± 0.00038 nats; it is better than Q4_K_M at equal size (KLD ratio 0.65)."
    return Verdict("f" * 64, "heldout.txt", "0" * 64, 512, rows, comparisons, 1.2e-6, sentence)


def strategy_of(tensors: Sequence[TensorInfo], rng: np.random.Generator, n_types: int = 5) -> LabelledStrategy:
    """Types dealt out by chance."""
    names = ("Q4_K", "Q5_K", "Q6_K", "Q3_K", "IQ4_XS", "Q2_K", "Q8_0")[:n_types]
    chances = np.array([8, 4, 3, 3, 2, 1, 1][:n_types], dtype=float)
    choices = tuple(TensorChoice(t.name, str(rng.choice(names, p=chances / chances.sum())), "lowest damage") for t in tensors)
    prediction = Prediction(15_300_000, 15_200_000, 4.58, 0.0121, "probes", 0.0123, (0.0104, 0.0146))
    strategy = Strategy("f" * 64, "made-up", "llama", "optimal", choices, {"size_bytes": 15_300_000}, basis="probes", prediction=prediction)
    return LabelledStrategy("s-4.58bpw.yaml", strategy)


def model(name: str, shapes: dict[str, tuple[int, ...]], n_layers: int, seed: int = 1, *, sweep: bool = True) -> ReportData:
    """A whole model's data, made up."""
    rng = np.random.default_rng(seed)
    tensors = tensors_of(shapes, n_layers)
    weight_errors, sensitivities = weight_errors_of(tensors, rng), sensitivities_of(tensors, rng)
    return ReportData(
        name,
        "llama" if shapes is DENSE else "qwen3moe",
        f"{seed:064x}",
        sum(tensor.n_elements for tensor in tensors),
        sum(tensor.size_bytes for tensor in tensors),
        ImatrixFacts("ab12" * 16, ("calibration.txt",), 512),
        "calibration.txt",
        512,
        24,
        1.3e-6,
        tensors,
        weight_errors,
        sensitivities,
        cells_of(weight_errors, sensitivities, rng) if sweep else (),
        curve_of(rng),
        (verdict_of(),),
        (strategy_of(tensors, rng), replace(strategy_of(tensors, rng, 7), label="s-knee.yaml")),
        BLOCKS,
        {"Quantailor": "0.2.0", "llama-cpp-python": "0.3.36", "ggml": "b9000"},
    )


BARE = ReportData("bare", "llama", "ab" * 32, 123_456, 1_234_567)


def sensitivity(tensor: TensorInfo, alpha: float, se: float = 0.0, *, group: str = "") -> Sensitivity:
    return Sensitivity(tensor.name, "measured", Estimate(alpha, se), group=group)


def simple(alphas: dict[str, tuple[float, float]], *, groups: dict[str, str] | None = None) -> ReportData:
    """A model of 1-block matrices whose weighted error is 0.01 everywhere."""
    tensors = tuple(TensorInfo(name, (4, 32), "F16", 256) for name in alphas)
    errors = [WeightError(tensor.name, "Q4_K", 72, 4.5, relative_mse=0.02, weighted_mse=0.01) for tensor in tensors]
    found = [sensitivity(tensor, *alphas[tensor.name], group=(groups or {}).get(tensor.name, "")) for tensor in tensors]
    return replace(BARE, tensors=tensors, weight_errors=errors, sensitivities=found)
