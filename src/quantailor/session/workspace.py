"""An opened home, and the models that are opened in it.

Whatever a step needs from an earlier one (a model's record, its importance matrices, its measurements) is found here. A model
is identified once per session and file state. Inside `keeping_models` it is also opened once: steps that follow each other
get the same open source.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Self

from quantailor import files
from quantailor.analysis.corpus import Corpus, chunk_length, load_corpus
from quantailor.analysis.texts import files_of, is_chat, parts_of
from quantailor.control import QUIET, Control
from quantailor.errors import CorpusError, ModelError, QuantailorError
from quantailor.files import Closing, FilesState
from quantailor.ggml import library
from quantailor.jobs import Home, resolve
from quantailor.models.abilities import require_predictions
from quantailor.models.contents import require_language_model
from quantailor.models.identity import DEFINITION, Identity, description, identify
from quantailor.models.opening import model_files, open_model, require_unquantized
from quantailor.models.random_access import unreadable
from quantailor.models.source import ModelSource
from quantailor.models.upstream.checkpoint import checkpoint_digest, checkpoint_files, file_digest
from quantailor.processes.crews import ModelFiles
from quantailor.session.covariances import KeptCovariances
from quantailor.session.imatrices import KeptImatrices
from quantailor.session.loading import LoadRefusal
from quantailor.session.opened import (
    Condition,
    OpenedModel,
    gguf_path,
    plain_label,
    require_held,
    require_intact,
    require_runnable,
    unrunnable_words,
)
from quantailor.store import ModelRecord, Store

SEEN_EVERY_S = 60.0
"""How often a model that is opened again and again is recorded as seen."""

SHOWN_BYTES = 256 << 20
"""Smaller models are identified before anybody could read of it."""


@dataclass
class _Kept:
    """What one thread keeps open."""

    sources: dict[FilesState, ModelSource] = field(default_factory=dict)
    corpora: dict[tuple[FilesState, FilesState], Corpus] = field(default_factory=dict)


class _Thread(threading.local):
    kept: _Kept | None = None
    begin: Callable[[str], Control] | None = None


class Workspace(Closing):
    """An opened home. Use as a context manager."""

    def __init__(self, home: Home, store: Store) -> None:
        self.home = home
        self.store = store
        self.imatrices = KeptImatrices(home, store)
        self.covariances = KeptCovariances(home, store)
        self._identities: dict[tuple[str, FilesState], Identity] = {}
        self._recorded: dict[tuple[str, Path], float] = {}
        """(fingerprint, place) -> when it was recorded last."""
        self._thread = _Thread()

    @classmethod
    def open(cls, home: Path | None = None) -> Self:
        """Open `home`, or the place that QUANTAILOR_HOME or the platform names. Raises StoreError."""
        place = resolve(home).create()
        return cls(place, Store(place.database))

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    # Models

    @contextmanager
    def keeping_models(self) -> Iterator[None]:
        """Inside, models and texts stay open for whoever asks for them again in this thread. For the length of a job, at most."""
        if self._thread.kept is not None:
            yield
            return
        self._thread.kept = kept = _Kept()
        try:
            yield
        finally:
            self._thread.kept = None
            for source in kept.sources.values():
                source.close()

    @contextmanager
    def watched(self, begin: Callable[[str], Control]) -> Iterator[None]:
        """Inside, `begin` is asked for a stage to report to whenever this thread reads a large model to identify it."""
        before, self._thread.begin = self._thread.begin, begin
        try:
            yield
        finally:
            self._thread.begin = before

    @contextmanager
    def source(self, path: str | Path) -> Iterator[ModelSource]:
        """A language model's source, open. Raises ModelError, also for a GGUF file of something else."""
        with self._opened(path) as (source, _):
            yield source

    @contextmanager
    def _opened(self, path: str | Path) -> Iterator[tuple[ModelSource, FilesState]]:
        """A source and the state that its files were in before it was opened."""
        kept, state = self._thread.kept, _state_of_model(Path(path))
        if kept is not None and state:
            if state not in kept.sources:
                kept.sources[state] = open_model(path)
            require_language_model(kept.sources[state])
            yield kept.sources[state], state
            return
        with closing(open_model(path)) as source:
            require_language_model(source)
            yield source, state

    @contextmanager
    def model(self, path: str | Path, *, allow_requantize: bool = True) -> Iterator[OpenedModel]:
        """Open a model and record it; a GGUF that is quantized already is refused unless allowed. Raises ModelError."""
        with self._opened(path) as (source, state):
            require_unquantized(source, allow_requantize=allow_requantize)
            identity, place = self._identified(source, state), Path(source.location)
            key = identity.fingerprint
            recorded, now = self._recorded.get((key, place)), self.store.now
            if recorded is None:
                self.store.record_model(ModelRecord.of(key, source.name, source.architecture, source.tensors), source.tensors)
            if recorded is None or now - recorded > SEEN_EVERY_S:
                self.store.record_location("model", key, place)
                self._recorded[key, place] = now
            yield OpenedModel(source, identity, state)

    def identity(self, path: str | Path) -> Identity:
        """Which model is at a path, quantized or not. Raises ModelError."""
        known = self.known_identity(path)
        if known is not None:
            return known
        with self._opened(path) as (source, state):
            return self._identified(source, state)

    def keep_identity(self, path: Path) -> Identity:
        """The same, and known from then on, of a file that was written a moment ago too. Raises ModelError."""
        files.wait_until_settled(_state_of_model(path))
        return self.identity(path)

    def located(self, path: Path) -> ModelFiles:
        """A model for work that reads it, wherever that is done. Raises ModelError."""
        return ModelFiles(path, self.identity(path).fingerprint, _state_of_model(path))

    def known_identity(self, path: str | Path) -> Identity | None:
        """The same where it can be said without reading the model: its files are as they were when it was read."""
        state = _state_of_model(Path(path))
        return self._remembered(str(Path(path).absolute()), state) if state else None

    def remember(self, path: Path, model: OpenedModel) -> None:
        """Note that a file which was just written holds that model, whose own files must be as they were when it was identified."""
        if _state_of_model(model.path) == model.files:
            files.wait_until_settled(_state_of_model(path))
            self._keep(str(path.absolute()), _state_of_model(path), replace(model.identity, lost=""))

    def require_intact(self, model: OpenedModel) -> LoadRefusal | None:
        """Refuse a damaged model, as `opened.require_intact`; the header of one that llama.cpp can run is read once in a home."""
        require_held(model.identity)  # a base of the same fingerprint may be sound: it is the model that is left of the weights
        known = f"{library.engine()}:{model.fingerprint}"
        if self.store.locations("sound", known):
            return None
        refused = require_intact(model)
        if refused is None and not model.path.is_dir():
            self.store.record_location("sound", known, model.path)
        return refused

    def reservations(self, model: OpenedModel) -> tuple[str, ...]:
        """What is to be told of a model that is used without running it, in words. Raises as `require_intact`."""
        return Condition.of(model.identity, unrunnable=unrunnable_words(self.require_intact(model))).sentences

    def require_runnable(self, model: OpenedModel) -> None:
        """Refuse a model that llama.cpp could not run, as `opened.require_runnable` does after `require_intact`."""
        require_runnable(self.require_intact(model))

    def require_scored(self, model: OpenedModel, n_ctx: int) -> None:
        """Refuse, before anything is measured for it, a model that cannot be scored on chunks of that length.

        Raises as `require_runnable`, UnsupportedModelError where it predicts no next tokens, CorpusError where it has fewer positions.
        """
        require_predictions(model.source)
        self.require_runnable(model)
        chunk_length(model.source, n_ctx)

    def holds(self, path: Path, description: str) -> bool:
        """Whether the model at a path can be read and is the one of that description; see `OpenedModel.description`."""
        try:
            return path.is_file() and self._content(path) == description
        except QuantailorError:
            return False

    def note_written(self, path: Path, recipe: str) -> None:
        """Note that the file which was just written is what that recipe gives."""
        self.store.record_location("written", f"{recipe}:{self._content(path)}", path)

    def is_as_written(self, path: Path, recipe: str) -> bool:
        """Whether a file is what that recipe gave when it was written, down to what describes it."""
        return any(self.holds(path, content) for content in self._written(path, recipe))

    def note_file(self, path: Path, recipe: str, written: Path) -> None:
        """The same for a file that is no language model, before it has its name: `written` is what will get it. Raises OSError."""
        self.store.record_location("written", f"{recipe}:{file_digest(written)}", path)

    def is_file_as_written(self, path: Path, recipe: str) -> bool:
        """The same for a file that is no language model, to the byte. Raises ModelError where it cannot be read."""
        wanted = self._written(path, recipe)
        try:
            return bool(wanted) and path.is_file() and self._file_digest(path) in wanted
        except OSError as error:
            raise unreadable(path, error) from error

    def _written(self, path: Path, recipe: str) -> list[str]:
        """What that recipe gave when the file was written."""
        keys = (each.key.rpartition(":") for each in self.store.every_location("written") if each.path == path.absolute())
        return [content for made, _, content in keys if made == recipe]

    def _file_digest(self, path: Path) -> str:
        """Of a file's bytes; remembered as long as it stays as it is."""

        def now() -> FilesState:
            return files.state_of([path])

        return self._read_once(f"file {path.absolute()}", now(), now, lambda: Identity(file_digest(path))).fingerprint

    def _content(self, path: Path) -> str:
        fingerprint = self.identity(path).fingerprint
        with self.source(path) as source:
            return description(source, fingerprint)

    def checkpoint(self, folder: Path) -> str:
        """A digest of a directory that we need not be able to read ourselves. Raises ModelError."""
        state = files.state_of(checkpoint_files(folder))
        n_bytes = sum(size for _, _, _, size, _, _ in state)
        return self._read_once(
            f"checkpoint {folder.absolute()}",
            state,
            lambda: files.state_of(checkpoint_files(folder)),
            lambda: Identity(checkpoint_digest(folder, control=self._watching(n_bytes))),
        ).fingerprint

    def _identified(self, source: ModelSource, state: FilesState) -> Identity:
        path = Path(source.location)
        n_bytes = sum(tensor.size_bytes for tensor in source.tensors)
        return self._read_once(
            str(path.absolute()), state, lambda: _state_of_model(path), lambda: identify(source, control=self._watching(n_bytes))
        )

    def _watching(self, n_bytes: int) -> Control:
        """Who is told of reading so much, which is a stage of its own where it takes long."""
        return QUIET if self._thread.begin is None or n_bytes < SHOWN_BYTES else self._thread.begin("identify")

    def _read_once(self, name: str, state: FilesState, now: Callable[[], FilesState], read: Callable[[], Identity]) -> Identity:
        """What reading files gave, or gives; remembered under that name as long as they stay in this state."""
        known = self._remembered(name, state)
        if known is not None:
            return known
        found = read()
        if now() != state:
            raise ModelError(f"{name} changed while it was read", remedy="Try again when nothing is writing to it")
        self._keep(name, state, found)
        return found

    def _remembered(self, name: str, state: FilesState) -> Identity | None:
        if (name, state) not in self._identities and (stored := self.store.identity(name, _text_of(state))) is not None:
            self._identities[name, state] = Identity(*stored)
        return self._identities.get((name, state))

    def _keep(self, name: str, state: FilesState, identity: Identity) -> None:
        """Remember it, unless a change would leave no trace because the files were changed a moment ago."""
        if files.is_settled(state):
            self._identities[name, state] = identity
            self.store.record_identity(name, _text_of(state), astuple(identity))

    def corpus(self, model: OpenedModel, text: Path) -> Corpus:
        """A text cut into the model's tokens.

        Raises CorpusError and more as `load_corpus` does, UnsupportedModelError for a directory; and what `require_runnable` raises.
        """
        path = gguf_path(model)
        corpora = {} if self._thread.kept is None else self._thread.kept.corpora
        try:
            key = (_state_of_model(path), files.state_of(files_of(text)))
        except OSError as error:
            raise CorpusError(f"cannot read {error.filename}: {error.strerror or error}") from error
        if key not in corpora:
            self.require_runnable(model)  # tokens are there to be run
            corpora[key] = load_corpus(path, text)
        return corpora[key]

    def seen_corpus(self, model: OpenedModel, text: Path) -> Corpus:
        """The same for a text that something is computed from; where it lies is kept, so that a verdict can tell what was seen before."""
        corpus = self.corpus(model, text)
        self.store.record_location("text", corpus.sha256, text)
        for part in parts_of(text):
            if part.path != text or is_chat(text):
                self.store.record_location("part", corpus.sha256, part.path)
        return corpus

    def base_path(self, model: Path, identity: str) -> Path:
        """Where the home keeps a model's base: named after its place and what it copies, so that no two models share one."""
        return self.home.bases / f"{plain_label(model)}-{identity[:8]}.gguf"


def _state_of_model(path: Path) -> FilesState:
    """What tells a model's files from what they were before; empty where there is nothing to read."""
    try:
        return files.state_of(model_files(path))
    except OSError:
        return ()


def _text_of(state: FilesState) -> str:
    return hashlib.sha256(f"{DEFINITION} {state}".encode("utf-8", "surrogateescape")).hexdigest()
