"""Options that belong together, and the part of a step that they say; see `root.command`."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypedDict

import typer

from quantailor.app import steps as options
from quantailor.app.steps import (
    AUTO,
    COMPUTE,
    DEFAULT_N_CTX,
    N_PROMPTS,
    NONE,
    Compute,
    Conversion,
    Evals,
    HubModel,
    Rest,
    absolute,
    eval_names,
    find_token,
)
from quantailor.cli.options.single import (
    TEXT_KINDS,
    AnyImatrix,
    ChoicesFile,
    Context,
    Converter,
    Covariances,
    EvalNames,
    GpuLayers,
    Imatrix,
    MakeCovariances,
    MakeRounding,
    Model,
    Passes,
    Prompts,
    Requantize,
    RestOption,
    Rounding,
    RpcServers,
    Runnable,
    Text,
    ThreadCount,
    Time,
    TrustRemoteCode,
    UsualTypes,
    Way,
)
from quantailor.cli.values import covariances_choice, imatrix_choice, optional_path, optional_seconds, split_list


@dataclass(frozen=True, slots=True)
class Evaluations:
    """What files are asked beside their divergences."""

    eval: EvalNames = None
    prompts: Prompts = N_PROMPTS
    choices: ChoicesFile = None

    @property
    def evals(self) -> Evals:
        """The part of a step. Raises OptionError for an evaluation that is not known."""
        names = [name for text in self.eval or () for name in split_list(text)]
        return Evals(names=eval_names(names), prompts=self.prompts, choices=optional_path(self.choices))


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a command that runs the model may use."""

    threads: ThreadCount = None
    gpu_layers: GpuLayers = 0
    rpc: RpcServers = None

    @property
    def compute(self) -> Compute:
        return Compute(n_threads=self.threads, n_gpu_layers=self.gpu_layers, rpc=split_list(self.rpc))


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


@dataclass(frozen=True, kw_only=True)
class TimedHere(Machine, Weights):
    """A model that runs here to be timed."""

    base: Runnable
    types: UsualTypes = None

    @property
    def type_names(self) -> tuple[str, ...]:
        """Empty for all."""
        return split_list(self.types)


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

    def conversion(self, hub: HubModel | None, *, makes_projector: bool = False) -> Conversion:
        """The same as a step takes it; a projector takes llama.cpp's converter in any way.

        Raises typer.BadParameter where options contradict each other.
        """
        if self.way == "native" and not makes_projector and (self.converter is not None or self.trust_remote_code):
            raise typer.BadParameter("--converter and --trust-remote-code are for llama.cpp's converter, which --way native does not use")
        if hub is not None and self.trust_remote_code:
            raise typer.BadParameter("code of a repository is not downloaded: fetch it yourself, read it, and give the directory")
        return Conversion(converter=optional_path(self.converter), way=self.way, trust_remote_code=self.trust_remote_code)
