"""`python -m tools.pack_demo HOME`: demo/measured.zip from a home in which demo/books-llama is measured and probed."""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

from quantailor.app.library.demo import DATABASE, MATRICES, PLACE
from quantailor.app.library.projects import open_project
from quantailor.session import Workspace
from quantailor.store import Store


def pack_demo(workspace: Workspace, fingerprint: str, place: Path = PLACE) -> Path:
    """Write what a home has measured of the model for `open_demo`."""
    with tempfile.TemporaryDirectory() as name:
        database = Path(name) / DATABASE
        with Store(database) as packed:
            packed.take_over(workspace.store.path)
            for other in packed.models():
                if other.fingerprint != fingerprint:
                    packed.forget_model(other.fingerprint)
            packed.compact()
        with zipfile.ZipFile(place / "measured.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            archive.write(database, DATABASE)
            for record in workspace.imatrices.stored(fingerprint):
                path = workspace.imatrices.path(fingerprint, record.fingerprint)
                archive.write(path, f"{MATRICES}/{path.name}")
    return place / "measured.zip"


if __name__ == "__main__":
    with Workspace.open(Path(sys.argv[1])) as workspace:
        found = open_project(workspace, Path("demo/books-llama"))
        print(pack_demo(workspace, found.fingerprint))
