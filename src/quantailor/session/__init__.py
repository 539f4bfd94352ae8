"""An opened home: the models that are opened in it, their importance matrices and covariances."""

from __future__ import annotations

from pathlib import Path

from quantailor.session.imatrices import AUTO, NONE, fitted, other_words, others, require_fit
from quantailor.session.opened import (
    Condition,
    OpenedModel,
    condition,
    gguf_path,
    header_path,
    plain_label,
    quantizable_tensors,
    require_intact,
)
from quantailor.session.workspace import Workspace

DATA = Path(__file__).parents[1] / "data"
CALIBRATION_TEXT = DATA / "calibration.txt"
HELDOUT_TEXT = DATA / "heldout.txt"
CHOICES = DATA / "choices.jsonl"
