"""Verify: what a file is worth beside its base and llama.cpp's presets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from quantailor.analysis.corpus import chunk_length, chunks
from quantailor.analysis.importance.imatrix import Imatrix
from quantailor.analysis.scores import fidelity
from quantailor.costs.model_size import ModelSize
from quantailor.costs.needs import Needs, run_as_it_is
from quantailor.errors import OptionError
from quantailor.evidence.presets import presets_around
from quantailor.evidence.speeds import speeds_of_files
from quantailor.evidence.strategies import embedded_strategy
from quantailor.evidence.written import plain_twin
from quantailor.ggml.reference import preset_name
from quantailor.making import judging
from quantailor.models.abilities import require_predictions
from quantailor.processes.crews import ModelFiles
from quantailor.records import PLAIN_TWIN, PredictedSpeed, RowKind, Verdict
from quantailor.session import HELDOUT_TEXT, OpenedModel, Workspace, gguf_path
from quantailor.steps.checks.folder import refuse_other_verdict
from quantailor.steps.checks.inputs import check_texts
from quantailor.steps.checks.verified import other_words, require_held_out, require_presets, require_same_model, reservations
from quantailor.steps.judged.calibrated import references_imatrix
from quantailor.steps.judged.evaluating import Enquiry, check_evals, evaluate, prepared
from quantailor.steps.judged.references import missing_bytes, references
from quantailor.steps.judged.scored import judged
from quantailor.steps.options import DEFAULT_N_CTX, Evals
from quantailor.steps.stages import Stages
from quantailor.steps.step import Screen, StepResult, WeightedStep
from quantailor.store import ScoreKey

BASE = "base"
NULL_CONTROL = "null control"


@dataclass(frozen=True, slots=True)
class VerifyResult(StepResult):
    """A verdict and its files."""

    verdict: Verdict
    files: tuple[str, ...]
    speeds: Mapping[str, PredictedSpeed] = field(default_factory=dict)
    """Label -> what its file is predicted to reach on this machine, of those whose types were all timed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyStep(WeightedStep[VerifyResult], kind="verify", result=VerifyResult):
    """Measure a file, or several, against their base and presets. "auto" is the importance matrix that the first was made with."""

    units: ClassVar[Mapping[str, str]] = {"verify": "chunks", PLAIN_TWIN: "bytes", "greedy": "prompts", "choices": "questions"}
    runs_model: ClassVar[bool] = True
    screen: ClassVar[Screen | None] = "verify"

    file: str
    base: str
    others: tuple[str, ...] = ()
    """More files of the model, judged beside it: somebody else's, or with `is_ladder` other sizes of ours."""
    is_ladder: bool = False
    against: tuple[str, ...] | None = None
    """Presets to compare with; None means those whose sizes lie around the file's, and the one that it was planned like."""
    beside: Literal["plain"] | None = None
    """"plain": also with the file's own types rounded plainly, where its rounding is compensated."""
    text: str | None = None
    """None means the held-out text that ships with Quantailor."""
    chunks: int | None = None
    n_ctx: int = DEFAULT_N_CTX
    evals: Evals = field(default_factory=Evals)
    output: str | None = None
    """Where the verdict's files go: this path plus .json, .csv, .png and .svg."""
    overwrite: bool = False
    """Replace a verdict on another file there."""

    def presets(self, workspace: Workspace, model: OpenedModel, imatrix: Imatrix | None) -> tuple[str, ...]:
        """The presets to compare with, as llama.cpp spells them. Raises TypeUnavailableError for an unknown one."""
        if self.against is not None:
            return tuple(dict.fromkeys(preset_name(name) for name in self.against))
        sizes = [judging.file_size(file)[0] for file in self.files]
        strategies = (embedded_strategy(workspace, file) for file in self.files)
        named = [preset_name(str(each.target["like"])) for each in strategies if each is not None and "like" in each.target]
        return presets_around(model, imatrix, sizes, named)

    def choose_imatrix(
        self, workspace: Workspace, model: OpenedModel, tell: Callable[[str], None] | None = None
    ) -> tuple[Imatrix | None, list[str]]:
        """The importance matrix for the references, and what to say where the one that our file was made with is not here."""
        return references_imatrix(workspace, model, Path(self.file), self.imatrix, tell) if self.against != () else (None, [])

    def check(self, workspace: Workspace) -> None:
        """The text, the presets, the files. Raises CorpusError, TypeUnavailableError, OptionError, StrategyMismatchError."""
        super(VerifyStep, self).check(workspace)
        check_texts(self.text)
        check_evals(self.evals)
        if not self.overwrite:
            refuse_other_verdict(self.stem, Path(self.file))
        for name in self.against or ():
            preset_name(name)
        if repeated := [path for path, n in Counter(path.resolve() for path in self.files).items() if n > 1]:
            raise OptionError(f"{repeated[0]} is given twice", remedy="Name every file once")
        if self.hub is None and Path(self.file).exists():
            with workspace.source(self.base) as base:
                for path in self.files:
                    with workspace.source(path) as file:
                        require_same_model(file, base)
                if self.against != ():
                    require_presets(base)

    @property
    def files(self) -> tuple[Path, ...]:
        """All that are judged, ours first."""
        return tuple(map(Path, (self.file, *self.others)))

    def labels(self, taken: Collection[str]) -> list[str]:
        """A name for each of the files, which none of the `taken` has, nor another file."""
        found = list[str]()
        for path in self.files:
            ours = self.is_ladder or not found
            plain = f"{path.stem} ({'ours' if ours else 'theirs'})" if path.stem in taken else path.stem
            names = (plain, f"{path.parent.name}/{plain}", str(path))
            found.append(next(name for name in names if name not in found))
        return found

    @property
    def stem(self) -> Path:
        """Where the verdict's files go, without their endings."""
        return Path(self.output) if self.output else Path(self.file).with_suffix(".verdict")

    def run(self, workspace: Workspace, stages: Stages) -> VerifyResult:
        """Score a file and its references against the base, chunk by chunk, and judge. Stored chunks are not scored again."""
        with workspace.model(self.base) as model:
            require_predictions(model.source)
            n_ctx = chunk_length(model.source, self.n_ctx, stages.warn)
            imatrix, told = self.choose_imatrix(workspace, model, stages.warn)
            workspace.require_runnable(model)
            ours = Path(self.file)
            for path in self.files:
                with workspace.source(path) as source:
                    require_same_model(source, model.source)
                    told = [*told, *other_words(source, model.source)]
            text = Path(self.text) if self.text else HELDOUT_TEXT
            corpus = workspace.corpus(model, text)
            tokens = chunks(corpus, n_ctx, limit=self.chunks)
            asked = prepared(model, self.evals, text, corpus)
            for path in self.files if len(tokens) >= judging.MIN_CHUNKS else ():  # so many make a claim; with fewer it is told
                require_held_out(workspace, model, path, text)
            presets = self.presets(workspace, model, imatrix)
            labels = self.labels((BASE, NULL_CONTROL, PLAIN_TWIN, *presets))
            candidates = dict(zip(labels, self.files, strict=True))
            threads, executor = self.compute.n_threads, stages.executor
            for path in self.files:
                with workspace.model(path, allow_requantize=True) as opened_file:
                    workspace.require_runnable(opened_file)
            engine = self.compute.devices.engine
            key_of = partial(ScoreKey, model.fingerprint, corpus.sha256, n_ctx, engine=engine)
            made = references(
                workspace,
                model,
                presets,
                imatrix,
                key_of=None if self.evals.names else key_of,
                n_chunks=len(tokens),
                n_threads=threads,
                stages=stages,
            )
            candidates |= made.files
            if self.beside:
                twin = plain_twin(workspace, model, ours, n_threads=threads, control=stages.begin(PLAIN_TWIN), executor=executor)
                if twin is None:
                    stages.warn(f"{ours.name} does not say that its rounding is compensated, so --beside plain adds nothing.")
                else:
                    candidates[PLAIN_TWIN] = twin
            files = {name: workspace.located(path) for name, path in candidates.items()}
            known = {name: each.content for name, each in made.remembered.items()}
            contents = {name: file.fingerprint for name, file in files.items()} | known
            keys = {name: key_of(content) for name, content in {BASE: BASE, NULL_CONTROL: NULL_CONTROL, **contents}.items()}
            work = fidelity.FidelityWork(
                ModelFiles(gguf_path(model), model.fingerprint, model.files), files, tokens, threads, self.compute.devices
            )
            scores = fidelity.score_chunks(
                work,
                done={name: workspace.store.scored_chunks(keys[name]) for name in (BASE, NULL_CONTROL, *files)},
                control=stages.begin("verify"),
                executor=executor,
            )
            for name, score in scores:
                workspace.store.record_chunk_scores(keys[name], [score])
            for path in candidates.values():
                workspace.keep_identity(path)  # lists of files read none
            evaluated = evaluate(Enquiry(workspace, model, candidates, contents, self.compute, stages), self.evals, asked)
            found = [*told, *reservations(workspace, model, ours, text)]
            for path in self.files[1:]:
                found += [f"{path.name}: {each}" for each in reservations(workspace, model, path, text) if each not in found]
            for reservation in found:
                stages.warn(reservation)
            kinds: dict[str, RowKind] = dict.fromkeys(labels, "ours" if self.is_ladder else "rival") | {labels[0]: "ours"}
            sizes = {name: judging.file_size(path) for name, path in candidates.items()}
            sizes |= {name: (each.size_bytes, each.bits_per_weight) for name, each in made.remembered.items()}
            sizes = {name: sizes[name] for name in (*labels, *presets, PLAIN_TWIN) if name in sizes}
            verdict = judged(workspace, model, keys, sizes, kinds, len(tokens), corpus=corpus, n_ctx=n_ctx, limits=found, evals=evaluated)
            workspace.store.record_verdict(verdict)
            written = judging.write_verdict(verdict, self.stem)
            speeds = speeds_of_files(workspace, model.source, {BASE: gguf_path(model), **candidates, **made.remembered})
            made.let_go(workspace, model, stages.job_id)
            return VerifyResult(verdict, tuple(map(str, written)), speeds)

    def needs(self, workspace: Workspace) -> Needs:
        """References that no earlier run made, whatever the importance matrix; and the base in memory."""
        with workspace.model(self.base) as model:
            size = ModelSize.of(model.source)
            is_there = Path(self.file).is_file()
            imatrix = self.choose_imatrix(workspace, model)[0] if is_there else None
            presets = self.presets(workspace, model, imatrix) if is_there or self.against is not None else ()
            folder, n_bytes = workspace.home.references, missing_bytes(workspace, model, presets, imatrix)
        if self.beside and Path(self.file).is_file():
            n_bytes += judging.file_size(Path(self.file))[0]
        return Needs(((folder, n_bytes),)) + run_as_it_is(size, self.n_ctx, self.compute.n_gpu_layers)
