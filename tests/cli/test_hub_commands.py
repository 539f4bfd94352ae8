"""`quantailor inspect ORG/NAME` and `quantailor download`, against a small hub."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Command, validate
from hub_server import Access, HubServer

import fuzzing
from faults import MOST_MOMENTS, Ended, Forked
from quantailor.app.jobs import pause_job, resume_job, run_job, show_job, submit
from quantailor.errors import Paused
from quantailor.session import Workspace
from quantailor.steps.hub.download import DownloadResult, DownloadStep

GOLDEN = Path(__file__).parents[1] / "golden"


def safetensors(n_weights: int) -> bytes:
    header = json.dumps({"x": {"dtype": "F32", "shape": [n_weights], "data_offsets": [0, 4 * n_weights]}}).encode()
    return struct.pack("<Q", len(header)) + header + random.Random(n_weights).randbytes(4 * n_weights)


def checkpoint(n_shards: int, n_weights: int = 20_000) -> dict[str, bytes]:
    """A directory of several shards and what belongs to them."""
    shards = {f"model-{number:05d}-of-{n_shards:05d}.safetensors": safetensors(n_weights + number) for number in range(1, n_shards + 1)}
    weight_map = {f"x{number}": name for number, name in enumerate(shards)}
    index = json.dumps({"weight_map": weight_map}).encode()
    return {"config.json": b'{"architectures": ["X"]}', "tokenizer.json": b"{}", "model.safetensors.index.json": index, **shards}


# Looking


def test_inspect_shows_a_repository_without_downloading_it(hub: HubServer, run: Command, books_llama_dir: Path) -> None:
    hub.add("org/books", books_llama_dir)
    shown = run("inspect", "org/books")
    assert shown.code == 0, shown.err
    for words in (
        "org/books  llama, 8.39 M parameters",
        "licence   apache-2.0",
        "download  16.08 MiB",
        "model.safetensors",
        "28 of 28 types",
    ):
        assert words in shown.out
    assert hub.repos["org/books"].sha in shown.out


def test_inspect_as_json_follows_the_schema_and_shows_the_local_model_s_tensors(
    hub: HubServer, run: Command, books_llama_dir: Path
) -> None:
    hub.add("org/books", books_llama_dir, gated="auto")
    remote, local = run("inspect", "org/books", "--json"), run("inspect", books_llama_dir, "--json")
    validate(remote.out)
    assert remote.result["tensors"] == local.result["tensors"]
    assert remote.result["gated"] == "auto"


def test_what_is_here_is_no_repository(hub: HubServer, run: Command, books_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(books_llama_dir.parent.parent)
    assert run("inspect", "demo/books-llama").code == 0
    assert run("inspect", "demo/books-llama", "--revision", "main").code == 2
    assert not hub.asked


def test_inspect_says_what_is_cached(hub: HubServer, run: Command) -> None:
    hub.add("org/name", checkpoint(2))
    assert run("download", "org/name").code == 0
    report = run("inspect", "org/name", "--json").result
    assert report["download_bytes"] == 0
    assert all(file["cached"] for file in report["files"])
    assert "0 B, " in run("inspect", "org/name").out


# Downloading


def test_a_download_can_be_converted_and_is_named_after_the_repository(
    hub: HubServer, run: Command, books_llama_dir: Path, books_llama_base: Path, tmp_path: Path
) -> None:
    junk = {"pytorch_model.bin": b"pickle", "original/consolidated.00.pth": b"pickle", "model.onnx": b"x", "LICENSE": b"x"}
    hub.add("org/books-llama", {path.name: path.read_bytes() for path in books_llama_dir.iterdir()} | junk)
    outcome = run("download", "org/books-llama", "--json")
    validate(outcome.out)
    result = outcome.result
    assert result["sha"] in result["path"]
    assert (result["license"], result["revision"]) == ("apache-2.0", "main")
    assert sum(map(hub.gets, junk)) == 0
    assert run("convert", result["path"], "-o", tmp_path / "base.gguf").code == 0
    assert (tmp_path / "base.gguf").read_bytes() == books_llama_base.read_bytes()


def test_what_is_whole_is_not_fetched_again(hub: HubServer, run: Command) -> None:
    files = checkpoint(3)
    hub.add("org/name", files)
    assert run("download", "org/name", "--json").result["fetched_bytes"] == sum(map(len, files.values()))
    before = {name: hub.gets(name) for name in files}
    again = run("download", "org/name", "--json").result
    assert again["fetched_bytes"] == 0
    assert {name: hub.gets(name) for name in files} == before == dict.fromkeys(files, 1)


def test_progress_is_told_per_file_and_in_all(hub: HubServer, tmp_path: Path) -> None:
    hub.add("org/name", checkpoint(3))
    hub.bytes_per_second = 300_000
    seen: list[tuple[str, float, float, str]] = []
    with Workspace.open(tmp_path / "home") as workspace:
        job = submit(workspace, DownloadStep(repo_id="org/name"))
        run_job(workspace, job, lambda report: seen.append((report.stage, report.done, report.total, report.message)))
        report = show_job(workspace, job)
    download = [row for row in seen if row[0] == "download"]
    index = len(hub.repos["org/name"].files["model.safetensors.index.json"])
    assert download[-1][1] == download[-1][2] == sum(map(len, hub.repos["org/name"].files.values())) - index
    assert any("model-00002-of-00003.safetensors" in row[3] for row in download)
    assert [row[1] for row in download] == sorted(row[1] for row in download)
    assert (report.title, report.state, report.unit) == ("org/name", "done", "bytes")
    assert any(hub.repos["org/name"].sha in line for line in report.log)


def test_a_damaged_file_in_the_cache_is_replaced(hub: HubServer, run: Command) -> None:
    files = checkpoint(2)
    hub.add("org/name", files)
    folder = Path(run("download", "org/name", "--json").result["folder"])
    for name in ("model-00001-of-00002.safetensors", "tokenizer.json"):
        whole = (folder / name).read_bytes()
        (folder / name).resolve().write_bytes(bytes(len(whole)))
    again = run("download", "org/name", "--json").result
    assert again["fetched_bytes"] == len(files["model-00001-of-00002.safetensors"]) + len(files["tokenizer.json"])
    assert all((folder / name).read_bytes() == data for name, data in files.items())


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "tokenizer.json"])
def test_a_wrong_checksum_is_refused_and_the_file_removed(hub: HubServer, run: Command, tmp_path: Path, name: str) -> None:
    files = checkpoint(2)
    hub.add("org/name", files, served={name: bytes(len(files[name]))})
    assert f"{name} of org/name was downloaded, but its checksum is wrong" in run("download", "org/name").error_line
    kept = {path.name for path in (tmp_path / "hf").rglob("snapshots/*/*")}
    assert name not in kept
    hub.repos["org/name"].served = {}
    assert run("download", "org/name").code == 0
    assert hub.gets("model-00001-of-00002.safetensors") == 1


def test_a_transfer_that_breaks_off_goes_on(hub: HubServer, run: Command) -> None:
    hub.add("org/name", checkpoint(1))
    hub.cut = {"model-00001-of-00001.safetensors"}
    outcome = run("download", "org/name")
    assert outcome.code == 0
    assert "signature" not in outcome.out + outcome.err


def test_a_disk_that_is_too_small_is_named_before_anything_is_fetched(hub: HubServer, run: Command) -> None:
    files = checkpoint(1)
    hub.add("org/name", files, listed_sizes={"model-00001-of-00001.safetensors": 2**60})
    line = run("download", "org/name").error_line
    assert "org/name needs 1048576.00 TiB more in" in line
    assert "too little" in line
    assert hub.gets("model-00001-of-00001.safetensors") == hub.gets("tokenizer.json") == 0


def test_a_revision_stays_what_it_was(hub: HubServer, run: Command) -> None:
    old = hub.add("org/name", checkpoint(1), branches=("main", "v1")).sha
    first = run("download", "org/name", "--revision", "v1", "--json").result
    assert (first["revision"], first["sha"]) == ("v1", old)
    new = hub.add("org/name", {**checkpoint(1), "tokenizer.json": b'{"new": 1}'}).sha
    second = run("download", "org/name", "--json").result
    assert second["sha"] == new != old
    assert second["fetched_bytes"] == len(b'{"new": 1}')
    assert (Path(first["folder"]) / "tokenizer.json").read_bytes() == b"{}"
    assert "no revision 'v1'" in run("download", "org/name", "--revision", "v1").error_line


def test_names_that_lead_out_of_the_cache_are_not_followed(hub: HubServer, run: Command, tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"x": "../../../../evil.safetensors"}}).encode()
    hub.add("org/index", {"config.json": b"{}", "model.safetensors.index.json": index, "../../../../evil.safetensors": b"x"})
    assert "evil.safetensors" in run("download", "org/index").error_line
    hub.add("org/gguf", {"../../../../evil-bf16.gguf": b"x", "/evil-bf16.gguf": b"x", "a\\..\\..\\evil-f16.gguf": b"x"})
    assert "neither" in run("download", "org/gguf").error_line
    assert "no GGUF file" in run("download", "org/gguf", "--gguf-file", "../../../../evil-bf16.gguf").error_line
    assert not list(tmp_path.rglob("*evil*"))


def test_the_base_and_its_importance_matrix_come_from_a_gguf_repository(hub: HubServer, run: Command, books_llama_base: Path) -> None:
    matrix = (GOLDEN / "imatrix-books-llama.gguf").read_bytes()
    files = {"m-BF16.gguf": books_llama_base.read_bytes(), "m-Q4_K_M.gguf": b"x", "m-imatrix.gguf": matrix, "mmproj-bf16.gguf": b"x"}
    hub.add("org/books-GGUF", files)
    result = run("download", "org/books-GGUF", "--json").result
    assert result["files"] == ["m-imatrix.gguf", "m-BF16.gguf"]
    assert hub.gets("m-Q4_K_M.gguf") == hub.gets("mmproj-bf16.gguf") == 0
    assert run("inspect", result["path"]).code == 0
    imported = run("imatrix", result["path"], "--import", result["imatrix_files"][0], "--json").result
    assert imported["missing_tensors"] == []


def test_importance_matrices_alone(hub: HubServer, run: Command) -> None:
    hub.add("org/m-GGUF", {"m-Q4_K_M.gguf": b"x" * 100, "imatrix.dat": b"matrix"})
    line = run("download", "org/m-GGUF").error_line
    assert "m-Q4_K_M.gguf" in line
    assert "--imatrix-only" in line
    result = run("download", "org/m-GGUF", "--imatrix-only", "--json").result
    assert (result["kind"], result["path"], result["files"]) == ("imatrix", None, ["imatrix.dat"])
    assert Path(result["imatrix_files"][0]).read_bytes() == b"matrix"


def test_all_shards_of_a_gguf_come_with_it(hub: HubServer, run: Command) -> None:
    shards = {f"BF16/m-BF16-0000{number}-of-00003.gguf": bytes(1000 + number) for number in (1, 2, 3)}
    hub.add("org/m-GGUF", {**shards, "m-Q8_0.gguf": b"eight"})
    result = run("download", "org/m-GGUF", "--json").result
    assert result["path"].endswith("BF16/m-BF16-00001-of-00003.gguf")
    assert all((Path(result["folder"]) / name).read_bytes() == data for name, data in shards.items())
    assert run("download", "org/m-GGUF", "--gguf-file", "m-Q8_0.gguf", "--json").result["files"] == ["m-Q8_0.gguf"]


# Refusals and tokens


@pytest.mark.parametrize("access", ["not-requested", "pending", "rejected", "no-permission"])
def test_a_refused_download_is_a_failed_job_that_names_the_page(
    hub: HubServer, run: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, access: Access
) -> None:
    hub.add("org/gated", checkpoint(1), gated="manual")
    monkeypatch.setenv("HF_TOKEN", hub.user(access))
    line = run("download", "org/gated").error_line
    assert hub.url in line
    job = run("jobs", "show", 1, "--json").result
    assert job["state"] == "failed"
    assert hub.url in job["error"]
    granted = tmp_path / "token-of-another"
    granted.write_text(hub.token)
    assert run("download", "org/gated", "--token-file", granted).code == 0


def test_a_login_is_found(hub: HubServer, run: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.add("org/gated", checkpoint(1), gated="manual")
    monkeypatch.delenv("HF_TOKEN")
    assert "you are not logged in" in run("download", "org/gated").error_line
    (tmp_path / "hf").mkdir(exist_ok=True)
    (tmp_path / "hf" / "token").write_text(hub.token)
    assert run("jobs", "resume", 1).code == 0


def test_a_token_in_place_of_its_file_is_neither_told_nor_stored(
    hub: HubServer, run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/name", checkpoint(1))
    monkeypatch.chdir(tmp_path)
    assert "--token-file takes a file" in run("download", "org/name", "--token-file", hub.token).error_line
    assert "--token-file takes a file" in run("inspect", "org/name", "--token-file", hub.token).error_line
    assert not hub.asked


def test_wrong_usage(hub: HubServer, run: Command) -> None:
    for words in (("name",), ("org/a/b",), ("../x",), ("org/name", "--imatrix-only", "--gguf-file", "x.gguf")):
        assert run("download", *words).code == 2


def test_a_rate_limit_is_waited_out_and_noted(hub: HubServer, run: Command) -> None:
    hub.add("org/name", checkpoint(1))
    hub.limited = 1
    assert run("download", "org/name").code == 0
    assert any("too many requests from here; trying again in 0 s" in line for line in run("jobs", "show", 1, "--json").result["log"])


@pytest.mark.slow
def test_a_rate_limit_in_the_middle_of_a_download_is_waited_out(hub: HubServer, tmp_path: Path) -> None:
    files = checkpoint(2)
    hub.add("org/name", files)

    def limit(report: Any) -> None:
        if report.stage == "download" and hub.limited == 0 and not hub.gets("tokenizer.json"):
            hub.limited = 2

    with Workspace.open(tmp_path / "home") as workspace:
        result = run_job(workspace, submit(workspace, DownloadStep(repo_id="org/name")), limit)
    assert isinstance(result, DownloadResult)
    assert result.fetched_bytes == sum(map(len, files.values()))


@pytest.mark.slow
def test_a_server_that_fails_for_a_moment_is_asked_again(hub: HubServer, run: Command) -> None:
    hub.add("org/name", checkpoint(1))
    hub.broken = 1
    assert run("download", "org/name").code == 0
    assert any("answered with status 500; trying again in 2 s" in line for line in run("jobs", "show", 1, "--json").result["log"])


def test_a_missing_path_is_told_as_such(hub: HubServer, run: Command) -> None:
    assert "nothing/here is not here, and there is no model nothing/here" in run("inspect", "nothing/here").error_line
    asked = len(hub.asked)
    assert "there is no model at out/base.gguf" in run("inspect", "out/base.gguf").error_line
    assert len(hub.asked) == asked


def test_what_a_repository_says_of_itself_cannot_control_the_terminal(hub: HubServer, run: Command) -> None:
    config = json.dumps({"architectures": ["\x1b[31m[bold]X"]}).encode()
    hub.add("org/name", {"config.json": config, "model.safetensors": safetensors(10)}, card={"license": "[red]\x1b[2Jmine"})
    shown = run("inspect", "org/name").out
    assert "\x1b" not in shown
    assert "[red][2Jmine" in shown


# Stopping


@pytest.mark.slow
def test_a_download_pauses_at_once_and_goes_on(hub: HubServer, tmp_path: Path) -> None:
    files = checkpoint(3, n_weights=100_000)
    hub.add("org/name", files)
    hub.bytes_per_second = 400_000
    with Workspace.open(tmp_path / "home") as workspace:
        job = submit(workspace, DownloadStep(repo_id="org/name"))
        asked = threading.Event()

        def pause() -> None:
            wait_for(lambda: hub.gets("model-00002-of-00003.safetensors") > 0)
            hub.bytes_per_second = 40_000  # too slow to end before the pause, however busy the machine is
            with Workspace.open(tmp_path / "home") as other:
                pause_job(other, job)
            asked.set()

        thread = threading.Thread(target=pause)
        thread.start()
        with pytest.raises(Paused):
            run_job(workspace, job)
        thread.join()
        assert asked.is_set()
        hub.bytes_per_second = None
        resume_job(workspace, job)
        result = run_job(workspace, job)
    assert isinstance(result, DownloadResult)
    folder = Path(result.folder)
    assert all((folder / name).read_bytes() == data for name, data in files.items())
    assert hub.gets("model-00001-of-00003.safetensors") == 1


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def environment(hub: HubServer, folder: Path) -> dict[str, str]:
    return {**os.environ, **hub.environment(folder), "HF_TOKEN": hub.token}


@pytest.mark.slow
def test_a_detached_download_ends_by_itself(hub: HubServer, run: Command) -> None:
    hub.add("org/gated", checkpoint(2), gated="auto")
    started = run("download", "org/gated", "--detach", "--json").result
    wait_for(lambda: run("jobs", "show", started["id"], "--json").result["state"] in ("done", "failed"))
    assert run("jobs", "show", started["id"], "--json").result["state"] == "done"


@pytest.mark.slow
def test_what_a_killed_download_left_is_removed_by_the_next(hub: HubServer, run: Command, tmp_path: Path) -> None:
    files = checkpoint(1, n_weights=200_000)
    hub.add("org/name", files)
    hub.bytes_per_second = 60_000
    argv = [sys.executable, "-m", "quantailor", "download", "org/name", "--home", str(tmp_path / "home")]
    process = subprocess.Popen(argv, env=environment(hub, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: any((tmp_path / "hf").rglob("*.incomplete")))
    process.kill()
    process.communicate()
    hub.bytes_per_second = None
    assert list((tmp_path / "hf").rglob("*.incomplete"))
    assert run("download", "org/name").code == 0
    assert not list((tmp_path / "hf").rglob("*.incomplete"))


def blobs(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("hf/hub/models--org--name/blobs/*") if path.suffix != ".incomplete"}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_a_download_survives_kills_and_fetches_no_whole_file_twice(hub: HubServer, tmp_path: Path, forked: Forked) -> None:
    repo = hub.add("org/name", checkpoint(4))
    names = {repo.etag(name): name for name in repo.files}

    def download(folder: Path, stop_at: int | None = None) -> Ended:
        environment = {**hub.environment(folder), "HF_TOKEN": hub.token}
        return forked.run("download", "org/name", "--home", folder / "home", "--json", stop_at=stop_at, environment=environment)

    moments = range(len(download(tmp_path / "alone").moments))
    kept: set[int] = set()
    for moment in fuzzing.some(moments, MOST_MOMENTS):
        folder = tmp_path / f"killed-{moment}"
        assert download(folder, moment).stopped_at(moment)
        whole = {names[blob]: hub.gets(names[blob]) for blob in blobs(folder) & names.keys()}
        result = download(folder).result
        assert {name: hub.gets(name) for name in whole} == whole, "a whole file was fetched again"
        assert {name: (Path(result["folder"]) / name).read_bytes() for name in repo.files} == repo.files
        assert not list(folder.rglob("*.incomplete"))
        kept.add(len(whole))
    assert len(kept) > 3, "kills at different moments"
