"""`study`: everything that measuring needs, in one job."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from quantailor.analysis.corpus import chunk_length, chunks
from quantailor.costs.model_size import ModelSize, is_large
from quantailor.costs.needs import Needs, run_layer_by_layer
from quantailor.errors import OptionError
from quantailor.evidence.grounds import command_line, imatrix_option
from quantailor.evidence.measurements import usual_types
from quantailor.models.abilities import require_predictions
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.source import ModelSource
from quantailor.pipeline.parts import LEVEL_SETTINGS, Level, LevelSettings, Parts, PipelineStep
from quantailor.present.words import plural
from quantailor.session import AUTO, CALIBRATION_TEXT, NONE, OpenedModel, Workspace
from quantailor.steps.calibration.imatrix import use_imatrix
from quantailor.steps.checks.inputs import require_long_texts, require_ours
from quantailor.steps.conversion.convert import ConvertStep, with_base, with_known_base
from quantailor.steps.measure import MeasureResult, known_types
from quantailor.steps.options import COMPUTE, DEFAULT_N_CTX
from quantailor.steps.probe import Grouping, ProbeResult, ProbeStep
from quantailor.steps.stages import Stages
from quantailor.steps.step import Screen, StepResult
from quantailor.steps.sweep import SweepResult, SweepStep
from quantailor.store import CalibrationRecord


@dataclass(frozen=True, slots=True)
class StudyResult(StepResult):
    """What one job measured of a model."""

    base: str
    """The GGUF that everything else starts from."""
    model_fingerprint: str
    level: str
    imatrix_fingerprint: str | None
    imatrix_chunks: int
    """Chunks that the importance matrix saw; 0 without one."""
    rounding: str
    """"plain" or "compensated"."""
    covariances_fingerprint: str | None
    """Its beginning; None where none were at hand."""
    settings: str
    """How weight errors were measured."""
    n_tensors: int
    n_types: int
    n_cells: int
    n_unavailable: int
    basis: str
    """"ranking only" where nothing was probed, else "probes"."""
    n_probed: int
    """Tensors whose sensitivity was measured."""
    n_scored: int
    """(mix, chunk) pairs that the store has for these probes."""
    n_swept: int
    """Cells measured in the model by the sweep."""
    plan_command: str = ""
    """What plans from it, but for the size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyStep(PipelineStep[StudyResult], kind="study", result=StudyResult):
    """Everything that measuring needs, in one job.

    Of importance matrices and of covariances "auto" is what the store has, where it is as good as the level asks for, else what is
    computed, both in one run of the text where neither is there.
    """

    screen: ClassVar[Screen | None] = "measure"

    level: Level = "balanced"
    output: str | None = None
    """Where the base of a Hugging Face directory goes; None is a place in the home."""

    @property
    def settings(self) -> LevelSettings:
        """What its level measures."""
        return LEVEL_SETTINGS[self.level]

    @property
    def calibration_chunks(self) -> int | None:
        """Of the text, for the importance matrix and covariances; None for all."""
        return self.settings.imatrix_chunks

    @property
    def exhaustive(self) -> bool:
        """Whether weight errors are measured on every row."""
        return self.settings.exhaustive

    @property
    def candidate_types(self) -> tuple[str, ...]:
        """The types asked for; all usual ones for none. Raises TypeUnavailableError for an unknown one."""
        return known_types(self.types) if self.types else usual_types()

    def types_to_measure(self, _: OpenedModel) -> tuple[str, ...]:
        """The same, whatever the model."""
        return self.candidate_types

    @property
    def takes_turns(self) -> bool:
        """Whether it runs the model, by its options alone."""
        return self.imatrix != NONE or self.settings.probe_chunks > 0 or self.rounding == "compensated"

    def check(self, workspace: Workspace) -> None:
        """What can be read without work, and that a limit of time finds something to limit. Raises QuantailorError."""
        super(StudyStep, self).check(workspace)
        if self.is_limited and not self.settings.probe_chunks:
            limit = "--time" if self.passes is None else "--passes"
            raise OptionError(f"{limit} limits probes, and level {self.level} has none", remedy="Leave it out, or take --level balanced")

    def run(self, workspace: Workspace, stages: Stages) -> StudyResult:
        """Convert, calibrate, weight errors, probes, sweep, as far as the level goes. What is found is kept."""
        began = time.monotonic()
        if self.seconds is not None:
            stages.limit(self.seconds)
        step = with_base(workspace, self, None if self.output is None else Path(self.output), stages, overwrite=False)
        with workspace.model(step.model, allow_requantize=step.allow_requantize) as model:
            if step.settings.probe_chunks:
                require_predictions(model.source)
            step = step.decided(model.source)
            require_ours(workspace, model, step.imatrix, step.covariances)
            if step.takes_turns:
                workspace.require_runnable(model)
            parts = Parts(step.parts(workspace, model), stages)
            base = str(step.known_base(workspace, model) or step.base_place(workspace, model))
        if parts.begin("convert"):
            # A file of that name in the home, of which nothing is recorded, is from a run that was killed.
            ConvertStep(model=step.model, output=base, overwrite=self.output is None).run(workspace, stages)
        require_long_texts(workspace, base, *([step.text] if step.settings.probe_chunks else []))
        if parts.begin("calibrate"):
            step, imatrix = step.calibrated(workspace, base, stages)
        else:
            imatrix = step.take_imatrix(workspace, base, stages) if parts.begin("imatrix") else NONE
        parts.begin("measure")
        weight_errors = step.measure_step(base, imatrix, step.candidate_types, exhaustive=step.settings.exhaustive)
        measured = weight_errors.run(workspace, stages)
        probed = None
        if parts.begin("probes"):
            step.measure_swapped(workspace, base, imatrix, stages)
            with workspace.source(base) as source:
                probes = step.with_time_left(began).probes(base, imatrix, source)
            probed = probes.run(workspace, stages)
        swept = step.sweep(base, imatrix).run(workspace, stages) if parts.begin("sweep") else None
        return _study_result(workspace, step, base, measured, probed, swept)

    def needs(self, workspace: Workspace) -> Needs:
        """The base where there is none, a model that runs, and what probes keep."""
        step = with_known_base(workspace, self)
        with workspace.model(step.model) as model:
            return step.decided(model.source).needs_of(workspace, model, ModelSize.of(model.source))

    def needs_of(self, workspace: Workspace, model: OpenedModel, size: ModelSize) -> Needs:
        """The same for a model that is open."""
        base = self.known_base(workspace, model)
        needs = Needs() if base else Needs(((self.base_place(workspace, model), size.tensor_bytes),))
        if self.rounding == "compensated" and self.covariances == AUTO and not workspace.store.covariances(model.fingerprint):
            needs += self.calibrate_step(self.model, self.settings.imatrix_chunks).needs(workspace)
        elif self.imatrix != NONE:
            needs += run_layer_by_layer(size, DEFAULT_N_CTX)
        if self.settings.probe_chunks:
            needs += self.probes_step(self.model, AUTO, self.settings.probe_chunks, "tensor").needs(workspace)
        return needs

    def parts(self, workspace: Workspace, model: OpenedModel) -> tuple[str, ...]:
        """The names of the parts that a study of this model has, in order."""
        wanted = {
            "convert": self.known_base(workspace, model) is None,
            "imatrix": self.imatrix != NONE and self.rounding != "compensated",
            "calibrate": self.rounding == "compensated",
            "measure": True,
            "probes": self.settings.probe_chunks > 0,
            "sweep": self.settings.sweep,
        }
        return tuple(name for name, is_wanted in wanted.items() if is_wanted)

    def probes_quickly(self, source: ModelSource) -> bool:
        """The same, but for levels that probe every tensor."""
        return not self.settings.every_tensor and is_large(source)

    def probes(self, base: str, imatrix: str, source: ModelSource) -> ProbeStep:
        """The probes of a level that has some, of this model."""
        settings, quickly = self.settings, self.probes_quickly(source)
        group: Grouping = "tensor" if settings.every_tensor else self.usual_group(source)
        return self.probes_step(
            base, imatrix, settings.probe_chunks, group, types=settings.probe_types, mixes=settings.mixes, quickly=quickly
        )

    def sweep(self, base: str, imatrix: str) -> SweepStep:
        """Every tensor through every candidate type."""
        return SweepStep(
            base=base,
            text=self.text,
            types=self.candidate_types,
            rest=self.rest,
            imatrix=imatrix,
            rounding=self.rounding,
            covariances=self.covariances,
            compute=self.compute,
        )

    def known_base(self, workspace: Workspace, model: OpenedModel) -> Path | None:
        """The model itself where it is a GGUF file, else an earlier conversion of it; None where there is none."""
        if isinstance(model.source, GGUFSource):
            return Path(self.model)
        places = workspace.store.locations("model", model.fingerprint) if self.output is None else [Path(self.output)]
        return next((path for path in places if workspace.holds(path, model.description)), None)

    def base_place(self, workspace: Workspace, model: OpenedModel) -> Path:
        """Where the conversion goes: `output`, else a file in the home that is named after the directory and the model."""
        return workspace.base_path(model.path, model.description) if self.output is None else Path(self.output)

    def decided(self, source: ModelSource) -> StudyStep:
        """The same with its rounding and its passes decided."""
        step = self.with_usual_limit(source, is_usual=self.settings.probe_chunks > 0 and not self.settings.every_tensor)
        return replace(step, rounding="compensated" if self.compensates(source) else "plain")

    def calibrated(self, workspace: Workspace, base: str, stages: Stages) -> tuple[StudyStep, str]:
        """The same with the covariances to go on with, and the path of the importance matrix; what lacks is computed."""
        covariances, imatrix = self.covariances, self.imatrix
        if covariances == AUTO:
            with workspace.model(base) as model:
                ready, matrix = self.ready_covariances(workspace, model), self.ready_imatrix(workspace, model)
            if ready is None:
                found = self.calibrate_step(base, self.settings.imatrix_chunks).run(workspace, stages)
                covariances = found.fingerprint[:16]
                if imatrix in (AUTO, COMPUTE) and matrix is None:
                    return replace(self, covariances=covariances), found.imatrix.path
            else:
                stages.note(f"input covariances of {plural(ready.chunk_count, 'chunk')} are there already")
                covariances = ready.fingerprint[:16]
        if imatrix != NONE:
            imatrix = self.take_imatrix(workspace, base, stages)
        return replace(self, covariances=covariances), imatrix

    def take_imatrix(self, workspace: Workspace, base: str, stages: Stages) -> str:
        """The path of the importance matrix to go on with: the file that was named, one that is ready, or a computed one."""
        if self.imatrix not in (AUTO, COMPUTE):
            return use_imatrix(workspace, Path(base), import_file=Path(self.imatrix)).path
        with workspace.model(base) as model:
            ready = self.ready_imatrix(workspace, model)
        if ready is None:
            return self.imatrix_step(base, self.settings.imatrix_chunks).run(workspace, stages).path
        stages.note(f"an importance matrix of {plural(ready.chunk_count, 'chunk')} is there already")
        workspace.store.record_imatrix(ready)  # now the latest
        return str(workspace.imatrices.path(ready.model, ready.fingerprint))

    def ready_imatrix(self, workspace: Workspace, model: OpenedModel) -> CalibrationRecord | None:
        """What "auto" takes: the first of the model's own that was imported, or that saw as many tokens as the level asks for.

        Where the study names a text, a computed one must be of a text of that name.
        """
        return self._ready(workspace, model, workspace.imatrices.stored(model.fingerprint) if self.imatrix == AUTO else [])

    def ready_covariances(self, workspace: Workspace, model: OpenedModel) -> CalibrationRecord | None:
        """The same of covariances, unless everything is to be computed."""
        records = workspace.store.covariances(model.fingerprint) if self.imatrix != COMPUTE else []
        there = [record for record in records if workspace.covariances.path(record.model, record.fingerprint).exists()]
        return self._ready(workspace, model, there)

    def _ready(self, workspace: Workspace, model: OpenedModel, records: Sequence[CalibrationRecord]) -> CalibrationRecord | None:
        if not records:
            return None
        text = Path(self.text) if self.text else CALIBRATION_TEXT
        n_tokens = chunks(workspace.corpus(model, text), chunk_length(model.source, DEFAULT_N_CTX), limit=self.settings.imatrix_chunks).size

        def is_enough(record: CalibrationRecord) -> bool:
            is_right_text = self.text is None or text.name in record.datasets
            return record.origin == "imported" or (is_right_text and record.chunk_count * record.chunk_size >= n_tokens)

        return next((record for record in records if is_enough(record)), None)


