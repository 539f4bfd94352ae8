"""Reports of one model, and two models side by side, as HTML, JSON or CSV."""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantailor import files
from quantailor.app.measuring.progress import RoundingKind
from quantailor.errors import OutputError
from quantailor.evidence.damages import why_early
from quantailor.evidence.knowledge import Knowledge, load_knowledge
from quantailor.evidence.measurements import measured
from quantailor.evidence.roundings import named_rounding
from quantailor.ggml import library
from quantailor.present import words
from quantailor.present.report import (
    ALL_DEPTHS,
    ImatrixFacts,
    LabelledStrategy,
    ReportData,
    common_type,
    left_out,
    places,
    render_comparison,
    render_report,
    role_profile,
    sensitivity_profile,
)
from quantailor.records import Estimate, Grounds, RoundingWish, SwapCell, WeightError
from quantailor.session import AUTO, OpenedModel, Workspace, quantizable_tensors
from quantailor.strategy import file as strategy_file


@dataclass(frozen=True, slots=True)
class ReportResult:
    """What was written about a model, and how much there was to tell."""

    model_name: str
    paths: tuple[str, ...]
    n_tensors: int
    n_probed: int
    n_cells: int
    n_mixes: int
    n_verdicts: int
    grounds: Grounds | None = None
    """What damages and predictions stand on; None for weight errors alone."""
    rounding: RoundingKind = "plain"
    """Of the files that errors, damages and predictions are of."""
    covariances: str = ""
    """The beginning of the fingerprint of the input covariances that errors were measured with; "" without."""


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """A role at a depth in two models: its share of the sensitivity and of the weights, 0 to 1, of all that is probed and measured."""

    role: str
    depth: str
    share_a: Estimate | None
    """None where the model has no such tensors, or none of them is probed and measured."""
    share_b: Estimate | None
    parameter_share_a: float | None
    """0 where the model has no such tensors; None where it has, but none is probed and measured."""
    parameter_share_b: float | None


@dataclass(frozen=True, slots=True)
class CompareResult:
    """The sensitivity profiles of two models."""

    models: tuple[str, str]
    paths: tuple[str, ...]
    profiles: tuple[ProfileReport, ...]
    left_out: tuple[int, int]
    """Tensors of each that are not probed or not measured, and so in no share."""
    roundings: tuple[RoundingKind, RoundingKind] = ("plain", "plain")
    """Of the files that each model's shares are of."""


FORMATS = (".html", ".json", ".csv")
N_STRATEGIES = 5
"""The latest strategies that a report shows."""
_PACKAGES = {"Quantailor": "quantailor", "llama-cpp-python": "llama-cpp-python"}


def report(
    workspace: Workspace,
    base: Path,
    outputs: Sequence[Path],
    *,
    imatrix: str = AUTO,
    rounding: RoundingWish = "auto",
    covariances: str = AUTO,
    overwrite: bool = False,
) -> ReportResult:
    """Write what is known of a model; the name of each output says how: .html, .json or .csv.

    Args:
        workspace: what was measured.
        base: the model.
        outputs: the files to write.
        imatrix: which measurements to tell of, as `plan` takes it; `rounding` and `covariances` likewise.
        rounding: "auto" is compensated where as much is measured with it as without.
        covariances: of the inputs: "auto", "none", or a file.
        overwrite: replace existing files.

    Raises:
        StrategyError: nothing is measured.
        CovarianceError: covariances that cannot be used.
        OutputError: an unknown ending, or a file that exists or cannot be written.
    """
    _check(outputs, overwrite=overwrite)
    with workspace.model(base) as model:
        data, known = _data(workspace, model, imatrix, named_rounding(workspace, model, rounding, covariances))
    for output in outputs:
        files.write_text(output, _report_text(data, known, output.suffix), overwrite=overwrite)
    return ReportResult(
        model_name=data.model_name,
        paths=tuple(map(str, outputs)),
        n_tensors=len(data.tensors),
        n_probed=sum(item.status != "not in the graph" for item in data.sensitivities),
        n_cells=len(data.cells),
        n_mixes=0 if data.curve is None else len(data.curve.points),
        n_verdicts=len(data.verdicts),
        grounds=data.grounds,
        rounding=_kind(data),
        covariances=data.covariances,
    )


