"""Between records and what sqlite holds: arrays as little-endian blobs, nested records as JSON text.

JSON here is canonical (sorted keys, no spaces), so that equal records give equal text and one SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from quantailor.errors import StoreError
from quantailor.records import (
    Comparison,
    Domain,
    Estimate,
    Eval,
    EvalComparison,
    EvalFigure,
    EvalRow,
    FidelityStatistics,
    Standing,
    Verdict,
    VerdictRow,
)


def floats_to_blob(values: Sequence[float]) -> bytes:
    """float64, little-endian: what was stored comes back bit for bit."""
    return np.asarray(values, dtype="<f8").tobytes()


def floats_from_blob(blob: bytes) -> tuple[float, ...]:
    return tuple(np.frombuffer(blob, dtype="<f8").tolist()) if blob else ()


def canonical_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=plain)


def plain(value: object) -> Any:
    """A numpy scalar as Python's own number, anything else as it is. Raises TypeError for an array."""
    if isinstance(value, np.ndarray):
        raise TypeError(f"an array of shape {value.shape} is not plain data")
    return value.item() if isinstance(value, np.generic) else value


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def refuse_nan(figures: Mapping[str, object], what: str) -> None:
    """Raise StoreError for a NaN, which sqlite would silently keep as "no value"."""
    for name, figure in figures.items():
        values = figure if isinstance(figure, tuple) else (figure,)
        if any(value != value for value in values):  # only NaN differs from itself
            raise StoreError(f"{name} of {what} is NaN", remedy="Please report this as a bug")


def verdict_to_json(verdict: Verdict) -> str:
    return canonical_json(asdict(verdict))


def verdict_from_json(text: str) -> Verdict:
    document = json.loads(text)
    rows = tuple(VerdictRow(**{**row, "statistics": _statistics(row["statistics"])}) for row in document.pop("rows"))
    document["reservations"] = tuple(document.get("reservations", ()))
    for name, kind in {"comparisons": Comparison, "pairs": Comparison, "standings": Standing}.items():
        document[name] = tuple(kind(**_tuples(one)) for one in document.get(name, ()))
    document["domains"] = tuple(_domain(one) for one in document.get("domains", ()))
    document["evals"] = tuple(_eval(one) for one in document.get("evals", ()))
    return Verdict(**document, rows=rows)


def _eval(document: Mapping[str, Any]) -> Eval:
    rows = tuple(EvalRow(**_with_figures(each)) for each in document["rows"])
    comparisons = tuple(EvalComparison(**_with_figures(each)) for each in document["comparisons"])
    return Eval(**{**document, "rows": rows, "comparisons": comparisons})


def _with_figures(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: EvalFigure(**_tuples(value)) if isinstance(value, dict) else value for name, value in document.items()}


def _domain(document: Mapping[str, Any]) -> Domain:
    klds = tuple(Estimate(**each) for each in document["klds"])
    comparisons = tuple(Comparison(**_tuples(each)) for each in document["comparisons"])
    return Domain(document["name"], document["n_chunks"], klds, comparisons)


def _tuples(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in document.items()}


def _statistics(document: Mapping[str, Any]) -> FidelityStatistics:
    figures: dict[str, Any] = {name: Estimate(**value) if isinstance(value, dict) else value for name, value in document.items()}
    return FidelityStatistics(**figures)
