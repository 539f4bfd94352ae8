"""What the counts of a job's stages rest on: the model's header, the text, the store, and how fast this machine is.

Seconds are ranges: by the trial of products alone the ends lie a factor of four apart, with a trial of the model or what was recorded of
earlier jobs less than two.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from quantailor.analysis.corpus import chunk_length
from quantailor.analysis.covariances.covariance_file import CovarianceFile
from quantailor.analysis.importance.imatrix_file import read_imatrix
from quantailor.analysis.rounding.rounding import COMPENSATED, PLAIN_MEASURED
from quantailor.analysis.scores.resting import RESTING
from quantailor.analysis.sensitivity import NULL_MIX
from quantailor.analysis.texts import digest, is_chat, is_mix, n_bytes
from quantailor.costs import machine
from quantailor.costs import seconds as seconds_module
from quantailor.costs.machine import Range
from quantailor.costs.model_size import ModelSize
from quantailor.costs.paces import RUNNING, Paces, at_pace, pace_name
from quantailor.costs.seconds import Seconds
from quantailor.costs.trial import TRIAL_BYTES, inference_seconds, middle, model_flops_per_second
from quantailor.models.abilities import why_no_predictions
from quantailor.pipeline import LadderStep, MakeStep, StudyStep
from quantailor.session import AUTO, CALIBRATION_TEXT, HELDOUT_TEXT, NONE, OpenedModel, Workspace
from quantailor.session.covariances import KeptCovariances
from quantailor.session.imatrices import KeptImatrices
from quantailor.steps.judged.evaluating import Files, tokens_left, tokens_of_file
from quantailor.steps.options import COMPUTE, DEFAULT_N_CTX, Evals
from quantailor.steps.probe import ProbeStep
from quantailor.store import CalibrationRecord, ImatrixKey, SwapKey

Making = MakeStep | LadderStep
Pipeline = StudyStep | Making

BYTES_PER_TOKEN = 4
"""Of a text, where there is no vocabulary to cut it with yet."""
TIMED = ("probes", "mixes")
"""What a limit of time ends."""
PROCESS_BYTES = 150 << 20
"""The program itself, with numpy and llama.cpp."""


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one stage will take."""

    stage: str
    seconds: tuple[float, float]
    """What is left of it, as a range; (0, 0) where all is there."""
    share_done: float
    """0 to 1, from what the store has."""
    disk_bytes: int
    """Still to be written, files that are deleted afterwards included."""
    memory_bytes: int
    """The most that it holds at once."""
    passes: tuple[int, int] = (0, 0)
    """Chunks that are still to be run through the model, at the least and at the most."""


def middle_of(seconds: Range) -> float:
    """The geometric middle; 0 where nothing is left."""
    return middle(seconds) if seconds[0] > 0 else seconds[1] / 2


@dataclass(frozen=True)
class StageEstimate:
    """One stage: what is left and what all of it takes."""

    stage: str
    left: Range
    total: Range
    share_done: float
    disk_bytes: int
    memory_bytes: int
    passes: Range = (0.0, 0.0)
    first: float = 0.0
    """The share that is done in any case, however little time there is."""
    counted: float = 0.0
    """Chunks that its stages count, for `trial_seconds`; 0 where they count something else."""
    trial_seconds: float = 0.0
    """What is left, by the trial of the machine alone."""
    pace: str = ""
    """Beneath what name it is remembered how long it took."""

    def scaled(self, low: float, high: float) -> StageEstimate:
        """The same with shares of what is not done in any case."""
        low, high = (self.first + (1.0 - self.first) * share for share in (low, high))
        (a, b), (c, d), (e, f) = self.left, self.total, self.passes
        disk = round(self.disk_bytes * high)
        return replace(self, left=(a * low, b * high), total=(c * low, d * high), passes=(e * low, f * high), disk_bytes=disk)

    @property
    def report(self) -> StageCost:
        passes = (math.ceil(self.passes[0]), math.ceil(self.passes[1]))
        return StageCost(self.stage, self.left, self.share_done, self.disk_bytes, self.memory_bytes, passes)