def compare_models(
    workspace: Workspace,
    base_a: Path,
    base_b: Path,
    outputs: Sequence[Path] = (),
    *,
    rounding: RoundingWish = "auto",
    covariances: tuple[str, str] = (AUTO, AUTO),
    overwrite: bool = False,
) -> CompareResult:
    """The sensitivity profiles of two models side by side; written as `report` does where outputs are given.

    `rounding` and `covariances`, those of the first model and of the second, are as of `report`.
    """
    _check(outputs, overwrite=overwrite)
    a, b = (_side(workspace, base, rounding, own) for base, own in zip((base_a, base_b), covariances, strict=True))
    result = CompareResult(
        models=(a.model_name, b.model_name),
        paths=tuple(map(str, outputs)),
        profiles=tuple(_profiles(a, b)),
        left_out=(len(left_out(a)), len(left_out(b))),
        roundings=(_kind(a), _kind(b)),
    )
    for output in outputs:
        text = render_comparison(a, b) if output.suffix == ".html" else _profile_text(result, output.suffix)
        files.write_text(output, text, overwrite=overwrite)
    return result


def _check(outputs: Sequence[Path], *, overwrite: bool) -> None:
    for output in outputs:
        if output.suffix not in FORMATS:
            raise OutputError(f"{output} has none of the endings {', '.join(FORMATS)}", remedy="Name it for example report.html")
        files.refuse_existing(output, overwrite=overwrite)


# Gathering


def _kind(data: ReportData) -> RoundingKind:
    return "compensated" if data.is_compensated else "plain"


def _side(workspace: Workspace, base: Path, rounding: RoundingWish, covariances: str) -> ReportData:
    with workspace.model(base) as model:
        return _data(workspace, model, AUTO, named_rounding(workspace, model, rounding, covariances))[0]


def _data(workspace: Workspace, model: OpenedModel, imatrix: str, rounding: str) -> tuple[ReportData, Knowledge | None]:
    found = measured(workspace, model, imatrix, rounding=rounding, partial=True)
    known = load_knowledge(workspace, model, found.key, found.cells)
    record = workspace.store.imatrix(model.fingerprint, found.key.imatrix) if found.key.imatrix else None
    source, store = model.source, workspace.store
    data = ReportData(
        model_name=source.name,
        architecture=source.architecture,
        fingerprint=model.fingerprint,
        n_parameters=sum(tensor.n_elements for tensor in source.tensors),
        base_size_bytes=sum(tensor.size_bytes for tensor in source.tensors),
        imatrix=None if record is None else ImatrixFacts(record.fingerprint, record.datasets, record.chunk_count),
        is_compensated=bool(found.key.swapped),
        covariances=found.key.covariances,
        tensors=quantizable_tensors(source),
        weight_errors=found.cells,
        verdicts=[item.verdict for item in store.verdicts(model.fingerprint)],
        strategies=_strategies(workspace, model),
        activation_blocks={name: qtype.activation_block for name, qtype in library.types().items()},
        versions={name: _version(package) for name, package in _PACKAGES.items()},
    )
    if known is None:
        return data, None
    return (
        dataclasses.replace(
            data,
            calibration_name=known.grounds.text,
            grounds=known.grounds,
            n_ctx=known.key.n_ctx,
            n_chunks=known.n_chunks,
            floor_kld_nats=known.floor_nats,
            sensitivities=tuple(item for item in known.sensitivities.values() if item.status != "not probed"),
            cells=tuple(known.cells.values()),
            curve=known.curve if known.curve.points else None,
            no_prediction=why_early(known),
        ),
        known,
    )


def _strategies(workspace: Workspace, model: OpenedModel) -> list[LabelledStrategy]:
    found = []
    for record in workspace.store.strategies(model.fingerprint)[:N_STRATEGIES]:
        strategy = strategy_file.loads(record.document)
        target = words.target(strategy.target)
        found.append(LabelledStrategy(f"{strategy.method}{': ' if target else ''}{target}", strategy))
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


# Writing


def _report_text(data: ReportData, known: Knowledge | None, suffix: str) -> str:
    if suffix == ".html":
        return render_report(data)
    if suffix == ".json":
        return json.dumps(_plain(dataclasses.asdict(data)), indent=1, allow_nan=False) + "\n"
    return _csv(_cell_rows(data, known))


