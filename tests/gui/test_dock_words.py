"""What the dock says of a job whose work is spread over workers."""

from __future__ import annotations

import dataclasses

from quantailor.app.jobs import JobReport
from quantailor.gui.jobs.dock import told_rate, workers_page
from quantailor.store import ClusterReport, WorkerReport

WORKERS = (
    WorkerReport("one", "shelf", "ready", 12, 2.0, is_slow=False),
    WorkerReport("two", "shelf", "ready", 3, 0.5, is_slow=True),
    WorkerReport("three", "attic", "refused", 0, None, is_slow=False, words="has another llama.cpp"),
)
JOB = JobReport(1, "probe", "running", "base.gguf", 0.5, "probes", "2026-01-01T00:00:00", rate=2.5, unit="chunks")


def spread(dashboard: str | None) -> JobReport:
    return dataclasses.replace(JOB, cluster=ClusterReport("tcp://10.0.0.1:8786", dashboard, WORKERS))


def test_it_counts_workers_and_stragglers() -> None:
    assert told_rate(spread(None)) == f"{told_rate(JOB)}, 2 of 3 workers ready, 1 slower than most"
    assert told_rate(dataclasses.replace(spread(None), state="paused")) == ""


def test_it_leads_to_dasks_page_where_there_is_one() -> None:
    assert workers_page(spread("http://10.0.0.1:8787/status")) == "http://10.0.0.1:8787/status"
    assert workers_page(spread(None)) is workers_page(JOB) is workers_page(None) is None
    assert workers_page(spread("javascript:alert(1)")) is None, "whoever runs the scheduler says where it is"
