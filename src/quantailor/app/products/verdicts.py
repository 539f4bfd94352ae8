"""Verdicts that were reached, the points that their graph shows, and what another one will take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from quantailor import files
from quantailor.analysis.corpus import chunk_length, load_corpus
from quantailor.analysis.scores import fidelity
from quantailor.costs import machine
from quantailor.costs.machine import Range
from quantailor.costs.model_size import ModelSize
from quantailor.costs.paces import Paces, at_pace
from quantailor.costs.seconds import Seconds, quantize_seconds, score_seconds
from quantailor.errors import OutputError, StoreError
from quantailor.evidence.speeds import known_speeds, speeds_of_files
from quantailor.evidence.written import known_plain_twin
from quantailor.ggml import library
from quantailor.making import judging
from quantailor.present.charts.drawing import draw
from quantailor.present.charts.verdict import Measure, verdict_chart, verdict_csv
from quantailor.present.words import figure, percent, plural
from quantailor.records import PLAIN_TWIN, Comparison, PredictedSpeed, Verdict, VerdictRow
from quantailor.session import HELDOUT_TEXT, OpenedModel, Workspace
from quantailor.steps.judged.evaluating import Files, tokens_left
from quantailor.steps.judged.references import is_scored
from quantailor.steps.verify import BASE, NULL_CONTROL, VerifyStep
from quantailor.store import ReferenceFile, ScoreKey

VerdictFormat = Literal["png", "svg", "csv"]
MIN_CHUNKS = judging.MIN_CHUNKS
"""Fewer chunks carry no claim."""
EQUAL_SIZE = judging.EQUAL_SIZE
"""Sizes that differ by no more than this share count as equal."""
TWIN_TYPE = "Q4_K"
"""Stands for all types where the time is reckoned that a file's plain twin takes; it is short beside the chunks."""
size_difference, counts_against = judging.size_difference, judging.counts_against


@dataclass(frozen=True, slots=True)
class StoredVerdict:
    """A verdict and the name that the store has for it."""

    fingerprint: str
    verdict: Verdict

    @property
    def ours(self) -> VerdictRow:
        """The row of the file that was judged."""
        return next(row for row in self.verdict.rows if row.kind == "ours")


@dataclass(frozen=True, slots=True)
class VerdictsReport:
    """Verdicts of a model, and what was written."""

    verdicts: tuple[StoredVerdict, ...]
    exported: str | None = None
    speeds: Mapping[str, PredictedSpeed] = field(default_factory=dict)
    """Of the files of a single verdict: label -> what is predicted on this machine, see `verdict_speeds`."""


@dataclass(frozen=True, slots=True)
class VerifyCost:
    """What a verification will take."""

    n_text_chunks: int
    """Whole chunks that the text has."""
    n_chunks: int
    """Of these, how many will be used."""
    n_runs: int
    """(file, chunk) pairs that are still to be run, evaluations reckoned as chunks; the store has the others."""
    references: tuple[str, ...]
    """Presets that the file will be compared with."""
    new_references: tuple[str, ...]
    """Those of them that llama.cpp must build first."""
    builds_twin: bool
    """Whether its own types must first be rounded plainly."""
    seconds: Range


# What there is


def list_verdicts(workspace: Workspace, model: str) -> list[StoredVerdict]:
    """A model's verdicts, the latest first; `model` is the base's fingerprint."""
    return [StoredVerdict(record.fingerprint, record.verdict) for record in workspace.store.verdicts(model)]


def find_verdict(workspace: Workspace, model: str, fingerprint: str = "") -> StoredVerdict:
    """The latest verdict of a model, or the one whose fingerprint begins so. Raises StoreError where there is none."""
    found = [item for item in list_verdicts(workspace, model) if item.fingerprint.startswith(fingerprint)]
    if not found:
        which = f"no verdict {fingerprint}" if fingerprint else "no verdict"
        raise StoreError(f"{which} on this model's files is known", remedy="Make one with `quantailor verify FILE --base BASE`")
    return found[0]


