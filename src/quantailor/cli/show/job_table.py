"""Jobs, in a table and one by one."""

from __future__ import annotations

from quantailor.app.jobs import JobReport, told_workers
from quantailor.cli.output import console, table
from quantailor.present import words


def jobs(reports: list[JobReport]) -> None:
    """The job table."""
    if not reports:
        console().print("No jobs. Long commands make one each; --detach sends them to the background.")
        return
    rows = [
        (str(job.id), job.kind, _state(job), words.percent(job.progress, 0), words.time_left(job.eta_seconds), job.created, job.title)
        for job in reports
    ]
    columns = {"id": "right", "kind": "left", "state": "left", "done": "right", "left": "left", "created": "left", "what": "left"}
    console().print(table("Jobs", columns, rows))


def _state(job: JobReport) -> str:
    return job.state if job.waits_for is None else f"waits for job {job.waits_for}"


def _workers(report: JobReport) -> None:
    """The workers that it uses, and how fast each of them is."""
    if (cluster := report.cluster) is None:
        return
    out = console()
    out.print(f"cluster   {cluster.address}, {told_workers(cluster)}", markup=False)
    if cluster.dashboard is not None:
        out.print(f"dashboard {cluster.dashboard}", markup=False)
    rows = []
    for worker in cluster.workers:
        rate = "" if worker.per_second is None else f"{worker.per_second:.2g} per second"
        state = worker.words or ("slower than most" if worker.is_slow else worker.state)
        rows.append((worker.name, worker.host, words.count(worker.n_done), rate, state))
    what = report.unit if report.unit == "chunks" else "cells"
    columns = {"worker": "left", "on": "left", what: "right", "rate": "right", "state": "left"}
    out.print(table("Workers", columns, rows))


def job(report: JobReport) -> None:
    """One job with its log."""
    out = console()
    stage = f"stage {report.stage_number} of {report.n_stages}, " if report.n_stages and report.state != "done" else ""
    elapsed = "" if report.elapsed_seconds is None else f"after {words.duration(report.elapsed_seconds)}"
    parts = (f"{stage}{words.percent(report.progress, 0)}", elapsed, words.time_left(report.eta_seconds))
    out.print(f"job {report.id}: {report.kind}, {_state(report)}, {'  '.join(part for part in parts if part)}")
    out.print(f"what      {report.title}", markup=False)
    if report.origin:
        out.print(f"model     {report.origin}", markup=False)
    if report.message:
        out.print(f"now       {report.message}", markup=False)
    if report.error:
        out.print(f"error     {report.error}", markup=False)
    _workers(report)
    for line in report.log:
        out.print(line, markup=False)
