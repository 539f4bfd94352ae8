"""Uploading to the hub: a repository is made where there is none, what it has already is not sent again, large files go one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from quantailor.control import Control
from quantailor.errors import OutputError, RepoNotFoundError, TokenMissingError, TokenPermissionError
from quantailor.models.hub.client import DOWNLOAD_PATIENCE_S, Repo, hub_module, is_intact, quiet_library
from quantailor.models.hub.refusals import Asked, offline, translated
from quantailor.models.hub.settings import HubSettings, Token

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LARGE_BYTES = 10 << 20
"""Files of this size have a commit of their own, so that an upload that was interrupted goes on behind them."""
State = Literal["new", "there already", "replaces another"]


@dataclass(frozen=True, slots=True)
class Place:
    """A repository to write to, and who asks."""

    repo_id: str
    token: Token
    settings: HubSettings

    @property
    def asked(self) -> Asked:
        return Asked(self.repo_id, None, self.settings, self.token)

    def require_token(self) -> None:
        """Raise TokenMissingError where nobody is logged in, HubOfflineError where the hub may not be asked."""
        if self.settings.offline:
            raise offline(self.asked)
        if not self.token:
            page = f"{self.settings.endpoint}/settings/tokens"
            raise TokenMissingError(
                f"uploading to {self.repo_id} needs a token with write access, and you are not logged in",
                remedy=f"Run `hf auth login`, set HF_TOKEN or give --token-file ({page})",
                link=page,
            )

    def create(self, *, private: bool) -> None:
        """Make the repository where there is none."""
        self._ask(lambda: self._api().create_repo(self.repo_id, private=private or None, exist_ok=True))

    def open(self, control: Control) -> Repo:
        """What is there now. Raises HubError; RepoNotFoundError where there is none."""
        return Repo(self.repo_id, revision=None, token=self.token, settings=self.settings, patience_s=DOWNLOAD_PATIENCE_S, control=control)

    def commit(self, files: Mapping[str, Path], message: str) -> None:
        """Upload files in one commit."""
        from huggingface_hub import CommitOperationAdd

        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
        self._ask(lambda: self._api().create_commit(self.repo_id, operations=operations, commit_message=message))

    def _ask(self, request: Callable[[], object]) -> None:
        from huggingface_hub.errors import HfHubHTTPError

        try:
            request()
        except Exception as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code == 403:
                link = f"{self.settings.endpoint}/settings/tokens"
                message = f"the token ({self.token.origin}) may not write to {self.repo_id}"
                raise TokenPermissionError(message, remedy=f"Make one with write access to it at {link}", link=link) from None
            raise translated(error, self.asked) from None  # without the cause, which holds the token

    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        quiet_library()
        hub_module("utils").disable_progress_bars()
        return HfApi(endpoint=self.settings.endpoint, token=self.token.for_hub(), library_name="quantailor")


def states(place: Place, files: Mapping[str, Path], control: Control) -> dict[str, State]:
    """What uploading each file would do. Raises HubError."""
    try:
        repo = place.open(control)
    except RepoNotFoundError:
        return dict.fromkeys(files, "new")
    there = {file.name: file for file in repo.files}
    return {
        name: "new" if name not in there else "there already" if is_intact(path, there[name], control) else "replaces another"
        for name, path in files.items()
    }


def upload(place: Place, files: Mapping[str, Path], *, private: bool, overwrite: bool, control: Control) -> dict[str, State]:
    """Send what the repository lacks, large files first and one by one, all others together at the end.

    Args:
        place: the repository.
        files: name there -> file here.
        private: of a repository that is made.
        overwrite: replace files that are there with other contents.
        control: asked before every commit whether to go on; progress counts bytes.

    Returns:
        What was done with each file.

    Raises:
        OutputError: a file is there with other contents.
        HubError: the hub refuses, or is not there.
    """
    place.require_token()
    found = states(place, files, control)
    others = [name for name, state in found.items() if state == "replaces another"]
    if others and not overwrite:
        raise OutputError(
            f"{place.repo_id} has another {' and another '.join(others[:3])}", remedy="Give --force to replace it, or another repository"
        )
    place.create(private=private)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    done, total = sum(sizes[name] for name, state in found.items() if state == "there already"), sum(sizes.values())
    for names in _commits([name for name, state in found.items() if state != "there already"], sizes):
        control.check()
        control.advance(done, total)
        what = names[0] if len(names) == 1 else f"{len(names)} files, {names[0]} among them"
        place.commit({name: files[name] for name in names}, f"Upload {what}")
        done += sum(sizes[name] for name in names)
    control.advance(done, total)
    return found


def _commits(names: Iterable[str], sizes: Mapping[str, int]) -> list[Sequence[str]]:
    large = [name for name in names if sizes[name] >= LARGE_BYTES or name.endswith(".gguf")]
    small = [name for name in names if name not in large]
    return [*([name] for name in sorted(large, key=lambda name: sizes[name])), *([small] if small else [])]