def verdicts_on(workspace: Workspace, file: Path, verdicts: Sequence[StoredVerdict], *, may_read: bool = True) -> list[StoredVerdict]:
    """Those verdicts that judge these very bytes, whatever the file's name was.

    Args:
        workspace: which knows the files that were read in this home and are as they were then.
        file: a GGUF file.
        verdicts: from `list_verdicts`.
        may_read: whether a file that it does not know is read whole; else no verdict is said to judge that one. Verifying reads a file.

    Raises:
        ModelError: the file cannot be read.
    """
    size_bytes, _ = judging.file_size(file)
    candidates = [item for item in verdicts if item.ours.size_bytes == size_bytes]
    if not candidates:
        return []
    identity = workspace.identity(file) if may_read else workspace.known_identity(file)
    return [item for item in candidates if identity is not None and item.ours.content == identity.fingerprint]


def verdict_speeds(workspace: Workspace, base: str | Path, verdict: Verdict) -> dict[str, PredictedSpeed]:
    """Label -> tokens per second that are predicted on this machine, of files that this home built and still knows, and of the base.

    Raises ModelError where the base cannot be read.
    """
    with workspace.source(base) as source:
        if known_speeds(workspace, source) is None:
            return {}
        built = (location.path for location in workspace.store.every_location("build"))
        labels = {row.content: row.label for row in verdict.rows}
        files: dict[str, Path | ReferenceFile] = {labels[each.content]: each for each in workspace.store.reference_files_of(labels)}
        for path in (Path(base), *workspace.home.references.glob("*.gguf"), *built):
            identity = workspace.known_identity(path) if path.is_file() else None
            if identity is not None and identity.fingerprint in labels:
                files[labels[identity.fingerprint]] = path
        return speeds_of_files(workspace, source, files)


def compare_files(workspace: Workspace, ours: StoredVerdict, other: StoredVerdict, label: str) -> Comparison | None:
    """The file of one verdict against that of another, which is called `label`; None unless all chunks of the first have both."""
    a, b = ours.verdict, other.verdict
    if (a.model_fingerprint, a.corpus_sha256, a.n_ctx) != (b.model_fingerprint, b.corpus_sha256, b.n_ctx):
        return None
    n_chunks, size_ratio = ours.ours.statistics.n_chunks, ours.ours.size_bytes / other.ours.size_bytes
    for engine in library.engines():
        keys = (ScoreKey(a.model_fingerprint, a.corpus_sha256, a.n_ctx, item.ours.content, engine) for item in (ours, other))
        first, second = ([score for score in workspace.store.chunk_scores(key) if score.index < n_chunks] for key in keys)
        if len(first) == len(second) == n_chunks:
            return fidelity.compare(first, second, reference=label, size_ratio=size_ratio)
    return None


# The graph


def render_verdict(verdict: Verdict, format: VerdictFormat, *, measure: Measure = "kld") -> bytes:
    """The graph as PNG or SVG, or its points as CSV, one row for each."""
    return verdict_csv(verdict, measure).encode() if format == "csv" else draw(verdict_chart(verdict, measure), format)


def export_verdict(
    workspace: Workspace, model: str, path: Path, *, fingerprint: str = "", measure: Measure = "kld", overwrite: bool = False
) -> Path:
    """Write a verdict's graph as PNG or SVG, or its points as CSV, as the file's name ends.

    Args:
        workspace: where the verdicts are.
        model: the base's fingerprint.
        path: the file; it appears whole or not at all.
        fingerprint: the verdict's, or how it begins; "" is the latest.
        measure: "kld" or "ppl".
        overwrite: replace the file.

    Raises:
        StoreError: there is no such verdict.
        OutputError: the file exists, has another ending, or cannot be written.
    """
    wanted = _format_of(path)
    files.refuse_existing(path, overwrite=overwrite)
    content = render_verdict(find_verdict(workspace, model, fingerprint).verdict, wanted, measure=measure)
    with files.whole_file(path, overwrite=overwrite) as stream:
        stream.write(content)
    return path


