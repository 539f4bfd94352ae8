"""`quantailor clean`: what a home holds, and what goes: nothing measured, and nothing while a job uses it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import Command
from hub_server import HubServer
from huggingface_hub.utils._fixes import WeakFileLock

from gguf_models import write_llama
from quantailor.jobs import resolve, this_worker
from quantailor.session import Workspace
from quantailor.store import Store
from tiny_models import write_tiny

PREFIX = "0123456789abcdef"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of Quantailor that is nobody else's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "quantailor"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with something of every kind."""
    made = resolve(tmp_path / "home").create()
    with Store(made.database):
        pass
    chunk = made.base_logp / f"{PREFIX}-text-512" / "finer" / "chunk-000000.npy"
    chunk.parent.mkdir(parents=True)
    chunk.write_bytes(bytes(5000))
    (made.references / f"{PREFIX}-none-1-Q4_K_M.gguf").write_bytes(bytes(3000))
    (made.references / ".half.gguf.999999999.part").write_bytes(bytes(2000))
    (made.references / f".now.gguf.{os.getpid()}.part").write_bytes(bytes(2000))
    (made.bases / "model-01234567.gguf").write_bytes(bytes(7000))
    (made.imatrices / f"{PREFIX}-fedcba.gguf").write_bytes(bytes(1000))
    (made.covariances / f"{PREFIX}-run-fedcba.state").write_bytes(bytes(4000))
    made.log_of(1).write_text("worked")
    return made.path


def everything(home: Path) -> dict[str, int]:
    return {
        str(path.relative_to(home)): path.stat().st_size for path in home.rglob("*") if path.is_file() and "quantailor.db" not in path.name
    }


def test_it_lists_and_changes_nothing_until_it_is_told(run: Command, home: Path) -> None:
    before = everything(home)
    shown = run("clean")
    assert shown.code == 0, shown.err
    assert "9.77 KiB of" in shown.out
    assert "`quantailor clean --yes` removes it" in shown.out
    assert everything(home) == before

    report = run("clean", "--json").result
    items = {(item["kind"], Path(item["path"]).name): item for item in report["items"]}
    assert (report["removed"], report["removable_bytes"]) == (False, 10_000)
    assert items["log-probabilities", f"{PREFIX}-text-512"]["size_bytes"] == 5000
    assert "running the base on the text" in items["log-probabilities", f"{PREFIX}-text-512"]["again"]
    assert items["leftovers", ".half.gguf.999999999.part"]["stays"] is None
    assert (
        "not asked for" in items["bases", "model-01234567.gguf"]["stays"]
        or "no longer exists" in items["bases", "model-01234567.gguf"]["stays"]
    )
    assert "measurements rest on them" in items["imatrices", f"{PREFIX}-fedcba.gguf"]["stays"]
    assert not any(str(os.getpid()) in name for _, name in items)


def test_yes_removes_what_can_be_computed_again_and_nothing_else(run: Command, home: Path) -> None:
    report = run("clean", "--yes", "--json").result
    assert (report["removed"], report["removable_bytes"]) == (True, 10_000)
    assert set(everything(home)) == {
        f"references/.now.gguf.{os.getpid()}.part",
        "bases/model-01234567.gguf",
        f"imatrices/{PREFIX}-fedcba.gguf",
        f"covariances/{PREFIX}-run-fedcba.state",
        "logs/job-1.log",
    }
    assert "0 B of" in run("clean").out


def test_by_kind_and_by_age(run: Command, home: Path) -> None:
    report = run("clean", "--yes", "--kind", "references", "--json").result
    assert report["removable_bytes"] == 3000
    assert run("clean", "--yes", "--kind", "covariances", "--json").result["removable_bytes"] == 4000
    folder = home / "base-logp" / f"{PREFIX}-text-512"
    assert run("clean", "--yes", "--older-than", 2, "--json").result["removable_bytes"] == 0
    days_ago = time.time() - 3 * 86_400
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (days_ago, days_ago))
    assert run("clean", "--yes", "--older-than", 2, "--json").result["removable_bytes"] == 5000
    assert not folder.exists()
    assert run("clean", "--kind", "measurements").code == 2


def test_nothing_goes_while_a_job_runs(run: Command, home: Path) -> None:
    with Store(resolve(home).database) as store:
        store.jobs.claim(store.jobs.create("probe", {}).id, this_worker())
    before = everything(home)
    report = run("clean", "--yes", "--json").result
    assert (report["removed"], report["removable_bytes"]) == (False, 0)
    assert {item["stays"] for item in report["items"] if item["kind"] == "references"} == {"job 1 (probe) is running"}
    assert everything(home) == before


def test_what_a_killed_one_had_set_aside_goes_with_the_next(run: Command, home: Path) -> None:
    folder = home / "base-logp" / f"{PREFIX}-text-512"
    folder.rename(folder.with_name(f".{folder.name}.999999999.old"))
    report = run("clean", "--yes", "--kind", "leftovers", "--json").result
    assert report["removable_bytes"] == 7000
    assert not any((home / "base-logp").iterdir())


def test_files_of_a_killed_speed_go(run: Command, home: Path) -> None:
    folder = resolve(home).timing / "job-7"
    folder.mkdir(parents=True)
    (folder / "reference.gguf").write_bytes(bytes(6000))
    listed = {item["path"]: item for item in run("clean", "--json").result["items"]}[str(folder)]
    assert (listed["kind"], listed["size_bytes"], listed["stays"]) == ("leftovers", 6000, None)
    assert "a process that was killed left it" in listed["again"]
    with Store(resolve(home).database) as store:
        job = store.jobs.create("speed", {}).id
        store.jobs.claim(job, this_worker())
    assert run("clean", "--yes", "--kind", "leftovers", "--json").result["removable_bytes"] == 0
    assert folder.exists()
    with Store(resolve(home).database) as store:
        store.jobs.set_state(job, "failed")
    assert run("clean", "--yes", "--kind", "leftovers", "--json").result["removable_bytes"] == 8000
    assert not any(folder.parent.iterdir())


