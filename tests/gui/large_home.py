"""A home in which a model of thousands of tensors is measured: made-up errors that fall four times per bit."""

from __future__ import annotations

from pathlib import Path

from large_model import write_large_model

from quantailor.analysis.weight_errors.measure import MeasureSettings
from quantailor.app.library.projects import ProjectReport, open_project
from quantailor.ggml import library
from quantailor.qtypes import unavailable
from quantailor.records import TensorInfo, WeightError
from quantailor.session import Workspace, quantizable_tensors
from quantailor.store import MeasurementKey

TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "IQ4_NL", "Q3_K", "Q2_K", "F16")


def large_home(folder: Path, n_tensors: int = 5000) -> tuple[Path, ProjectReport]:
    """The home and the project; the model's weights take no room on disk."""
    path, home = folder / "large.gguf", folder / "home"
    write_large_model(path, n_tensors)
    with Workspace.open(home) as workspace:
        with workspace.model(path) as model:
            key = MeasurementKey(model.fingerprint, "", MeasureSettings(exhaustive=False).key)
            tensors = quantizable_tensors(model.source)
            workspace.store.record_cells(key, [cell for at, tensor in enumerate(tensors) for cell in _cells(tensor, at)])
        return home, open_project(workspace, path)


def _cells(tensor: TensorInfo, at: int) -> list[WeightError]:
    qtypes = library.types()
    kinds = [qtypes[name] for name in TYPES]
    fitting = [kind for kind in kinds if unavailable(tensor, kind, architecture="llama", has_imatrix=False, qtypes=qtypes) is None]
    return [_cell(tensor, kind.name, kind.tensor_bytes(tensor), kind.bits_per_weight, at) for kind in fitting]


def _cell(tensor: TensorInfo, type_name: str, size_bytes: int, bits: float, at: int) -> WeightError:
    error = 0.0 if type_name == tensor.type_name else (1 + at % 13) * 4.0**-bits
    return WeightError(
        tensor.name,
        type_name,
        size_bytes,
        bits,
        n_rows_measured=64,
        n_rows_total=tensor.n_rows,
        rmse=error**0.5,
        max_abs_error=4 * error**0.5,
        relative_mse=error,
        weighted_mse=error,
    )
