"""Everything Quantailor has found out, in one sqlite file, through typed methods.

Results have natural keys and carry no clock, so that an interrupted and resumed run leaves row for row what an
uninterrupted one leaves (`result_rows` shows it). Recording the same thing twice keeps the later one. A method that
records returns when its records are on disk; several calls inside `transaction()` are recorded together or not at all.
Jobs are in `store.jobs`.

A new kind of result (probes, for example) is a new migration with its table, a key in `keys.py` and methods here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from quantailor.files import Closing
from quantailor.ggml import library
from quantailor.records import ChunkScore, Estimate, EvalItem, Mix, TensorInfo, Timing, Verdict, WeightError
from quantailor.store import encoding
from quantailor.store.database import BUSY_TIMEOUT_S, Database, Value
from quantailor.store.job_table import JobTable
from quantailor.store.keys import (
    ENGINE,
    CalibrationRecord,
    EvalKey,
    ImatrixKey,
    ImatrixProgress,
    Location,
    LocationKind,
    MeasurementKey,
    ModelRecord,
    ReferenceFile,
    ResultCounts,
    ScoreKey,
    StrategyRecord,
    SwapKey,
    TimingKey,
    VerdictRecord,
)
from quantailor.store.rows import (
    calibration_of,
    cell_of,
    cell_row,
    mix_score_row,
    reference_file_of,
    score_of,
    score_row,
    verdict_of,
)
from quantailor.store.sql import MEASUREMENT_TABLES, RESULT_TABLES, SQL

Found = TypeVar("Found")


class Store(Closing):
    """The project's database; created where it does not exist. Any thread may use it, and so may other processes.

    Raises StoreError when the file is damaged, of a newer version, locked, or cannot be written.
    """

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self._database = Database(Path(path), now=now, busy_timeout_s=busy_timeout_s)
        self.jobs = JobTable(self._database)

    @property
    def path(self) -> Path:
        return self._database.path

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def transaction(self) -> AbstractContextManager[None]:
        """Record several things together or not at all."""
        return self._database.transaction()

    # Models

    def record_model(self, model: ModelRecord, tensors: Sequence[TensorInfo]) -> None:
        """Record a model and its tensors in file order. Everything else refers to it, so this comes first."""
        rows = [(model.fingerprint, info.name, at, _shape_text(info), info.type_name, info.size_bytes) for at, info in enumerate(tensors)]
        with self.transaction():
            self._database.change(SQL.record_model, asdict(model))
            self._database.change_many(SQL.record_tensor, rows)
            self._note("model", model.fingerprint)

    def model(self, fingerprint: str) -> ModelRecord | None:
        """The model of that fingerprint."""
        return _only(ModelRecord(*row) for row in self._database.query(SQL.model, (fingerprint,)))

    def models(self) -> list[ModelRecord]:
        """All models, the latest recorded first."""
        return [ModelRecord(*row) for row in self._database.query(SQL.models)]

    def tensors(self, model: str) -> list[TensorInfo]:
        """A model's tensors in file order."""
        return [
            TensorInfo(name, tuple(int(part) for part in shape.split(",") if part), type_name, size_bytes)
            for name, shape, type_name, size_bytes in self._database.query(SQL.tensors, (model,))
        ]

    def forget_model(self, fingerprint: str) -> None:
        """Remove a model with everything that was found out about it."""
        self._database.change(SQL.forget_model, (fingerprint,))

    def take_over(self, other: Path) -> None:
        """Add what another store of the same version has measured; what is known here stays."""
        self._database.absorb(other, MEASUREMENT_TABLES)

    def compact(self) -> None:
        """Give back the room of what was removed."""
        self._database.query("VACUUM")

    # Weight errors

    def record_cells(self, key: MeasurementKey, cells: Iterable[WeightError]) -> None:
        """Record measured (or unavailable) cells, all of them or none."""
        self._database.change_many(SQL.record_cell, [cell_row(key, cell) for cell in cells])

    def cells(self, key: MeasurementKey, *, tensor: str | None = None, distributions: bool = True) -> list[WeightError]:
        """Cells in the file order of their tensors, then by type name.

        Args:
            key: the measurement.
            tensor: only this tensor's.
            distributions: with quantiles and histograms, which take ten times the memory of all the rest.
        """
        return self._database.each(SQL.cells, {**key.row, "tensor": tensor, "distributions": distributions}, cell_of)

    def recorded_cells(self, key: MeasurementKey) -> frozenset[tuple[str, str]]:
        """(tensor, type) of every recorded cell."""
        return frozenset((str(tensor), str(type_name)) for tensor, type_name in self._database.query(SQL.recorded_cells, key.row))

    def cell_counts(self, key: MeasurementKey) -> dict[str, int]:
        """Tensor -> number of its recorded cells; cheap enough to be asked every second."""
        return {str(tensor): count for tensor, count in self._database.query(SQL.cell_counts, key.row)}

    def cell_errors(self, key: MeasurementKey, tensors: Iterable[str]) -> list[tuple[str, str, float, float | None, bool]]:
        """(tensor, type, bits per weight, `WeightError.error`, whether unavailable) of these tensors' cells, without all the rest.

        Where no such error is recorded it is `relative_mse`.
        """
        rows = self._database.query(SQL.cell_errors, {**key.row, "tensors": json.dumps(list(tensors))})
        return [(tensor, type_name, bits, error, bool(missing)) for tensor, type_name, bits, error, missing in rows]

    def measurements(self, model: str) -> dict[MeasurementKey, int]:
        """Every measurement of a model by this llama.cpp with its number of cells."""
        return self._counted(SQL.measurements, model)

    def measured_tensors(self, model: str) -> dict[MeasurementKey, int]:
        """Every measurement of a model with the number of tensors that have a cell in it."""
        return self._counted(SQL.measured_tensors, model)

    def _counted(self, sql: str, model: str) -> dict[MeasurementKey, int]:
        counts = {MeasurementKey.of_row(*key): count for *key, count in self._database.query(sql, (model,))}
        return {key: count for key, count in counts.items() if key.engine in library.engines()}

    def forget_cells(self, key: MeasurementKey) -> int:
        """Remove one measurement; the number of cells removed."""
        return self._database.change(SQL.forget_cells, key.row)

    # Importance matrices

    def record_imatrix_progress(self, key: ImatrixKey, n_chunks_done: int, state: bytes) -> None:
        """Keep the state of an unfinished computation in place of the earlier one."""
        self._database.change(SQL.record_imatrix_progress, {**key.row, "n_chunks_done": n_chunks_done, "state": state})

    def imatrix_progress(self, key: ImatrixKey) -> ImatrixProgress | None:
        """Where that computation stopped, if it was begun and is not finished."""
        return _only(ImatrixProgress(*row) for row in self._database.query(SQL.imatrix_progress, key.row))

    def record_imatrix(self, imatrix: CalibrationRecord, *, computed: ImatrixKey | None = None) -> None:
        """Record an importance matrix; with `computed`, as that computation's result, whose progress is dropped."""
        row = {**asdict(imatrix), "datasets": json.dumps(imatrix.datasets)}
        with self.transaction():
            self._database.change(SQL.record_imatrix, row)
            self._note("imatrix", f"{imatrix.model} {imatrix.fingerprint}")
            if computed is not None:
                self._database.change(SQL.record_computation, {**computed.row, "fingerprint": imatrix.fingerprint})
                self._database.change(SQL.forget_imatrix_progress, computed.row)

    def imatrix(self, model: str, fingerprint: str) -> CalibrationRecord | None:
        """The importance matrix of that fingerprint."""
        return _only(calibration_of(row) for row in self._database.query(SQL.imatrix, (model, fingerprint)))

    def imatrices(self, model: str) -> list[CalibrationRecord]:
        """A model's importance matrices, the latest recorded first."""
        return [calibration_of(row) for row in self._database.query(SQL.imatrices, (model,))]

    def computed_imatrix(self, key: ImatrixKey) -> CalibrationRecord | None:
        """What that computation gave, if it was finished."""
        return _only(calibration_of(row) for row in self._database.query(SQL.computed_imatrix, key.row))

    def imatrix_texts(self, model: str, fingerprint: str = "") -> set[str]:
        """SHA-256 of the texts that an importance matrix was computed from, or all of a model's for none."""
        rows = self._database.query(SQL.imatrix_texts, {"model": model, "fingerprint": fingerprint})
        return {str(row[0]).partition(ENGINE)[0] for row in rows}

    # Covariances

    def record_covariances(self, covariances: CalibrationRecord, *, computed: ImatrixKey | None = None) -> None:
        """Record input covariances; with `computed`, as that computation's result."""
        with self.transaction():
            self._database.change(SQL.record_covariances, {**asdict(covariances), "datasets": json.dumps(covariances.datasets)})
            self._note("covariances", f"{covariances.model} {covariances.fingerprint}")
            if computed is not None:
                self._database.change(SQL.record_covariance_computation, {**computed.row, "fingerprint": covariances.fingerprint})

    def covariance_texts(self, model: str, start: str) -> set[str]:
        """SHA-256 of the texts that input covariances were computed from, by the start of their fingerprint."""
        return {str(text) for (text,) in self._database.query(SQL.covariance_texts, {"model": model, "start": start})}

    def covariances(self, model: str) -> list[CalibrationRecord]:
        """A model's covariances, the latest recorded first."""
        return [calibration_of(row) for row in self._database.query(SQL.covariances, (model,))]

    def computed_covariances(self, key: ImatrixKey) -> CalibrationRecord | None:
        """What that computation gave, if it was finished."""
        return _only(calibration_of(row) for row in self._database.query(SQL.computed_covariances, key.row))

    # Fidelity

    def record_chunk_scores(self, key: ScoreKey, scores: Iterable[ChunkScore]) -> None:
        """Record scored chunks, all of them or none."""
        self._database.change_many(SQL.record_chunk_score, [score_row(key, score) for score in scores])

    def chunk_scores(self, key: ScoreKey) -> list[ChunkScore]:
        """Scores by chunk index."""
        return [score_of(row) for row in self._database.query(SQL.chunk_scores, key.row)]

    def scored_chunks(self, key: ScoreKey) -> frozenset[int]:
        """Indexes of the chunks that are recorded."""
        return frozenset(int(row[0]) for row in self._database.query(SQL.scored_chunks, key.row))

    def record_answers(self, key: EvalKey, answers: Iterable[EvalItem]) -> None:
        """Record answers of an evaluation, all of them or none."""
        rows = [{**key.row, "item": each.index, "figures": encoding.floats_to_blob(each.values)} for each in answers]
        self._database.change_many(SQL.record_answer, rows)

    def answers(self, key: EvalKey) -> list[EvalItem]:
        """Answers by the number of their item."""
        return [EvalItem(index, encoding.floats_from_blob(blob)) for index, blob in self._database.query(SQL.answers, key.row)]

    # What files take

    def record_timing(self, key: TimingKey, timed: str, timing: Timing) -> None:
        """Record what a file took."""
        prompt, generation = timing.prompt, timing.generation
        figures = {"prompt": prompt.value, "prompt_se": prompt.se, "generation": generation.value, "generation_se": generation.se}
        seconds = {"reference_prompt_s": timing.reference_prompt_s, "reference_generation_s": timing.reference_generation_s}
        self._database.change(SQL.record_timing, {**asdict(key), "timed": timed, **figures, **seconds})

    def timings(self, key: TimingKey) -> dict[str, Timing]:
        """Name -> what the file took."""
        rows = self._database.query(SQL.timings, asdict(key))
        return {
            str(timed): Timing(Estimate(prompt, prompt_se), Estimate(generation, generation_se), *seconds)
            for timed, prompt, prompt_se, generation, generation_se, *seconds in rows
        }

    def n_timings(self) -> int:
        """Files that were timed, of all structures."""
        return int(self._database.query(SQL.n_timings)[0][0])

    def timed_with(self, structure: str, kernels: str, definition_version: int) -> list[tuple[int, int]]:
        """(threads, GPU layers) with which files of a structure were timed, those with most files first."""
        key: dict[str, str | int] = {"structure": structure, "kernels": kernels, "definition_version": definition_version}
        return [(int(threads), int(layers)) for threads, layers in self._database.query(SQL.timed_with, key)]

    # Mixes

    def record_mixes(self, model: str, purpose: str, mixes: Iterable[Mix]) -> None:
        """Record what mixes are for, all of them or none; scores of single tensors do without."""
        rows = [{"model": model, "mix": mix.id, "purpose": purpose, "document": encoding.canonical_json(mix.types)} for mix in mixes]
        self._database.change_many(SQL.record_mix, rows)

    def mixes(self, model: str, purpose: str) -> list[Mix]:
        """A model's mixes for one purpose, by id."""
        return [Mix.of(json.loads(document)) for _, document in self._database.query(SQL.mixes, (model, purpose))]

    def record_mix_scores(self, key: SwapKey, scores: Iterable[tuple[str, ChunkScore]]) -> None:
        """Record scored chunks of mixes, (mix id, score), all of them or none."""
        rows = [mix_score_row(key.run, mix, score) for mix, score in scores]
        with self.transaction():
            self._database.change(SQL.record_swap_run, {**asdict(key), "run": key.run})
            self._database.change_many(SQL.record_mix_score, rows)
            self._note("swap run", key.run)

    def mix_scores(self, key: SwapKey) -> dict[str, list[ChunkScore]]:
        """Every mix's scores by chunk index."""
        found: dict[str, list[ChunkScore]] = {}
        for mix, *figures in self._database.query(SQL.mix_scores, (key.run,)):
            found.setdefault(mix, []).append(ChunkScore(*figures))
        return found

    def scored_mixes(self, key: SwapKey) -> dict[str, int]:
        """How many chunks of every mix are scored."""
        return {str(mix): int(count) for mix, count in self._database.query(SQL.scored_mixes, (key.run,))}

    def swap_runs(self, model: str) -> list[SwapKey]:
        """What mixes of a model were scored with by this llama.cpp, the latest first."""
        keys = [SwapKey(*row) for row in self._database.query(SQL.swap_runs, (model,))]
        return [key for key in keys if key.engine in library.engines()]

    # Strategies and verdicts

    def record_strategy(self, strategy: StrategyRecord) -> None:
        """Record a strategy under its fingerprint."""
        with self.transaction():
            self._database.change(SQL.record_strategy, asdict(strategy))
            self._note("strategy", strategy.fingerprint)

    def strategy(self, fingerprint: str) -> StrategyRecord | None:
        """The strategy of that fingerprint."""
        return _only(StrategyRecord(*row) for row in self._database.query(SQL.strategy, (fingerprint,)))

    def strategies(self, model: str) -> list[StrategyRecord]:
        """A model's strategies, the latest recorded first."""
        return [StrategyRecord(*row) for row in self._database.query(SQL.strategies, (model,))]

    def record_verdict(self, verdict: Verdict, *, strategy: str | None = None) -> str:
        """Record a verdict; its fingerprint. `strategy` is the fingerprint of the strategy that was verified."""
        document = encoding.verdict_to_json(verdict)
        fingerprint = encoding.sha256(document)
        with self.transaction():
            self._database.change(SQL.record_verdict, (fingerprint, verdict.model_fingerprint, strategy, document))
            self._note("verdict", fingerprint)
        return fingerprint

    def verdict(self, fingerprint: str) -> VerdictRecord | None:
        """The verdict of that fingerprint."""
        return _only(verdict_of(row) for row in self._database.query(SQL.verdict, (fingerprint,)))

    def verdicts(self, model: str) -> list[VerdictRecord]:
        """A model's verdicts, the latest recorded first."""
        return [verdict_of(row) for row in self._database.query(SQL.verdicts, (model,))]

    def record_reference_file(self, file: ReferenceFile) -> None:
        """Record what a preset's file is, for when it is there no longer."""
        self._database.change(SQL.record_reference_file, {**asdict(file), "types": json.dumps(dict(file.types))})

    def reference_file(self, name: str) -> ReferenceFile | None:
        """What the file of that name is."""
        return _only(reference_file_of(row) for row in self._database.query(SQL.reference_file, (name,)))

    def reference_files_of(self, contents: Collection[str]) -> list[ReferenceFile]:
        """Those that hold one of these models."""
        return [reference_file_of(row) for row in self._database.query(SQL.reference_files_of, (json.dumps(sorted(contents)),))]

    # Drafts

    def record_draft(self, model: str, name: str, document: str) -> None:
        """Keep a strategy in the making in place of the earlier one of that name, whatever that has become."""
        self._database.change(SQL.record_draft, self._draft_row(model, name, document))

    def change_draft(self, model: str, name: str, document: str, *, revision: int) -> int | None:
        """Keep a strategy in the making in place of that revision (0: of none).

        Returns:
            Its own revision, or None, and nothing is kept, where the present one is another than that.
        """
        row = self._draft_row(model, name, document)
        with self._database.transaction():
            if revision == 0:
                is_kept = self._database.change(SQL.begin_draft, row)
            else:
                is_kept = self._database.change(SQL.change_draft, (*row[2:], model, name, revision))
            return self.draft_revision(model, name) if is_kept else None

    def _draft_row(self, model: str, name: str, document: str) -> tuple[str, str, str, float, int]:
        """A revision is the time of the change in microseconds, or one more than the last: a draft begun anew never has an old one's."""
        now = self._database.now()
        return model, name, document, now, int(1e6 * now)

    def draft(self, model: str, name: str) -> tuple[str, int] | None:
        """The document of that name and its revision."""
        return _only((str(document), int(revision)) for document, revision in self._database.query(SQL.draft, (model, name)))

    def draft_revision(self, model: str, name: str) -> int:
        """The revision of the draft of that name; 0 where there is none."""
        return _only(int(revision) for (revision,) in self._database.query(SQL.draft_revision, (model, name))) or 0

    def drafts(self, model: str) -> list[tuple[str, float]]:
        """A model's drafts by name, with wall-clock seconds of the last change, the latest first."""
        return [(name, changed) for name, changed in self._database.query(SQL.drafts, (model,))]

    def forget_draft(self, model: str, name: str) -> None:
        """Remove a draft."""
        self._database.change(SQL.forget_draft, (model, name))

    # Files

    def record_identity(self, path: str, files: str, identity: Sequence[str]) -> None:
        """Remember which model the files at a path are in this state of theirs, in place of an earlier one.

        `identity` is the fingerprint, and what is remarkable of the weights as `models.identity.Identity` has it.
        """
        self._database.change(SQL.record_identity, (path, files, *identity))

    def identity(self, path: str, files: str) -> tuple[str, ...] | None:
        """What was recorded of the model at a path, if its files are in that state."""
        return _only(tuple(map(str, row)) for row in self._database.query(SQL.identity, (path, files)))

    def record_location(self, kind: LocationKind, key: str, path: Path) -> None:
        """Remember where the file of a model, imatrix, strategy, text (SHA-256) or build (by strategy) lies, or how it was written.

        A "part" is a text that a mix (by its SHA-256) is made of; "sound" is a model that llama.cpp can run (by both); "output" is a file
        that a job gave its name (by job and file); "download" is where the content of a hub's file goes (by repository and etag). A path
        holds one model or text, written in one way: what it held before is not there any more.
        """
        place = str(Path(path).absolute())
        with self.transaction():
            if kind in ("model", "written", "text", "build", "output"):
                self._database.change(SQL.forget_other_locations, (kind, key, place))
            self._database.change(SQL.record_location, (kind, key, place, self._database.now()))

    def locations(self, kind: LocationKind, key: str) -> list[Path]:
        """Where it was seen, the latest first; the files may be gone."""
        return [Path(str(path)) for (path,) in self._database.query(SQL.locations, (kind, key))]

    def every_location(self, kind: LocationKind) -> list[Location]:
        """Where files of that kind were seen, the latest first; they may be gone."""
        rows = self._database.query(SQL.every_location, (kind,))
        return [Location(key, Path(path), seen) for key, path, seen in rows]

    def builds(self, model: str) -> list[Path]:
        """Files built from a model's strategies, the latest first; they may be gone."""
        return [Path(str(path)) for (path,) in self._database.query(SQL.builds, (model,))]

    # Summaries

    def counts(self, model: str) -> ResultCounts:
        """How much is known of a model, without reading it."""
        values = {"model": model, "engines": json.dumps(library.engines())}
        return ResultCounts(*self._database.query(SQL.counts, values)[0])

    def n_available_cells(self, model: str, types: Sequence[str]) -> int:
        """Cells of these types that could be measured, of the measurement that has the most."""
        values = {"model": model, "types": json.dumps(list(types))}
        return int(self._database.query(SQL.n_available_cells, values)[0][0])

    @property
    def now(self) -> float:
        """Wall-clock seconds, as the store's times count them."""
        return self._database.now()

    # All results

    def result_rows(self) -> dict[str, list[tuple[Value, ...]]]:
        """Every row of every result table in key order: equal for two stores that hold the same results.

        Jobs, logs, locations and times are left out.
        """
        return {table: self._database.query(sql) for table, sql in RESULT_TABLES.items()}

    def _note(self, kind: str, key: str) -> None:
        self._database.change(SQL.note, (kind, key, self._database.now()))


def _only(found: Iterable[Found]) -> Found | None:
    return next(iter(found), None)


def _shape_text(info: TensorInfo) -> str:
    return ",".join(str(length) for length in info.shape)
