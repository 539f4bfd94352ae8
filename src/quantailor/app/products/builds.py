"""Before a build: what a strategy will come to, and the commands that do the same. After it: the files that were built."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

from quantailor import files
from quantailor.analysis.importance.imatrix import TOKEN_EMBEDDINGS
from quantailor.analysis.rounding.rounding import Rounding
from quantailor.app.choosing.comparing import StrategyDiff, compare_strategies, what_is_known
from quantailor.app.choosing.drafts import Draft, desk_of_draft, list_drafts
from quantailor.app.choosing.planner import Planner
from quantailor.app.jobs import JobReport, start_detached, submit
from quantailor.app.products.checking import BuildCheck, check_build
from quantailor.app.products.exporting import ExportReport, export, llama_quantize_command, own_commands
from quantailor.app.products.verdicts import StoredVerdict, compare_files, list_verdicts, preset_names, verdicts_on
from quantailor.control import QUIET, Control
from quantailor.costs.needs import Needs, shortfalls
from quantailor.costs.seconds import compensation_seconds
from quantailor.errors import CovarianceError, OutputError, QuantailorError, StrategyError
from quantailor.evidence.recipes import PRESET, is_recipe, recipe_of
from quantailor.evidence.roundings import strategy_rounding
from quantailor.evidence.strategies import embedded_strategy, require_whole, rounding_of, strategy_imatrix
from quantailor.ggml import library
from quantailor.ggml.reference import preset_name
from quantailor.making import building, judging
from quantailor.models.source import ModelSource
from quantailor.present import words
from quantailor.present.words import UNKNOWN
from quantailor.records import Comparison, Prediction, RoundingWish, Strategy, TensorInfo
from quantailor.session import AUTO, OpenedModel, Workspace, quantizable_tensors
from quantailor.steps.build import BuildStep
from quantailor.steps.options import absolute
from quantailor.store import Location, StrategyRecord
from quantailor.strategy import file as strategy_file

ChoiceKind = Literal["draft", "stored", "preset", "file"]
N_STORED = 12
"""So many of the latest strategies are offered."""
_SHARD_ENDING = len("-00001-of-00001")


@dataclasses.dataclass(frozen=True, slots=True)
class StrategyChoice:
    """Where a strategy can be had: a draft's name, a stored strategy's fingerprint, a preset's name, or a file.

    A file may also hold types alone: a list for llama-quantize, or a GGUF file that another program made of the model.
    """

    kind: ChoiceKind
    name: str
    label: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuildWish:
    """What is to be built, and where to."""

    base: Path
    strategy: Strategy
    output: Path
    split_max_bytes: int | None = None
    overwrite: bool = False
    rounding: RoundingWish = "auto"
    """"auto" is the one that the strategy was made for."""

    @property
    def strategy_path(self) -> Path:
        """Where the strategy is kept beside the file: NAME.strategy.yaml."""
        return self.output.with_name(f"{self.output.name.removesuffix('.gguf')}.strategy.yaml")

    @property
    def options(self) -> tuple[str, ...]:
        """What the command line calls its other fields."""
        split = () if self.split_max_bytes is None else ("--split-max-size", str(self.split_max_bytes))
        rounding = () if self.rounding in (AUTO, rounding_of(self.strategy)) else ("--rounding", self.rounding)
        return (*rounding, *split, "--force") if self.overwrite else (*rounding, *split)

    @property
    def is_compensated(self) -> bool:
        """Whether the file's rounding is to be compensated."""
        return (rounding_of(self.strategy) if self.rounding == AUTO else self.rounding) == "compensated"

    def task(self, strategy_path: Path) -> BuildStep:
        """The build as a job's task."""
        return BuildStep(
            base=absolute(self.base),
            strategy=absolute(strategy_path),
            output=absolute(self.output),
            split_max_bytes=self.split_max_bytes,
            overwrite=self.overwrite,
            rounding=self.rounding,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class BuildOffer:
    """A build before it starts."""

    prediction: Prediction
    """Its size is exact, all parts together."""
    paths: tuple[str, ...]
    """The files that it will write."""
    n_tensors: int
    """Whose type is a choice."""
    type_counts: Mapping[str, int]
    own_lines: tuple[str, ...]
    """Our commands, quoted for a shell: build, check, verify."""
    quantize: ExportReport | None
    """llama-quantize's; None where it cannot make the file."""
    no_quantize: str | None
    """Why not."""
    shortfalls: tuple[str, ...]
    """Why it cannot start, one sentence each."""
    is_compensated: bool
    compensation_seconds: tuple[float, float]
    """What compensated rounding would take beyond plain, whichever is asked for."""
    no_covariances: str | None
    """Why rounding cannot be compensated; None where it can."""


@dataclasses.dataclass(frozen=True, slots=True)
class BuiltFile:
    """A file that was built from a strategy and is there."""

    path: str
    """Of its first part."""
    paths: tuple[str, ...]
    size_bytes: int
    bits_per_weight: float
    strategy: str
    """Fingerprint of the strategy that the store has for it."""
    method: str
    predicted_kld_nats: float | None
    predicted_interval_nats: tuple[float, float] | None
    """Of 95 %."""
    verdicts: tuple[str, ...]
    """Fingerprints of verdicts on this very file, as far as it was read in this home since it was written; the latest first."""
    is_compensated: bool
    """Whether its rounding is."""


# Which strategy


def list_choices(workspace: Workspace, model: str) -> list[StrategyChoice]:
    """A model's drafts, then its latest stored strategies, then llama.cpp's presets; `model` is its fingerprint."""
    drafts = [StrategyChoice("draft", item.name, f"Draft: {item.name}") for item in list_drafts(workspace, model)]
    stored = [StrategyChoice("stored", item.fingerprint, _told(item)) for item in workspace.store.strategies(model)[:N_STORED]]
    return [*drafts, *stored, *(StrategyChoice("preset", name, f"llama.cpp's {name}: its own types") for name in preset_names())]


def _told(record: StrategyRecord) -> str:
    strategy = _stored(record.document)
    bits = "" if strategy.prediction is None else f"{strategy.prediction.bits_per_weight:.2f} bits per weight"
    rounding = words.rounding(is_compensated=True) if wants_compensation(strategy) else ""
    return ", ".join(part for part in (strategy.method, words.target(strategy.target), bits, rounding, record.fingerprint[:8]) if part)


@lru_cache(maxsize=64)
def _stored(document: str) -> Strategy:
    return strategy_file.loads(document, name="a stored strategy")


def chosen_strategy(workspace: Workspace, base: Path, choice: StrategyChoice, *, desk: Planner | None = None) -> Strategy:
    """The strategy that a choice names; `desk`, where one is open, saves opening another for a draft.

    Raises:
        StrategyError: there is none, it cannot be read, or it is another model's.
        TypeUnavailableError: llama.cpp has no such preset.
        ModelError: a GGUF file that cannot be read.
    """
    if choice.kind == "draft":
        if desk is not None:
            return _drafted(workspace, desk, choice.name)
        with desk_of_draft(workspace, base, choice.name) as opened:
            return _drafted(workspace, opened, choice.name)
    with workspace.model(base) as model:
        if choice.kind == "stored":
            strategy = _from_store(workspace, choice.name)
        else:
            named = f"{PRESET}{preset_name(choice.name)}" if choice.kind == "preset" else absolute(choice.name)
            strategy = recipe_of(workspace, model, named, AUTO)
        require_whole(strategy, model)
    return strategy


def _drafted(workspace: Workspace, desk: Planner, name: str) -> Strategy:
    draft = Draft.load(workspace, desk, name)
    if draft is None:
        raise StrategyError(f"there is no draft {name!r}", remedy="Choose another, or make one on the Choose screen")
    return desk.whole(draft.strategy(desk))


def _from_store(workspace: Workspace, fingerprint: str) -> Strategy:
    record = workspace.store.strategy(fingerprint)
    if record is None:
        raise StrategyError(f"no strategy {fingerprint[:12]} is stored", remedy="Choose another")
    return _stored(record.document)


def compare_with(
    workspace: Workspace, base: Path, strategy: Strategy, other: str | Strategy, *, label: str, other_label: str | None = None
) -> StrategyDiff:
    """A strategy against a preset's name, a file, or another strategy; see `compare_strategies`. Labels are what the sides are called."""
    found = compare_strategies(workspace, base, strategy, other)
    b = found.b if other_label is None else dataclasses.replace(found.b, label=other_label)
    return dataclasses.replace(found, a=dataclasses.replace(found.a, label=label), b=b)


def wants_compensation(strategy: Strategy) -> bool:
    """Whether a strategy was made for compensated rounding."""
    return rounding_of(strategy) == "compensated"


def is_others(choice: StrategyChoice) -> bool:
    """Whether somebody else chose the types: then nothing says how their file is to be rounded."""
    return choice.kind == "preset" or (choice.kind == "file" and is_recipe(absolute(choice.name)))


# What it comes to


def build_offer(workspace: Workspace, wish: BuildWish) -> BuildOffer:
    """Size, parts, commands and shortfalls of a build; nothing is written.

    Raises:
        StrategyError: the strategy is another model's.
        TypeUnavailableError: a tensor cannot take its type.
        ImatrixError: the importance matrix that the strategy was made with is gone.
    """
    with workspace.model(wish.base) as model:
        require_whole(wish.strategy, model)
        compensated, missing = _compensated(workspace, model, wish.strategy)
        rounding = compensated if wish.is_compensated and compensated else Rounding(strategy_imatrix(workspace, model, wish.strategy, AUTO))
        strategy, imatrix = building.as_rounded(wish.strategy, rounding), rounding.imatrix
        layout = building.predict_layout(model.source, strategy, imatrix=imatrix, split_max_bytes=wish.split_max_bytes)
        predicted = building.predict(model.source, strategy, imatrix=imatrix, split_max_bytes=wish.split_max_bytes)
        counts = _counts(model.source, wish.strategy)
        more = compensation_seconds(_rounded_cells(model.source, wish.strategy), exhaustive=True, n_threads=None)
        predicted = _with_kld(workspace, model, predicted, wish)
        needs = Needs(((wish.output, predicted.file_size_bytes),))
    try:
        quantize, reason = llama_quantize_command(workspace, wish.base, strategy, wish.output), None
    except QuantailorError as error:
        quantize, reason = None, error.message
    return BuildOffer(
        prediction=predicted,
        paths=tuple(str(path) for path in layout.paths(wish.output)),
        n_tensors=sum(counts.values()),
        type_counts=counts,
        own_lines=own_commands(workspace, wish.base, wish.strategy_path, wish.output, options=wish.options),
        quantize=quantize,
        no_quantize=reason,
        shortfalls=(*((missing,) if missing and wish.is_compensated else ()), *shortfalls(workspace.home.path, needs)),
        is_compensated=wish.is_compensated,
        compensation_seconds=more,
        no_covariances=missing,
    )


def _compensated(workspace: Workspace, model: OpenedModel, strategy: Strategy) -> tuple[Rounding | None, str | None]:
    """The compensated rounding that a build of the strategy would have, or why it could have none."""
    try:
        return strategy_rounding(workspace, model, strategy, wish="compensated"), None
    except CovarianceError as error:
        return None, error.message


def _rounded_cells(source: ModelSource, strategy: Strategy) -> dict[TensorInfo, tuple[str, ...]]:
    """Tensors whose codes would be chosen with a covariance, and their types."""
    qtypes = library.types()
    chosen = {tensor: strategy.types.get(tensor.name, tensor.type_name) for tensor in quantizable_tensors(source)}
    return {
        tensor: (name,)
        for tensor, name in chosen.items()
        if name != tensor.type_name and qtypes[name].is_quantized and tensor.name not in TOKEN_EMBEDDINGS
    }


def _counts(source: ModelSource, strategy: Strategy) -> dict[str, int]:
    """Tensors by type, the type with the most bits first."""
    counts = Counter(strategy.types.get(tensor.name, tensor.type_name) for tensor in quantizable_tensors(source))
    qtypes = library.types()
    return dict(sorted(counts.items(), key=lambda item: -qtypes[item[0]].bits_per_weight))


def _with_kld(workspace: Workspace, model: OpenedModel, predicted: Prediction, wish: BuildWish) -> Prediction:
    """What the strategy itself tells; where it was made for the other rounding, or tells nothing, what the probes say."""
    known = wish.strategy.prediction
    if known is None or wish.is_compensated != wants_compensation(wish.strategy):
        matrix = str(wish.strategy.inputs.get("imatrix") or "")
        types = {tensor.name: wish.strategy.types.get(tensor.name, tensor.type_name) for tensor in model.source.tensors}
        probes = what_is_known(workspace, model, matrix, "compensated" if wish.is_compensated else "plain")
        found, reason = probes.kld(model.source, types)
        if found is None:
            is_unprobed = probes.knowledge is None and known is None
            return predicted if is_unprobed else dataclasses.replace(predicted, no_prediction=f"{UNKNOWN}: {reason}")
        return dataclasses.replace(predicted, kld_nats=found.kld_nats, kld_interval_nats=found.interval(0.95))
    return dataclasses.replace(
        predicted, kld_nats=known.kld_nats, kld_interval_nats=known.kld_interval_nats, no_prediction=known.no_prediction
    )


# Building


def start_build(workspace: Workspace, wish: BuildWish) -> JobReport:
    """Keep the strategy beside the file to come, and start a detached job that builds it.

    Raises:
        OutputError: a file is in the way, or the folder is missing.
        ResourceError: disk or memory fall short.
        JobError: another process builds this very file now.
    """
    _require_place(wish)
    keep_strategy(wish)
    return start_detached(workspace, submit(workspace, wish.task(wish.strategy_path)))


def _require_place(wish: BuildWish) -> None:
    if wish.output.suffix != ".gguf":
        raise OutputError(f"{wish.output.name} is not a name for a GGUF file", remedy="End it in .gguf")
    if not wish.output.parent.is_dir():
        raise OutputError(f"there is no folder {wish.output.parent}", remedy="Choose one that exists")
    files.refuse_existing(wish.output, overwrite=wish.overwrite)


def keep_strategy(wish: BuildWish) -> Path:
    """Write the strategy beside the file to come. Raises OutputError where another one, or another file, is there already."""
    path, text = wish.strategy_path, strategy_file.dumps(wish.strategy)
    if path.exists():
        there = _read_or_none(path)
        same = there is not None and strategy_file.dumps(there) == text
        if same:
            return path
        if there is None or not wish.overwrite:
            what = "is another strategy" if there is not None else "is something other than a strategy"
            raise OutputError(f"{path.name} already exists and {what}", remedy="Choose another name")
    return files.write_text(path, text, overwrite=True)


def _read_or_none(path: Path) -> Strategy | None:
    try:
        return strategy_file.read(path)
    except StrategyError:
        return None


def keep_type_list(workspace: Workspace, wish: BuildWish) -> ExportReport:
    """Write the strategy and llama-quantize's list of types beside the file to come. Raises OutputError as `keep_strategy` does."""
    strategy = keep_strategy(wish)
    place = wish.output.with_name(f"{wish.output.stem}.tensor-types.txt")
    return export(workspace, wish.base, strategy, place, output=wish.output, overwrite=True)


# What was built


def list_builds(workspace: Workspace, model: str) -> list[BuiltFile]:
    """Files of a model that were built and are there, the latest first; `model` is the base's fingerprint. Only their headers are read."""
    records = {record.fingerprint: record for record in workspace.store.strategies(model)}
    verdicts = list_verdicts(workspace, model)
    found: dict[str, list[Location]] = {}
    for location in workspace.store.every_location("build"):
        if location.key in records and location.path.is_file():
            found.setdefault(_stem(location.path), []).append(location)
    reports = (_built(workspace, locations, records[locations[0].key], verdicts) for locations in found.values())
    return [report for report in reports if report is not None]


def _stem(path: Path) -> str:
    """The same for all parts of a split file."""
    stem = str(path).removesuffix(".gguf")
    ending = stem[-_SHARD_ENDING:]
    return stem[:-_SHARD_ENDING] + ending[7:] if ending[:1] == "-" and ending[6:10] == "-of-" else stem


def _built(
    workspace: Workspace, locations: Sequence[Location], record: StrategyRecord, verdicts: Sequence[StoredVerdict]
) -> BuiltFile | None:
    """None where the file cannot be read any more."""
    first = min(location.path for location in locations)
    try:
        strategy = _stored(record.document)
        size_bytes, bits = judging.file_size(first)
        judged = tuple(item.fingerprint for item in verdicts_on(workspace, first, verdicts, may_read=False))
    except QuantailorError:
        return None
    told = strategy.prediction
    kld, ends = (None, None) if told is None else (told.kld_nats, told.kld_interval_nats)
    paths = tuple(sorted({str(location.path) for location in locations}))
    return BuiltFile(
        str(first), paths, size_bytes, bits, record.fingerprint, strategy.method, kld, ends, judged, wants_compensation(strategy)
    )


PLAIN_TWIN = "the same types, rounded plainly"


@dataclasses.dataclass(frozen=True, slots=True)
class RoundingReport:
    """How a judged file was rounded, and what that is worth."""

    is_compensated: bool
    gain: Comparison | None
    """A compensated file against one of the same types that was rounded plainly, where both were measured on the same chunks."""


def rounding_report(workspace: Workspace, model: str, stored: StoredVerdict, builds: Sequence[BuiltFile]) -> RoundingReport | None:
    """The rounding of the file that a verdict judges, one of these `builds`; None where it is not among them."""
    ours = next((item for item in builds if stored.fingerprint in item.verdicts), None)
    if ours is None:
        return None
    twins = [
        item for item in builds if ours.is_compensated and not item.is_compensated and _types(workspace, item) == _types(workspace, ours)
    ]
    known = {item.fingerprint: item for item in list_verdicts(workspace, model)}
    for other in (known[fingerprint] for twin in twins for fingerprint in twin.verdicts):
        gain = compare_files(workspace, stored, other, PLAIN_TWIN)
        if gain is not None:
            return RoundingReport(ours.is_compensated, gain)
    return RoundingReport(ours.is_compensated, None)


def _types(workspace: Workspace, item: BuiltFile) -> Mapping[str, str]:
    return _from_store(workspace, item.strategy).types


def check_built(workspace: Workspace, base: Path, file: Path, *, control: Control = QUIET) -> BuildCheck:
    """A built file against the strategy that the store has for it, else the one that it carries; see `check_build`.

    Raises StrategyError where it carries none.
    """
    strategy = _strategy_of(workspace, file)
    if strategy is None:
        raise StrategyError(
            f"{file} carries no strategy", remedy="Compare it with a strategy's file: `quantailor check FILE STRATEGY --base BASE`"
        )
    return check_build(workspace, base, strategy, file, control=control)


def _strategy_of(workspace: Workspace, file: Path) -> Strategy | None:
    keys = [location.key for location in workspace.store.every_location("build") if location.path == file]
    records = [record for key in keys if (record := workspace.store.strategy(key)) is not None]
    return _stored(records[0].document) if records else embedded_strategy(workspace, file)
