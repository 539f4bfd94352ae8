"""Arguments and options that several commands share, each defined once."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import typer

from quantailor.app import Workspace
from quantailor.app import steps as options
from quantailor.app.jobs import JobReport, job_lines, run_job, start_detached, submit, telling
from quantailor.app.steps import (
    AUTO,
    COMPUTE,
    DEFAULT_N_CTX,
    NONE,
    Compute,
    Conversion,
    Grouping,
    HubModel,
    Rest,
    Step,
    StepResult,
    absolute,
    find_token,
)
from quantailor.cli import show
from quantailor.cli.advice import with_home
from quantailor.cli.output import console, print_json
from quantailor.cli.progress import listening, reading
from quantailor.cli.values import covariances_choice, imatrix_choice, optional_path, optional_seconds, split_list
from quantailor.files import expanded

_PLAINLY_LOCAL = re.compile(r"\.{1,2}(?:[/\\].*)?|~.*|.*[/\\]", re.DOTALL)


def model_path(text: str) -> Path:
    """A model as it was typed. `./a/b`, `~/b` and `a/b/` are paths even where there is nothing: made absolute, they name no repository."""
    if _PLAINLY_LOCAL.fullmatch(text) is None:
        return Path(text)
    return expanded(text).absolute()


def number(of: str, *names: str, help: str, panel: str | None = None, least: float | None = None) -> Any:
    """A numeric option with the range that the field of the steps has, or one that begins at `least`."""
    low, high = options.RANGES[of]
    return typer.Option(*names, min=low if least is None else least, max=high, help=help, rich_help_panel=panel)


Home = Annotated[
    Path | None,
    typer.Option("--home", envvar="QUANTAILOR_HOME", help="Where the store, logs and references live.", rich_help_panel="Common"),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document (see docs/JSON.md).", rich_help_panel="Common")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.", rich_help_panel="Common")]
Requantize = Annotated[bool, typer.Option("--allow-requantize", help="Accept a source that is already quantized.")]
Imatrix = Annotated[str, typer.Option("--imatrix", help="auto, none, or an imatrix file (GGUF or .dat).")]
AnyImatrix = Annotated[str, typer.Option("--imatrix", help="auto, none, a file (GGUF or .dat), or repo: the one that ORG/NAME ships.")]
Rounding = Annotated[
    options.RoundingWish,
    typer.Option(
        "--rounding",
        help="plain (as ggml rounds), compensated (blocks of columns make up for each other's errors), or auto: as what is there says.",
    ),
]
Covariances = Annotated[
    str, typer.Option("--covariances", help="Of the inputs, for compensated rounding: auto (the newest of the model), none, or a file.")
]
MakeRounding = Annotated[
    options.RoundingWish,
    typer.Option(
        "--rounding",
        help="plain (as ggml rounds), compensated (blocks of columns make up for each other's errors), or auto: compensated where a text "
        "runs through the model.",
    ),
]
MakeCovariances = Annotated[
    str,
    typer.Option("--covariances", help="Of the inputs, for compensated rounding: auto (computed where there are none), none, or a file."),
]
MakeImatrix = Annotated[
    str,
    typer.Option("--imatrix", help="compute, auto (an existing one, else computed), none, a file, or repo: the one that ORG/NAME ships."),
]
Evidence = Annotated[
    str | None, typer.Option("--evidence", help="The probes to stand on, as `status` names them; by default those that cover most.")
]
Types = Annotated[str | None, typer.Option("--types", help="Types, separated by commas; all that ggml can write by default.")]
UsualTypes = Annotated[
    str | None,
    typer.Option("--types", help="Types, separated by commas; by default those that a plan uses by itself, and any that limits name."),
]
Context = Annotated[int, number("n_ctx", "--n-ctx", help="Tokens in a chunk.")]
Base = Annotated[Path, typer.Argument(metavar="BASE", help="A 16-bit GGUF file (the first shard if it has several).")]
Strategy = Annotated[Path, typer.Argument(metavar="STRATEGY", help="A strategy file (YAML or JSON), or a GGUF file that carries one.")]
Tensors = Annotated[str | None, typer.Option("--tensors", help="Only tensors that match these patterns, e.g. 'blk.0.*'.")]
ProcessOutput = Annotated[bool, typer.Option("--process-output", help="Include output.weight, for the quantizer.")]
Source = Annotated[Path, typer.Argument(metavar="MODEL", help="A GGUF file or a Hugging Face directory.")]
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", parser=model_path, help="A GGUF file, a Hugging Face directory, or ORG/NAME of the hub.")
]
Runnable = Annotated[
    Path,
    typer.Argument(
        metavar="BASE", parser=model_path, help="A 16-bit GGUF file (the first shard if it has several), or ORG/NAME of one on the hub."
    ),
]
TEXT_KINDS = "plain, conversations (.jsonl), or a mix that names several (.yaml)"
Text = Annotated[
    Path | None, typer.Option("--file", "-f", help=f"Text to use instead of the one that ships with Quantailor: {TEXT_KINDS}.")
]
Chunks = Annotated[int | None, number("chunks", "--chunks", help="Use at most this many chunks of the text.")]
Against = Annotated[
    str | None,
    typer.Option(
        "--against",
        help="llama.cpp presets to compare with, separated by commas; by default those around the file's size, and that of --like.",
    ),
]
Beside = Annotated[
    Literal["plain"] | None,
    typer.Option("--beside", help="plain: compare a file whose rounding is compensated with its own types rounded plainly, too."),
]
Time = Annotated[
    str | None,
    typer.Option(
        "--time",
        help="Measure as well as this much time allows, for example 30m or 2h: probing ends then, and everything counts. In `make` it is "
        "the time for measuring, importance matrix and weight errors included; plan, file and verdict come after it.",
    ),
]
Passes = Annotated[
    int | None,
    number("passes", "--passes", help="The same for so many passes: chunks run through the model with something quantized."),
]
RestOption = Annotated[
    Rest,
    typer.Option(
        "--rest",
        help="What the base rests in while it is probed: 16 (bits, as stored) or q8_0, which takes half the memory; types of many bits "
        "then count as expected, and no KL divergence is predicted.",
    ),
]
ProbeChunks = Annotated[int, number("probe_chunks", "--probe-chunks", help="Chunks for probes, at most.")]
Group = Annotated[Grouping, typer.Option("--group", help="Probe every tensor, a role by quarters of the depth, or whole roles.")]

Converter = Annotated[
    Path | None,
    typer.Option(
        "--converter",
        help="llama.cpp's folder or its convert_hf_to_gguf.py; by default LLAMA_CPP_DIR, else that of the installed llama-cpp-python.",
        rich_help_panel="Conversion",
    ),
]
Way = Annotated[
    options.Way,
    typer.Option(
        "--way",
        help="auto (Quantailor's own conversion if it knows the model, else llama.cpp's converter), native, or llama.cpp.",
        rich_help_panel="Conversion",
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Let llama.cpp's converter run Python code that the directory contains.", rich_help_panel="Conversion"
    ),
]


ThreadCount = Annotated[int | None, number("n_threads", "--threads", help="Threads; all cores by default.", panel="Common")]


# Groups of options; see `root.command`


@dataclass(frozen=True, slots=True)
class Threads:
    """What a command that needs no inference may use of the machine."""

    threads: ThreadCount = None

    @property
    def compute(self) -> Compute:
        return Compute(n_threads=self.threads)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a command that runs the model may use."""

    threads: ThreadCount = None
    gpu_layers: Annotated[int, number("n_gpu_layers", "--gpu-layers", "-ngl", help="Layers on the GPU, for inference.", panel="Common")] = 0

    @property
    def compute(self) -> Compute:
        return Compute(n_threads=self.threads, n_gpu_layers=self.gpu_layers)


_Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        envvar="QUANTAILOR_CLUSTER",
        help="Spread it over workers of Dask: local:N for N processes here, or the scheduler as tcp://HOST:PORT or tls://HOST:PORT.",
        rich_help_panel="Cluster",
    ),
]
_ClusterPaths = Annotated[
    list[str] | None,
    typer.Option(
        "--cluster-path",
        metavar="HERE=THERE",
        help="Workers have this folder elsewhere; may be given more than once.",
        rich_help_panel="Cluster",
    ),
]


def _spread(compute: Compute, cluster: str | None, paths: list[str] | None) -> Compute:
    return dataclasses.replace(compute, cluster=cluster, cluster_paths=tuple(paths or ()))


@dataclass(frozen=True, slots=True)
class SpreadThreads:
    """What a command that needs no inference may use of this machine and of others."""

    threads: ThreadCount = None
    cluster: _Cluster = None
    cluster_path: _ClusterPaths = None

    @property
    def compute(self) -> Compute:
        return _spread(Compute(n_threads=self.threads), self.cluster, self.cluster_path)


@dataclass(frozen=True, kw_only=True)
class SpreadMachine(Machine):
    """What a command that runs the model may use of this machine and of others."""

    cluster: _Cluster = None
    cluster_path: _ClusterPaths = None

    @property
    def compute(self) -> Compute:
        return _spread(super().compute, self.cluster, self.cluster_path)


