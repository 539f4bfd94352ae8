"""The JSON Schema of what `--json` prints; `docs/output.schema.json` is this, and a test keeps it so."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from quantailor.service import builds, drafts, progress, report_results, results, sharing_results, structure, verdicts

VERSION = 1
RESULTS: dict[str, Any] = {
    "inspect": results.ModelReport | results.PeekReport | structure.LargestTensors | structure.ConfigurationText,
    "download": results.DownloadResult,
    "convert": results.ConvertResult,
    "imatrix": results.ImatrixReport,
    "measure": results.MeasureResult,
    "probe": results.ProbeResult,
    "sweep": results.SweepResult,
    "study": results.StudyResult,
    "study-cost": results.CostReport,
    "models": list[results.ProjectReport],
    "status": progress.MeasurementMap,
    "plan": results.PlanResult,
    "predict": report_results.PredictResult,
    "edit": drafts.EditResult,
    "drafts": list[drafts.DraftInfo],
    "refine": results.RefineResult,
    "report": report_results.ReportResult,
    "compare-models": report_results.CompareResult,
    "build": results.BuildReport,
    "verify": results.VerifyResult,
    "make": results.MakeResult,
    "export": sharing_results.ExportReport,
    "diff": sharing_results.StrategyDiff,
    "card": sharing_results.CardResult,
    "experts": sharing_results.ExpertsReport,
    "check": sharing_results.BuildCheck,
    "verdicts": verdicts.VerdictsReport,
    "builds": list[builds.BuiltFile],
    "jobs": list[results.JobReport],
    "job": results.JobReport,
}
"""Command -> what its `result` is."""

_ERROR = {
    "type": "object",
    "properties": {"type": {"type": "string"}, "message": {"type": "string"}, "remedy": {"type": ["string", "null"]}},
    "required": ["type", "message", "remedy"],
}


def output_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the one document that a command prints with `--json`."""
    definitions: dict[str, Any] = {}
    documents = [_document({"type": "string"}, "error", _ERROR)]
    for command, result in RESULTS.items():
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
