"""The plain records that travel between rooms. All are frozen; none knows a file, a database or ggml.

Shapes follow numpy: slowest dimension first, so a matrix is `(n_rows, n_cols)` and a layer's experts are
`(n_experts, n_rows, n_cols)`. (ggml's `ne` is the reverse.) Sizes are bytes, errors are in weight units
unless the name says otherwise.
"""

from __future__ import annotations

from quantailor.records.evals import Eval, EvalComparison, EvalFigure, EvalItem, EvalName, EvalRow
from quantailor.records.measurements import Curve, CurvePoint, Estimate, Mix, Sensitivity, SwapCell, WeightError
from quantailor.records.speeds import PredictedSpeed, SpeedOf, Timing
from quantailor.records.strategies import Basis, Cell, Grounds, Prediction, RoundingWish, Strategy, TensorCells, TensorChoice
from quantailor.records.tensors import KERNELS, MetadataValue, TensorInfo, bits_per_weight, layer_of, part_of, role_of
from quantailor.records.verdicts import (
    PLAIN_TWIN,
    ChunkScore,
    Comparison,
    Domain,
    FidelityStatistics,
    RowKind,
    Standing,
    Verdict,
    VerdictRow,
)
