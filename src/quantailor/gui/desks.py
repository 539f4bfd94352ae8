"""Desks, curves and drafts that the server's pages share: one a model, opened when first needed and again when more is known."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

from quantailor.app.choosing.drafts import draft_rounding
from quantailor.app.choosing.planner import Planner, planner_state
from quantailor.app.choosing.shared_draft import SharedDraft
from quantailor.app.library.projects import ProjectReport
from quantailor.app.measuring.progress import MeasurementWatch, RoleBand
from quantailor.app.steps import AUTO, PlanOptions
from quantailor.errors import StrategyError
from quantailor.gui.context import workspace

START_BITS = 4.5
"""Bits per weight of a draft that nobody has asked anything of."""
STRATEGY_BYTES = 512
"""Room for a tensor's line of the strategy in the file's header; it counts in tiny models alone."""
_lock = threading.RLock()
_desks: dict[tuple[Path, str, str], Planner] = {}
_drafts: dict[tuple[Path, str, str], SharedDraft] = {}
Curves = tuple[MeasurementWatch, tuple[RoleBand, ...]]
"""A model's measured errors, and what is usual of them for each role."""
_curves: dict[tuple[Path, str], tuple[object, Curves]] = {}


def desk_of(project: ProjectReport, rounding: str = AUTO) -> Planner:
    """The project's desk for that rounding (see `evidence.measurements.measured`), with everything that is known now.

    Raises StrategyError where nothing is measured.
    """
    with _lock:
        key = (workspace().home.path, project.fingerprint, rounding)
        known = _desks.get(key)
        if known is not None and known.state == planner_state(workspace(), project.fingerprint):
            return known
        place = project.base or project.source
        if place is None:
            raise StrategyError(f"the file of {project.name} is gone", remedy="Open the model again")
        # The old desk stays open for the pages that still hold it.
        desk = _desks[key] = Planner.open(workspace(), Path(place), rounding=rounding)
        _desks[(*key[:2], desk.rounding)] = desk
        # Its hundred thousands of objects stay: looking through them again and again would hold up every page.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        return desk


def desk_of_draft(project: ProjectReport, name: str) -> Planner:
    """The desk for the rounding that a draft is planned for. Raises StrategyError where nothing is measured."""
    return desk_of(project, draft_rounding(workspace(), project.fingerprint, name))


def draft_of(project: ProjectReport, name: str) -> SharedDraft:
    """The draft of that name, which all pages share."""
    with _lock:
        key = (workspace().home.path, project.fingerprint, name)
        return _drafts.setdefault(key, SharedDraft(workspace(), name, _first_options))


def curves_of(fingerprint: str) -> Curves:
    """The model's errors as they are now, read once for all pages."""
    with _lock:
        key, state = (workspace().home.path, fingerprint), planner_state(workspace(), fingerprint)
        known = _curves.get(key)
        if known is None or known[0] != state:
            watch = MeasurementWatch(workspace(), fingerprint)
            watch.look()
            known = _curves[key] = state, (watch, watch.bands())
        return known[1]


def _first_options(desk: Planner) -> PlanOptions:
    smallest, largest = desk.size_range(PlanOptions())
    wanted = int(desk.n_elements * START_BITS / 8)
    header = STRATEGY_BYTES * (1 + len(desk.measured))
    return PlanOptions(size_bytes=min(max(wanted, int(1.05 * smallest)), largest) + header)
