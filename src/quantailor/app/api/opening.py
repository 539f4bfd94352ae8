"""Models: opened, looked at, downloaded, converted; and how a function runs its step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from quantailor.app import jobs
from quantailor.app.library.structure import ModelReport
from quantailor.app.library.structure import inspect as inspect_model
from quantailor.errors import UnsupportedModelError
from quantailor.files import Closing
from quantailor.jobs import Listener, Progress
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.upstream import ProjectorType
from quantailor.pipeline import StudyStep
from quantailor.records import TensorInfo
from quantailor.session import AUTO, Workspace
from quantailor.steps.conversion.convert import ConvertStep
from quantailor.steps.hub.download import DownloadResult, DownloadStep
from quantailor.steps.options import Compute, absolute
from quantailor.steps.step import Step, StepResult

Result = TypeVar("Result", bound=StepResult)


@dataclass
class Model(Closing):
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
    """What its steps may use of this machine, and which others."""
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
        return known or convert(self, place, overwrite=True).path

    def close(self) -> None:
        """Close the home."""
        self.workspace.close()


def open_model(
    path: str | Path,
    *,
    home: str | Path | None = None,
    threads: int | None = None,
    gpu_layers: int = 0,
    rpc: Iterable[str] = (),
    cluster: str | None = None,
    cluster_paths: Iterable[str] = (),
    on_progress: Listener | None = None,
    now: bool = False,
) -> Model:
    """Open a GGUF file or a Hugging Face directory.

    Args:
        path: the model.
        home: where measurements, importance matrices and jobs are kept; by default what QUANTAILOR_HOME or the platform names.
        threads: threads to use; all processors by default.
        gpu_layers: layers that llama.cpp runs on a GPU and on RPC servers.
        rpc: HOST:PORT of llama.cpp's RPC servers that share these layers.
        cluster: spread what can be spread over workers of Dask: "local:N", or the address of a scheduler.
        cluster_paths: HERE=THERE, for folders that workers have elsewhere.
        on_progress: called with the progress of long work.
        now: do not wait while another job runs a model on this machine.

    Raises:
        ModelError: there is no model, or it is damaged.
        StoreError: the home cannot be used.

    Servers and workers are asked for when a step begins, which raises RpcError or ClusterError where there are none.

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
                Compute(n_threads=threads, n_gpu_layers=gpu_layers, rpc=tuple(rpc), cluster=cluster, cluster_paths=tuple(cluster_paths)),
                on_progress,
                now,
            )
    except BaseException:
        workspace.close()
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
        return run(workspace, DownloadStep(repo_id=repository, revision=revision, gguf_file=gguf_file), None)


def convert(
    model: Model, output: str | Path, *, overwrite: bool = False, mmproj: str | Path | None = None, mmproj_type: ProjectorType = "f16"
) -> Model:
    """Write the 16-bit base of a Hugging Face directory and return it, opened in the same home.

    Args:
        model: the directory.
        output: the base.
        overwrite: replace files that are there.
        mmproj: also write the vision tower or audio encoder here, through llama.cpp's converter.
        mmproj_type: what that is stored in: "f16", "bf16" or "q8_0".

    Raises:
        UnsupportedModelError: the model is a GGUF file already, of a family that neither way of conversion knows, or has no tower.
        ConverterError: llama.cpp's converter cannot be had or fails.
        OutputError: the file exists, or cannot be written.
    """
    if model.path.is_file():
        raise UnsupportedModelError(f"{model.path} is GGUF already", remedy="Use it as it is")
    step = ConvertStep(
        model=str(model.path), output=absolute(output), overwrite=overwrite, mmproj=optional_path(mmproj), mmproj_type=mmproj_type
    )
    path = Path(run_on(model, step).path)
    with model.workspace.model(path) as opened:
        tensors = tuple(opened.source.tensors)
    return replace(model, path=path, tensors=tensors)


def run(workspace: Workspace, step: Step[Result], on_progress: Listener | None, *, now: bool = False) -> Result:
    """Run a step as a job of the home. Raises what the step raises; TypeError would be a step that answers as another."""

    def tell(ahead: jobs.JobReport) -> None:
        if on_progress is not None:
            on_progress(Progress(stage=f"waiting for job {ahead.id}"))

    result = jobs.run_job(workspace, jobs.submit(workspace, step), on_progress, on_waiting=tell, now=now)
    if not isinstance(result, step.result):
        raise TypeError(f"a {step.kind} answered {type(result).__name__}")
    return result  # type: ignore[return-value]


def run_on(model: Model, step: Step[Result]) -> Result:
    """The same for a step that works on a model."""
    return run(model.workspace, step, model.on_progress, now=model.now)


def optional_path(path: str | Path | None) -> str | None:
    """A path that means the same in every working directory, or None."""
    return None if path is None else absolute(path)


def matrix_choice(imatrix: str | Path) -> str:
    """One of the words, or a file as an absolute path."""
    return str(imatrix) if str(imatrix) in (AUTO, "none") else absolute(imatrix)
