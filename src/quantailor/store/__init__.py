"""The project's database: everything that was found out, and the jobs that find it out."""

from quantailor.store.job_table import ClusterReport, Job, JobState, LogLine, Pace, Progress, Worker, WorkerReport
from quantailor.store.keys import (
    CalibrationRecord,
    EvalKey,
    ImatrixKey,
    Location,
    MeasurementKey,
    ModelRecord,
    ReferenceFile,
    ResultCounts,
    ScoreKey,
    StrategyRecord,
    SwapKey,
    TimingKey,
)
from quantailor.store.store import Store
