"""From chunk scores to a verdict: references built by llama.cpp itself, comparisons and a sentence that claims no more than it may.

"Better" and "worse" speak of the mean KL divergence from the base and mean that the 95 % interval of the paired
bootstrap over chunks leaves out equality (METHODS 3). "At equal size" means sizes within 0.1 %. With fewer than 200
chunks the figures are shown, but nothing is claimed.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

from quantailor.analysis.importance.imatrix import Imatrix, quantize_metadata, quantizer_importance
from quantailor.analysis.scores import fidelity
from quantailor.control import QUIET, Control
from quantailor.errors import ModelError, OutputError
from quantailor.files import write_text, writing
from quantailor.ggml import library
from quantailor.ggml.reference import preset_name, quantize_reference
from quantailor.making.building import verdict_paths
from quantailor.making.evals import Evaluated, judge, sentences
from quantailor.models.identity import description as described
from quantailor.models.identity import fingerprint
from quantailor.models.opening import open_model
from quantailor.present import words
from quantailor.present.charts.drawing import save
from quantailor.present.charts.verdict import verdict_chart
from quantailor.qtypes import UNTOUCHED
from quantailor.records import PLAIN_TWIN, ChunkScore, Comparison, Domain, RowKind, Standing, Verdict, VerdictRow, bits_per_weight
from quantailor.strategy.interchange import exact_pattern

EQUAL_SIZE = fidelity.EQUAL_SIZE
"""Sizes that differ by no more than this share count as equal."""

JUDGED: tuple[RowKind, ...] = ("ours", "rival")
MIN_CHUNKS = 200
"""Fewer held-out chunks carry no claim."""
MIN_DOMAIN_CHUNKS = 30
"""Of one text of a mix, for a claim that it suffers."""


@dataclass(frozen=True, slots=True)
class ScoredFile:
    """A file and what its chunks scored. `kind` as in a verdict's rows."""

    label: str
    kind: RowKind
    size_bytes: int
    bits_per_weight: float
    scores: Sequence[ChunkScore]
    content: str = ""
    """Its identity."""


def file_size(path: Path) -> tuple[int, float]:
    """A GGUF file's bytes, all parts together, and its bits per weight; a header of a large vocabulary is read once."""
    try:
        seen = path.stat()
        state = (seen.st_size, seen.st_mtime_ns, seen.st_ino)
    except OSError:  # whoever opens it says so
        state = (0, 0, 0)
    files, bits = _parts_and_bits(path, state)
    if not all(file.is_file() for file in files):  # a part has gone since: the error names it
        files, bits = _parts_and_bits.__wrapped__(path, state)
    return sum(file.stat().st_size for file in files), bits


@lru_cache(maxsize=256)
def _parts_and_bits(path: Path, _state: tuple[int, int, int]) -> tuple[tuple[Path, ...], float]:
    """`_state` is the file's: another file of that name is read anew."""
    with closing(open_model(path, with_arrays=False)) as source:
        return tuple(source.files), bits_per_weight(source.tensors)


def reference_path(base: str, preset: str, *, imatrix: Imatrix | None, folder: Path) -> Path:
    """Where `ensure_reference` keeps a preset of a base (by `models.identity.description`), importance matrix and llama.cpp.

    Raises TypeUnavailableError for an unknown preset.
    """
    matrix, engine = imatrix.fingerprint[:16] if imatrix else "none", re.sub(r"[^\w.]+", "-", library.engine())
    return folder / f"{base[:16]}-{matrix}-{engine}-{preset_name(preset)}.gguf"


def ensure_reference(
    base: Path,
    preset: str,
    *,
    imatrix: Imatrix | None,
    folder: Path,
    description: str | None = None,
    is_intact: Callable[[Path], bool] | None = None,
    n_threads: int | None = None,
    control: Control = QUIET,
) -> Path:
    """The preset of this base as llama.cpp builds it with this importance matrix, from the folder or made now.

    Args:
        base: the GGUF file.
        preset: llama.cpp's name.
        imatrix: importances for the quantizers.
        folder: where references are kept.
        description: the base's, see `models.identity`; read from it unless given.
        is_intact: whether a file that is there is what was written; by default whether it can be read.
        n_threads: None takes all processors.
        control: asked whether to go on.

    Raises:
        TypeUnavailableError: llama.cpp has no such preset.
        ImatrixError: the preset needs an importance matrix, or this one does not fit.
        OutputError: the file cannot be written.
    """
    with closing(open_model(base)) as source:
        path = reference_path(description or described(source, fingerprint(source)), preset, imatrix=imatrix, folder=folder)
        if (is_intact or _is_complete)(path):
            return path
        importances = {
            tensor.name: importance.reshape(-1)
            for tensor in (source.tensors if imatrix else ())
            if imatrix and (importance := quantizer_importance(imatrix, tensor)) is not None
        }
        stay = tuple((exact_pattern(each.name), each.type_name) for each in source.tensors if each.type_name in UNTOUCHED)
    return quantize_reference(
        base,
        path,
        preset=preset,
        overrides=stay,  # llama.cpp's quantizer ends where it meets integers under a weight's name
        imatrix=importances or None,
        metadata=quantize_metadata(imatrix) if imatrix else None,
        n_threads=n_threads,
        check=_check_complete,
        control=control,
    )


