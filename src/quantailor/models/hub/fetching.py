"""Downloads into huggingface_hub's cache: room checked first, whole files kept, every checksum compared.

huggingface_hub writes each file under a name of its own and renames it when it is whole, so a process that is killed
leaves at most one part behind; the next download of that file removes it. A transfer runs in a thread, so that a
request to pause is heard at once, whatever the network does.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from quantailor.control import Control
from quantailor.errors import DownloadDamagedError, OutputError
from quantailor.models.hub.choice import RepoFile
from quantailor.models.hub.client import Repo, RepoAtCommit, hub_module, is_intact
from quantailor.present.words import size

_POLL_S = 0.05
_GRACE_S = 2.0
"""How long a stopped transfer may take to tidy up before it is left behind."""
_PART = re.compile(r"[0-9a-f]{40,64}\.[0-9a-f]{8}\.incomplete")
_LOCK_TIMEOUT_S = 0.05


def check_cached(repo: RepoAtCommit, files: Sequence[RepoFile], control: Control) -> list[RepoFile]:
    """Compare the checksums of the files that the cache shows already; return those that are missing or damaged."""
    total, done, missing = sum(file.size_bytes for file in files), 0, []
    for file in files:
        control.advance(done, total, file.name)
        if not repo.snapshot(file).is_file() or not is_intact(repo.snapshot(file), file, control):
            missing.append(file)
        done += file.size_bytes
    control.advance(done, total)
    return missing


def check_room(repo: RepoAtCommit, files: Sequence[RepoFile]) -> None:
    """Raise OutputError, naming the shortfall, where the cache's disk cannot take what is still to come."""
    needed = sum(file.size_bytes for file in files if not repo.cached(file))
    free = free_bytes(repo.settings.cache_folder)
    if needed > free:
        raise OutputError(
            f"{repo.repo_id} needs {size(needed)} more in {repo.settings.cache_folder}, which has {size(free)} free: "
            f"{size(needed - free)} too little",
            remedy="Free some space, or choose another place with HF_HOME",
        )


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk that holds a folder, which need not exist yet."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(place).free


def fetch_all(repo: Repo, files: Sequence[RepoFile], control: Control) -> int:
    """Download files, one after the other, and return how many bytes came over the network.

    Raises:
        DownloadDamagedError: a checksum is wrong; the file is removed.
        HubError, OutputError: the hub or the disk refuses.
        Paused, Cancelled: what is whole is kept.
    """
    total, done, received = sum(file.size_bytes for file in files), 0, 0.0
    for file in files:
        report = _Reporter(control, file, done, total)
        if not _fetch_intact(repo, file, report, control) and (report.received or not _fetch_intact(repo, file, report, control)):
            raise DownloadDamagedError(
                f"{file.name} of {repo.repo_id} was downloaded, but its checksum is wrong", remedy="Try again; the file was removed"
            )
        done += file.size_bytes
        received += report.received
        control.advance(done, total, file.name)
    return int(received)


def _fetch_intact(repo: Repo, file: RepoFile, report: _Reporter, control: Control) -> bool:
    """Fetch a file, or take over the content that another commit left; False where it was damaged and is gone again."""
    _fetch(repo, file, report)
    if is_intact(repo.snapshot(file), file, control):
        return True
    discard(repo, file)
    return False


def discard(repo: Repo, file: RepoFile) -> None:
    """Remove a damaged file, its content and the name it is shown under."""
    for path in (repo.snapshot(file).resolve(), repo.snapshot(file), repo.blob(file)):
        if path.is_relative_to(repo.settings.cache_folder.resolve()) or path.is_relative_to(repo.settings.cache_folder):
            path.unlink(missing_ok=True)


# One transfer


class _Reporter:
    """Bytes of one file as they arrive, on top of those of the files before it."""

    def __init__(self, control: Control, file: RepoFile, before: int, total: int) -> None:
        self._control, self._file, self._before, self._total = control, file, before, total
        self.received = 0.0
        self.stopped = False

    def add(self, n_bytes: float) -> None:
        """Called by the transfer, in any thread."""
        if self.stopped:
            raise _StoppedError
        self.received += n_bytes

    def show(self) -> None:
        """Called by the job's own thread."""
        self._control.check()
        n_bytes = max(1, self._file.size_bytes)
        received = min(self.received, n_bytes)
        message = f"{self._file.name} {100 * received / n_bytes:.0f} %"
        self._control.advance(min(self._before + received, self._total), self._total, message)


class _StoppedError(Exception):
    """Ends a transfer from within."""


def _fetch(repo: Repo, file: RepoFile, report: _Reporter) -> None:
    remove_parts(repo.blob(file))
    blob = repo.blob(file)
    # Content of another commit is used again unless its size is wrong already; its hash is compared afterwards.
    force = repo.snapshot(file).is_file() or (blob.is_file() and blob.stat().st_size != file.size_bytes)
    outcome: list[BaseException] = []

    def transfer() -> None:
        try:
            repo.fetch(file, _bar(report), force=force)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=transfer, name=f"download of {file.base_name}", daemon=True)
    thread.start()
    try:
        report.show()
        while thread.is_alive():
            thread.join(_POLL_S)
            report.show()
    except BaseException:
        report.stopped = True
        with contextlib.suppress(ImportError, AttributeError):
            hub_module("utils._xet").abort_xet_session()  # chunked transfers run outside Python and hear of nothing else
        thread.join(_GRACE_S)
        raise
    if outcome:
        raise outcome[0]


def parts_of(blob: Path) -> list[Path]:
    """What downloads of a file left, or are writing, beside the place of its content; none is taken up again."""
    return sorted(path for path in blob.parent.glob(f"{blob.name}.*.incomplete") if _PART.fullmatch(path.name))


def is_downloaded_now(blob: Path) -> bool:
    """Whether a process, ours or another program's, holds the lock on a file's download."""
    lock = _lock_of(blob)
    if not lock.exists():
        return False
    try:
        with hub_module("utils").WeakFileLock(lock, timeout=_LOCK_TIMEOUT_S):
            return False
    except (TimeoutError, OSError):
        return True


def remove_parts(blob: Path) -> None:
    """Delete what killed downloads of a file left, unless one is alive and holds the lock."""
    parts = parts_of(blob)
    if not parts:
        return
    with contextlib.suppress(TimeoutError, OSError), hub_module("utils").WeakFileLock(_lock_of(blob), timeout=_LOCK_TIMEOUT_S):
        for path in parts:
            path.unlink(missing_ok=True)


def _lock_of(blob: Path) -> Path:
    """Where huggingface_hub has the lock of a file whose content lies in CACHE/REPOSITORY/blobs/ETAG."""
    repository = blob.parents[1]
    return repository.parent / ".locks" / repository.name / f"{blob.name}.lock"


def _bar(report: _Reporter) -> type:
    """A progress bar class for huggingface_hub that shows nothing and reports."""

    class Bar:
        total: float | None = None
        n = 0.0

        def __init__(self, *_: object, initial: float | None = None, **__: object) -> None:
            self.update(initial or 0)

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            report.add(n or 0)

        def update_transfer(self, n: float | None = 1) -> None:
            """Bytes from the network; `update` counts those that are on the disk."""

        def set_postfix_str(self, *_: object, **__: object) -> None:
            """No text."""

        set_transfer_postfix_str = set_description = set_postfix_str

        def refresh(self, *_: object, **__: object) -> None:
            """Nothing to draw."""

        def close(self) -> None:
            """Nothing to close."""

    return Bar
