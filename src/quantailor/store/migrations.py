"""How the database got its present form: named steps, each recorded in the transaction that makes it.

A step is never changed once released; a new form is a new step at the end of `MIGRATIONS`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from importlib import resources

APPLICATION_ID = 0x51544C52
"""Marks the file as ours in its header: "QTLR"."""

Migration = Callable[[sqlite3.Connection], None]


def first_schema(connection: sqlite3.Connection) -> None:
    """Models, tensors, cells, importance matrices, scores, strategies, verdicts and jobs."""
    for statement in _statements("first_schema.sql"):
        connection.execute(statement)


def swap_schema(connection: sqlite3.Connection) -> None:
    """Mixes of types and their scores: probes, sweeps, anchors."""
    for statement in _statements("swap_schema.sql"):
        connection.execute(statement)


def stage_schema(connection: sqlite3.Connection) -> None:
    """What a job's progress counts, and which of how many stages runs."""
    connection.execute("ALTER TABLE jobs ADD COLUMN unit TEXT NOT NULL DEFAULT ''")
    connection.execute("ALTER TABLE jobs ADD COLUMN stage_number INTEGER NOT NULL DEFAULT 0")
    connection.execute("ALTER TABLE jobs ADD COLUMN n_stages INTEGER NOT NULL DEFAULT 0")


def drafts_schema(connection: sqlite3.Connection) -> None:
    """Strategies in the making, with every edit."""
    connection.execute(
        "CREATE TABLE drafts (model TEXT NOT NULL REFERENCES models (fingerprint) ON DELETE CASCADE, name TEXT NOT NULL,"
        " document TEXT NOT NULL, changed REAL NOT NULL, PRIMARY KEY (model, name)) WITHOUT ROWID"
    )


def commits_schema(connection: sqlite3.Connection) -> None:
    """At which commit a job's model is, and where it was downloaded to."""
    connection.execute("ALTER TABLE jobs ADD COLUMN hub_commit TEXT")
    connection.execute("ALTER TABLE jobs ADD COLUMN hub_path TEXT")


def options_schema(connection: sqlite3.Connection) -> None:
    """Jobs keep what a step may use of the machine, and how it converts, as one option each."""
    groups = {"compute": ("n_threads", "n_gpu_layers"), "conversion": ("converter", "way", "trust_remote_code")}
    for job, text in connection.execute("SELECT id, arguments FROM jobs").fetchall():
        arguments = json.loads(text)
        for group, names in groups.items():
            grouped = {name: arguments.pop(name) for name in names if name in arguments}
            if grouped:
                arguments[group] = grouped
        connection.execute("UPDATE jobs SET arguments = ? WHERE id = ?", (json.dumps(arguments), job))


def revisions_schema(connection: sqlite3.Connection) -> None:
    """Drafts count their changes, so that nobody overwrites what he has not seen."""
    connection.execute("ALTER TABLE drafts ADD COLUMN revision INTEGER NOT NULL DEFAULT 1")


def identities_schema(connection: sqlite3.Connection) -> None:
    """Which model the files at a path are, as long as they stay as they were.

    What was filed under identities that rested on samples stays there, and no file is said to be such a model any more.
    """
    connection.execute(
        "CREATE TABLE identities (path TEXT NOT NULL PRIMARY KEY, files TEXT NOT NULL, fingerprint TEXT NOT NULL, not_finite TEXT NOT NULL)"
        " WITHOUT ROWID"
    )
    connection.execute("DELETE FROM locations WHERE kind IN ('model', 'conversion')")


def engines_schema(connection: sqlite3.Connection) -> None:
    """With which llama.cpp mixes were scored; other results have it in their keys."""
    connection.execute("ALTER TABLE swap_runs ADD COLUMN engine TEXT NOT NULL DEFAULT ''")


def covariances_schema(connection: sqlite3.Connection) -> None:
    """Input covariances: whose they are, and which computation gave them."""
    connection.execute(
        "CREATE TABLE covariances (model TEXT NOT NULL REFERENCES models (fingerprint) ON DELETE CASCADE, fingerprint TEXT NOT NULL,"
        " datasets TEXT NOT NULL, chunk_count INTEGER NOT NULL, chunk_size INTEGER NOT NULL,"
        " origin TEXT NOT NULL CHECK (origin IN ('computed', 'imported')), PRIMARY KEY (model, fingerprint)) WITHOUT ROWID"
    )
    connection.execute(
        "CREATE TABLE covariance_computations (model TEXT NOT NULL, corpus TEXT NOT NULL, n_ctx INTEGER NOT NULL, options TEXT NOT NULL,"
        " fingerprint TEXT NOT NULL, PRIMARY KEY (model, corpus, n_ctx, options),"
        " FOREIGN KEY (model, fingerprint) REFERENCES covariances (model, fingerprint) ON DELETE CASCADE) WITHOUT ROWID"
    )


def outputs_schema(connection: sqlite3.Connection) -> None:
    """What errors do to outputs, measured with input covariances; and how the weights were rounded that were scored."""
    connection.execute("ALTER TABLE cells ADD COLUMN output_mse REAL")
    connection.execute("ALTER TABLE cells ADD COLUMN output_mse_se REAL NOT NULL DEFAULT 0")
    connection.execute("ALTER TABLE swap_runs ADD COLUMN rounding TEXT NOT NULL DEFAULT ''")


def overall_schema(connection: sqlite3.Connection) -> None:
    """How far a job is as a whole, beside its present stage."""
    connection.execute("ALTER TABLE jobs ADD COLUMN overall REAL")


def paces_schema(connection: sqlite3.Connection) -> None:
    """How long the stages of jobs took, beside what a trial of the machine made of their work."""
    connection.execute(
        "CREATE TABLE paces (id INTEGER PRIMARY KEY, stage TEXT NOT NULL, n_threads INTEGER NOT NULL, expected_seconds REAL NOT NULL,"
        " seconds REAL NOT NULL, recorded REAL NOT NULL)"
    )


MIGRATIONS: dict[str, Migration] = {
    "0001 first schema": first_schema,
    "0002 mixes and their scores": swap_schema,
    "0003 stages of jobs": stage_schema,
    "0004 drafts": drafts_schema,
    "0005 commits of jobs": commits_schema,
    "0006 options of jobs in groups": options_schema,
    "0007 revisions of drafts": revisions_schema,
    "0008 identities of files": identities_schema,
    "0009 llama.cpp of scores": engines_schema,
    "0010 covariances": covariances_schema,
    "0011 errors of outputs": outputs_schema,
    "0012 jobs as a whole": overall_schema,
    "0013 paces": paces_schema,
}


def prepare(connection: sqlite3.Connection) -> None:
    """Create the table of migrations in an empty database and mark the file as ours."""
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("CREATE TABLE IF NOT EXISTS migrations (name TEXT NOT NULL PRIMARY KEY, applied REAL NOT NULL) WITHOUT ROWID")


def _statements(file_name: str) -> Iterator[str]:
    # executescript would commit on its own, and a step must be all or nothing.
    statement = ""
    for line in resources.files(__package__).joinpath(file_name).read_text(encoding="utf-8").splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
