"""One function for each thing a user can ask for; the command line and the GUI to come call nothing else."""

from __future__ import annotations

import importlib.metadata

from quantailor.service.inspection import inspect
from quantailor.service.jobs import (
    cancel_job,
    follow_job,
    list_jobs,
    pause_job,
    remove_job,
    resume_job,
    run_job,
    show_job,
    start_detached,
    submit,
)
from quantailor.service.planning import plan, plan_rule
from quantailor.service.predicting import predict
from quantailor.service.reporting import compare_models, report
from quantailor.service.results import JobReport
from quantailor.service.work import use_imatrix
from quantailor.service.workspace import Workspace

__all__ = [
    "JobReport",
    "Workspace",
    "cancel_job",
    "compare_models",
    "follow_job",
    "inspect",
    "list_jobs",
    "pause_job",
    "plan",
    "plan_rule",
    "predict",
    "remove_job",
    "report",
    "resume_job",
    "run_job",
    "show_job",
    "start_detached",
    "submit",
    "use_imatrix",
    "version",
]


def version() -> str:
    """The installed version."""
    return importlib.metadata.version("quantailor")