def test_the_converter_goes_where_it_is_named_and_nobody_runs_it(run: Command, home: Path, cache: Path) -> None:
    environment, sources, half = cache / "convert-3.11-0123", cache / "converter-0.3.36", cache / ".convert-3.11-4567.999999999.part"
    for folder, n_bytes in ((environment / "bin", 600), (sources, 70), (half, 8), (cache / "identities", 9)):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(bytes(n_bytes))
    (environment / "bin" / "python").symlink_to(sys.executable)
    listed = run("clean", "--json").result
    assert {item["path"]: item["size_bytes"] for item in listed["items"] if item["kind"] == "converter"} == {
        str(environment): 600 + len(sys.executable),
        str(sources): 70,
    }
    assert listed["outside_bytes"] == 678 + len(sys.executable)
    assert (stays_of(run, environment), stays_of(run, half)) == ("not asked for: --kind converter", None)
    assert stays_of(run, environment, "--kind", "converter", "--model", write_llama(home / "tiny.gguf")) == "of no model"
    assert "what lies in caches" in run("clean").out

    with subprocess.Popen([environment / "bin" / "python", "-c", "input()"], stdin=subprocess.PIPE) as user:
        assert stays_of(run, environment, "--kind", "converter") == f"process {user.pid} runs it"
        assert run("clean", "--yes", "--kind", "converter", "--json").result["removable_bytes"] == 70
    assert run("clean", "--yes", "--kind", "converter", "--kind", "leftovers", "--json").result["removed"]
    assert [path.name for path in cache.iterdir()] == ["identities"]


def test_parts_of_our_downloads_go_and_nobody_else_s(run: Command, hub: HubServer, tmp_path: Path, home: Path) -> None:
    hub.add("org/tiny", write_tiny("llama3", tmp_path / "tiny"))
    kept = Path(run("download", "org/tiny", "--json").result["path"])
    blob = (kept / "model.safetensors").resolve()
    ours = blob.with_name(f"{blob.name}.0123abcd.incomplete")
    theirs = blob.with_name(f"{'f' * 64}.0123abcd.incomplete")
    for part in (ours, theirs):
        part.write_bytes(bytes(900))
    listed = [item for item in run("clean", "--json").result["items"] if item["kind"] == "downloads"]
    assert [(item["path"], item["size_bytes"], item["model"], item["stays"]) for item in listed] == [
        (str(ours), 900, "org/tiny", "not asked for: --kind downloads")
    ]
    lock = blob.parents[2] / ".locks" / blob.parents[1].name / f"{blob.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        assert stays_of(run, ours, "--kind", "downloads") == "it is being downloaded"
        assert run("clean", "--yes", "--kind", "downloads", "--json").result["removable_bytes"] == 0
    assert run("clean", "--yes", "--kind", "downloads", "--json").result["removable_bytes"] == 900
    assert (ours.exists(), theirs.exists(), blob.exists()) == (False, True, True)


@pytest.mark.slow
def test_measurements_stay_and_work_goes_on_after_it(run: Command, tmp_path: Path) -> None:
    model, other = write_llama(tmp_path / "tiny.gguf"), write_llama(tmp_path / "other.gguf", more={"blk.0.more.weight": (2, 256)})
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 100, encoding="utf-8")
    sweep = (
        "sweep",
        model,
        "--types",
        "Q4_K",
        "--tensors",
        "attn_v",
        "-f",
        text,
        "--chunks",
        1,
        "--threads",
        1,
        "--imatrix",
        "none",
        "--json",
    )
    first = run(*sweep)
    assert first.code == 0, first.err
    assert run("clean", "--yes", "--model", other, "--json").result["removable_bytes"] == 0
    cleaned = run("clean", "--yes", "--model", model, "--json").result
    assert [item["model"] for item in cleaned["items"] if item["kind"] == "log-probabilities"] == ["tiny"]
    assert cleaned["removable_bytes"] > 0
    assert not any((tmp_path / "home" / "base-logp").iterdir())
    again = run(*sweep)
    assert again.result["n_already_measured"] == 1
    assert [cell["measured"] for cell in again.result["cells"]] == [cell["measured"] for cell in first.result["cells"]]
    assert run(*(word if word != "attn_v" else "attn_q" for word in sweep)).code == 0


def test_a_base_goes_only_while_its_directory_is_there(run: Command, books_llama_dir: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(books_llama_dir, tmp_path / "books"))
    with Workspace.open(tmp_path / "home") as workspace, workspace.model(directory) as opened:
        base = workspace.base_path(directory, opened.fingerprint)
        workspace.store.record_location("model", opened.fingerprint, base)
    base.write_bytes(bytes(100))
    assert "not asked for" in (stays_of(run, base) or "")
    assert stays_of(run, base, "--kind", "bases") is None
    shutil.rmtree(directory)
    assert "no longer exists" in (stays_of(run, base, "--kind", "bases") or "")


def stays_of(run: Command, path: Path, *options: object) -> str | None:
    """Why a file stays; None where it would go."""
    stays: str | None = next(item["stays"] for item in run("clean", *options, "--json").result["items"] if item["path"] == str(path))
    return stays
