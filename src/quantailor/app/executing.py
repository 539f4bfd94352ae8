"""Who does a job's work: this machine, or the workers that its step names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from quantailor.cluster import Listeners, Places, connected
from quantailor.ggml.remote.rpc import NO_AUTHENTICATION
from quantailor.jobs import JobControl
from quantailor.processes.crews import HERE, Executor
from quantailor.session import Workspace
from quantailor.steps.step import ModelStep, Step, StepResult


@contextmanager
def executing(workspace: Workspace, step: Step[StepResult], control: JobControl) -> Iterator[Executor]:
    """For the length of a job. Raises ClusterError where the workers cannot be reached."""
    if isinstance(step, ModelStep) and step.compute.rpc:
        control.log(f"Layers lie on {', '.join(step.compute.rpc)}. {NO_AUTHENTICATION}", level="warning")
    if not isinstance(step, ModelStep) or step.compute.cluster is None:
        yield HERE
        return
    places = Places.of(workspace.home.path, step.compute.cluster_paths)
    listeners = Listeners(control, lambda words: control.log(words, level="warning"), control.cluster)
    with connected(step.compute.cluster, places, listeners) as executor:
        control.log(f"{step.compute.cluster} does the work that can be spread")
        yield executor
