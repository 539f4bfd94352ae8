"""Quantailor in a notebook or a script: a model is opened once, and functions measure it, choose its types, build and judge files.

Every function that takes long runs as a job of the home: it can be interrupted and called again, `quantailor jobs` and the GUI
show it, and what it measured is there for the next call, the command line and the GUI alike. Functions raise subclasses of
`QuantailorError` only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

from quantailor.app import jobs
from quantailor.app.choosing.comparing import StrategyDiff, compare_strategies
from quantailor.app.choosing.predicting import PredictResult
from quantailor.app.choosing.predicting import predict as predict_strategy
from quantailor.app.library.structure import ModelReport
from quantailor.app.library.structure import inspect as inspect_model
from quantailor.app.products.checking import BuildCheck, check_build
from quantailor.errors import UnsupportedModelError
from quantailor.evidence import strategies
from quantailor.evidence.strategies import store_strategy
from quantailor.jobs import Listener, Progress
from quantailor.models.gguf_file import GGUFSource
from quantailor.pipeline import Level, MakeResult, MakeStep, StudyResult, StudyStep
from quantailor.records import RoundingWish, Strategy, TensorInfo, Verdict
from quantailor.session import AUTO, Workspace
from quantailor.steps.build import BuildReport, BuildStep
from quantailor.steps.calibration.calibrate import CalibrateReport, CalibrateStep
from quantailor.steps.calibration.imatrix import ImatrixReport, ImatrixStep, use_imatrix
from quantailor.steps.convert import ConvertStep
from quantailor.steps.hub.download import DownloadResult, DownloadStep
from quantailor.steps.measure import MeasureResult, MeasureStep
from quantailor.steps.options import DEFAULT_N_CTX, Compute, absolute
from quantailor.steps.plan import Method, PlanOptions, choose
from quantailor.steps.probe import (
    DEFAULT_ANCHORS,
    DEFAULT_MIXES,
    Grouping,
    ProbeResult,
    ProbeStep,
    effort,
)
from quantailor.steps.refine import DEFAULT_REFINE_CHUNKS, RefineResult, RefineStep
from quantailor.steps.step import Step, StepResult
from quantailor.steps.sweep import DEFAULT_SWEEP_CHUNKS, SweepResult, SweepStep
from quantailor.steps.verify import VerifyStep
from quantailor.strategy import file as strategy_file

Result = TypeVar("Result", bound=StepResult)


@dataclass
class Model:
    """An opened model and the home that keeps what is found out about it. Use it as a context manager, or call `close`."""

    path: Path
    """A GGUF file or a Hugging Face directory."""
    fingerprint: str
    """The identity that results are filed under."""
    name: str
    architecture: str
    tensors: tuple[TensorInfo, ...]
    workspace: Workspace = field(repr=False)
    compute: Compute = field(default_factory=Compute)
    """What its steps may use of this machine."""
    on_progress: Listener | None = None
    """Called with the progress of long work (stage, done, total, rate, time left); in the thread that works."""
    now: bool = False
    """Whether its steps start at once, even while another job runs a model on this machine; else they wait."""

    @property
    def base(self) -> Path:
        """The 16-bit GGUF file that llama.cpp runs: the model itself, or its conversion, which is made where there is none yet."""
        step = StudyStep(model=str(self.path))
        with self.workspace.model(self.path) as opened:
            if isinstance(opened.source, GGUFSource):
                return self.path
            known, place = step.known_base(self.workspace, opened), step.base_place(self.workspace, opened)
        return known or convert(self, place).path

    def close(self) -> None:
        """Close the home."""
        self.workspace.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_model(
    path: str | Path,
    *,
    home: str | Path | None = None,
    threads: int | None = None,
    gpu_layers: int = 0,
    on_progress: Listener | None = None,
    now: bool = False,
) -> Model:
    """Open a GGUF file or a Hugging Face directory.

    Args:
        path: the model.
        home: where measurements, importance matrices and jobs are kept; by default what QUANTAILOR_HOME or the platform names.
        threads: threads to use; all processors by default.
        gpu_layers: layers that llama.cpp runs on a GPU.
        on_progress: called with the progress of long work.
        now: do not wait while another job runs a model on this machine.

    Raises:
        ModelError: there is no model, or it is damaged.
        StoreError: the home cannot be used.

    >>> with open_model("demo/books-llama") as model:
    ...     tensors = model.tensors
    >>> model.name, model.architecture, len(tensors)
    ('Books Llama', 'llama', 75)
    """
    workspace = Workspace.open(None if home is None else Path(home))
    try:
        with workspace.model(absolute(path)) as opened:
            source = opened.source
            return Model(
                Path(source.location),
                opened.fingerprint,
                source.name,
                source.architecture,
                tuple(source.tensors),
                workspace,
                Compute(n_threads=threads, n_gpu_layers=gpu_layers),
                on_progress,
                now,
            )
    except BaseException:
        workspace.store.close()
        raise


def inspect(path: str | Path) -> ModelReport:
    """A model's structure: its metadata, and for every tensor the types it can take and why not the others. Raises ModelError.

    >>> report = inspect("demo/books-llama")
    >>> tensor = next(item for item in report.tensors if item.name == "blk.0.attn_v.weight")
    >>> tensor.shape, tensor.type_name, "Q4_K" in tensor.available_types
    ((128, 256), 'BF16', True)
    """
    return inspect_model(path)


def download(
    repository: str, *, revision: str | None = None, gguf_file: str | None = None, home: str | Path | None = None
) -> DownloadResult:
    """Fetch a repository of the Hugging Face hub into its cache, as far as it is needed; `path` of the result can be opened.

    Raises HubError where the hub refuses or cannot be reached.
    """
    with Workspace.open(None if home is None else Path(home)) as workspace:
        return _run(workspace, DownloadStep(repo_id=repository, revision=revision, gguf_file=gguf_file), None)


def convert(model: Model, output: str | Path, *, overwrite: bool = False) -> Model:
    """Write the 16-bit base of a Hugging Face directory and return it, opened in the same home.

    Raises:
        UnsupportedModelError: the model is a GGUF file already, or of a family that neither way of conversion knows.
        OutputError: the file exists, or cannot be written.
    """
    if model.path.is_file():
        raise UnsupportedModelError(f"{model.path} is GGUF already", remedy="Use it as it is")
    step = ConvertStep(model=str(model.path), output=absolute(output), overwrite=overwrite)
    path = Path(_run(model.workspace, step, model.on_progress, now=model.now).path)
    with model.workspace.model(path) as opened:
        tensors = tuple(opened.source.tensors)
    return replace(model, path=path, tensors=tensors)


def imatrix(
    model: Model, text: str | Path | None = None, *, chunks: int | None = None, n_ctx: int = DEFAULT_N_CTX, file: str | Path | None = None
) -> ImatrixReport:
    """Compute an importance matrix, which later steps use; or take `file` (GGUF or legacy .dat) instead.

    Args:
        model: what llama.cpp runs on the text.
        text: a text file; None is the calibration text that ships.
        chunks: at most so many chunks of `n_ctx` tokens.
        n_ctx: tokens in a chunk.
        file: an importance matrix that is there already.

    Raises:
        CorpusError: the text cannot be read or is too short.
        ImatrixError: the file is not an importance matrix of this model.

    >>> with open_model("demo/books-llama") as model:
    ...     matrix = imatrix(model, chunks=2)
    >>> matrix.chunk_count, matrix.missing_tensors
    (2, ())
    """
    if file is not None:
        return use_imatrix(model.workspace, model.path, import_file=Path(file))
    step = ImatrixStep(base=str(model.base), text=_text(text), chunks=chunks, n_ctx=n_ctx, compute=model.compute)
    return _run(model.workspace, step, model.on_progress, now=model.now)


def calibrate(model: Model, text: str | Path | None = None, *, chunks: int | None = None, n_ctx: int = DEFAULT_N_CTX) -> CalibrateReport:
    """Compute an importance matrix and input covariances in one run; later steps use both.

    Args:
        model: what llama.cpp runs on the text.
        text: a text file; None is the calibration text that ships.
        chunks: at most so many chunks of `n_ctx` tokens.
        n_ctx: tokens in a chunk.

    Raises:
        CorpusError: the text cannot be read or is too short.

    >>> with open_model("demo/books-llama") as model:
    ...     found = calibrate(model, chunks=2)
    >>> found.chunk_count, found.missing_tensors
    (2, ())
    """
    step = CalibrateStep(base=str(model.base), text=_text(text), chunks=chunks, n_ctx=n_ctx, compute=model.compute)
    return _run(model.workspace, step, model.on_progress, now=model.now)


def measure(
    model: Model,
    types: Iterable[str] = (),
    tensors: Iterable[str] = (),
    *,
    exhaustive: bool = False,
    imatrix: str | Path = AUTO,
    rounding: RoundingWish = "auto",
) -> MeasureResult:
    """Measure what each type costs in each tensor: relative and weighted squared error, RMSE, largest error (METHODS 1).

    Args:
        model: any model; no inference is needed.
        types: the types; empty for all that ggml writes.
        tensors: names, roles or patterns; empty for all.
        exhaustive: every row, instead of a sample with a stated error.
        imatrix: "auto" (the one of the model's own that saw most, if any), "none", or a file.
        rounding: "compensated" after `calibrate`; else plain.

    Raises:
        TypeUnavailableError: an unknown type.
        CovarianceError: compensated rounding without covariances.
        TensorNotFoundError: nothing matches.

    >>> with open_model("demo/books-llama") as model:
    ...     result = measure(model, types=["Q4_K", "Q8_0"], tensors=["attn_v"])
    >>> result.n_tensors, result.n_types, all(cell.weighted_mse > 0 for cell in result.cells)
    (8, 2, True)
    """
    step = MeasureStep(
        base=str(model.path),
        types=tuple(types),
        tensors=tuple(tensors),
        exhaustive=exhaustive,
        imatrix=_matrix(imatrix),
        rounding=rounding,
        compute=model.compute,
    )
    return _run(model.workspace, step, model.on_progress, now=model.now)


def probe(
    model: Model,
    text: str | Path | None = None,
    *,
    chunks: int | None = None,
    types: Iterable[str] = (),
    group: Grouping = "tensor",
    mixes: int = DEFAULT_MIXES,
    mix_chunks: int | None = None,
    anchors: int = DEFAULT_ANCHORS,
    seconds: float | None = None,
    passes: int | None = None,
    imatrix: str | Path = AUTO,
    rounding: RoundingWish = "auto",
) -> ProbeResult:
    """Measure in memory how much each tensor's error matters to the model, and fit the prediction to whole mixes (METHODS 4).

    Args:
        model: what llama.cpp runs.
        text: a text file; None is the calibration text that ships.
        chunks: chunks per probe, at most; None for 2, or 16 where time limits them.
        types: the types that tensors are probed at; empty for Q2_K, Q6_K and Q8_0, and more where time limits them.
        group: probe every tensor, a role by quarters of the depth, or whole roles.
        mixes: random whole mixes that the prediction is fitted to; 0 leaves it with a wide interval.
        mix_chunks: chunks per whole mix; None for four times those of probes' default.
        anchors: mixes that are also built as files.
        seconds: probing ends then, what helps a plan most comes first, and everything counts; None for as long as it takes.
        passes: the same after so many runs of a chunk through the model with something quantized.
        imatrix: "auto", "none", or a file.
        rounding: of the weights that are swapped in; "auto" as most was measured.

    Raises InferenceError, CorpusError, CovarianceError, TypeUnavailableError.
    """
    usual = effort(seconds, passes)
    step = ProbeStep(
        base=str(model.base),
        text=_text(text),
        chunks=usual.chunks if chunks is None else chunks,
        types=tuple(types) or usual.types,
        group=group,
        mixes=mixes,
        mix_chunks=usual.mix_chunks if mix_chunks is None else mix_chunks,
        anchors=anchors,
        seconds=seconds,
        passes=passes,
        imatrix=_matrix(imatrix),
        rounding=rounding,
        compute=model.compute,
    )
    return _run(model.workspace, step, model.on_progress, now=model.now)


def sweep(
    model: Model,
    text: str | Path | None = None,
    *,
    chunks: int = DEFAULT_SWEEP_CHUNKS,
    types: Iterable[str] = (),
    tensors: Iterable[str] = (),
    imatrix: str | Path = AUTO,
    rounding: RoundingWish = "auto",
) -> SweepResult:
    """Perplexity and KL divergence of every tensor at every type, all others as they are; arguments as for `probe` and `measure`.

    Raises InferenceError, CorpusError, TypeUnavailableError, TensorNotFoundError.
    """
    step = SweepStep(
        base=str(model.base),
        text=_text(text),
        chunks=chunks,
        types=tuple(types),
        tensors=tuple(tensors),
        imatrix=_matrix(imatrix),
        rounding=rounding,
        compute=model.compute,
    )
    return _run(model.workspace, step, model.on_progress, now=model.now)


def study(
    model: Model,
    level: Level = "balanced",
    *,
    types: Iterable[str] = (),
    text: str | Path | None = None,
    seconds: float | None = None,
    passes: int | None = None,
    rounding: RoundingWish = "auto",
) -> StudyResult:
    """Everything that measuring needs in one job.

    Args:
        model: any model; one that predicts no next token can be studied at the level "quick".
        level: "quick", "balanced", "thorough" or "exhaustive".
        types: the types; empty for all usual ones.
        text: a text file; None is the calibration text that ships.
        seconds: time for everything, as probes get what is left of it; None for as long as it takes.
        passes: as of `probe`.
        rounding: "plain" or "compensated"; "auto" compensates wherever a text runs through the model.

    Raises what its steps raise.
    """
    step = StudyStep(
        model=str(model.path),
        level=level,
        types=tuple(types),
        text=_text(text),
        seconds=seconds,
        passes=passes,
        rounding=rounding,
        compute=model.compute,
    )
    return _run(model.workspace, step, model.on_progress, now=model.now)


def plan(
    model: Model,
    *,
    size_bytes: int | None = None,
    bits_per_weight: float | None = None,
    like: str | None = None,
    kld_nats: float | None = None,
    method: Method = "optimal",
    pins: Mapping[str, str] | None = None,
    types: Iterable[str] = (),
    options: PlanOptions | None = None,
    imatrix: str | Path = AUTO,
    rounding: RoundingWish = "auto",
) -> Strategy:
    """Choose a type for every tensor from what was measured.

    Args:
        model: the model that was measured.
        size_bytes: the file's size, header included, at most.
        bits_per_weight: the same as bits per weight.
        like: "as large as" this preset of llama.cpp.
        kld_nats: the smallest file whose predicted KL divergence is at most this; needs probes.
        method: "optimal", "knee", "greedy" or "bins".
        pins: tensor name, role or pattern -> the type it gets.
        types: the types that may be used; empty for all usual ones.
        options: every option of `quantailor plan`, instead of those above.
        imatrix: which measurements to use: "auto", "none", or those with that file.
        rounding: which measurements to use, and how the file is rounded; "auto" as most was measured.

    Raises StrategyError where nothing is measured, or where no strategy meets target and constraints.

    >>> with open_model("demo/books-llama") as model:
    ...     _ = measure(model, types=["Q3_K", "Q4_K", "Q6_K", "Q8_0"])
    ...     strategy = plan(model, bits_per_weight=5.0, pins={"attn_v": "Q8_0"})
    >>> strategy.types["blk.0.attn_v.weight"], strategy.prediction.bits_per_weight <= 5.0
    ('Q8_0', True)
    """
    wanted = options or PlanOptions(
        method=method,
        size_bytes=size_bytes,
        bits_per_weight=bits_per_weight,
        like=like,
        kld_nats=kld_nats,
        pins=tuple(f"{pattern}={type_name}" for pattern, type_name in (pins or {}).items()),
        allow=(",".join(types),) if types else (),
    )
    with model.workspace.model(model.path) as opened:
        strategy, *_ = choose(model.workspace, opened, wanted, imatrix=_matrix(imatrix), rounding=rounding)
    return strategy


def predict(model: Model, strategy: Strategy, *, evidence: str | None = None) -> PredictResult:
    """The KL divergence of a strategy's file before it is built, with 80 % and 95 % intervals, and where it comes from.

    `evidence` names the probes to stand on, as `quantailor status` lists them; None takes those that cover most.

    Raises StrategyError where the model has no probes, or the strategy is another model's.
    """
    return predict_strategy(model.workspace, model.path, strategy, evidence=evidence)


def refine(
    model: Model, strategy: Strategy, output: str | Path, *, swaps: int = 0, chunks: int = DEFAULT_REFINE_CHUNKS, overwrite: bool = False
) -> RefineResult:
    """Improve a strategy at its size with measurements around it; the better of old and new is written to `output`.

    Raises StrategyError where the model has no probes, OutputError where the output exists.
    """
    step = RefineStep(
        base=str(model.base),
        strategy=store_strategy(model.workspace, strategy),
        output=absolute(output),
        swaps=swaps,
        chunks=chunks,
        overwrite=overwrite,
        compute=model.compute,
    )
    return _run(model.workspace, step, model.on_progress, now=model.now)


def build(
    model: Model,
    strategy: Strategy,
    output: str | Path,
    *,
    overwrite: bool = False,
    split_max_bytes: int | None = None,
    imatrix: str | Path = AUTO,
    rounding: RoundingWish = "auto",
) -> BuildReport:
    """Write the GGUF file that a strategy describes; it appears under its name only when it is whole.

    Args:
        model: what the strategy was made for; a Hugging Face directory will do.
        strategy: from `plan`, `read_strategy` or `refine`.
        output: the file.
        overwrite: replace it where it exists.
        split_max_bytes: write shards of at most this size.
        imatrix: "auto" is the one that the strategy was made with.
        rounding: "auto" as the strategy records.

    Raises StrategyError, OutputError, TypeUnavailableError.
    """
    step = BuildStep(
        base=str(model.path),
        strategy=store_strategy(model.workspace, strategy),
        output=absolute(output),
        overwrite=overwrite,
        split_max_bytes=split_max_bytes,
        imatrix=_matrix(imatrix),
        rounding=rounding,
        compute=model.compute,
    )
    return _run(model.workspace, step, model.on_progress, now=model.now)


def verify(
    model: Model,
    file: str | Path,
    *,
    against: Sequence[str] | None = None,
    text: str | Path | None = None,
    chunks: int | None = None,
    output: str | Path | None = None,
    beside: Literal["plain"] | None = None,
) -> Verdict:
    """Perplexity and KL divergence of a file beside llama.cpp's presets, with paired intervals, and a sentence that judges it.

    Args:
        model: the model that the file was made from.
        file: the GGUF file.
        against: presets to compare with, which llama.cpp builds where they are missing; None takes those whose sizes lie around the
            file's, and the one that it was planned like.
        text: held-out text; None is the one that ships.
        chunks: at most so many chunks; fewer than 200 carry no claim.
        output: stem of the .json, .csv, .png and .svg files; by default beside the file.
        beside: "plain" compares a file whose rounding is compensated with its own types rounded plainly, too.

    Raises ModelError, CorpusError, TypeUnavailableError.
    """
    step = VerifyStep(
        file=absolute(file),
        base=str(model.base),
        against=None if against is None else tuple(against),
        beside=beside,
        text=_text(text),
        chunks=chunks,
        output=None if output is None else absolute(output),
        compute=model.compute,
    )
    return _run(model.workspace, step, model.on_progress, now=model.now).verdict


def make(model: Model, output: str | Path, plan: PlanOptions, **options: object) -> MakeResult:
    """All of it in one directory: importance matrix, measurement, probes, plan, file and verdict.

    Args:
        model: a Hugging Face directory or a GGUF file.
        output: the directory; run it again to go on where it stopped.
        plan: the target and its constraints, for example `PlanOptions(like="Q4_K_M")`.
        options: other fields of `quantailor.pipeline.MakeStep`, for example `verify=False`.

    Raises what its steps raise.
    """
    step = MakeStep(model=str(model.path), output=absolute(output), plan=plan, compute=model.compute, **options)  # type: ignore[arg-type]
    return _run(model.workspace, step, model.on_progress, now=model.now)


def compare(model: Model, a: str | Path | Strategy, b: str | Path | Strategy) -> StrategyDiff:
    """Two choices of types side by side: strategies, files, or presets by name. Raises StrategyError, TypeUnavailableError."""
    return compare_strategies(model.workspace, model.path, a, b)


def check(model: Model, strategy: Strategy, file: str | Path) -> BuildCheck:
    """Whether a file is what its strategy says, with the SHA-256 of every part. Raises ModelError, StrategyError."""
    return check_build(model.workspace, model.path, strategy, Path(file))


def read_strategy(path: str | Path) -> Strategy:
    """A strategy from its file, YAML or JSON, or from a GGUF file that was built from one. Raises StrategyError."""
    return strategies.read_strategy(Path(path))


def write_strategy(strategy: Strategy, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a strategy, YAML or JSON by its name. Raises OutputError where the file exists or cannot be written."""
    return strategy_file.write(strategy, Path(path), overwrite=overwrite)


def _run(workspace: Workspace, step: Step[Result], on_progress: Listener | None, *, now: bool = False) -> Result:
    def tell(ahead: jobs.JobReport) -> None:
        if on_progress is not None:
            on_progress(Progress(stage=f"waiting for job {ahead.id}"))

    result = jobs.run_job(workspace, jobs.submit(workspace, step), on_progress, on_waiting=tell, now=now)
    if not isinstance(result, step.result):
        raise TypeError(f"a {step.kind} answered {type(result).__name__}")
    return result  # type: ignore[return-value]


def _text(text: str | Path | None) -> str | None:
    return None if text is None else absolute(text)


def _matrix(imatrix: str | Path) -> str:
    return str(imatrix) if str(imatrix) in (AUTO, "none") else absolute(imatrix)