def _cell_rows(data: ReportData, known: Knowledge | None) -> list[dict[str, object]]:
    """One row per tensor and type: sizes, weight error, what probes predict and what was measured."""
    tensors = {tensor.name: tensor for tensor in data.tensors}
    cells = {(cell.tensor, cell.type_name): cell for cell in data.cells}
    qtypes, rows = library.types(), []
    for error in data.weight_errors:
        if error.tensor not in tensors or error.unavailable is not None:
            continue
        damage = None
        if known is not None and error.error is not None:
            damage = known.damage(tensors[error.tensor], qtypes[error.type_name], error.error)
        rows.append(_cell_row(error, damage, cells.get((error.tensor, error.type_name)), known))
    return rows


def _cell_row(error: WeightError, damage: Estimate | None, cell: SwapCell | None, known: Knowledge | None) -> dict[str, object]:
    sensitivity = None if known is None else known.sensitivities.get(error.tensor)
    is_probed = sensitivity is not None and bool(sensitivity.probes)
    return {
        "tensor": error.tensor,
        "type": error.type_name,
        "size_bytes": error.size_bytes,
        "bits_per_weight": error.bits_per_weight,
        "weighted_mse": error.weighted_mse,
        "weighted_mse_se": error.weighted_mse_se,
        "output_mse": error.output_mse,
        "output_mse_se": error.output_mse_se,
        "alpha": sensitivity.alpha.value if sensitivity is not None and is_probed else None,
        "alpha_se": sensitivity.alpha.se if sensitivity is not None and is_probed else None,
        "alpha_status": "" if sensitivity is None else sensitivity.status,
        "damage_nats": None if damage is None else damage.value,
        "damage_se": None if damage is None else damage.se,
        "damage_basis": "" if damage is None else "measured" if cell else "alpha and noise" if is_probed else "what others tell",
        "kld_nats": None if cell is None else cell.kld.value,
        "kld_se": None if cell is None else cell.kld.se,
        "perplexity": None if cell is None else cell.perplexity.value,
        "perplexity_se": None if cell is None else cell.perplexity.se,
        "ln_ppl_ratio": None if cell is None else cell.ln_ppl_ratio.value,
        "ln_ppl_ratio_se": None if cell is None else cell.ln_ppl_ratio.se,
        "chunks": None if cell is None else cell.n_chunks,
    }


def _csv(rows: Sequence[Mapping[str, object]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _plain(value: Any) -> Any:
    """Numbers that JSON does not know as null, keys as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Comparing


def _profiles(a: ReportData, b: ReportData) -> Iterator[ProfileReport]:
    """Rows of both models by role and depth, whole roles first."""
    type_name = common_type(a, b)
    sides = []
    for data in (a, b):
        rows = (*role_profile(data, type_name=type_name), *sensitivity_profile(data, type_name=type_name))
        unknown: dict[tuple[str, str], tuple[Estimate | None, float | None]] = dict.fromkeys(places(data), (None, None))
        sides.append(unknown | {(row.role, row.depth): (row.share, row.parameter_share) for row in rows})
    for role, depth in dict.fromkeys(key for side in sides for key in sorted(side, key=lambda key: key[1] != ALL_DEPTHS)):
        (share_a, weights_a), (share_b, weights_b) = (side.get((role, depth), (None, 0.0)) for side in sides)
        yield ProfileReport(role, depth, share_a, share_b, weights_a, weights_b)


def _profile_text(result: CompareResult, suffix: str) -> str:
    if suffix == ".json":
        return json.dumps(_plain(dataclasses.asdict(result)), indent=1, allow_nan=False) + "\n"
    a, b = result.models
    return _csv(
        [
            {
                "role": row.role,
                "depth": row.depth,
                "model_a": a,
                "share_a": None if row.share_a is None else row.share_a.value,
                "share_a_se": None if row.share_a is None else row.share_a.se,
                "parameter_share_a": row.parameter_share_a,
                "model_b": b,
                "share_b": None if row.share_b is None else row.share_b.value,
                "share_b_se": None if row.share_b is None else row.share_b.se,
                "parameter_share_b": row.parameter_share_b,
            }
            for row in result.profiles
        ]
    )
