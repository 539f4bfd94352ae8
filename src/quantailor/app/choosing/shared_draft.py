"""A draft that several tabs, threads and processes change at once, and none of them undoes what another did.

Every change is a small action on the latest revision in the store. Within a process they wait for each other under a lock. Another
process may write between reading and writing: the store takes a revision's successor only in place of that very revision, and an
action that comes too late is done again on what is there by then.

A rule takes its time, so `solve` holds no lock while it runs: it takes the pins there are, and its answer goes to the tensors
that nobody has pinned or unpinned meanwhile. Whoever asks for another answer, goes back or loads a file has no use for an answer
that is still on its way: it is dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from quantailor.app.choosing.drafts import Draft
from quantailor.app.choosing.planner import Planner
from quantailor.session import Workspace
from quantailor.steps.plan import PlanOptions

Action = Callable[[Draft], str | None]
"""Changes a draft and says in words what it did."""


class SharedDraft:
    """See the module docstring. A process has one for each model and name; drafts that it gives out are never changed again."""

    def __init__(self, workspace: Workspace, name: str, begin: Callable[[Planner], PlanOptions]) -> None:
        """`begin` says what to ask the rule for where the store has no draft of that name."""
        self.name = name
        self._workspace, self._begin = workspace, begin
        self._lock = threading.RLock()
        self._draft: Draft | None = None
        self._sketch: Draft | None = None
        self._revision = 0
        self._n_asked = 0

    def latest(self, planner: Planner) -> Draft:
        """The draft as it is now, whoever changed it last. Raises StrategyError where it cannot be begun, StoreError."""
        with self._lock:
            model = planner.model.fingerprint
            revision = self._workspace.store.draft_revision(model, self.name)
            if self._draft is None or not revision or revision != self._revision:
                stored = self._workspace.store.draft(model, self.name)
                if stored is None:
                    return self._begun(planner)
                self._draft, self._revision = Draft.from_json(stored[0], self.name), stored[1]
            self._draft = self._draft.covering(planner)
            return self._draft

    def glimpse(self, planner: Planner) -> Draft:
        """The draft, or about what it will be where it has yet to be begun, without waiting for a rule's answer.

        Raises StrategyError where nothing is left to choose, StoreError.
        """
        known = self._draft
        if known is not None:
            return known.covering(planner)
        if (stored := Draft.load(self._workspace, planner, self.name)) is not None:
            return stored
        if self._sketch is None:
            options = self._begin(planner)
            self._sketch = Draft.sketch(planner, options, options.size_bytes or 0, name=self.name)
        return self._sketch.covering(planner)

    def change(self, planner: Planner, action: Action, *, is_edit: bool = True) -> str | None:
        """Apply an action to the latest revision and keep the outcome; what the action said.

        Args:
            planner: the model's measurements.
            action: may be called more than once, each time with a draft of its own. What it raises leaves the draft as it was.
            is_edit: whether an answer that is on its way may still come. Undo and loading have no use for it.
        """
        with self._lock:
            self._n_asked += not is_edit
            return self._applied(planner, action)

    def solve(self, planner: Planner, options: PlanOptions) -> str | None:
        """Let a rule choose all tensors that are not pinned; what it was asked for, or None where its answer came too late to count.

        Raises StrategyError, and changes nothing.
        """
        with self._lock:
            self._n_asked += 1
            asked, before = self._n_asked, self.latest(planner)
        solved = planner.solve(options, before.pins_known_to(planner))
        with self._lock:
            if asked != self._n_asked:
                return None
            return self._applied(planner, lambda draft: draft.accept(solved, options, before.pins))

    def plan_for(self, planner: Planner, rounding: str) -> None:
        """Plan for another rounding, whose measurements `planner` has: the same rule chooses all tensors that are not pinned.

        Raises StrategyError, and changes nothing.
        """
        with self._lock:
            self._n_asked += 1
            before = self.latest(planner)
        solved = planner.solve(before.options, before.pins_known_to(planner))
        with self._lock:
            self._applied(planner, lambda draft: draft.plan_for(rounding, solved, before.options, before.pins))

    def _begun(self, planner: Planner) -> Draft:
        draft = Draft.start(planner, self._begin(planner), name=self.name)
        if not self._kept(planner, draft, revision=0):
            return self.latest(planner)
        return draft

    def _applied(self, planner: Planner, action: Action) -> str | None:
        while True:
            draft = self.latest(planner).copy()
            said = action(draft)
            if self._kept(planner, draft, revision=self._revision):
                return said

    def _kept(self, planner: Planner, draft: Draft, *, revision: int) -> bool:
        """Keep a draft in place of a revision; False where another process was faster."""
        kept = self._workspace.store.change_draft(planner.model.fingerprint, self.name, draft.to_json(), revision=revision)
        if kept is None:
            return False
        self._draft, self._revision = draft, kept
        return True
