"""One repository on the hub at one commit: what it holds, and ranges of its files."""

from __future__ import annotations

import hashlib
import importlib
import logging
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from quantailor.control import QUIET, Control
from quantailor.errors import HubError, HubUnreachableError, ModelFormatError, QuantailorError, RateLimitError
from quantailor.models.hub.choice import RepoFile, is_plain
from quantailor.models.hub.refusals import Asked, offline, translated
from quantailor.models.hub.settings import HubSettings, Token

Answer = TypeVar("Answer")

REQUEST_TIMEOUT_S = 20.0
PEEK_PATIENCE_S = 60.0
"""How long looking waits in all when the hub says that there are too many requests."""
DOWNLOAD_PATIENCE_S = 1800.0
_FIRST_WAIT_S = 2.0
_LONGEST_WAIT_S = 60.0
_SLICE_S = 0.2
MAX_SMALL_FILE = 64 << 20


@dataclass(frozen=True, slots=True)
class RepoInfo:
    """What the hub says of a repository."""

    repo_id: str
    """As the hub spells it."""
    sha: str
    license: str | None
    gated: Literal["no", "auto", "manual"]
    private: bool
    n_parameters: int | None
    """Where the hub has counted them."""


class RepoAtCommit(ABC):
    """A repository at one commit: its files, and where huggingface_hub keeps them."""

    settings: HubSettings
    repo_id: str
    sha: str

    @property
    @abstractmethod
    def files(self) -> tuple[RepoFile, ...]:
        """Every file at this commit that is known."""

    @abstractmethod
    def read(self, file: RepoFile, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file."""

    def read_small(self, file: RepoFile) -> bytes:
        """A whole small file. Raises ModelFormatError where it is too large for what its name says."""
        if file.size_bytes > MAX_SMALL_FILE:
            raise ModelFormatError(f"{file.name} of {self.repo_id} has {file.size_bytes:,} bytes", remedy="Check the repository")
        kept = self.snapshot(file)
        if kept.is_file() and is_intact(kept, file):
            return kept.read_bytes()
        return self.read(file, 0, file.size_bytes)

    @property
    def folder(self) -> Path:
        """Where huggingface_hub shows this commit."""
        return self.settings.repo_folder(self.repo_id) / "snapshots" / self.sha

    def snapshot(self, file: RepoFile) -> Path:
        """Where huggingface_hub shows a file of this commit."""
        return self.folder / file.name

    def blob(self, file: RepoFile) -> Path:
        """Where huggingface_hub keeps a file's content, whatever commit it belongs to."""
        return self.settings.repo_folder(self.repo_id) / "blobs" / file.etag

    def cached(self, file: RepoFile) -> bool:
        """Whether the content is on this machine, in full size."""
        return any(path.is_file() and path.stat().st_size == file.size_bytes for path in (self.snapshot(file), self.blob(file)))


class Repo(RepoAtCommit):
    """A repository on the hub; every request names its commit, so that nothing changes on the way.

    Raises HubError (see `refusals`) in every method.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        revision: str | None,
        token: Token,
        settings: HubSettings,
        patience_s: float = PEEK_PATIENCE_S,
        control: Control = QUIET,
        on_wait: Callable[[HubError, float], None] | None = None,
    ) -> None:
        self.settings = settings
        self._token = token
        self._patience_s = patience_s
        self._control = control
        self._on_wait = on_wait
        self.asked = Asked(repo_id, revision, settings, token)
        if settings.offline:
            raise offline(self.asked)
        self.info = self._ask(self._read_info)
        self.repo_id, self.sha = self.info.repo_id, self.info.sha

    @cached_property
    def files(self) -> tuple[RepoFile, ...]:
        """Every file at this commit."""
        return self._ask(lambda: tuple(_files(self._api().list_repo_tree(self.repo_id, recursive=True, revision=self.sha))))

    def read(self, file: RepoFile, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file, by range request; nothing is kept on disk."""
        return self._ask(lambda: self._read_range(file, start, min(stop, file.size_bytes)))

    def fetch(self, file: RepoFile, progress_class: type, *, force: bool = False) -> Path:
        """A whole file into huggingface_hub's cache; blocks until it is there, and tries again when the network fails."""
        return self._ask(lambda: self._download(file, progress_class, force), n_failures=_MOST_FAILURES)

    # Requests

    def _ask(self, request: Callable[[], Answer], *, n_failures: int = 0) -> Answer:
        """The answer, after waiting where the hub gets too many requests, or does not answer `n_failures` times at most."""
        waited = 0.0
        for attempt in range(_MOST_RETRIES):
            try:
                return self._once(request)
            except RateLimitError as error:
                pause = _growing(attempt) if error.retry_after_s is None else error.retry_after_s
                if waited + pause > self._patience_s:
                    raise
                self._wait(error, pause)
                waited += pause
            except HubUnreachableError as error:
                if attempt >= n_failures:
                    raise
                self._wait(error, _growing(attempt))
        return self._once(request)

    def _once(self, request: Callable[[], Answer]) -> Answer:
        try:
            return request()
        except QuantailorError:
            raise
        except Exception as error:
            # Without the cause: it holds the request, and that holds the token.
            raise translated(error, self.asked) from None

    def _wait(self, error: HubError, seconds: float) -> None:
        if self._on_wait is not None:
            self._on_wait(error, seconds)
        pause = threading.Event()
        for _ in range(max(1, round(seconds / _SLICE_S))):
            self._control.check()
            pause.wait(min(_SLICE_S, seconds))

    def _api(self) -> Any:
        from huggingface_hub import HfApi

        quiet_library()
        return HfApi(endpoint=self.settings.endpoint, token=self._token.for_hub(), library_name="quantailor")

    def _read_info(self) -> RepoInfo:
        answer = self._api().model_info(self.asked.repo_id, revision=self.asked.revision, timeout=REQUEST_TIMEOUT_S)
        name, sha = str(answer.id), str(answer.sha)
        if not is_plain(name) or len(name.encode()) > _LONGEST_ID or not _HASH.fullmatch(sha):
            raise HubUnreachableError(f"{self.settings.endpoint} does not answer like a Hugging Face hub", remedy="Check HF_ENDPOINT")
        summary = answer.safetensors
        return RepoInfo(
            repo_id=name,
            sha=sha,
            license=_license(answer),
            gated=answer.gated if answer.gated in ("auto", "manual") else "no",
            private=bool(answer.private),
            n_parameters=None if summary is None else int(summary.total),
        )

    def _read_range(self, file: RepoFile, start: int, stop: int) -> bytes:
        from huggingface_hub import get_session, hf_hub_url

        quiet_library()
        utils = hub_module("utils")
        if start >= stop:
            return b""
        url = hf_hub_url(self.repo_id, file.name, revision=self.sha, endpoint=self.settings.endpoint)
        headers = utils.build_hf_headers(token=self._token.for_hub(), library_name="quantailor")
        headers |= {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        with get_session().stream("GET", url, headers=headers, timeout=REQUEST_TIMEOUT_S, follow_redirects=True) as response:
            utils.hf_raise_for_status(response)
            # A server that ignores ranges sends the file from its beginning.
            skip = start if response.status_code == 200 else 0
            received = bytearray()
            for block in response.iter_bytes():
                received += block
                if len(received) >= skip + stop - start:
                    break
            data = bytes(received[skip : skip + stop - start])
        if len(data) != stop - start:
            raise HubUnreachableError(f"{file.name} of {self.repo_id} ended after {len(data)} bytes", remedy="Try again")
        return data

    def _download(self, file: RepoFile, progress_class: type, force: bool) -> Path:
        from huggingface_hub import hf_hub_download

        quiet_library()
        path = hf_hub_download(
            self.repo_id,
            file.name,
            revision=self.sha,
            cache_dir=self.settings.cache_folder,
            endpoint=self.settings.endpoint,
            token=self._token.for_hub(),
            library_name="quantailor",
            tqdm_class=progress_class,
            force_download=force,
        )
        return Path(path)


_MOST_RETRIES = 30
_MOST_FAILURES = 4
_BLOCK_BYTES = 4 << 20
_MAX_SHOWN = 100
_MAX_SIZE = 1 << 60
"""More bytes than any disk has."""
_LONGEST_ID = 200
"""Bytes of a repository's name, which becomes one folder's."""
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def _growing(attempt: int) -> float:
    """Seconds to wait after so many attempts."""
    return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0**attempt)


def hub_module(name: str) -> Any:
    """A module of huggingface_hub, for what it does not export."""
    return importlib.import_module(f"huggingface_hub.{name}")


def quiet_library() -> None:
    """Keep huggingface_hub's warnings off the terminal; they show addresses that carry signatures."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def is_intact(path: Path, file: RepoFile, control: Control = QUIET) -> bool:
    """Whether size and hash are the hub's: SHA-256 of large files, git's hash of the others."""
    if path.stat().st_size != file.size_bytes:
        return False
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {file.size_bytes}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            control.check()
            digest.update(block)
    return digest.hexdigest() == file.etag


def _files(entries: Iterable[Any]) -> Iterable[RepoFile]:
    """The files among a tree's entries; one whose name or hash could lead out of the cache's folders is left out."""
    for entry in entries:
        if hasattr(entry, "blob_id"):
            size = entry.lfs.size if entry.lfs else entry.size
            size = min(max(0, int(size)), _MAX_SIZE)
            file = RepoFile(str(entry.path), size, str(entry.blob_id), str(entry.lfs.sha256) if entry.lfs else None)
            if _HASH.fullmatch(file.etag) and is_plain(file.name):
                yield file


def _license(answer: Any) -> str | None:
    card = answer.card_data
    stated = None if card is None else card.get("license")
    if stated == "other" and card.get("license_name"):
        stated = card.get("license_name")
    texts = [item for item in (stated if isinstance(stated, list) else [stated]) if isinstance(item, str)]
    texts = texts or [tag.removeprefix("license:") for tag in answer.tags or () if isinstance(tag, str) and tag.startswith("license:")][:1]
    return shown(", ".join(texts)) or None


def shown(text: str) -> str:
    """Text from elsewhere, short and without controls."""
    return "".join(letter for letter in text if letter.isprintable())[:_MAX_SHOWN]