def _format_of(path: Path) -> VerdictFormat:
    endings: Mapping[str, VerdictFormat] = {".png": "png", ".svg": "svg", ".csv": "csv"}
    found = endings.get(path.suffix.lower())
    if found is None:
        raise OutputError(f"{path.name} does not name a format that a verdict can be written in", remedy=f"End it in {', '.join(endings)}")
    return found


# What another one takes


def headline(verdict: Verdict) -> str:
    """The one thing to know of a verdict: how ours stands to the preset of its size, else to the line through the presets around it."""
    if verdict.pairs:
        return judging.first_sentence(verdict)
    n_chunks = verdict.rows[0].statistics.n_chunks
    names = {row.label for row in verdict.rows if row.kind == "reference" and row.label != PLAIN_TWIN}
    presets = [each for each in verdict.comparisons if each.reference in names]
    if n_chunks < MIN_CHUNKS:
        return f"Too early to say: {plural(n_chunks, 'chunk')} of the {MIN_CHUNKS} that a claim needs."
    if not presets:
        return "It was compared with no preset."
    larger = [each for each in presets if size_difference(each) > 0]
    beaten = max((each for each in larger if each.outcome == "better"), key=size_difference, default=None)
    equal = next((each for each in presets if not size_difference(each)), None)
    if equal is not None:
        also = "" if beaten is None else f", and better than {_with_size(beaten)}"
        return f"{_stands(equal)} at its size{also}."
    if beaten is not None:
        return f"{_stands(beaten)}, which is {_far(size_difference(beaten))} larger."
    smaller = [each for each in presets if size_difference(each) < 0]
    if (against := max((each for each in smaller if each.outcome != "better"), key=size_difference, default=None)) is not None:
        return f"{_stands(against)}, which is {_far(size_difference(against))} smaller."
    if not smaller:
        return "No preset of its size was measured: all are larger."
    if not larger:
        return f"Better than {_with_size(max(smaller, key=size_difference))}; no larger preset was measured."
    return _beside_line(verdict, max(smaller, key=size_difference), min(larger, key=size_difference))


def _stands(each: Comparison) -> str:
    ratio = math.exp(each.ln_kld_ratio)
    share = f"{percent(ratio, 0)} of" if ratio < 1.995 else f"{figure(ratio, 2)} times"
    return f"{each.outcome.capitalize()} than {each.reference}" + ("" if each.outcome == "no better" else f" ({share} its divergence)")


def _with_size(each: Comparison) -> str:
    difference = size_difference(each)
    return f"{each.reference}, which is {_far(difference)} {'larger' if difference > 0 else 'smaller'}"


def _far(difference: float) -> str:
    return percent(abs(difference), 0 if abs(difference) >= 0.0095 else 1)


def _beside_line(verdict: Verdict, smaller: Comparison, larger: Comparison) -> str:
    """Ours against a straight line between two presets, in the logarithms of size and divergence."""
    by_label = {row.label: row for row in verdict.rows}
    ours = next(row for row in verdict.rows if row.kind == "ours")
    ends = [by_label[each.reference] for each in (smaller, larger)]
    (x0, y0), (x1, y1), (x, y) = ((math.log(row.size_bytes), math.log(row.statistics.kld_mean.value)) for row in (*ends, ours))
    share = math.exp(y - (y0 + (y1 - y0) * (x - x0) / (x1 - x0)))
    return f"It has {percent(share, 0)} of the divergence that the line from {smaller.reference} to {larger.reference} has at its size."


def preset_names() -> tuple[str, ...]:
    """llama.cpp's presets that can be references, from most to fewest bits per weight."""
    known, bits = library.presets(), {name: qtype.bits_per_weight for name, qtype in library.types().items()}
    unusual = {"NVFP4", "MXFP4_MOE", "Q1_0", "Q2_0", "BF16", "F16"}
    return tuple(sorted(known.keys() - unusual, key=lambda name: (-_bits(name, bits), name)))


def _bits(preset: str, bits: Mapping[str, float]) -> float:
    return max((bits[name] for name in bits if preset.startswith(name)), default=0.0)


