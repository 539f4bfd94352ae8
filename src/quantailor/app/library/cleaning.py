"""What a home holds by kind, and what Quantailor keeps outside of it, and the removal of what can be computed or fetched again.

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
from quantailor.models.hub.fetching import is_downloaded_now, parts_of, remove_parts
from quantailor.models.upstream.places import half_made, kept_folders, user_of
from quantailor.session import Workspace
from quantailor.store import Store

KeptKind = Literal[
    "log-probabilities", "references", "leftovers", "bases", "covariances", "downloads", "converter", "imatrices", "logs", "store"
]
CLEANED: tuple[KeptKind, ...] = ("log-probabilities", "references", "leftovers")
"""Removed where no kind is named."""
_AGAIN = {
    "log-probabilities": "computed again by running the base on the text",
    "references": "made again from the base by llama.cpp",
    "leftovers": "of no more use: a process that was killed left it",
    "bases": "converted again from the model's directory",
    "covariances": "computed again by running the base on the text",
    "downloads": "fetched again from the beginning: no download takes up what a killed one left",
    "converter": "set up again when a conversion needs llama.cpp's converter",
}
_STAYS = {
    "imatrices": "importance matrices stay: measurements rest on them, and imported ones cannot be computed",
    "logs": "logs of jobs go with their jobs: `quantailor jobs remove`",
    "store": "everything that was measured",
}
REMOVABLE: tuple[KeptKind, ...] = tuple(kind for kind in get_args(KeptKind) if kind not in _STAYS)
"""What may be named."""
_OUTSIDE: tuple[KeptKind, ...] = ("downloads", "converter")
NOT_ASKED = "not asked for"
_LEFTOVER = re.compile(r"\..+\.(\d+)\.(?:part|old)")
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class KeptItem:
    """A file or folder of a home, or of a cache outside of it."""

    kind: KeptKind
    path: str
    size_bytes: int
    days: float
    """Since it was last written."""
    model: str
    """Its model's name, where that is known."""
    again: str | None
    """How it comes back; None for what is never removed."""
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
    outside_bytes: int
    """Of those outside the home: downloads that were begun for it, and the converter, which all homes share."""
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
    """List what a home holds and what Quantailor keeps in caches, and remove what is asked for.

    Of the Hugging Face cache that is the parts of downloads which this home's jobs began; nothing else in it is looked at.

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
            why = f"{NOT_ASKED}: --kind {item.kind}"
        elif why is None and item.days < older_than_days:
            why = f"written less than {older_than_days:g} days ago"
        elif why is None and not belongs:
            why = "of no model" if item.kind in _OUTSIDE else "of another model"
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
        outside_bytes=sum(item.size_bytes for item in found if not Path(item.path).is_relative_to(workspace.home.path)),
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
            if item.kind == "downloads":
                with files.writing(path):
                    remove_parts(_blob_of(path))
                continue
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
    yield from _outside(store)
    for path in sorted(home.path.glob(f"{home.database.name}*")):
        yield _item("store", path, "", None)


def _outside(store: Store) -> Iterator[KeptItem]:
    """What lies in caches: of the hub's no more than parts of downloads that jobs of this home began."""
    for location in store.every_location("download"):
        for part in parts_of(location.path):
            busy = "it is being downloaded" if is_downloaded_now(location.path) else None
            yield _item("downloads", part, location.key.rpartition(":")[0], busy)
    for folder in kept_folders():
        user = user_of(folder)
        yield _item("converter", folder, "", None if user is None else f"process {user} runs it")
    for folder in half_made():
        leftover = _LEFTOVER.fullmatch(folder.name)
        if leftover is not None and not psutil.pid_exists(int(leftover[1])):
            yield _item("leftovers", folder, "", None)


def _blob_of(part: Path) -> Path:
    """The place of the content of which a download left that part."""
    return part.with_name(part.name.partition(".")[0])


def _item(kind: KeptKind, path: Path, model: str, stays: str | None) -> KeptItem:
    parts = [part.lstat() for part in (path.rglob("*") if path.is_dir() else (path,)) if part.is_file()]
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
