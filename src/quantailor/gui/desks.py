"""Desks and drafts that the server's pages share: one a model, opened when first needed and again when more is known."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

from quantailor.app.choosing.drafts import Draft
from quantailor.app.choosing.planner import Planner, planner_state
from quantailor.app.library.projects import ProjectReport
from quantailor.app.steps import PlanOptions
from quantailor.errors import StrategyError
from quantailor.gui.context import workspace

START_BITS = 4.5
"""Bits per weight of a draft that nobody has asked anything of."""
STRATEGY_BYTES = 512
"""Room for a tensor's line of the strategy in the file's header; it counts in tiny models alone."""
_lock = threading.RLock()
_desks: dict[str, Planner] = {}
_drafts: dict[tuple[str, str], Draft] = {}


def desk_of(project: ProjectReport) -> Planner:
    """The project's desk, with everything that is known now. Raises StrategyError where nothing is measured."""
    with _lock:
        known = _desks.get(project.fingerprint)
        if known is not None and known.state == planner_state(workspace(), project.fingerprint):
            return known
        place = project.base or project.source
        if place is None:
            raise StrategyError(f"the file of {project.name} is gone", remedy="Open the model again")
        # The old desk stays open for the pages that still hold it.
        desk = _desks[project.fingerprint] = Planner.open(workspace(), Path(place))
        # Its hundred thousands of objects stay: looking through them again and again would hold up every page.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        return desk


def draft_of(project: ProjectReport, desk: Planner, name: str) -> Draft:
    """The draft of that name, from the store or begun now."""
    with _lock:
        known = _drafts.get((project.fingerprint, name))
        if known is not None and known.types.keys() == desk.measured:
            return known
        draft = Draft.load(workspace(), desk, name)
        if draft is None:
            draft = Draft.start(desk, _first_options(desk), name=name)
            draft.save(workspace(), project.fingerprint)
        _drafts[project.fingerprint, name] = draft
        return draft


def _first_options(desk: Planner) -> PlanOptions:
    smallest, largest = desk.size_range(PlanOptions())
    wanted = int(desk.n_elements * START_BITS / 8)
    header = STRATEGY_BYTES * (1 + len(desk.measured))
    return PlanOptions(size_bytes=min(max(wanted, int(1.05 * smallest)), largest) + header)
