"""`python -m tools.pack_demo HOME`: demo/measured.zip from a home in which demo/books-llama is measured and probed."""

from __future__ import annotations

import sys
from pathlib import Path

from quantailor.app.library.demo import pack_demo
from quantailor.app.library.projects import open_project
from quantailor.session import Workspace

if __name__ == "__main__":
    with Workspace.open(Path(sys.argv[1])) as workspace:
        found = open_project(workspace, Path("demo/books-llama"))
        print(pack_demo(workspace, found.fingerprint))