@dataclass(frozen=True, kw_only=True)
class Hub:
    """Where a model's repository is looked up."""

    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit.", rich_help_panel="Hub")] = None
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="A file with the access token, instead of HF_TOKEN or `hf auth login`.", rich_help_panel="Hub"),
    ] = None
    gguf_file: Annotated[
        str | None, typer.Option("--gguf-file", help="Take this GGUF file instead of the 16-bit one.", rich_help_panel="Hub")
    ] = None

    def repository(self, model: Path) -> HubModel | None:
        """The repository that this names, ORG/NAME or ORG/NAME@REVISION; None for a path. What is here is not a repository.

        Raises typer.BadParameter where an option for repositories comes with a path, or a revision comes twice.
        """
        repo_id, at, named = model.as_posix().partition("@")
        if REPO_ID.fullmatch(repo_id) is None or Path(repo_id).suffix in _FILES or _exists(model):
            if self.revision or self.token_file or self.gguf_file:
                raise typer.BadParameter("--revision, --token-file and --gguf-file are for repositories of the hub")
            return None
        if at and (self.revision or not named):
            raise typer.BadParameter(f"give one revision: {repo_id}@REVISION, or --revision")
        # A file that holds no token is refused before anything is stored.
        find_token(self.token_file)
        return HubModel(
            repo_id=repo_id, revision=named or self.revision, token_file=optional_path(self.token_file), gguf_file=self.gguf_file
        )


REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = (".gguf", ".safetensors", ".json")


def _exists(model: Path) -> bool:
    try:
        return model.exists()
    except OSError:
        return False


def place(model: Path, hub: HubModel | None) -> str:
    """What a step calls its model: an absolute path, or ORG/NAME."""
    return absolute(model) if hub is None else hub.repo_id


class ModelFields(TypedDict):
    """The part of a step that says which model it works on."""

    base: str
    hub: HubModel | None


class RunFields(ModelFields):
    """The part of a step that says what runs on which text."""

    text: str | None
    n_ctx: int
    compute: Compute


@dataclass(frozen=True, kw_only=True)
class Weights(Hub):
    """A model whose weights are read."""

    base: Model

    @property
    def of_hub(self) -> HubModel | None:
        """Its repository; raises what `repository` raises."""
        return self.repository(self.base)

    def fields(self) -> ModelFields:
        """The same as a step takes it; raises what `repository` raises."""
        return {"base": place(self.base, self.of_hub), "hub": self.of_hub}


@dataclass(frozen=True, kw_only=True)
class Running(Machine, Weights):
    """A model that runs on a text."""

    base: Runnable
    text: Text = None
    n_ctx: Context = DEFAULT_N_CTX

    def fields(self) -> RunFields:
        """The same as a step takes it; raises what `repository` raises."""
        return {**super().fields(), "text": optional_path(self.text), "n_ctx": self.n_ctx, "compute": self.compute}


@dataclass(frozen=True, kw_only=True)
class SpreadRunning(SpreadMachine, Running):
    """A model that runs on a text, here or on other machines."""


class RoundingFields(TypedDict):
    """The part of a step that says how weights are rounded."""

    rounding: options.RoundingWish
    covariances: str


class QuantizingFields(RoundingFields):
    """The part of a step that says how weights are quantized."""

    imatrix: str


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """How weights are rounded."""

    rounding: Rounding = "auto"
    covariances: Covariances = AUTO

    def rounded(self) -> RoundingFields:
        """The same as a step takes it."""
        return {"rounding": self.rounding, "covariances": covariances_choice(self.covariances)}


@dataclass(frozen=True, kw_only=True)
class QuantizedHere(Rounded):
    """How the weights of a model on this machine are quantized."""

    imatrix: Imatrix = AUTO

    def fields(self, hub: HubModel | None = None) -> QuantizingFields:
        """The same as a step takes it. Raises typer.BadParameter where a repository's matrix is asked for and there is none."""
        return {**self.rounded(), "imatrix": imatrix_choice(self.imatrix, of_repository=hub is not None)}


@dataclass(frozen=True, kw_only=True)
class Quantized(QuantizedHere):
    """How weights are quantized."""

    imatrix: AnyImatrix = AUTO


@dataclass(frozen=True, kw_only=True)
class MadeRounding(Rounded):
    """How everything that is made of a model is rounded."""

    rounding: MakeRounding = "auto"
    covariances: MakeCovariances = AUTO


class WayFields(RoundingFields):
    """The part of a step that goes the whole way, or measures everything."""

    model: str
    hub: HubModel | None
    types: tuple[str, ...]
    text: str | None
    seconds: float | None
    passes: int | None
    rest: Rest
    imatrix: str
    allow_requantize: bool
    compute: Compute


