"""The folder of a `make`: one result at a time, and one run at a time."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from quantailor import files
from quantailor.errors import OutputError, StrategyError
from quantailor.evidence.strategies import rounding_of
from quantailor.present import words
from quantailor.records import Strategy
from quantailor.session import Workspace
from quantailor.strategy import file as strategy_file

Asked = Mapping[str, object]
_SAID = ("size_bytes", "bits_per_weight", "like", "kld_nats", "speed", "speed_of")


def refuse_other_result(
    folder: Path, strategy_path: Path, fingerprint: str, method: str, target: Asked, constraints: Asked, *, rounding: str
) -> None:
    """Raise OutputError where a strategy of another model, size, constraint or rounding, or one edited by hand, would be replaced."""
    if not strategy_path.exists():
        return
    try:
        there = strategy_file.read(strategy_path)
    except StrategyError as error:
        raise _refusal(folder, f"a strategy that cannot be read ({error.message})") from None
    if there.model_fingerprint != fingerprint:
        raise _refusal(folder, f"the result of another model, {there.model_name or there.model_fingerprint[:12]}")
    if _asked(there.target) != _asked(target):
        raise _refusal(folder, f"another result: {_words(there)}")
    if there.method == "manual":
        raise _refusal(folder, "a strategy that was edited by hand")
    if there.method != method or there.parameters.get("constraints", {}) != constraints:
        raise _refusal(folder, f"a result of another rule or other constraints: {_words(there)}")
    if rounding_of(there) != rounding:
        how = rounding_of(there)
        raise OutputError(
            f"{folder} holds the same with {how} rounding",
            remedy=f"Keep to it with --rounding {how}, choose another directory with -o, or give --force to replace it",
        )


def _asked(target: Mapping[str, object]) -> dict[str, object]:
    """What was said, without what follows from it: the size of the preset in "like"."""
    said = {key: target[key] for key in _SAID if target.get(key) is not None}
    return {key: value for key, value in said.items() if key != "size_bytes"} if "like" in said else said


def _words(strategy: Strategy) -> str:
    return words.target(strategy.target) or "no target"


def _refusal(folder: Path, what: str) -> OutputError:
    return OutputError(f"{folder} holds {what}", remedy="Choose another directory with -o, or give --force to replace it")


def _lock_of(folder: Path) -> Path:
    """A file of this machine and user for each folder, so that nothing but results lies in the folder itself."""
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    place = Path(tempfile.gettempdir()) / f"quantailor-{getpass.getuser()}"
    with files.writing(place):
        place.mkdir(mode=0o700, exist_ok=True)
    return place / f"{name}.lock"


@contextmanager
def alone_in(folder: Path, workspace: Workspace) -> Iterator[None]:
    """Inside, no other process makes anything in this folder. The system lets go of it when a process ends, however it ends.

    Raises OutputError where another process is at it.
    """
    lock, owner = _locked(folder), _lock_of(folder).with_suffix(".txt")
    try:
        job = next((job.id for job in workspace.store.jobs.all(states=("running",)) if job.worker and job.worker.pid == os.getpid()), None)
        files.write_text(owner, f"process {os.getpid()}" + ("" if job is None else f" (job {job} of {workspace.home.path})"))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def refuse_busy(folder: Path) -> None:
    """Raise OutputError where a process makes something in this folder now."""
    _locked(folder).release()


def _locked(folder: Path) -> FileLock:
    place = _lock_of(folder)
    lock, owner = FileLock(place), place.with_suffix(".txt")
    with files.writing(place):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            said = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
            raise OutputError(f"{said} is working in {folder}", remedy="Wait for it, or choose another directory with -o") from None
    return lock


def refuse_other_verdict(stem: Path, file: Path) -> None:
    """Raise OutputError where a verdict on another file than that one lies under that stem."""
    place = stem.with_name(f"{stem.name}.json")
    if not place.exists():
        return
    try:
        rows = json.loads(place.read_text(encoding="utf-8"))["rows"]
        there = next(row["label"] for row in rows if row["kind"] == "ours").removesuffix(" (ours)")
    except (OSError, ValueError, LookupError, TypeError, StopIteration):
        there = "something else"
    if there != file.stem:
        raise OutputError(
            f"{place} already exists and is the verdict on {there}", remedy="Choose another name with -o, or give --force to replace it"
        )
