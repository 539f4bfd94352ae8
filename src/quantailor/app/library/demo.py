"""The demonstration: the small model of the project's repository, with measurements and probes that somebody made before."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path

from quantailor.app.library.projects import ProjectReport, open_project
from quantailor.session import Workspace
from quantailor.store import Store

PLACE = Path(__file__).parents[4] / "demo"
"""Beside the sources; an installed package has none."""
DATABASE = "quantailor.db"
MATRICES = "imatrices"


def demo_model(place: Path = PLACE) -> Path | None:
    """The model's folder; None where it did not come with this installation."""
    model = place / "books-llama"
    return model if model.is_dir() and (place / "measured.zip").is_file() else None


def open_demo(workspace: Workspace, place: Path = PLACE) -> ProjectReport:
    """Open the model and take over what is known of it; what this home knows already stays. Raises ModelError, StoreError."""
    with tempfile.TemporaryDirectory(dir=workspace.home.path) as name, zipfile.ZipFile(place / "measured.zip") as archive:
        folder = Path(name)
        archive.extractall(folder)
        workspace.home.imatrices.mkdir(parents=True, exist_ok=True)
        for matrix in (folder / MATRICES).iterdir():
            if not (workspace.home.imatrices / matrix.name).exists():
                shutil.copy(matrix, workspace.home.imatrices)
        with Store(folder / DATABASE):  # brings it up to date
            pass
        workspace.store.take_over(folder / DATABASE)
    return open_project(workspace, place / "books-llama")