@dataclass(frozen=True)
class Counted:
    """What the counts of several stages rest on, each found when it is first asked for."""

    workspace: Workspace
    task: Pipeline
    model: OpenedModel
    probes: ProbeStep | None = None
    """Those that are counted; None for the task's."""
    tries: bool = True
    """Whether the model itself is tried where nothing is known of the machine; not for a stage that soon tells its own speed."""

    @cached_property
    def size(self) -> ModelSize:
        return ModelSize.of(self.model.source)

    @cached_property
    def probing(self) -> ProbeStep:
        """The probes, as they are made."""
        return (self.probes or self.task.probes(self.task.model, AUTO, self.model.source)).told

    def compensates(self, stage: str = "") -> bool:
        """Whether a stage rounds weights so."""
        return self.task.rounding == "compensated" and not (stage in TIMED and self.probing.rounding == "plain")

    @cached_property
    def n_ctx(self) -> int:
        return chunk_length(self.model.source, DEFAULT_N_CTX)

    @cached_property
    def types(self) -> tuple[str, ...]:
        return self.task.types_to_measure(self.model)

    @cached_property
    def base(self) -> Path | None:
        return self.task.known_base(self.workspace, self.model)

    @cached_property
    def text(self) -> Path:
        return Path(self.task.text) if self.task.text else CALIBRATION_TEXT

    @cached_property
    def corpus(self) -> str:
        """What the text's tokens are filed under. Raises CorpusError where it cannot be read."""
        if self.base is None or not (is_mix(self.text) or is_chat(self.text)):
            return digest(self.text)
        with self.workspace.model(self.base) as model:
            return self.workspace.corpus(model, self.text).sha256

    @cached_property
    def n_text_chunks(self) -> int:
        """By the model's vocabulary, or by `BYTES_PER_TOKEN` where there is no file that llama.cpp could load."""
        return self._n_chunks_of(self.text)

    @cached_property
    def n_heldout_chunks(self) -> int:
        """Of the text on which a file is verified."""
        limit = (self.task.chunks if isinstance(self.task, Making) else None) or sys.maxsize
        return min(limit, self._n_chunks_of(self.heldout_text))

    @property
    def heldout_text(self) -> Path:
        """On which a file is verified."""
        task = self.task
        return Path(task.verify_text) if isinstance(task, Making) and task.verify_text else HELDOUT_TEXT

    def eval_tokens(self, evals: Evals, n_files: int) -> float:
        """About how many tokens the base and so many files that are still to be made run for what is not answered yet."""
        if self.base is None:
            return (1 + n_files) * tokens_of_file(evals)
        with self.workspace.model(self.base) as model:
            corpus = self.workspace.corpus(model, self.heldout_text)
            files = Files((), n_files, self.task.compute.devices.engine)
            return tokens_left(self.workspace, model, evals, self.heldout_text, corpus, files)

    def _n_chunks_of(self, text: Path) -> int:
        if self.base is None:
            return max(1, n_bytes(text) // (BYTES_PER_TOKEN * self.n_ctx))
        with self.workspace.model(self.base) as model:
            return max(1, self.workspace.corpus(model, text).n_chunks(self.n_ctx))

    @cached_property
    def n_imatrix_chunks(self) -> int:
        return min(self.n_text_chunks, self.task.calibration_chunks or self.n_text_chunks)

    @cached_property
    def imatrix(self) -> str | None:
        """The fingerprint of the importance matrix that the study will use; "" for none, None where it is still to be made."""
        if self.task.imatrix == NONE:
            return ""
        if self.task.imatrix not in (AUTO, COMPUTE):
            return read_imatrix(Path(self.task.imatrix)).fingerprint
        return self._kept(self.workspace.imatrices, StudyStep.ready_imatrix, self.workspace.store.computed_imatrix)

    def _kept(
        self,
        home: KeptImatrices | KeptCovariances,
        ready: Callable[[StudyStep, Workspace, OpenedModel], CalibrationRecord | None],
        computed: Callable[[ImatrixKey], CalibrationRecord | None],
    ) -> str | None:
        """The fingerprint of what is there already and will be used; None where it is still to be made."""
        if self.base is None:
            return None
        if isinstance(self.task, StudyStep):
            with self.workspace.model(self.base) as model:
                found = ready(self.task, self.workspace, model)
        else:
            found = next(iter(home.stored(self.model.fingerprint)), None) if self.task.imatrix == AUTO else None
        found = found or computed(self.imatrix_key)
        return found.fingerprint if found is not None and home.path(found.model, found.fingerprint).exists() else None

    @cached_property
    def imatrix_key(self) -> ImatrixKey:
        chunks = self.task.calibration_chunks or "all"
        engine = self.task.compute.devices.engine
        return ImatrixKey(self.model.fingerprint, self.corpus, self.n_ctx, f"chunks={chunks} output=0", engine)

    @cached_property
    def paces(self) -> Paces:
        return Paces(self.workspace.store.jobs.paces())

    @cached_property
    def tried(self) -> float | None:
        """How long this very model takes over what the trial of the machine says, where nothing is recorded and it is small enough."""
        names = {pace_name(stage, compensated=each, on_gpu=self.on_gpu) for stage in RUNNING for each in (False, True)}
        known = self.paces.ratio(names, self.n_threads) is not None or bool(self.task.compute.rpc)
        if not self.tries or known or self.base is None or self.size.tensor_bytes > TRIAL_BYTES or self.has_no_predictions:
            return None
        compute = self.task.compute
        found = model_flops_per_second(self.base, self.size.decode_flops(1), compute.n_threads, compute.n_gpu_layers)
        return None if found is None else 1.0 / (found * middle(self.running(1.0).running))

    @property
    def n_threads(self) -> int:
        return min(self.task.compute.n_threads or machine.n_threads(), machine.n_threads())

    @property
    def on_gpu(self) -> bool:
        return self.task.compute.n_gpu_layers != 0

    @property
    def has_no_predictions(self) -> bool:
        return why_no_predictions(self.model.source) is not None

    def running(self, flops: float) -> Seconds:
        """llama.cpp, so many operations, by the trial of the machine."""
        compute = self.task.compute
        return Seconds(inference_seconds(flops, n_threads=compute.n_threads, n_gpu_layers=compute.n_gpu_layers))

    def scoring(self, n_chunks: float, *, base_is_held: bool = False) -> Seconds:
        """So many chunks run and compared with the base, by the trial of the machine."""
        return seconds_module.score_seconds(
            self.size,
            n_chunks,
            self.n_ctx,
            n_threads=self.task.compute.n_threads,
            n_gpu_layers=self.task.compute.n_gpu_layers,
            base_is_held=base_is_held,
        )

    def estimate(
        self,
        stage: str,
        left: Seconds,
        total: Seconds,
        share_done: float,
        disk_bytes: int,
        memory_bytes: int,
        *,
        passes: Range = (0.0, 0.0),
        counted: float = 0.0,
    ) -> StageEstimate:
        """A stage from what the trial of the machine makes of it, for the least and the most passes."""
        compensated = self.compensates(stage)

        def paced(seconds: Seconds) -> Range:
            return at_pace(
                self.paces,
                stage,
                seconds,
                work=passes,
                compensated=compensated,
                n_threads=self.n_threads,
                on_gpu=self.on_gpu,
                tried=self.tried if seconds.running[1] else None,
            )

        pace = pace_name(stage, compensated=compensated, on_gpu=self.on_gpu)
        return StageEstimate(
            stage,
            paced(left),
            paced(total),
            share_done,
            disk_bytes,
            memory_bytes,
            passes,
            counted=counted,
            trial_seconds=left.middle,
            pace=pace,
        )

    def basis(self, stages: Sequence[str]) -> str:
        """What the seconds of these stages rest on, in words."""
        trial = "a short trial of this machine" if self.tried is None else "a short trial of this machine with this model"
        names = {stage: pace_name(stage, compensated=self.compensates(stage), on_gpu=self.on_gpu) for stage in stages}
        known = [stage for stage, name in names.items() if self.paces.ratio([name], self.n_threads) is not None]
        return f"{trial}, corrected by what earlier jobs took ({', '.join(known)})" if known else trial

    @cached_property
    def scored(self) -> Mapping[str, int]:
        """Mix -> chunks that are scored with this importance matrix and text."""
        key = self.swap_key
        return {} if key is None else self.workspace.store.scored_mixes(key)

    @property
    def n_scored(self) -> int:
        """Passes that are done: chunks run with something quantized."""
        return sum(self.scored.values()) - self.scored.get(NULL_MIX.id, 0)

    @cached_property
    def swap_key(self) -> SwapKey | None:
        runs = self.workspace.store.swap_runs(self.model.fingerprint)
        rounding = (self.rounding or "") if self.compensates(TIMED[0]) else ""
        rest = RESTING if self.rests_at_8_bits else ""
        wanted = (self.imatrix, self.corpus, self.n_ctx, "as built", rounding if rounding.startswith(COMPENSATED) else "", rest)
        return next((key for key in runs if (key.imatrix, key.corpus, key.n_ctx, key.kernels, key.rounding, key.rest) == wanted), None)

    @cached_property
    def covariances(self) -> str | None:
        """The beginning of the fingerprint of those that the study will use; "" for none, None where they are still to be made."""
        if self.task.covariances == NONE:
            return ""
        if self.task.covariances != AUTO:
            with CovarianceFile(Path(self.task.covariances)) as found:
                return found.fingerprint[:16]
        if self.task.rounding != "compensated":
            newest = self.workspace.covariances.default(self.model.fingerprint)
            return "" if newest is None else newest.fingerprint[:16]
        kept = self._kept(self.workspace.covariances, StudyStep.ready_covariances, self.workspace.store.computed_covariances)
        return None if kept is None else kept[:16]

    @property
    def rounding(self) -> str | None:
        """What weight errors will be filed under, beside the importance matrix (`Rounding.key`); None where it cannot be known yet."""
        if self.covariances is None:
            return None
        version = COMPENSATED if self.task.rounding == "compensated" else PLAIN_MEASURED
        return f"{version}:{self.covariances}" if self.covariances else ""

    @property
    def rests_at_8_bits(self) -> bool:
        """Whether the base does while it is probed."""
        return self.task.rest != "16"

    def running_bytes(self, *, resting: bool = False) -> int:
        """A loaded model with its context, `resting` at 8 bits; weights on a GPU are not here."""
        weights = 0 if self.on_gpu else self.size.resting_bytes if resting else self.size.tensor_bytes
        return PROCESS_BYTES + weights + self.size.context_bytes(self.n_ctx)


def scaled_by(seconds: Range, factor: float) -> Range:
    return seconds[0] * factor, seconds[1] * factor
