"""How weights become codes: what ggml's quantizers are told, and whether errors are compensated."""

from __future__ import annotations

import importlib
import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from quantailor.analysis.covariances.covariances import Covariances
from quantailor.analysis.importance.imatrix import TOKEN_EMBEDDINGS, Imatrix, quantizer_importance
from quantailor.analysis.rounding.compensation import round_rows
from quantailor.analysis.rounding.metric import Metric
from quantailor.analysis.rounding.scales import keep_sizes
from quantailor.ggml import codec
from quantailor.numerics import Bytes, Floats
from quantailor.qtypes import QType
from quantailor.records import TensorInfo

COMPENSATED, PLAIN_MEASURED = "compensated-3", "plain"
"""Versions of what covariances are used for, in keys of results."""
CACHE_BYTES = 1 << 27
"""Memory for covariances and their factors; two, between which matrices of a layer alternate, may take twice as much."""


class Rounding:
    """How one model's weights become codes. Threads may share it.

    Args:
        imatrix: importances for ggml's quantizers.
        covariances: of the matrices' inputs; errors are measured with them.
        compensated: also round with them. A tensor without a covariance is rounded as ggml does.
    """

    def __init__(self, imatrix: Imatrix | None = None, covariances: Covariances | None = None, *, compensated: bool = False) -> None:
        self.imatrix = imatrix
        self.covariances = covariances
        self.compensated = compensated and covariances is not None
        if self.compensated:
            # Factors are scipy's, whose BLAS must be loaded before `Workers` gives each BLAS one thread: bytes would depend on its threads.
            importlib.import_module("scipy.linalg")
        self._metrics: OrderedDict[str, Metric] = OrderedDict()
        self._importances: tuple[TensorInfo, Floats | None] | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[..., Rounding], tuple[Imatrix | None, Covariances | None, bool]]:
        """To another process go the importance matrix and what finds the covariances, no metrics."""
        return _again, (self.imatrix, self.covariances, self.compensated)

    @property
    def key(self) -> str:
        """What weight errors are filed under, beside the importance matrix; empty for plain rounding without covariances.

        Its first part is the version of codes and of `output_mse`.
        """
        if self.covariances is None:
            return ""
        return f"{COMPENSATED if self.compensated else PLAIN_MEASURED}:{self.covariances.fingerprint[:16]}"

    @property
    def bytes_key(self) -> str:
        """What scores of weights rounded like this are filed under, beside the importance matrix; empty for plain rounding."""
        return self.key if self.compensated else ""

    def importance(self, tensor: TensorInfo, index: int) -> Floats | None:
        """The importances that llama-quantize hands to the quantizer for one of a tensor's matrices: (n_cols,), or None.

        Raises ImatrixError where the matrix does not fit.
        """
        if self.imatrix is None:
            return None
        with self._lock:
            if self._importances is None or self._importances[0] != tensor:
                self._importances = tensor, quantizer_importance(self.imatrix, tensor)
            found = self._importances[1]
        return None if found is None else found[index]

    def metric(self, tensor: TensorInfo, index: int) -> Metric | None:
        """The metric of one of a tensor's matrices; None where its input's covariance is not known. Raises CovarianceError."""
        key = None if self.covariances is None else self.covariances.key_of(tensor, index)
        if self.covariances is None or key is None:
            return None
        with self._lock:
            if key not in self._metrics:
                covariance = self.covariances.of(tensor, index)
                if covariance is None:
                    return None
                self._metrics[key] = Metric(covariance)
            self._metrics.move_to_end(key)
            while len(self._metrics) > 1 and self._held_bytes() > CACHE_BYTES * (2 if len(self._metrics) == 2 else 1):
                self._metrics.popitem(last=False)
            return self._metrics[key]

    def _held_bytes(self) -> int:
        return sum(metric.n_bytes for metric in self._metrics.values())

    def forget(self) -> None:
        """Give up what is held to round the next tensor; it is read and computed again where it is wanted."""
        with self._lock:
            self._metrics.clear()

    def quantize(self, tensor: TensorInfo, index: int, values: Floats, qtype: QType) -> Bytes:
        """Rows of one of a tensor's matrices, (n_rows, n_cols) and already checked, as the type's bytes: (n_rows, row_bytes).

        Raises TypeUnavailableError, ImatrixError, CovarianceError.
        """
        metric = self.metric(tensor, index) if self.compensated and qtype.is_quantized else None
        if metric is not None:
            data = round_rows(values, qtype, metric)
            # The norms behind embeddings undo their size, beside that of what is added to them.
            is_embedding = tensor.name in TOKEN_EMBEDDINGS
            return data if is_embedding else keep_sizes(data, values, np.diagonal(metric.covariance.matrix), qtype)
        return codec.quantize(values, qtype, self.importance(tensor, index))


def _again(imatrix: Imatrix | None, covariances: Covariances | None, compensated: bool) -> Rounding:
    return Rounding(imatrix, covariances, compensated=compensated)


PLAIN = Rounding()
"""As ggml rounds without importances."""