def _is_complete(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        open_model(path).close()
    except ModelError:
        return False
    return True


def _check_complete(path: Path) -> None:
    """llama.cpp does not notice a full disk; a reader of the file does."""
    try:
        open_model(path).close()
    except ModelError as error:
        raise OutputError(f"the reference {path.name} is incomplete", remedy="Free some disk space") from error


def make_verdict(
    files: Sequence[ScoredFile],
    null_control: Sequence[ChunkScore],
    *,
    model_fingerprint: str,
    corpus_name: str,
    corpus_sha256: str,
    n_ctx: int,
    reservations: Sequence[str] = (),
    domains: Mapping[str, Collection[int]] | None = None,
    evals: Sequence[Evaluated] = (),
) -> Verdict:
    """Statistics of every file, ours against every other, and the sentence. Where several files are judged, every two are compared.

    Args:
        files: the base, ours (the first where there are several), rivals, references; only chunks that all of them have count.
        null_control: the base against itself through the same pipeline, on as few chunks as it has.
        model_fingerprint: the base's.
        corpus_name: the held-out text, for people.
        corpus_sha256: and its hash.
        n_ctx: tokens per chunk.
        reservations: what limits its worth, one sentence each; they end the verdict's sentence, after domains in which ours suffers.
        domains: the chunks of each text by its name, where the held-out text is a mix.
        evals: what all files answered to evaluations.
    """
    files = _common_chunks(files)
    base = next(file for file in files if file.kind == "base")
    ours = next(file for file in files if file.kind == "ours")
    rows = tuple(
        VerdictRow(
            file.label, file.kind, file.size_bytes, file.bits_per_weight, fidelity.statistics_of(file.scores, base.scores), file.content
        )
        for file in files
    )
    comparisons = tuple(_compare(ours, file) for file in files if file.kind in ("rival", "reference"))
    pairs, standings = tuple[Comparison, ...](), tuple[Standing, ...]()
    if sum(file.kind in JUDGED for file in files) > 1:
        pairs = tuple(_compare(a, b, name=a.label) for a, b in itertools.combinations([file for file in files if file.kind != "base"], 2))
        standings = _standings(files)
    floor = fidelity.statistics_of(null_control, base.scores).kld_mean.value
    row = rows[files.index(ours)]
    apart = tuple(found for each in (domains or {}).items() if (found := _domain(*each, files, ours)) is not None)
    reservations = (*_suffering(apart, comparisons), *reservations)
    said = several(rows, pairs, standings) if pairs else sentence(row, comparisons, floor_kld_nats=floor)
    kinds = {file.label: file.kind for file in files}
    evaluated = tuple(judge(each, kinds) for each in evals)
    return Verdict(
        model_fingerprint=model_fingerprint,
        corpus_name=corpus_name,
        corpus_sha256=corpus_sha256,
        n_ctx=n_ctx,
        rows=rows,
        comparisons=comparisons,
        floor_kld_nats=floor,
        sentence=" ".join((said, *(sentences(each, kinds) for each in evaluated), *reservations)),
        reservations=tuple(reservations),
        pairs=pairs,
        standings=standings,
        domains=apart,
        evals=evaluated,
    )


def _domain(name: str, chunks: Collection[int], files: Sequence[ScoredFile], ours: ScoredFile) -> Domain | None:
    """One text apart; None where too few of its chunks were scored for a standard error."""
    within = [replace(file, scores=[score for score in file.scores if score.index in chunks]) for file in files]
    base, us = next(file for file in within if file.kind == "base"), within[files.index(ours)]
    if len(base.scores) < 2:
        return None
    klds = tuple(fidelity.statistics_of(file.scores, base.scores).kld_mean for file in within)
    return Domain(name, len(base.scores), klds, tuple(_compare(us, file) for file in within if file.kind in ("rival", "reference")))


def _suffering(domains: Sequence[Domain], overall: Sequence[Comparison]) -> list[str]:
    """A sentence for each text in which ours stands worse to the file nearest in size than over all, beyond both intervals."""
    if not overall or sum(domain.n_chunks for domain in domains) < MIN_CHUNKS:
        return []
    nearest = min(overall, key=lambda each: abs(math.log(each.size_ratio)))
    found = []
    for domain in domains:
        here = next(each for each in domain.comparisons if each.reference == nearest.reference)
        if domain.n_chunks >= MIN_DOMAIN_CHUNKS and here.interval[0] > nearest.interval[1]:
            whole = f"{math.exp(nearest.ln_kld_ratio):.3g} over all texts"
            found.append(f"On {domain.name} it suffers: {_ratio(here)} against {here.reference}, but {whole}.")
    return found


def _compare(a: ScoredFile, b: ScoredFile, *, name: str = "") -> Comparison:
    return fidelity.compare(a.scores, b.scores, reference=b.label, size_ratio=a.size_bytes / b.size_bytes, file=name)


def _standings(files: Sequence[ScoredFile]) -> tuple[Standing, ...]:
    presets = [(each.label, each.size_bytes, each.scores) for each in files if each.kind == "reference" and each.label != PLAIN_TWIN]
    found = (fidelity.stand(each.label, each.scores, each.size_bytes, presets) for each in files if each.kind in JUDGED)
    return tuple(each for each in found if each is not None)


def _common_chunks(files: Sequence[ScoredFile]) -> list[ScoredFile]:
    """Every figure of a verdict stands on the same chunks, so that the count it states holds for all of them."""
    common = set.intersection(*({score.index for score in file.scores} for file in files))
    return [replace(file, scores=[score for score in file.scores if score.index in common]) for file in files]


def sentence(ours: VerdictRow, comparisons: Sequence[Comparison], *, floor_kld_nats: float) -> str:
    """The verdict in words: our figure first, then a clause on every reference that says how much larger or smaller it is."""
    statistics = ours.statistics
    file = f"{ours.label} ({words.size(ours.size_bytes)}, {words.bits(ours.bits_per_weight)})"
    where = f"mean KLD over {words.plural(statistics.n_chunks, 'chunk')}; the floor is {words.figure(floor_kld_nats, 2)}"
    kld = f"{words.with_error(statistics.kld_mean)} nats per token ({where})"
    said = [f"{file} diverges from the base by {kld}."]
    if not comparisons:
        said.append("It was compared with no reference.")
    elif statistics.n_chunks < MIN_CHUNKS:
        seen = "; ".join(f"against {_reference(comparison)}, {_ratio(comparison)}" for comparison in comparisons)
        said.append(f"That is too few to claim anything; {MIN_CHUNKS} chunks are needed. So far: {seen}.")
    else:
        clauses = (f"{each.outcome} than {_reference(each)} ({_ratio(each)})" for each in comparisons)
        said.append(f"It is {'; '.join(clauses)}.")
    if comparisons and all(size_difference(each) for each in comparisons):
        said.append("No reference has its size.")
    return " ".join(said)


def several(rows: Sequence[VerdictRow], pairs: Sequence[Comparison], standings: Sequence[Standing]) -> str:
    """The verdict on several files in words: all of them beside the presets' line, then each, then ours beside the files of others."""
    judged, n_chunks = [row for row in rows if row.kind in JUDGED], rows[0].statistics.n_chunks
    if n_chunks < MIN_CHUNKS:
        klds = "; ".join(f"{row.label} {words.figure(row.statistics.kld_mean.value)}" for row in judged)
        few = words.plural(n_chunks, "chunk")
        return f"{few} {'is' if n_chunks == 1 else 'are'} too few to claim anything; {MIN_CHUNKS} are needed. Mean KLD so far: {klds}."
    by_file = {each.file: each for each in standings}
    ours = [by_file.get(row.label) for row in judged if row.kind == "ours"]
    outcomes = {each.outcome for each in ours if each is not None}
    said = []
    if len(ours) > 1 and len(outcomes) == 1 and None not in ours:
        said.append(f"{'Both' if len(ours) == 2 else f'All {words.number_word(len(ours))}'} files are {outcomes.pop()} the presets' line.")
    said += [f"{row.label} {_standing(row, rows, pairs, by_file.get(row.label))}." for row in judged]
    rivals = [row for row in judged if row.kind == "rival"]
    said += [
        f"{pair.file} is {pair.outcome} than {_reference(pair)} ({_ratio(pair)})."
        for pair in pairs
        if pair.reference in {row.label for row in rivals} and pair.file in {row.label for row in judged}
    ]
    return " ".join(said)


def first_sentence(verdict: Verdict) -> str:
    """What the sentence of a verdict begins with."""
    return f"{verdict.sentence.partition('. ')[0].removesuffix('.')}."


def _standing(row: VerdictRow, rows: Sequence[VerdictRow], pairs: Sequence[Comparison], standing: Standing | None) -> str:
    """A file beside the presets: on which side of their line, and the one that it equals or beats."""
    if standing is None:
        line = "lies outside the sizes of the presets that were measured"
    else:
        low, high = (words.percent(math.exp(end), 0) for end in standing.interval)
        place = standing.presets[0] if len(standing.presets) == 1 else f"the line from {' to '.join(standing.presets)}"
        share = words.percent(math.exp(standing.ln_kld_ratio), 0)
        line = f"is {standing.outcome} the presets' line: {share} of the divergence of {place} at its size ({low} to {high})"
    presets = {each.label for each in rows if each.kind == "reference" and each.label != PLAIN_TWIN}
    larger = [each for each in pairs if each.file == row.label and each.reference in presets and size_difference(each) > 0]
    same = max((each for each in larger if each.outcome == "no better"), key=size_difference, default=None)
    beaten = max((each for each in larger if each.outcome == "better"), key=size_difference, default=None)
    best = max((each for each in (same, beaten) if each is not None), key=size_difference, default=None)
    if best is None:
        return line
    smaller = words.percent(1 - best.size_ratio, 0 if best.size_ratio < 1 - 0.0095 else 1)
    return f"{line}, and {smaller} smaller than {best.reference} at {'the same' if best is same else 'less'} divergence"


def size_difference(comparison: Comparison) -> float:
    """How much larger the reference is than ours, as a share of ours; 0 for equal sizes."""
    return 0.0 if abs(comparison.size_ratio - 1) <= EQUAL_SIZE else 1 / comparison.size_ratio - 1


def counts_against(comparison: Comparison) -> bool:
    """Whether a comparison speaks against ours: it is no better than a reference that is not larger."""
    return comparison.outcome != "better" and size_difference(comparison) <= 0


def _reference(comparison: Comparison) -> str:
    difference = size_difference(comparison)
    if not difference:
        return f"{comparison.reference} at equal size"
    return f"{comparison.reference}, which is {words.percent(abs(difference), 1)} {'larger' if difference > 0 else 'smaller'}"


def _ratio(comparison: Comparison) -> str:
    low, high = (math.exp(end) for end in comparison.interval)
    return f"KLD ratio {math.exp(comparison.ln_kld_ratio):.3g}, 95 % interval {low:.3g} to {high:.3g}"


CSV_COLUMNS = (
    *("label", "kind", "size_bytes", "bits_per_weight", "n_chunks", "n_tokens", "perplexity", "perplexity_se"),
    *("ln_ppl_ratio", "ln_ppl_ratio_se", "kld_mean_nats", "kld_mean_nats_se", "kld_median_nats", "kld_p99_nats", "kld_p999_nats"),
    *("kld_max_nats", "top_agreement", "top_agreement_se", "rms_dp", "rms_dp_se"),
    *("size_ratio", "kld_ratio", "kld_ratio_low", "kld_ratio_high", "outcome"),
)
"""One row per file; the last five compare ours with that reference and are empty elsewhere."""


def write_verdict(verdict: Verdict, stem: Path) -> tuple[Path, ...]:
    """Write a verdict's files; those of an earlier one go first, so that no two ever stand together. Raises OutputError."""
    as_json, as_csv, *_ = paths = verdict_paths(stem)
    for path in paths:
        with writing(path):
            path.unlink(missing_ok=True)
    write_text(as_json, json.dumps(asdict(verdict), indent=2, allow_nan=False) + "\n")
    write_csv(verdict, as_csv)
    save(verdict_chart(verdict), stem)
    return paths


def write_csv(verdict: Verdict, path: Path) -> Path:
    """The verdict as a table, see `CSV_COLUMNS`. Raises OutputError where it cannot be written."""
    compared = {comparison.reference: comparison for comparison in verdict.comparisons}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(CSV_COLUMNS)
    for row in verdict.rows:
        table.writerow([*_csv_row(row), *_csv_comparison(compared.get(row.label))])
    return write_text(path, text.getvalue())


def _csv_row(row: VerdictRow) -> list[str | int | float]:
    figures = row.statistics
    return [
        *(row.label, row.kind, row.size_bytes, row.bits_per_weight, figures.n_chunks, figures.n_tokens),
        *(figures.perplexity.value, figures.perplexity.se, figures.ln_ppl_ratio.value, figures.ln_ppl_ratio.se),
        *(figures.kld_mean.value, figures.kld_mean.se, figures.kld_median, figures.kld_p99, figures.kld_p999, figures.kld_max),
        *(figures.top_agreement.value, figures.top_agreement.se, figures.rms_dp.value, figures.rms_dp.se),
    ]


def _csv_comparison(comparison: Comparison | None) -> list[str | float]:
    if comparison is None:
        return [""] * 5
    ratios = [math.exp(value) for value in (comparison.ln_kld_ratio, *comparison.interval)]
    return [comparison.size_ratio, *ratios, comparison.outcome]
