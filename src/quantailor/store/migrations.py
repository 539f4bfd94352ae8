"""How the database got its present form: named steps, each recorded in the transaction that makes it.

A step is never changed once released; a new form is a new step at the end of `MIGRATIONS`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from importlib import resources

APPLICATION_ID = 0x51544C52
"""Marks the file as ours in its header: "QTLR"."""

FIRST = "0012 jobs as a whole"
"""The last step before the first release; the schema that it begins with has all that came before."""

Migration = Callable[[sqlite3.Connection], None]


def first_schema(connection: sqlite3.Connection) -> None:
    """Everything that the first release knew."""
    for statement in _statements("first_schema.sql"):
        connection.execute(statement)


def paces_schema(connection: sqlite3.Connection) -> None:
    """How long the stages of jobs took, beside what a trial of the machine made of their work."""
    connection.execute(
        "CREATE TABLE paces (id INTEGER PRIMARY KEY, stage TEXT NOT NULL, n_threads INTEGER NOT NULL, expected_seconds REAL NOT NULL,"
        " seconds REAL NOT NULL, recorded REAL NOT NULL)"
    )


def clusters_schema(connection: sqlite3.Connection) -> None:
    """Which workers a job uses."""
    connection.execute("ALTER TABLE jobs ADD COLUMN cluster TEXT")


def rest_schema(connection: sqlite3.Connection) -> None:
    """In what the base rested while mixes were scored."""
    connection.execute("ALTER TABLE swap_runs ADD COLUMN rest TEXT NOT NULL DEFAULT ''")


def answers_schema(connection: sqlite3.Connection) -> None:
    """What files answered to the items of an evaluation."""
    connection.execute(
        "CREATE TABLE answers (model TEXT NOT NULL REFERENCES models (fingerprint) ON DELETE CASCADE, evaluation TEXT NOT NULL,"
        " candidate TEXT NOT NULL, item INTEGER NOT NULL, figures BLOB NOT NULL,"
        " PRIMARY KEY (model, evaluation, candidate, item)) WITHOUT ROWID"
    )


def lost_rows_schema(connection: sqlite3.Connection) -> None:
    """Which rows of a checkpoint its base does not hold."""
    connection.execute("ALTER TABLE identities ADD COLUMN lost TEXT NOT NULL DEFAULT ''")


def lost_tensors_schema(connection: sqlite3.Connection) -> None:
    """Of which tensor a base holds nothing; checkpoints with lost rows are read again."""
    connection.execute("ALTER TABLE identities ADD COLUMN lost_whole TEXT NOT NULL DEFAULT ''")
    connection.execute("DELETE FROM identities WHERE lost <> ''")


def zeros_schema(connection: sqlite3.Connection) -> None:
    """Which matrices are zero; every model is read again."""
    connection.execute("DELETE FROM identities")
    connection.execute("ALTER TABLE identities ADD COLUMN zeros TEXT NOT NULL DEFAULT ''")


def timings_schema(connection: sqlite3.Connection) -> None:
    """What files of one structure took on this machine, whichever model they are of."""
    connection.execute(
        "CREATE TABLE timings (structure TEXT NOT NULL, kernels TEXT NOT NULL, n_threads INTEGER NOT NULL, n_gpu_layers INTEGER NOT NULL,"
        " definition_version INTEGER NOT NULL, timed TEXT NOT NULL, prompt REAL NOT NULL, prompt_se REAL NOT NULL,"
        " generation REAL NOT NULL, generation_se REAL NOT NULL, reference_prompt_s REAL NOT NULL, reference_generation_s REAL NOT NULL,"
        " PRIMARY KEY (structure, kernels, n_threads, n_gpu_layers, definition_version, timed)) WITHOUT ROWID"
    )


def reference_files_schema(connection: sqlite3.Connection) -> None:
    """What presets' files of a home are, whether they are still there or not."""
    connection.execute(
        "CREATE TABLE reference_files (model TEXT NOT NULL REFERENCES models (fingerprint) ON DELETE CASCADE,"
        " name TEXT NOT NULL PRIMARY KEY, content TEXT NOT NULL, size_bytes INTEGER NOT NULL,"
        " bits_per_weight REAL NOT NULL, types TEXT NOT NULL) WITHOUT ROWID"
    )


MIGRATIONS: dict[str, Migration] = {
    FIRST: first_schema,
    "0013 paces": paces_schema,
    "0014 workers of jobs": clusters_schema,
    "0015 what bases rest in": rest_schema,
    "0016 answers of evaluations": answers_schema,
    "0017 rows that a base does not hold": lost_rows_schema,
    "0018 what files take": timings_schema,
    "0019 tensors that a base does not hold": lost_tensors_schema,
    "0020 what presets' files are": reference_files_schema,
    "0021 matrices that are zero": zeros_schema,
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
