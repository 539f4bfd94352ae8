"""Work on its way to a worker: pickled, with every file looked up where the worker has it."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import platform
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import platformdirs

from quantailor import files
from quantailor.errors import ClusterError
from quantailor.jobs import Home, resolve
from quantailor.models.identity import identify
from quantailor.models.opening import model_files, open_model
from quantailor.processes.crews import Item, ModelFiles, Task, Work

_SNAPSHOT = re.compile(r".*/(models--[^/]+--[^/]+/snapshots/[0-9a-f]{40}/.+)")
"""A file of a repository of the hub, as every cache of it has it."""


@dataclass(frozen=True, slots=True)
class Places:
    """How a worker finds files of ours.

    It looks where the pairs say, then under the name that we have, then, for a repository of the hub, in its own cache.
    """

    pairs: tuple[tuple[str, str], ...]
    """Folders: where they are here, where a worker may have them."""
    home: Path
    """Ours: what is kept there between runs, a worker on another machine keeps in its own."""
    host: str

    @classmethod
    def of(cls, home: Path, pairs: tuple[str, ...]) -> Places:
        """From HERE=THERE texts. Raises ClusterError for one that is none."""
        found = []
        for pair in pairs:
            here, equals, there = pair.partition("=")
            if not (here and equals and there):
                raise ClusterError(
                    f"--cluster-path {pair!r} does not name two folders", remedy="Write HERE=THERE, for example /data=/mnt/data"
                )
            found.append((str(files.expanded(here).absolute()), there))
        return cls(tuple(found), home, platform.node())

    def there(self, path: Path) -> Path:
        """Where this machine, a worker, has a file. Raises ClusterError where it has none."""
        kept = Home(self.home).base_logp
        if path.is_relative_to(kept):
            own = path if self._is_here() else resolve().base_logp / path.relative_to(kept)
            own.mkdir(parents=True, exist_ok=True)
            return own
        mapped = [Path(there) / path.relative_to(here) for here, there in self.pairs if path.is_relative_to(here)]
        looked_at = [*mapped, path, *_in_own_cache(path)]
        found = next((one for one in looked_at if one.exists()), None)
        if found is None:
            raise ClusterError(
                f"{path} is not there" + "".join(f", nor is {one}" for one in looked_at if one != path),
                remedy="Share the folder, say where workers have it (--cluster-path HERE=THERE), or download the model there too",
            )
        return found

    def _is_here(self) -> bool:
        """Whether this machine is the one that asks, as far as can be seen."""
        return platform.node() == self.host and self.home.is_dir() and os.access(self.home, os.W_OK)


def _in_own_cache(path: Path) -> list[Path]:
    found = _SNAPSHOT.fullmatch(path.as_posix())
    if found is None:
        return []
    from huggingface_hub.constants import HF_HUB_CACHE  # takes long to import, and is needed where the model is of the hub

    return [Path(HF_HUB_CACHE) / found[1]]


class _Packer(pickle.Pickler):
    def persistent_id(self, given: object) -> str | None:
        return str(given) if isinstance(given, Path) else None


class _Unpacker(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, find: Callable[[Path], Path]) -> None:
        super().__init__(stream)
        self._find = find

    def persistent_load(self, name: str) -> Path:
        return self._find(Path(name))


def packed(work: Work[Task, Item]) -> bytes:
    """Work as it travels."""
    stream = io.BytesIO()
    _Packer(stream, protocol=pickle.HIGHEST_PROTOCOL).dump(work)
    return stream.getvalue()


def unpacked(data: bytes, places: Places) -> Work[object, object]:
    """Work as it is here, whose models are those that are meant.

    Raises ClusterError where files are not here or hold another model, and what opening files raises.
    """
    work = cast(Work[object, object], _Unpacker(io.BytesIO(data), places.there).load())
    for model in work.files:
        _require_model(model)
    return work


def _require_model(model: ModelFiles) -> None:
    """Raise ClusterError where the model's files do not hold the model that they should."""
    state = files.state_of(model_files(model.path))
    if state == model.state:
        return  # the very files that were read on the machine that asks
    found = _fingerprint(model.path, state)
    if found != model.fingerprint:
        raise ClusterError(
            f"{model.path} holds model {found[:12]}, not {model.fingerprint[:12]}",
            remedy="Put the same files there, or name the right place",
        )


def _fingerprint(path: Path, state: files.FilesState) -> str:
    """Read once, and remembered as long as the files stay as they are."""
    name = hashlib.sha256(repr(state).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    note = Path(platformdirs.user_cache_dir("quantailor", appauthor=False)) / "identities" / name
    if files.is_settled(state) and note.is_file():
        return note.read_text(encoding="ascii").strip()
    with closing(open_model(path)) as source:
        found = identify(source).fingerprint
    if files.is_settled(state):
        files.write_text(note, found)
    return found
