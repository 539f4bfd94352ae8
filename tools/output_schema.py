"""The JSON Schema of what `--json` prints; `docs/output.schema.json` is this, and a test keeps it so."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from quantailor.app.choosing.comparing import StrategyDiff
from quantailor.app.choosing.drafts import DraftInfo, EditResult
from quantailor.app.choosing.predicting import PredictResult
from quantailor.app.jobs import JobReport
from quantailor.app.library.cleaning import CleanReport
from quantailor.app.library.experts import ExpertsReport
from quantailor.app.library.hub import PeekReport
from quantailor.app.library.projects import ProjectReport
from quantailor.app.library.structure import ConfigurationText, LargestTensors, ModelReport
from quantailor.app.measuring.cost import CostReport
from quantailor.app.measuring.progress import MeasurementMap
from quantailor.app.measuring.reporting import CompareResult, ReportResult
from quantailor.app.products.builds import BuiltFile
from quantailor.app.products.card import CardResult
from quantailor.app.products.checking import BuildCheck
from quantailor.app.products.exporting import ExportReport
from quantailor.app.products.fitting import FitReport
from quantailor.app.products.verdicts import VerdictsReport
from quantailor.app.steps import PlanResult, kinds
from quantailor.cli.output import VERSION

_RESULTS: dict[str, Any] = {
    "inspect": ModelReport | PeekReport | LargestTensors | ConfigurationText,
    "cost": CostReport,
    "study-cost": CostReport,
    "models": list[ProjectReport],
    "status": MeasurementMap,
    "plan": PlanResult,
    "predict": PredictResult,
    "edit": EditResult,
    "drafts": list[DraftInfo],
    "report": ReportResult,
    "compare-models": CompareResult,
    "export": ExportReport,
    "diff": StrategyDiff,
    "card": CardResult,
    "experts": ExpertsReport,
    "check": BuildCheck,
    "verdicts": VerdictsReport,
    "builds": list[BuiltFile],
    "fit": FitReport,
    "clean": CleanReport,
    "jobs": list[JobReport],
    "job": JobReport,
}
"""Command -> what its `result` is; beside those of steps, which say it themselves."""

_ERROR = {
    "type": "object",
    "properties": {"type": {"type": "string"}, "message": {"type": "string"}, "remedy": {"type": ["string", "null"]}},
    "required": ["type", "message", "remedy"],
}


def output_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the one document that a command prints with `--json`."""
    definitions: dict[str, Any] = {}
    documents = [_document({"type": "string"}, "error", _ERROR)]
    steps = {kind: step.result for kind, step in kinds().items()}
    for command, result in sorted((steps | _RESULTS).items()):
        schema = TypeAdapter(result).json_schema(mode="serialization", ref_template="#/$defs/{model}")
        definitions |= schema.pop("$defs", {})
        documents.append(_document({"const": command}, "result", schema))
    _allow_endless_price(definitions["TensorChoice"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Quantailor output",
        "oneOf": documents,
        "$defs": dict(sorted(definitions.items())),
    }


def _allow_endless_price(choice: dict[str, Any]) -> None:
    """A price range without an upper end has null there, because JSON knows no infinity."""
    ends = choice["properties"]["price_range"]["anyOf"][0]["prefixItems"]
    ends[1] = {"anyOf": [ends[1], {"type": "null"}]}


def _document(command: dict[str, Any], key: str, value: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"version": {"const": VERSION}, "command": command, key: value},
        "required": ["version", "command", key],
        "additionalProperties": False,
    }
