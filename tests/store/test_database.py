"""The database file: made, reopened, brought up to date, and refused in plain words."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from quantailor.errors import StoreError
from quantailor.store import ModelRecord, Store, migrations
from quantailor.store.database import Database
from stores import table_names

MODEL = ModelRecord("f" * 64, "tiny", "llama", 0, 0, 0)


def test_a_store_is_created_with_its_folder_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "quantailor.db"
    with Store(path) as store:
        store.record_model(MODEL, [])
    with Store(path) as store:
        assert store.models() == [MODEL]


def test_what_was_committed_is_there_for_another_process_at_once(tmp_path: Path) -> None:
    with Store(tmp_path / "q.db") as store, Store(tmp_path / "q.db") as other:
        store.record_model(MODEL, [])
        assert other.models() == [MODEL]


def record_and_stumble(store: Store) -> None:
    with store.transaction():
        store.record_model(MODEL, [])
        raise KeyError


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    with Store(tmp_path / "q.db") as store:
        with pytest.raises(KeyError):
            record_and_stumble(store)
        assert store.models() == []


def test_an_inner_failure_takes_the_outer_transaction_with_it(tmp_path: Path) -> None:
    with Store(tmp_path / "q.db") as store:
        with pytest.raises(KeyError), store.transaction():
            record_and_stumble(store)
        store.record_location("model", MODEL.fingerprint, tmp_path)
        assert store.models() == []


def test_a_text_file_is_not_a_database(tmp_path: Path) -> None:
    (tmp_path / "q.db").write_text("tensor types\n" * 1000)
    with pytest.raises(StoreError, match=r"q\.db is not a database .* move it away"):
        Store(tmp_path / "q.db")


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE photos (name TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        Store(path)
    assert path.read_bytes() == before


def test_a_newer_database_asks_for_an_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as future:
        future.setitem(migrations.MIGRATIONS, "9999 from the future", lambda connection: None)
        Store(tmp_path / "q.db").close()
    with pytest.raises(StoreError, match=r"newer version of Quantailor \(9999 from the future\)"):
        Store(tmp_path / "q.db")


def test_a_migration_runs_once_and_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path / "q.db") as store:
        store.record_model(MODEL, [])
    runs = []

    def add_probes(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE probes (model TEXT)")
        runs.append("probes")

    monkeypatch.setitem(migrations.MIGRATIONS, "9998 probes", add_probes)
    for _ in range(2):
        with Store(tmp_path / "q.db") as store:
            assert store.models() == [MODEL]
    assert runs == ["probes"]


def test_a_store_of_the_first_release_keeps_its_rows_and_learns_what_came_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as past:
        for name in list(migrations.MIGRATIONS)[1:]:
            past.delitem(migrations.MIGRATIONS, name)
        with Store(tmp_path / "q.db") as store:
            store.record_model(MODEL, [])
        tables = table_names(tmp_path / "q.db")
    for _ in range(2):
        with Store(tmp_path / "q.db") as store:
            assert store.models() == [MODEL]
    assert table_names(tmp_path / "q.db") > tables


def test_a_store_from_before_the_first_release_is_refused_and_left_alone(tmp_path: Path) -> None:
    Store(tmp_path / "q.db").close()
    with sqlite3.connect(tmp_path / "q.db") as past:
        past.execute("DELETE FROM migrations")
        past.execute("INSERT INTO migrations VALUES ('0001 first schema', 0)")
    past.close()
    before = (tmp_path / "q.db").read_bytes()
    with pytest.raises(StoreError, match=r"q\.db was written before the first release of Quantailor\. Choose another place with --home"):
        Store(tmp_path / "q.db")
    assert (tmp_path / "q.db").read_bytes() == before


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE probes (model TEXT)")
        connection.execute("SELECT name FROM nowhere")

    with monkeypatch.context() as broken:
        broken.setitem(migrations.MIGRATIONS, "9998 probes", stumble)
        with pytest.raises(StoreError, match="no such table: nowhere"):
            Store(tmp_path / "q.db")
    with Store(tmp_path / "q.db") as store:
        assert store.models() == []


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    with Store(path) as store:
        for number in range(500):
            store.record_model(ModelRecord(f"{number:064}", "tiny", "llama", 0, 0, 0), [])
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"q\.db is damaged"), Store(path) as store:
        store.models()


def test_a_locked_database_says_so(tmp_path: Path) -> None:
    with Store(tmp_path / "q.db"), sqlite3.connect(tmp_path / "q.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with Store(tmp_path / "q.db", busy_timeout_s=0.05) as store, pytest.raises(StoreError, match="locked by another program"):
            store.record_model(MODEL, [])
        other.execute("ROLLBACK")
    other.close()


def test_a_full_disk_loses_only_what_was_being_recorded(tmp_path: Path) -> None:
    database = Database(tmp_path / "q.db")
    database.change("INSERT INTO locations VALUES ('model', 'a', 'path', 0)")
    database.query("PRAGMA max_page_count = 80")
    rows = [("model", f"{number:01000}", "path", 0.0) for number in range(1000)]
    with pytest.raises(StoreError, match=r"disk is full .* Free some space and resume"):
        database.change_many("INSERT INTO locations VALUES (?, ?, ?, ?)", rows)
    assert database.query("SELECT key FROM locations") == [("a",)]
    database.close()


def test_a_home_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot create the folder .*--home"):
        Store(tmp_path / "file" / "q.db")


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(tmp_path)


def test_a_closed_store_tells_so_without_a_traceback_of_sqlite(tmp_path: Path) -> None:
    store = Store(tmp_path / "q.db")
    store.close()
    with pytest.raises(StoreError, match="closed database"):
        store.models()


_OPEN_AND_RECORD = """
import sys
from pathlib import Path
from quantailor.store import ModelRecord, Store
sys.stdin.readline()
with Store(Path(sys.argv[1])) as store:
    for number in range(20):
        store.record_model(ModelRecord(f"{sys.argv[2]} {number}", "tiny", "llama", 0, 0, 0), [])
"""


@pytest.mark.slow
def test_processes_that_create_one_store_together_all_get_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _OPEN_AND_RECORD, str(tmp_path / "q.db")]
    processes = [subprocess.Popen([*command, str(number)], stdin=subprocess.PIPE) for number in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    with Store(tmp_path / "q.db") as store:
        assert len(store.models()) == 80
