"""One sqlite file: opened, brought up to date, and used by any number of threads and processes.

Journal in WAL mode, so that readers never wait for a writer; `synchronous=FULL`, so that what was committed
survives a power cut as well as a killed process. One connection serves all threads of a process, under a lock:
transactions here are short. Every sqlite error leaves as a StoreError that names the file and a remedy.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from quantailor.errors import StoreError
from quantailor.store.migrations import APPLICATION_ID, FIRST, MIGRATIONS, prepare

Value = str | int | float | bytes | None
Parameters = Sequence[Value] | Mapping[str, Value]
Row = tuple[Any, ...]
"""A row of a table; the schema fixes its types, which sqlite3 cannot tell a type checker."""

Made = TypeVar("Made")

BUSY_TIMEOUT_S = 30.0
"""How long to wait while another process writes."""

_RETRY_S = 0.02

_logger = logging.getLogger(__name__)


class Database:
    """The file behind the store. `now` gives wall-clock seconds for the tables that carry times."""

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.path = path
        self.now = now
        self._lock = threading.RLock()
        self._in_transaction = False
        self._connection = self._connect(busy_timeout_s)
        try:
            self._open_patiently(busy_timeout_s)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; other processes are not disturbed."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; a transaction inside another joins it. Takes the write lock at once."""
        with self._lock:
            if self._in_transaction:
                yield
                return
            try:
                self._in_transaction = True
                self._run("BEGIN IMMEDIATE")
                yield
                self._run("COMMIT")
            except BaseException:
                self._roll_back()
                raise
            finally:
                self._in_transaction = False

    def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """All rows of a SELECT."""
        with self._lock:
            return self._run(sql, parameters)

    def each(self, sql: str, parameters: Parameters, make: Callable[[Row], Made]) -> list[Made]:
        """What `make` makes of every row of a SELECT; the rows themselves are never all in memory."""
        with self._lock, self._errors():
            return [make(row) for row in self._connection.execute(sql, parameters)]

    def change(self, sql: str, parameters: Parameters = ()) -> int:
        """Run one changing statement in a transaction; the number of rows it changed."""
        with self.transaction(), self._errors():
            return self._connection.execute(sql, parameters).rowcount

    def insert(self, sql: str, parameters: Parameters = ()) -> int:
        """Run one INSERT into a table with row ids; the new id."""
        with self.transaction(), self._errors():
            return self._connection.execute(sql, parameters).lastrowid or 0

    def change_many(self, sql: str, parameters: Iterable[Parameters]) -> None:
        """Run one changing statement for every set of parameters, in one transaction."""
        with self.transaction(), self._errors():
            self._connection.executemany(sql, parameters)

    def absorb(self, other: Path, tables: Iterable[str]) -> None:
        """Add the rows of another database of the same version whose keys are new here."""
        with self._lock:
            self._run("ATTACH DATABASE ? AS other", (str(other),))
            try:
                with self.transaction():
                    for table in tables:
                        columns = ", ".join(str(row[1]) for row in self._run(f"PRAGMA main.table_info({table})"))
                        self._run(
                            " ".join(("INSERT OR IGNORE INTO", f"main.{table} ({columns})", "SELECT", f"{columns} FROM other.{table}"))
                        )
            finally:
                self._run("DETACH DATABASE other")

    def _connect(self, busy_timeout_s: float) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot create the folder {self.path.parent}: {error.strerror}", remedy=_ELSEWHERE) from error
        with self._errors():
            return sqlite3.connect(self.path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)

    def _open_patiently(self, timeout_s: float) -> None:
        # sqlite does not wait by itself while another process turns the write-ahead log on.
        deadline = time.monotonic() + timeout_s
        pause = threading.Event()
        while True:
            try:
                return self._open()
            except StoreError as error:
                code = getattr(error.__cause__, "sqlite_errorcode", 0)
                if code & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            pause.wait(_RETRY_S)

    def _open(self) -> None:
        # Whose file it is comes first: nothing may be changed in a database that is not ours.
        applied = self._applied()
        if self._run("PRAGMA journal_mode")[0][0] != "wal" and self._run("PRAGMA journal_mode = WAL")[0][0] != "wal":
            _logger.warning("%s lies where sqlite cannot keep a write-ahead log; concurrent use will be slower", self.path)
        self._run("PRAGMA synchronous = FULL")
        self._run("PRAGMA foreign_keys = ON")
        if applied != set(MIGRATIONS):
            self._migrate()

    def _applied(self) -> set[str]:
        """Names of the migrations the file has; raises StoreError when it is not ours, newer, or older than the first release."""
        tables = {str(name) for (name,) in self._run("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            return set()
        if self._run("PRAGMA application_id")[0][0] != APPLICATION_ID or "migrations" not in tables:
            raise StoreError(f"{self.path} is a database of another program", remedy=_ELSEWHERE)
        applied = {str(name) for (name,) in self._run("SELECT name FROM migrations WHERE name >= ?", (FIRST,))}
        if FIRST not in applied:
            raise StoreError(f"{self.path} was written before the first release of Quantailor", remedy=_ELSEWHERE)
        if unknown := applied - set(MIGRATIONS):
            raise StoreError(
                f"{self.path} was written by a newer version of Quantailor ({max(unknown)})",
                remedy="Update Quantailor, or choose another --home",
            )
        return applied

    def _migrate(self) -> None:
        with self.transaction(), self._errors():
            missing = sorted(set(MIGRATIONS) - self._applied())
            prepare(self._connection)
            for name in missing:
                MIGRATIONS[name](self._connection)
                self._run("INSERT INTO migrations (name, applied) VALUES (?, ?)", (name, self.now()))

    def _run(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        with self._errors():
            return self._connection.execute(sql, parameters).fetchall()

    def _roll_back(self) -> None:
        with self._errors():
            if self._connection.in_transaction:
                self._connection.rollback()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _translated(error, self.path) from error
        except UnicodeEncodeError as error:
            around = error.object[max(0, error.start - _AROUND) : error.end + _AROUND]
            raise StoreError(f"the database {self.path} cannot hold a text that is not Unicode: {around!a}", remedy=_ODD_NAME) from error
        except (OverflowError, UnicodeError) as error:
            raise StoreError(f"the database {self.path} cannot hold a value ({error})", remedy=_ODD_VALUE) from error


_ELSEWHERE = "Choose another place with --home or QUANTAILOR_HOME"

_ODD_VALUE = "Check the options and the model's metadata"
_ODD_NAME = "If it is the name of a file or folder, rename that"
_AROUND = 40
"""Characters that are shown on either side of one that is not Unicode."""

_MEANINGS = {
    "SQLITE_BUSY": ("is locked by another program", "Try again when that program has ended"),
    "SQLITE_LOCKED": ("is locked by another program", "Try again when that program has ended"),
    "SQLITE_FULL": ("cannot grow, the disk is full", "Free some space and resume; what was recorded so far is kept"),
    "SQLITE_READONLY": ("cannot be written", f"Check its permissions. {_ELSEWHERE}"),
    "SQLITE_CANTOPEN": ("cannot be opened", f"Check the path and its permissions. {_ELSEWHERE}"),
    "SQLITE_PERM": ("cannot be opened", f"Check its permissions. {_ELSEWHERE}"),
    "SQLITE_IOERR": ("cannot be read or written, the disk reports an error", "Check the disk and its free space"),
    "SQLITE_CORRUPT": ("is damaged", "Restore it from a backup, or move it away to start afresh"),
    "SQLITE_NOTADB": ("is not a database", "Restore it from a backup, or move it away to start afresh"),
    "SQLITE_CONSTRAINT": ("refuses a record", "Record the model and its tensors first"),
    "SQLITE_TOOBIG": ("cannot hold a record that large", "Use a smaller model or context"),
}


def _translated(error: sqlite3.Error, path: Path) -> StoreError:
    """The StoreError for a sqlite error, by the primary part of its code."""
    name = getattr(error, "sqlite_errorname", "")
    for code, (meaning, remedy) in _MEANINGS.items():
        if name.startswith(code):
            return StoreError(f"the database {path} {meaning} ({error})", remedy=remedy)
    return StoreError(f"the database {path} cannot be used ({error})")
