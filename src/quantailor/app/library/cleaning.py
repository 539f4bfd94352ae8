"""What a home holds by kind, and the removal of what can be computed again.

Nothing is removed while a job waits or runs: things are set aside under another name while the store's write lock is held,
so that no job can begin in between, and deleted afterwards. What a killed process leaves set aside is removed the next time.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import psutil

from quantailor import files
from quantailor.jobs import reconcile
from quantailor.session import Workspace

KeptKind = Literal["log-probabilities", "references", "leftovers", "bases", "covariances", "imatrices", "logs", "store"]
CLEANED: tuple[KeptKind, ...] = ("log-probabilities", "references", "leftovers")
"""Removed where no kind is named."""
_AGAIN = {
    "log-probabilities": "the base, run on the text again",
    "references": "the base, quantized by llama.cpp again",
    "leftovers": "nothing: left by a process that was killed",
    "bases": "the model's directory, converted again",
    "covariances": "the base, run on the text again",
}
_STAYS = {
    "imatrices": "importance matrices stay: measurements rest on them, and imported ones cannot be computed",
    "logs": "logs of jobs go with their jobs: `quantailor jobs remove`",
    "store": "everything that was measured",
}
_LEFTOVER = re.compile(r"\..+\.(\d+)\.(?:part|old)")
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class KeptItem:
    """A file or folder of a home."""

    kind: KeptKind
    path: str
    size_bytes: int
    days: float
    """Since it was last written."""
    model: str
    """Its model's name, where that is known."""
    again: str | None
    """What it can be computed again from; None for what is never removed."""
    stays: str | None
    """Why it stays; None for what is, or would be, removed."""


@dataclass(frozen=True, slots=True)
class CleanReport:
    """What a home holds, and what was or would be removed."""

    home: str
    items: tuple[KeptItem, ...]
    """The largest of each kind first."""
    removed: bool
    """False where it was only listed."""
    size_bytes: int
    """Of all items."""
    removable_bytes: int
    """Of those that were, or would be, removed."""


def clean(
    workspace: Workspace,
    *,
    kinds: Collection[KeptKind] = (),
    older_than_days: float = 0.0,
    model: Path | None = None,
    remove: bool = False,
) -> CleanReport:
    """List what a home holds, and remove what is asked for.

    Args:
        workspace: the home.
        kinds: which to remove; empty for `CLEANED`.
        older_than_days: only what was not written since.
        model: only what belongs to the model at this path.
        remove: without it, nothing is changed.

    Raises ModelError where the model cannot be read, OutputError where something cannot be removed.
    """
    prefixes: set[str] | None = None
    if model is not None:
        with workspace.model(model) as opened:
            prefixes = {opened.fingerprint[:16], opened.description[:16]}
            bases = {str(path) for path in workspace.store.locations("model", opened.fingerprint)}
    wanted = set(kinds or CLEANED)
    found = []
    for item in _items(workspace):
        why = item.stays
        belongs = prefixes is None or Path(item.path).name[:16] in prefixes or item.path in bases
        if why is None and item.kind not in wanted:
            why = f"not asked for: --kind {item.kind}"
        elif why is None and item.days < older_than_days:
            why = f"written less than {older_than_days:g} days ago"
        elif why is None and not belongs:
            why = "of another model"
        found.append(replace(item, stays=why))
    found.sort(key=lambda item: (get_args(KeptKind).index(item.kind), -item.size_bytes))
    busy = _set_aside(workspace, [item for item in found if item.stays is None]) if remove else _busy(workspace)
    if busy:
        found = [item if item.stays is not None else replace(item, stays=busy) for item in found]
    return CleanReport(
        home=str(workspace.home.path),
        items=tuple(found),
        removed=remove and not busy,
        size_bytes=sum(item.size_bytes for item in found),
        removable_bytes=sum(item.size_bytes for item in found if item.stays is None),
    )


def _busy(workspace: Workspace) -> str | None:
    """Why nothing can be removed now."""
    reconcile(workspace.store)
    job = next(iter(workspace.store.jobs.all(states=("running", "queued"))), None)
    return None if job is None else f"job {job.id} ({job.kind}) is {job.state}"


def _set_aside(workspace: Workspace, items: Sequence[KeptItem]) -> str | None:
    """Remove things, unless a job waits or runs; gives why not."""
    aside: list[Path] = []
    with workspace.store.transaction():
        if busy := _busy(workspace):
            return busy
        for item in items:
            path = Path(item.path)
            place = path.with_name(f".{path.name.lstrip('.')}.{os.getpid()}.old")
            with files.writing(path):
                path.rename(place)
            aside.append(place)
    for place in aside:
        with files.writing(place):
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink()
    return None


def _items(workspace: Workspace) -> Iterator[KeptItem]:
    home, store = workspace.home, workspace.store
    names = {record.fingerprint: record.name for record in store.models()}
    by_prefix = {fingerprint[:16]: name for fingerprint, name in names.items()}
    by_path = {str(location.path): location.key for location in store.every_location("model")}
    covariances = (record for fingerprint in names for record in store.covariances(fingerprint) if record.origin == "imported")
    imported = {workspace.covariances.path(record.model, record.fingerprint).name for record in covariances}
    folders: tuple[tuple[KeptKind, Path], ...] = (
        ("log-probabilities", home.base_logp),
        ("references", home.references),
        ("bases", home.bases),
        ("covariances", home.covariances),
        ("imatrices", home.imatrices),
        ("logs", home.logs),
    )
    for kind, folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            leftover = _LEFTOVER.fullmatch(path.name)
            if leftover is not None:
                if not psutil.pid_exists(int(leftover[1])):
                    yield _item("leftovers", path, "", None)
                continue
            key = by_path.get(str(path), "")
            stays = None
            if kind == "bases" and not any(place.is_dir() for place in store.locations("model", key)):
                stays = "the directory that it was converted from no longer exists"
            if kind == "covariances" and path.name in imported:
                stays = "imported: they cannot be computed again"
            yield _item(kind, path, by_prefix.get(path.name[:16]) or names.get(key, ""), stays)
    for path in sorted(home.timing.iterdir()) if home.timing.is_dir() else ():
        yield _item("leftovers", path, "", None)
    for path in sorted(home.path.glob(f"{home.database.name}*")):
        yield _item("store", path, "", None)


def _item(kind: KeptKind, path: Path, model: str, stays: str | None) -> KeptItem:
    parts = [part.stat() for part in (path.rglob("*") if path.is_dir() else (path,)) if part.is_file()]
    newest = max((part.st_mtime for part in parts), default=time.time())
    return KeptItem(
        kind=kind,
        path=str(path),
        size_bytes=sum(part.st_size for part in parts),
        days=max(0.0, (time.time() - newest) / _DAY_S),
        model=model,
        again=_AGAIN.get(kind),
        stays=_STAYS.get(kind) or stays,
    )
