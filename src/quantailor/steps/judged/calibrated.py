"""Which importance matrix the references of a verdict are made with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quantailor.analysis.importance.imatrix import Imatrix
from quantailor.evidence.strategies import embedded_strategy
from quantailor.session import AUTO, OpenedModel, Workspace


def references_imatrix(
    workspace: Workspace, model: OpenedModel, file: Path, wanted: str, tell: Callable[[str], None] | None = None
) -> tuple[Imatrix | None, list[str]]:
    """For "auto" the one that our file was made with, which may be still to be made; and what to say where it is not here.
    `tell` hears what a user should know of a file that was named.

    Raises ImatrixError for one that cannot be read.
    """
    if wanted != AUTO:
        return workspace.imatrices.choose(model, wanted, tell), []
    embedded = embedded_strategy(workspace, file) if file.is_file() else None
    if embedded is None:
        return workspace.imatrices.default(model.fingerprint), []
    recorded = str(embedded.inputs.get("imatrix") or "")
    if not recorded or workspace.imatrices.path(model.fingerprint, recorded).exists():
        return (workspace.imatrices.read(model.fingerprint, recorded) if recorded else None), []
    missing = f"The importance matrix {recorded[:12]} that the file was made with is not here (--imatrix names its file)"
    return None, [f"{missing}, so the presets were made without one and look worse than they could."]
