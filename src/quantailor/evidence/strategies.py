"""Strategies as a file, a built file or the store has them, and the importance matrix that they were made with."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Literal

from quantailor.analysis.importance.imatrix import Imatrix
from quantailor.errors import ModelError, StrategyError, StrategyMismatchError
from quantailor.ggml import library
from quantailor.models.opening import open_model
from quantailor.models.source import ModelSource
from quantailor.records import Strategy
from quantailor.session import AUTO, OpenedModel, Workspace, quantizable_tensors
from quantailor.store import StrategyRecord
from quantailor.strategy import file as strategy_file

STORED = "stored:"
STRATEGY_KEY = "quantailor.strategy"
"""Where a file that we built carries the strategy that it was built by."""
_MAGIC = b"GGUF"


def is_gguf(path: Path) -> bool:
    """Whether a file starts as GGUF files do; False where it cannot be read."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            return stream.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def read_strategy(path: Path) -> Strategy:
    """A strategy from its file, or from a GGUF file that carries the one it was built by.

    Raises:
        StrategyError: the file cannot be read, or carries none.
    """
    if not is_gguf(path):
        return strategy_file.read(path, known_types=library.types())
    try:
        with closing(open_model(path)) as source:
            found = _embedded(source, path)
    except ModelError as error:
        raise StrategyError(error.message, remedy=error.remedy) from error
    if found is None:
        raise StrategyError(
            f"{path} is a GGUF file that carries no strategy: another program made it",
            remedy="Give a strategy's file; `quantailor build` alone takes the types of such a file",
        )
    return found


def strategy_of(workspace: Workspace, reference: str) -> Strategy:
    """The strategy that a step names: a file, as `read_strategy` reads it, or "stored:FINGERPRINT". Raises StrategyError."""
    if not reference.startswith(STORED):
        return read_strategy(Path(reference))
    record = workspace.store.strategy(reference.removeprefix(STORED))
    if record is None:
        raise StrategyError(f"the store has no strategy {reference.removeprefix(STORED)[:12]}", remedy="Give its file")
    return strategy_file.loads(record.document, name="a stored strategy")


def store_strategy(workspace: Workspace, strategy: Strategy) -> str:
    """Record a strategy; what steps call it."""
    record = StrategyRecord.of(strategy.model_fingerprint, strategy.method, strategy_file.dumps(strategy))
    workspace.store.record_strategy(record)
    return f"{STORED}{record.fingerprint}"


def strategy_imatrix(workspace: Workspace, model: OpenedModel, strategy: Strategy, wanted: str) -> Imatrix | None:
    """The importance matrix to build with: "auto" is the one the strategy was made with, if any."""
    recorded = strategy.inputs.get("imatrix")
    if wanted == AUTO:
        return workspace.imatrices.read(model.fingerprint, str(recorded)) if recorded else None
    return workspace.imatrices.choose(model, wanted)


def rounding_of(strategy: Strategy) -> Literal["plain", "compensated"]:
    """How the strategy's file is rounded, unless a build is told otherwise."""
    return "compensated" if strategy.inputs.get("rounding") == "compensated" else "plain"


def require_fit(strategy: Strategy, model: OpenedModel) -> None:
    """Raise StrategyMismatchError where a strategy was made for another model."""
    if strategy.model_fingerprint != model.fingerprint:
        made_for = f"{strategy.model_name} ({strategy.model_fingerprint[:12]})".lstrip()
        raise StrategyMismatchError(
            f"the strategy was made for {made_for}, not for {model.source.name} ({model.fingerprint[:12]})",
            remedy="Give the base it was made for",
        )


def require_whole(strategy: Strategy, model: OpenedModel) -> None:
    """Raise StrategyMismatchError where a strategy is another model's, or leaves out tensors whose type is a choice."""
    require_fit(strategy, model)
    named = strategy.types
    missing = [tensor for tensor in quantizable_tensors(model.source) if tensor.name not in named]
    if missing:
        first = missing[0]
        what = first.name if len(missing) == 1 else f"{len(missing)} tensors, {first.name} among them"
        types = " or ".join(dict.fromkeys(tensor.type_name for tensor in missing))
        raise StrategyMismatchError(
            f"the strategy says nothing about {what}, which would stay {types}",
            remedy=f"Add a line such as `{first.name}: Q8_0`, or {first.type_name} to keep it as it is",
        )


def embedded_strategy(workspace: Workspace, path: Path) -> Strategy | None:
    """The strategy that a file we built carries; None in other files. Raises ModelError where the file cannot be read."""
    with workspace.source(path) as source:
        return _embedded(source, path)


def _embedded(source: ModelSource, path: Path) -> Strategy | None:
    text = source.metadata.get(STRATEGY_KEY)
    return None if text is None else strategy_file.loads(str(text.value), name=f"the strategy in {path.name}")