def verify_cost(workspace: Workspace, task: VerifyStep) -> VerifyCost:
    """How long a verification will take, as a range; what the store has already is left out.

    Raises ModelError where a file cannot be read, CorpusError for the text, TypeUnavailableError for an unknown preset.
    """
    with workspace.model(task.base) as model:
        text = Path(task.text) if task.text else HELDOUT_TEXT
        corpus = load_corpus(Path(task.base), text)
        n_ctx = chunk_length(model.source, task.n_ctx)
        n_text_chunks = corpus.n_chunks(n_ctx)
        n_chunks = min(task.chunks or n_text_chunks, n_text_chunks)
        imatrix, _ = task.choose_imatrix(workspace, model)
        references = task.presets(workspace, model, imatrix)
        folder = workspace.home.references
        places = {name: judging.reference_path(model.description, name, imatrix=imatrix, folder=folder) for name in references}
        there = {name: path for name, path in places.items() if workspace.is_as_written(path, path.name)}
        known = {name: file for name in places if (file := workspace.store.reference_file(places[name].name)) is not None}
        key_of = partial(ScoreKey, model.fingerprint, corpus.sha256, n_ctx, engine=task.compute.devices.engine)
        enough = {name for name, file in known.items() if not task.evals.names and is_scored(workspace, key_of(file.content), n_chunks)}
        new = tuple(name for name in places if name not in there and name not in enough)
        twin = known_plain_twin(workspace, model, Path(task.file)) if task.beside and Path(task.file).is_file() else None
        builds_twin = twin is not None and not twin[1]
        judged = (*task.files, *there.values(), *([] if twin is None or builds_twin else [twin[0]]))
        keys = {workspace.identity(path).fingerprint for path in judged if path.is_file()} | {file.content for file in known.values()}
        done = {key: workspace.store.scored_chunks(key_of(key)) for key in (BASE, NULL_CONTROL, *keys)}
        n_unknown = len(set(new) - set(known)) + builds_twin
        asked = tokens_left(workspace, model, task.evals, text, corpus, Files(keys, n_unknown, task.compute.devices.engine))
        n_runs = _n_runs(done, n_chunks, n_new=n_unknown) + math.ceil(asked / n_ctx)
        seconds = _seconds(workspace, model, task, n_runs, [*map(_main_type, new), *([TWIN_TYPE] if builds_twin else [])])
        return VerifyCost(n_text_chunks, n_chunks, n_runs, references, new, builds_twin, seconds)


def _n_runs(done: Mapping[str, frozenset[int]], n_chunks: int, *, n_new: int) -> int:
    """A chunk that any file lacks is run with the base too, whose log-probabilities are not kept."""
    missing = {key: fidelity.wanted_chunks(key, n_chunks) - chunks for key, chunks in done.items()}
    again = range(n_chunks) if n_new else frozenset().union(*missing.values())
    others = sum(len(chunks) for key, chunks in missing.items() if key != BASE)
    return len(again) + others + n_new * n_chunks


def _seconds(workspace: Workspace, model: OpenedModel, task: VerifyStep, n_runs: int, written: Sequence[str]) -> Range:
    size, threads = ModelSize.of(model.source), min(task.compute.n_threads or machine.n_threads(), machine.n_threads())
    building = sum(quantize_seconds({type_name: size.n_weights}, n_threads=threads) for type_name in written)
    layers = task.compute.n_gpu_layers
    running = score_seconds(size, n_runs, task.n_ctx, n_threads=threads, n_gpu_layers=layers, base_is_held=True)
    return at_pace(
        Paces(workspace.store.jobs.paces()),
        "verify",
        running + Seconds(beside=(building / 2, 2 * building)),
        compensated=False,
        n_threads=threads,
        on_gpu=layers != 0,
    )


def _main_type(preset: str) -> str:
    """The type that most weights of a preset have, or the nearest that there is."""
    names = [name for name in library.types() if preset.startswith(name)]
    return max(names, key=len) if names else "Q4_K"