@dataclass(frozen=True, kw_only=True)
class WholeWay(MadeRounding, Machine, Hub):
    """What `make`, `study` and `cost` are asked for alike."""

    model: Model
    types: UsualTypes = None
    text: Annotated[
        Path | None,
        typer.Option("--file", "-f", help=f"Calibration text instead of the one that ships with Quantailor: {TEXT_KINDS}."),
    ] = None
    time: Time = None
    passes: Passes = None
    rest: RestOption = "16"
    requantize: Requantize = False

    @property
    def repository_of_model(self) -> HubModel | None:
        """Raises what `repository` raises."""
        return self.repository(self.model)

    def fields(self, imatrix: str) -> WayFields:
        """The same as a step takes it. Raises typer.BadParameter for what is no time, or names no repository or importance matrix."""
        repository = self.repository_of_model
        return {
            **self.rounded(),
            "model": place(self.model, repository),
            "hub": repository,
            "types": split_list(self.types),
            "text": optional_path(self.text),
            "seconds": optional_seconds(self.time),
            "passes": self.passes,
            "rest": self.rest,
            "imatrix": imatrix_choice(imatrix, of_repository=repository is not None, words=(AUTO, COMPUTE, NONE)),
            "allow_requantize": self.requantize,
            "compute": self.compute,
        }


@dataclass(frozen=True, kw_only=True)
class SpreadWay(SpreadMachine, WholeWay):
    """The same, here or on other machines."""


@dataclass(frozen=True, slots=True)
class Converting:
    """How a directory becomes GGUF."""

    converter: Converter = None
    way: Way = "auto"
    trust_remote_code: TrustRemoteCode = False

    def conversion(self, hub: HubModel | None) -> Conversion:
        """The same as a step takes it. Raises typer.BadParameter where options contradict each other."""
        if self.way == "native" and (self.converter is not None or self.trust_remote_code):
            raise typer.BadParameter("--converter and --trust-remote-code are llama.cpp's converter's, and --way native does without it")
        if hub is not None and self.trust_remote_code:
            raise typer.BadParameter("code of a repository is not downloaded: fetch it yourself, read it, and give the directory")
        return Conversion(converter=optional_path(self.converter), way=self.way, trust_remote_code=self.trust_remote_code)


@dataclass(frozen=True, slots=True)
class Answer:
    """Where a command works, and how it answers."""

    home: Home = None
    as_json: Json = False

    @contextmanager
    def workspace(self) -> Iterator[Workspace]:
        """The home, opened; reading a large model for the first time shows its progress. Raises StoreError."""
        with Workspace.open(self.home) as opened, reading(quiet=self.as_json) as listener, telling(opened, listener) as workspace:
            yield workspace

    def tell(self, command: str, result: object, show_result: Callable[[], None]) -> None:
        """One JSON document, or what `show_result` prints."""
        if self.as_json:
            print_json(command, result)
        else:
            show_result()


@dataclass(frozen=True, slots=True)
class Run(Answer):
    """The same for a command that is a job."""

    detach: Annotated[bool, typer.Option("--detach", help="Run as a background job and return at once.", rich_help_panel="Common")] = False
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait for another job that runs a model on this machine.", rich_help_panel="Common")
    ] = False

    def execute(self, step: Step[StepResult]) -> None:
        """Submit the step (taking up an unfinished job for the same step), run it and show its result."""
        with self.workspace() as workspace:
            self.start(workspace, submit(workspace, step), step.kind)

    def start(self, workspace: Workspace, job: int, kind: str) -> None:
        """Run a queued job here with a progress bar, or start a process for it."""
        if self.detach:
            _started(start_detached(workspace, job, now=self.now), self.home, as_json=self.as_json)
            return
        with listening(kind, quiet=self.as_json) as listener:
            result = run_job(workspace, job, listener, on_stopping=_say_stopping, on_waiting=_say_waiting, now=self.now)
        for warning in dict.fromkeys(line.message for line in job_lines(workspace, job) if line.level == "warning"):
            sys.stderr.write(f"note: {warning}\n")
        if self.as_json:
            print_json(kind, result)
        else:
            show.result(result)


def _started(report: JobReport, home: Path | None, *, as_json: bool) -> None:
    if as_json:
        print_json("job", report)
    else:
        doing = "runs" if report.waits_for is None else f"waits for job {report.waits_for}"
        follow = f"job {report.id} {doing} in the background; follow it with `quantailor jobs show {report.id} --follow`"
        console().print(with_home(follow, home), markup=False, soft_wrap=True)


def _say_waiting(ahead: JobReport) -> None:
    sys.stderr.write(f"waiting for job {ahead.id}, {ahead.kind} {ahead.title}; with --now it would not, and Ctrl-C leaves the queue\n")


def _say_stopping() -> None:
    sys.stderr.write("pausing at the next safe point; Ctrl-C again stops at once\n")
