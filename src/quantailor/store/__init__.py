"""The project's database: everything that was found out, and the jobs that find it out."""

from quantailor.store.job_table import Job, JobRequest, JobState, LogLine, Pace, Progress, Worker
from quantailor.store.keys import (
    CovarianceRecord,
    ImatrixKey,
    ImatrixProgress,
    ImatrixRecord,
    Location,
    MeasurementKey,
    ModelRecord,
    ResultCounts,
    ScoreKey,
    StrategyRecord,
    SwapKey,
    VerdictRecord,
)
from quantailor.store.store import Store

__all__ = [
    "CovarianceRecord",
    "ImatrixKey",
    "ImatrixProgress",
    "ImatrixRecord",
    "Job",
    "JobRequest",
    "JobState",
    "Location",
    "LogLine",
    "MeasurementKey",
    "ModelRecord",
    "Pace",
    "Progress",
    "ResultCounts",
    "ScoreKey",
    "Store",
    "StrategyRecord",
    "SwapKey",
    "VerdictRecord",
    "Worker",
]
