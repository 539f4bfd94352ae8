"""Publish: the files of a directory, with their card, as a repository of the hub."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quantailor.errors import ModelError, OptionError
from quantailor.files import write_text
from quantailor.ggml import library
from quantailor.models.convert.description.model_card import model_card, texts_in
from quantailor.models.hub import HubSettings, find_token
from quantailor.models.hub.publishing import Place, upload
from quantailor.models.upstream import MARK
from quantailor.present import recipes
from quantailor.session import Workspace
from quantailor.steps.stages import Stages
from quantailor.steps.step import Step, StepResult

CARD = "README.md"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SHOWN = (
    *("*.gguf", CARD, recipes.RECIPE, "strategies/*.yaml"),
    *(f"{stem}.{ending}" for stem in ("ladder", "verdict") for ending in ("csv", "png", "svg")),
)
"""What is published of a directory, and nothing else."""
_KEPT_BACK = ("base.gguf",)
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """One file of a repository."""

    name: str
    size_bytes: int
    state: str
    """"new", "there already" or "replaces another"; "to be sent" in a dry run, which does not ask the hub."""


@dataclass(frozen=True, slots=True)
class PublishResult(StepResult):
    """What was published, or would be."""

    repo_id: str
    url: str
    dry_run: bool
    files: tuple[PublishedFile, ...]
    notes: tuple[str, ...]
    """What a publisher should know: a card without a licence, names that the hub does not show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishStep(Step[PublishResult], kind="publish", result=PublishResult):
    """Upload a directory's files; run again, it sends what is missing."""

    units: ClassVar[Mapping[str, str]] = {"upload": "bytes"}

    folder: str
    repo_id: str
    private: bool = False
    """Of a repository that is made."""
    token_file: str | None = None
    """The token's file, never the token."""
    overwrite: bool = False
    """Replace files that the repository has with other contents."""

    def check(self, workspace: Workspace) -> None:
        """The directory, the name and the token. Raises OptionError, HubError."""
        super(PublishStep, self).check(workspace)
        self.place.require_token()
        with self.files():
            pass

    def run(self, workspace: Workspace, stages: Stages) -> PublishResult:
        """Upload what the repository lacks. Raises HubError, OutputError where it has other files of these names."""
        del workspace
        with self.files() as files:
            control = stages.begin("upload")
            found = upload(self.place, files, private=self.private, overwrite=self.overwrite, control=control)
            return self.told(files, found)

    def rehearsed(self) -> PublishResult:
        """What `run` would send; nothing is sent and nobody is asked. Raises OptionError."""
        with self.files() as files:
            return self.told(files, None)

    @property
    def place(self) -> Place:
        """The repository. Raises TokenInvalidError for a file that holds no token."""
        token = find_token(None if self.token_file is None else Path(self.token_file))
        return Place(self.repo_id, token, HubSettings.read())

    @contextmanager
    def files(self) -> Iterator[dict[str, Path]]:
        """What goes to the repository, by its name there; for as long as the block lasts.

        Raises OptionError for a directory without a card or without files, and for what is no repository's name.
        """
        folder = Path(self.folder)
        if not _REPO.fullmatch(self.repo_id):
            raise OptionError(f"{self.repo_id!r} is not the name of a repository", remedy="Give --repo ORG/NAME")
        found = {path.relative_to(folder).as_posix(): path for pattern in _SHOWN for path in sorted(folder.glob(pattern)) if path.is_file()}
        found = {name: path for name, path in found.items() if name not in _KEPT_BACK}
        models = [name for name in found if _is_model(name)]
        if not models:
            raise OptionError(f"{folder} holds no GGUF file to publish", remedy="Give the directory that `quantailor make` wrote")
        if CARD not in found:
            card = f"quantailor card {folder / models[0]} --base BASE -o {folder / CARD}"
            raise OptionError(f"{folder} has no card ({CARD})", remedy=f"Write one: `{card}`")
        with tempfile.TemporaryDirectory(prefix="quantailor-") as place:
            if recipes.RECIPE in found:
                text = recipes.without_places(found[recipes.RECIPE].read_text(encoding="utf-8"))
                found[recipes.RECIPE] = write_text(Path(place) / recipes.RECIPE, text)
            yield found

    def told(self, files: Mapping[str, Path], states: Mapping[str, str] | None) -> PublishResult:
        """The result; `states` is what was done with each file, None for nothing."""
        names = dict.fromkeys(files, "to be sent") if states is None else states
        return PublishResult(
            repo_id=self.repo_id,
            url=f"{HubSettings.read().endpoint}/{self.repo_id}",
            dry_run=states is None,
            files=tuple(PublishedFile(name, path.stat().st_size, names[name]) for name, path in files.items()),
            notes=_notes(files),
        )


def _notes(files: Mapping[str, Path]) -> tuple[str, ...]:
    found = []
    try:
        stated = model_card(files[CARD].parent)
    except ModelError:
        stated = {}
    missing = [what for key, what in (("license", "licence"), ("base_model", "original model")) if not texts_in(stated.get(key))]
    if missing:
        found.append(f"The card's front matter names no {' and no '.join(missing)}; the hub shows what it names.")
    hidden = [name for name in files if _is_model(name) and not is_listed_name(name)]
    found += [f"The hub's list does not show the type of {name}: its name ends in no preset's." for name in hidden]
    return tuple(found)


def _is_model(file_name: str) -> bool:
    """Whether a file is a language model by its name, no importance matrix and no projector."""
    return file_name.endswith(".gguf") and file_name != "imatrix.gguf" and MARK not in file_name


def is_listed_name(file_name: str) -> bool:
    """Whether the hub's list tells a file's type by its name: it ends in a preset's name (a bare "Q4_K" is none)."""
    stem = _SHARD.sub("", file_name.removesuffix(".gguf")).upper()
    return file_name.endswith(".gguf") and any(re.search(rf"(?:^|[-._]){re.escape(name)}$", stem) for name in library.presets())
