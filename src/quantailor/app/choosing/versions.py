"""A model's versions side by side: what each comes to, whoever made it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from quantailor.app.choosing.drafts import Draft, DraftInfo, list_drafts
from quantailor.app.choosing.planner import Planner
from quantailor.errors import StrategyMismatchError
from quantailor.records import Prediction
from quantailor.session import Workspace


@dataclass(frozen=True, slots=True)
class Version:
    """A draft with its types and what they come to."""

    info: DraftInfo
    types: Mapping[str, str]
    prediction: Prediction | None
    """None where a type is not measured in the measurement at hand."""


def versions(workspace: Workspace, desk: Planner) -> list[Version]:
    """All drafts of the desk's model, the latest changed first, priced by what the desk knows."""
    found = []
    for info in list_drafts(workspace, desk.model.fingerprint):
        draft = Draft.load(workspace, desk, info.name)
        if draft is None:  # somebody deleted it meanwhile
            continue
        types, prediction = draft.types_known_to(desk), None
        with suppress(StrategyMismatchError):
            prediction = desk.evaluate(types).prediction
        found.append(Version(info, types, prediction))
    return found
