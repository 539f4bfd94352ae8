"""What the hub's answers mean for the user: errors with a reason, a remedy and the page where to act.

The hub answers 401 or 403 in several ways that its client library only partly tells apart (GatedRepoError is even a
kind of RepositoryNotFoundError), so the answer's text decides. It is never shown: a server could put anything there.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantailor.errors import (
    AccessError,
    AccessNotRequestedError,
    AccessPendingError,
    AccessRejectedError,
    DownloadDamagedError,
    HubError,
    HubOfflineError,
    HubUnreachableError,
    OutputError,
    QuantailorError,
    RateLimitError,
    RepoFileNotFoundError,
    RepoNotFoundError,
    RevisionNotFoundError,
    TokenInvalidError,
    TokenMissingError,
    TokenPermissionError,
)
from quantailor.files import cannot_write
from quantailor.models.hub.settings import HubSettings, Token

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_RESET = re.compile(r"(?:^|;)\s*t=(\d+)")
_MAX_WAIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of the hub, for messages."""

    repo_id: str
    revision: str | None
    settings: HubSettings
    token: Token

    @property
    def page(self) -> str:
        """The repository's page."""
        return f"{self.settings.endpoint}/{self.repo_id}"

    @property
    def tokens_page(self) -> str:
        return f"{self.settings.endpoint}/settings/tokens"