def _study_result(
    workspace: Workspace, step: StudyStep, base: str, measured: MeasureResult, probed: ProbeResult | None, swept: SweepResult | None
) -> StudyResult:
    fingerprint = measured.imatrix_fingerprint
    record = None if fingerprint is None else workspace.store.imatrix(measured.model_fingerprint, fingerprint)
    with workspace.model(base) as model:
        command = command_line(workspace, "plan", base, *imatrix_option(workspace, model, fingerprint or ""))
    return StudyResult(
        rounding=measured.rounding,
        covariances_fingerprint=measured.covariances_fingerprint,
        base=base,
        model_fingerprint=measured.model_fingerprint,
        level=step.level,
        imatrix_fingerprint=fingerprint,
        imatrix_chunks=0 if record is None else record.chunk_count,
        settings=measured.settings,
        n_tensors=measured.n_tensors,
        n_types=measured.n_types,
        n_cells=measured.n_cells,
        n_unavailable=measured.n_unavailable,
        basis="ranking only" if probed is None else "probes",
        n_probed=0 if probed is None else sum(item.status == "measured" for item in probed.sensitivities),
        n_scored=0 if probed is None else probed.n_scored,
        n_swept=0 if swept is None else sum(cell.measured is not None for cell in swept.cells),
        plan_command=command,
    )
