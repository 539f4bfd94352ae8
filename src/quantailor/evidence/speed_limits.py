"""What `--speed` asks for, tokens per second or a part of what the preset of that size reaches, as a limit for whoever chooses types."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantailor.analysis.importance.imatrix import Imatrix
from quantailor.errors import OptionError, StrategyError
from quantailor.evidence.grounds import command_line
from quantailor.evidence.presets import ladder, preset_sizes, types_of_preset
from quantailor.evidence.speeds import Speeds, known_speeds
from quantailor.models.source import ModelSource
from quantailor.present import words
from quantailor.records import SpeedOf, TensorCells
from quantailor.session import OpenedModel, Workspace
from quantailor.strategy.pace import TimeLimit

_RATE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(?:tok|tokens?|t)\s*/\s*s", re.IGNORECASE)
_SHARE = re.compile(r"\d+(?:\.\d*)?|\.\d+")
MOST_SHARE = 100.0


@dataclass(frozen=True, slots=True)
class SpeedAsked:
    """One of the two is None."""

    share: float | None
    """Of the speed of llama.cpp's preset that is nearest in size."""
    tokens_per_second: float | None


def speed_asked(text: str) -> SpeedAsked:
    """What somebody typed: "0.95" or "40tok/s". Raises OptionError for anything else."""
    rate, share = _RATE.fullmatch(text.strip()), _SHARE.fullmatch(text.strip())
    value = float(rate[1]) if rate else float(share[0]) if share else 0.0
    if not 0 < value < math.inf or (rate is None and value > MOST_SHARE):
        raise OptionError(
            f"--speed {text} is no speed", remedy="Write a part of the speed of the preset of that size, such as 0.95, or 40tok/s"
        )
    return SpeedAsked(None, value) if rate else SpeedAsked(value, None)


def rounded_down(tokens_per_second: float) -> float:
    """With three digits, so that it is reached when it is asked for."""
    places = 2 - math.floor(math.log10(tokens_per_second))
    return math.floor(tokens_per_second * 10.0**places) / 10.0**places


def require_speeds(workspace: Workspace, model: OpenedModel) -> Speeds:
    """What is known of the model's speed on this machine. Raises StrategyError where nothing is."""
    found = known_speeds(workspace, model.source)
    if found is None:
        what = f"{model.source.name}'s types have not been timed on this machine"
        raise StrategyError(what, remedy=f"Run `{command_line(workspace, 'speed', model.path)}` first, or leave out --speed")
    return found


@dataclass(frozen=True)
class SpeedLimit:
    """How fast a file has to be at least."""

    of: SpeedOf
    tokens_per_second: float
    words: str
    """Where that comes from: "0.95 of Q4_K_M's 44.1", or "" for a plain number."""
    time: TimeLimit
    fixed_s: float
    """What a token takes besides the time that is limited."""

    def reached(self, seconds: float) -> float:
        """Tokens per second of a mix whose tensors take so long together."""
        return 1 / (self.fixed_s + seconds)

    def at(self, tokens_per_second: float) -> SpeedLimit:
        """The same for another speed."""
        time = dataclasses.replace(self.time, seconds=1 / tokens_per_second - self.fixed_s)
        return dataclasses.replace(self, tokens_per_second=tokens_per_second, time=time, words="")


def speed_limit(
    model: OpenedModel,
    speeds: Speeds,
    text: str,
    of: SpeedOf,
    tables: Sequence[TensorCells],
    target: Mapping[str, str | int | float],
    matrix: Imatrix | None,
) -> SpeedLimit:
    """The limit on a model's tables, whose types were all timed (see `timed_tables`).

    Raises OptionError for what is no speed, StrategyError for a share without a size, or a preset with types that were not timed.
    """
    asked = speed_asked(text)
    said, rate = "", asked.tokens_per_second or 0.0
    if asked.share is not None:
        preset = _nearest(model, target, matrix)
        predicted = speeds.predicted(types_of_preset(model, preset, matrix))
        if predicted is None:
            untimed = ", ".join(speeds.model.untimed(types_of_preset(model, preset, matrix)))
            raise StrategyError(
                f"--speed {text} is a part of {preset}'s speed, and its {untimed} was not timed",
                remedy="Run `quantailor speed` with these types, too, or give tokens per second such as 40tok/s",
            )
        rate = asked.share * predicted.tokens_per_second(of)
        said = f"{asked.share:g} of {preset}'s {words.figure(predicted.tokens_per_second(of))}"
    parts = {
        table.name: {cell.type_name: speeds.model.part(table.name, cell.type_name, of) for cell in table.cells}
        for table in tables
        if table.name in speeds.model.tensors
    }
    others = math.fsum(speeds.model.part(name, model.source.tensor(name).type_name, of) for name in speeds.model.tensors.keys() - parts)
    fixed_s = speeds.model.reference_s[of] + others
    return SpeedLimit(of, rate, said, TimeLimit(1 / rate - fixed_s, parts), fixed_s)


def timed_tables(source: ModelSource, speeds: Speeds, tables: Sequence[TensorCells]) -> list[TensorCells]:
    """The tables without types that were not timed. Raises StrategyError where a tensor has no other, or keeps one of those."""
    known = speeds.model
    kept = [
        dataclasses.replace(table, cells=tuple(cell for cell in table.cells if known.is_timed(table.name, cell.type_name)))
        for table in tables
    ]
    bare = [table.name for table in kept if not table.cells]
    left_out = known.tensors.keys() - {table.name for table in tables}
    bare += [name for name in left_out if not known.is_timed(name, source.tensor(name).type_name)]
    if bare:
        raise StrategyError(f"no type of {bare[0]} was timed", remedy="Run `quantailor speed` with the types that a plan may use")
    return kept


def _nearest(model: OpenedModel, target: Mapping[str, str | int | float], matrix: Imatrix | None) -> str:
    """The preset that was named, else the one whose size is nearest. Raises StrategyError where there is no size."""
    if "like" in target:
        return str(target["like"])
    n_weights = sum(tensor.n_elements for tensor in model.source.tensors)
    size = float(target.get("size_bytes", 0)) or float(target.get("bits_per_weight", 0)) * n_weights / 8
    if not size:
        raise StrategyError(
            "--speed as a part of a preset's needs a size to find the preset by", remedy="Give tokens per second, such as --speed 40tok/s"
        )
    sizes = preset_sizes(model, ladder(model, matrix), matrix)
    if not sizes:
        raise StrategyError("llama.cpp makes no preset of this model", remedy="Give tokens per second, such as --speed 40tok/s")
    return min(sizes, key=lambda name: abs(math.log(sizes[name] / size)))