def translated(error: Exception, asked: Asked) -> QuantailorError:
    """Our error for one that huggingface_hub, its HTTP client or the file system raised."""
    from huggingface_hub import errors

    while isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # what lies behind "not in the cache either"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return offline(asked)
    if isinstance(error, errors.GatedRepoError):
        return _gated(error, asked)
    if isinstance(error, errors.RevisionNotFoundError):
        return RevisionNotFoundError(
            f"{asked.repo_id} has no revision {asked.revision or 'main'!r}",
            remedy=f"Its branches and commits: {asked.page}/commits",
            link=f"{asked.page}/commits",
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return RepoFileNotFoundError(f"{asked.repo_id} no longer has a file that it listed", remedy="Try again", link=asked.page)
    if isinstance(error, errors.RepositoryNotFoundError):
        return _not_found(asked)
    if isinstance(error, errors.HfHubHTTPError):
        return _by_status(error, asked)
    return _local(error, asked)


def offline(asked: Asked) -> HubOfflineError:
    """HF_HUB_OFFLINE is set; names what the cache has."""
    snapshots = asked.settings.repo_folder(asked.repo_id) / "snapshots"
    cached = sorted(snapshots.iterdir(), key=lambda path: path.stat().st_mtime) if snapshots.is_dir() else []
    remedy = f"The cache has {cached[-1]}: give that path, or unset" if cached else "Unset"
    return HubOfflineError(f"{asked.repo_id} cannot be looked up in offline mode", remedy=f"{remedy} HF_HUB_OFFLINE")


def _gated(error: HfHubHTTPError, asked: Asked) -> AccessError:
    said = _said(error)
    if not asked.token:
        return TokenMissingError(
            f"{asked.repo_id} is gated, and you are not logged in",
            remedy=f"Ask for access at {asked.page}, then run `hf auth login`, set HF_TOKEN or give --token-file ({asked.tokens_page})",
            link=asked.page,
        )
    if error.response.status_code == 401:
        return _invalid(asked)
    if "reject" in said:
        return AccessRejectedError(
            f"the authors of {asked.repo_id} refused your request for access", remedy=f"Ask them at {asked.page}", link=asked.page
        )
    if "await" in said or "pending" in said or "review" in said:
        link = f"{asked.settings.endpoint}/settings/gated-repos"
        return AccessPendingError(
            f"your request for access to {asked.repo_id} is waiting for its authors' answer",
            remedy=f"See {link} and try again later",
            link=link,
        )
    if _about_token(said):
        return _permission(asked)
    return AccessNotRequestedError(
        f"{asked.repo_id} is gated and you have not asked for access yet", remedy=f"Accept its terms at {asked.page}", link=asked.page
    )


def _about_token(said: str) -> bool:
    return "fine-grained" in said or "token" in said


def _permission(asked: Asked) -> TokenPermissionError:
    return TokenPermissionError(
        f"the token ({asked.token.origin}) may not read gated repositories such as {asked.repo_id}",
        remedy=f"Allow it 'Read access to contents of all public gated repos you can access' at {asked.tokens_page}",
        link=asked.tokens_page,
    )


def _invalid(asked: Asked) -> TokenInvalidError:
    return TokenInvalidError(
        f"{asked.settings.endpoint} does not accept the token ({asked.token.origin})",
        remedy=f"Make a new one at {asked.tokens_page}, then `hf auth login`",
        link=asked.tokens_page,
    )


def _not_found(asked: Asked) -> RepoNotFoundError:
    private = f"the token ({asked.token.origin}) does not open it" if asked.token else "you are not logged in"
    return RepoNotFoundError(
        f"there is no model {asked.repo_id} at {asked.settings.endpoint}, or it is private and {private}",
        remedy="Check the spelling, or log in with `hf auth login`",
        link=asked.page,
    )


def _by_status(error: HfHubHTTPError, asked: Asked) -> HubError:
    status, said = error.response.status_code, _said(error)
    if status == 401:
        return _invalid(asked) if asked.token else _not_found(asked)
    if status == 403:
        if _about_token(said) or "gated" in said:
            return _permission(asked) if asked.token else _not_found(asked)
        return AccessError(f"{asked.settings.endpoint} refuses access to {asked.repo_id}", remedy=f"See {asked.page}", link=asked.page)
    if status == 404:
        return _not_found(asked)
    if status == 429:
        wait = _retry_after(error)
        when = "later" if wait is None else f"in {wait:.0f} s"
        return RateLimitError(
            f"{asked.settings.endpoint} is receiving too many requests from here",
            remedy=f"Try again {when}" + ("" if asked.token else "; with a token the limit is higher"),
            retry_after_s=wait,
        )
    return HubUnreachableError(f"{asked.settings.endpoint} answered with status {status}", remedy="Try again later")


def _local(error: Exception, asked: Asked) -> QuantailorError:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"TransportError", "ConnectionError", "TimeoutError"}:
        return HubUnreachableError(
            f"{asked.settings.endpoint} cannot be reached", remedy="Check the network, HF_ENDPOINT and the proxy, then try again"
        )
    if kinds & {"HFValidationError", "InvalidURL"}:
        return RepoNotFoundError(f"{asked.repo_id[:120]!r} is not the name of a repository", remedy="Give ORGANIZATION/NAME")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG):
        return cannot_write(Path(error.filename or asked.settings.cache_folder), error)
    if isinstance(error, OSError) and error.errno:
        return OutputError(f"cannot use {asked.settings.cache_folder}: {error.strerror}", remedy="Choose another place with HF_HOME")
    if isinstance(error, OSError):
        return DownloadDamagedError(f"a file of {asked.repo_id} was not downloaded completely", remedy="Try again: complete files are kept")
    return HubUnreachableError(f"{asked.repo_id} cannot be read from {asked.settings.endpoint}: {type(error).__name__}", remedy="Try again")


def _said(error: HfHubHTTPError) -> str:
    """What the server said, in lower case; only to look for words in."""
    return f"{error.response.headers.get('X-Error-Message', '')} {error.server_message or ''}".lower()


def _retry_after(error: HfHubHTTPError) -> float | None:
    headers = error.response.headers
    text = headers.get("Retry-After", "")
    reset = _RESET.search(headers.get("RateLimit", ""))
    if not text.isdecimal() and reset is None:
        return None
    return min(float(text if text.isdecimal() else reset[1] if reset else 0), _MAX_WAIT_S)
