"""What tests ask of stores beside their results."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from quantailor.store import Store


def first_difference(ours: Store, other: Store) -> str | None:
    """Where the results of two stores first differ, in words; None when they are equal row for row."""
    expected, found = ours.result_rows(), other.result_rows()
    for table, rows in expected.items():
        if len(rows) != len(found[table]):
            return f"{table}: {len(rows)} rows against {len(found[table])}"
        for row, candidate in zip(rows, found[table], strict=True):
            if row != candidate:
                return f"{table}: {row} against {candidate}"
    return None


def table_names(path: Path) -> set[str]:
    """Every table of a store's file."""
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        return {name for (name,) in rows}
