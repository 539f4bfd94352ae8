"""What a run was told, written beside what it made: `recipe.yaml`, which `make -r` reads. Its keys are the command line's options."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from quantailor.analysis.texts import digest
from quantailor.files import write_text
from quantailor.ggml import library
from quantailor.present.recipes import MADE, RECIPE, dumps
from quantailor.session import CALIBRATION_TEXT, HELDOUT_TEXT, OpenedModel
from quantailor.steps.plan import PlanOptions

if TYPE_CHECKING:
    from quantailor.pipeline.whole_way import MakingStep
    from quantailor.steps.step import StepResult

_SNAPSHOT = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})(?:/(.+))?$")
Plain = Mapping[str, object]


def write_recipe(step: MakingStep[StepResult], place: str, model: OpenedModel, asked: Plain) -> Path:
    """Write the recipe of a run on the model at `place` into its directory: `asked` is what it alone has, its target or its sizes."""
    folder = step.folder
    options: dict[str, object] = {
        **_model(place, folder),
        **asked,
        **limits(step.plan),
        "basis": step.plan.basis,
        "types": list(step.types),
        "exhaustive": step.exhaustive,
        "file": _place(step.text, folder),
        "probe-chunks": step.probe_chunks,
        "time": None if step.seconds is None else f"{step.seconds:g}s",
        "passes": step.passes,
        "group": step.group,
        "imatrix": _place(step.imatrix, folder),
        "imatrix-chunks": step.imatrix_chunks,
        "rounding": step.rounding,
        "covariances": _place(step.covariances, folder) if Path(step.covariances).is_absolute() else None,
        "verify": step.verify,
        "verify-text": _place(step.verify_text, folder),
        "chunks": step.chunks,
        "against": None if step.against is None else list(step.against),
        "beside": step.beside,
        "eval": list(step.evals.names),
        "prompts": step.evals.prompts if "greedy" in step.evals.names else None,
        "choices": _place(step.evals.choices, folder),
        "allow-requantize": step.allow_requantize or None,
        "mmproj": None if step.mmproj == "none" else step.mmproj,
        "way": None if step.conversion.way == "auto" else step.conversion.way,
    }
    told = {key: value for key, value in options.items() if value not in (None, [], {}, False) or key == "verify"}
    texts = {
        "file": digest(Path(step.text or CALIBRATION_TEXT)),
        **({"verify-text": digest(Path(step.verify_text or HELDOUT_TEXT))} if step.verify else {}),
    }
    made = {
        "quantailor": importlib.metadata.version("quantailor"),
        "llama.cpp": library.engine(),
        "model": model.fingerprint,
        "sha256 of texts": texts,
    }
    return write_text(folder / RECIPE, dumps({**told, MADE: made}))


def limits(plan: PlanOptions) -> dict[str, object]:
    """A plan's constraints as options."""
    named = {"pin": plan.pins, "allow": plan.allow, "min": plan.minimum, "max": plan.maximum, "tie": plan.ties, "budget": plan.budgets}
    speed = {} if plan.speed is None else {"speed": plan.speed, "speed-of": plan.speed_of}
    return {**{key: list(values) for key, values in named.items()}, **speed}


def _model(place: str, folder: Path) -> dict[str, object]:
    """A repository with the commit that was used, else a path."""
    if match := _SNAPSHOT.search(Path(place).as_posix()):
        gguf = match[4] if match[4] and match[4].endswith(".gguf") else None
        return {"model": f"{match[1]}/{match[2]}", "revision": match[3], "gguf-file": gguf}
    return {"model": _place(place, folder)}


def _place(path: str | None, folder: Path) -> str | None:
    """A path from the recipe's own directory, so that both can move together; words such as "auto" as they are."""
    return path if path is None or not Path(path).is_absolute() else Path(os.path.relpath(path, folder)).as_posix()
