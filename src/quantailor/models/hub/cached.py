"""Repositories as huggingface_hub's cache has them, for when the hub cannot be asked."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

from quantailor import files
from quantailor.errors import HubError, RepoFileNotFoundError
from quantailor.models.hub.choice import RepoFile, is_plain
from quantailor.models.hub.client import RepoAtCommit
from quantailor.models.hub.settings import HubSettings

MAIN = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class CachedRepo(RepoAtCommit):
    """What the cache has of a repository at a commit, whole or not."""

    def __init__(self, repo_id: str, sha: str, settings: HubSettings, *, why: HubError | None = None) -> None:
        self.repo_id, self.sha, self.settings = repo_id, sha, settings
        self.why = why
        """Why the hub was not asked."""

    @cached_property
    def files(self) -> tuple[RepoFile, ...]:
        """The files that are there; those whose hash the cache does not tell have an empty one.

        Raises RepoFileNotFoundError where the cache has the name of a file and not its content.
        """
        paths = [path for path in sorted(self.folder.rglob("*")) if path.is_file() or path.is_symlink()]
        if gone := next((path for path in paths if not path.exists()), None):
            name = gone.relative_to(self.folder).as_posix()
            raise RepoFileNotFoundError(f"{name} of {self.repo_id} is in the cache by name alone", remedy="Download it again")
        return tuple(_described(path, path.relative_to(self.folder).as_posix()) for path in paths)

    def read(self, file: RepoFile, start: int, stop: int) -> bytes:
        with self.snapshot(file).open("rb") as stream:
            stream.seek(start)
            return stream.read(stop - start)


def _described(path: Path, name: str) -> RepoFile:
    # The cache shows links to contents that are named by their hash; where there are no links, copies.
    etag = path.resolve().name if path.is_symlink() else ""
    digest = etag if _HASH.fullmatch(etag) else ""
    return RepoFile(name, path.stat().st_size, digest, digest if len(digest) == 64 else None)


def cached_commit(repo_id: str, revision: str | None, settings: HubSettings) -> str | None:
    """The commit that a branch or tag was when it was last downloaded, or the commit given; None where the cache does not show it."""
    folder, wanted = settings.repo_folder(repo_id), revision or MAIN
    if not is_plain(wanted):
        return None
    ref = folder / "refs" / wanted
    try:
        sha = ref.read_text(encoding="utf-8").strip() if ref.is_file() else wanted
    except (OSError, ValueError):
        return None
    return sha if _COMMIT.fullmatch(sha) and (folder / "snapshots" / sha).is_dir() else None


def keep_commit(repo: RepoAtCommit, revision: str | None) -> None:
    """Note which commit a branch or tag is, as huggingface_hub does. Raises OutputError."""
    name = revision or MAIN
    if is_plain(name) and not _COMMIT.fullmatch(name):
        files.write_text(repo.settings.repo_folder(repo.repo_id) / "refs" / name, repo.sha)
