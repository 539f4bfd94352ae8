"""ORG/NAME in place of a path: every step that takes a model, against a small hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from commands import Command, validate
from hub_server import Access, HubRepo, HubServer

from quantailor.app.jobs import job_places, run_job, show_job, submit
from quantailor.app.library.projects import list_projects
from quantailor.costs import machine
from quantailor.errors import DownloadDamagedError, ResourceError
from quantailor.session import Workspace
from quantailor.steps.conversion.convert import ConvertStep
from quantailor.steps.measure import MeasureResult, MeasureStep
from quantailor.steps.options import HubModel
from quantailor.steps.step import Step, StepResult
from tiny_models import write_tiny

GOLDEN = Path(__file__).parents[1] / "golden"
TYPES = ("--types", "Q4_0,Q8_0", "--imatrix", "none")
SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny("llama2", tmp_path / "org")


@pytest.fixture
def repo(hub: HubServer, model: Path) -> str:
    """The same model as a repository."""
    hub.add("org/tiny", model)
    return "org/tiny"


def weights_asked(hub: HubServer) -> int:
    return sum(asked.server == "cdn" for asked in hub.asked)


# Steps


def test_measure_plan_and_build_take_a_repository(hub: HubServer, run: Command, repo: str, tmp_path: Path) -> None:
    strategy, output = tmp_path / "s.yaml", tmp_path / "out.gguf"
    origin = f"org/tiny@{hub.repos[repo].sha}"
    measured = run("measure", repo, *TYPES, "--json")
    validate(measured.out)
    asked = weights_asked(hub)
    planned = run("plan", repo, "--bpw", "7", "--imatrix", "none", "-o", strategy, "--json")
    built = run("build", repo, strategy, "-o", output, "--json")
    assert measured.result["origin"] == planned.result["origin"] == built.result["origin"] == origin
    assert output.stat().st_size == planned.result["prediction"]["file_size_bytes"]
    assert weights_asked(hub) == asked, "nothing is fetched twice"
    assert origin in run("measure", repo, *TYPES).out


def test_a_repository_is_converted_like_its_directory(hub: HubServer, run: Command, repo: str, model: Path, tmp_path: Path) -> None:
    hub.add(f"org/{model.name}", model)
    assert run("convert", f"org/{model.name}@main", "-o", tmp_path / "hub.gguf").code == 0
    assert run("convert", model, "-o", tmp_path / "here.gguf").code == 0
    assert (tmp_path / "hub.gguf").read_bytes() == (tmp_path / "here.gguf").read_bytes()


def test_a_study_of_a_repository_names_its_base_after_it(hub: HubServer, run: Command, repo: str, tmp_path: Path) -> None:
    assert "is not here" in run("study", repo, "--cost").error_line
    found = run("study", repo, "--level", "quick", *TYPES, "--json").result
    assert re.fullmatch(r"tiny-[0-9a-f]{8}\.gguf", Path(found["base"]).name)
    assert found["origin"].startswith("org/tiny@")
    assert [stage["stage"] for stage in run("study", repo, "--level", "quick", *TYPES, "--cost", "--json").result["stages"]] == ["measure"]


def test_a_job_tells_its_repository_its_commit_and_its_model(hub: HubServer, run: Command, repo: str, tmp_path: Path) -> None:
    measured = run("measure", repo, *TYPES, "--json").result
    report = run("jobs", "show", 1, "--json").result
    assert (report["title"], report["origin"]) == (repo, f"org/tiny@{hub.repos[repo].sha}")
    assert report["origin"] in run("jobs", "show", 1).out
    with Workspace.open(tmp_path / "home") as workspace:
        (place,) = job_places(workspace)
        (project,) = list_projects(workspace)
    assert place.fingerprint == project.fingerprint == measured["model_fingerprint"]


def test_what_is_here_wins_over_a_repository_of_that_name(
    hub: HubServer, run: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(f"org/{model.name}", {"config.json": b"{}"})
    monkeypatch.chdir(tmp_path)
    assert run("measure", f"org/{model.name}", *TYPES, "--json").result["origin"] is None
    assert not hub.asked


@pytest.mark.parametrize("text", ["./org/tiny", "../org/tiny", "org/tiny/", "~/org/tiny", "~nobody-of-that-name/tiny"])
def test_what_is_plainly_a_path_is_no_repository(hub: HubServer, run: Command, repo: str, text: str) -> None:
    assert repo == "org/tiny"
    assert "there is no model at" in run("measure", text).error_line
    assert "there is no model at" in run("inspect", text).error_line
    assert not hub.asked


@pytest.mark.parametrize("options", [("--revision", "main"), ("--token-file", "x"), ("--gguf-file", "x.gguf"), ("--imatrix", "repo")])
def test_options_of_the_hub_do_not_go_with_a_path(hub: HubServer, run: Command, model: Path, options: Any) -> None:
    outcome = run("measure", model, *options)
    assert outcome.code == 2
    assert "hub" in outcome.err
    assert not hub.asked


def test_one_revision_is_enough(hub: HubServer, run: Command, repo: str) -> None:
    for command in ("inspect", "measure", "download"):
        assert run(command, f"{repo}@main", "--revision", "main").code == 2
    assert "no revision 'v9'" in run("measure", f"{repo}@v9").error_line
    assert run("inspect", f"{repo}@main", "--json").result["revision"] == "main"


@pytest.mark.parametrize(
    "words",
    [
        ("imatrix", "org/tiny"),
        ("probe", "org/tiny"),
        ("sweep", "org/tiny"),
        ("refine", "org/tiny", "s.yaml", "-o", "t.yaml"),
        ("verify", "x.gguf", "--base", "org/tiny"),
    ],
)
def test_what_llama_cpp_cannot_run_is_refused_before_it_is_fetched(hub: HubServer, run: Command, repo: str, words: Any) -> None:
    assert re.search(r"`quantailor convert org/tiny -o base\.gguf --home \S+` first", run(*words).error_line)
    assert weights_asked(hub) == 0


@pytest.mark.slow
def test_a_gguf_repository_is_run(hub: HubServer, run: Command, books_llama_base: Path, tmp_path: Path) -> None:
    matrix = (GOLDEN / "imatrix-books-llama.gguf").read_bytes()
    hub.add("org/m-GGUF", {"m-BF16.gguf": books_llama_base.read_bytes(), "imatrix.gguf": matrix, "m-Q8_0.gguf": b"x"})
    found = run("imatrix", "org/m-GGUF", "--chunks", 1, "--json").result
    assert found["origin"] == f"org/m-GGUF@{hub.repos['org/m-GGUF'].sha}"
    shown = run("imatrix", "org/m-GGUF", "--show", "--json").result
    assert shown["fingerprint"] == found["fingerprint"]
    imported = run("measure", "org/m-GGUF", "--types", "Q8_0", "--imatrix", "repo", "--json").result
    assert imported["imatrix_fingerprint"] not in (None, found["fingerprint"])
    assert hub.gets("m-BF16.gguf") == 1
    assert "m-Q9.gguf" in run("measure", "org/m-GGUF", "--gguf-file", "m-Q9.gguf").error_line


# Importance matrices of a repository


@pytest.mark.parametrize(("names", "told"), [([], "it ships none"), (["a-imatrix.gguf", "b.imatrix"], "2 importance matrices: a-imat")])
def test_a_repository_must_ship_the_one_importance_matrix(
    hub: HubServer, run: Command, model: Path, names: list[str], told: str, tmp_path: Path
) -> None:
    hub.add("org/tiny", {path.name: path.read_bytes() for path in model.iterdir()} | dict.fromkeys(names, b"x"))
    for words in (("measure", "org/tiny"), ("make", "org/tiny", "--bpw", 6, "-o", tmp_path / "out")):
        assert told in run(*words, "--imatrix", "repo").error_line
    assert weights_asked(hub) == 0


# Commits


def begun(workspace: Workspace, task: Step[StepResult], repo: HubRepo, files: Mapping[str, bytes]) -> int:
    """A job whose download broke off at a damaged part, which is whole from then on."""
    repo.served = {SHARD: bytes(len(files[SHARD]))}
    job = submit(workspace, task)
    with pytest.raises(DownloadDamagedError):
        run_job(workspace, job)
    repo.served = {}
    return job


def test_a_resumed_job_stays_at_its_commit(hub: HubServer, run: Command, model: Path, repo: str, tmp_path: Path) -> None:
    old, files = hub.repos[repo], {path.name: path.read_bytes() for path in model.iterdir()}
    task = MeasureStep(base=repo, hub=HubModel(repo_id=repo), types=("Q8_0",), imatrix="none")
    with Workspace.open(tmp_path / "home") as workspace:
        job = begun(workspace, task, old, files)
        new = hub.add(repo, {**files, SHARD: files[SHARD][:-2] + b"\1\1"})
        assert submit(workspace, task) == job
        first = run_job(workspace, job)
        log = show_job(workspace, job).log
        second = run_job(workspace, submit(workspace, task))
    assert isinstance(first, MeasureResult)
    assert isinstance(second, MeasureResult)
    assert first.origin == f"{repo}@{old.sha}"
    assert second.origin == f"{repo}@{new.sha}"
    assert f"{repo} stays at the commit {old.sha}" in log
    assert first.model_fingerprint != second.model_fingerprint
    assert hub.gets("model-00001-of-00003.safetensors") == 2, "its header, then all of it"


def test_a_resumed_job_moves_no_branch_back(hub: HubServer, run: Command, model: Path, repo: str, tmp_path: Path) -> None:
    old, files = hub.repos[repo], {path.name: path.read_bytes() for path in model.iterdir()}
    task = MeasureStep(base=repo, hub=HubModel(repo_id=repo), types=("Q8_0",), imatrix="none")
    with Workspace.open(tmp_path / "home") as workspace:
        begun(workspace, task, old, files)
        new = hub.add(repo, {**files, "generation_config.json": b"{}"})
        assert run("download", repo).code == 0
        run_job(workspace, submit(workspace, task))
    assert run("plan", repo, "--bpw", "9", "--imatrix", "none", "--json").result["origin"] == f"{repo}@{new.sha}"


def test_a_commit_that_is_gone_says_how_to_begin_anew(hub: HubServer, run: Command, model: Path, repo: str, tmp_path: Path) -> None:
    old, files = hub.repos[repo], {path.name: path.read_bytes() for path in model.iterdir()}
    old.served = {SHARD: bytes(len(files[SHARD]))}
    assert run("measure", repo, *TYPES).code == 1
    hub.add(repo, {**files, "generation_config.json": b"{}"})
    hub.forget(repo, old.sha)
    assert re.search(r"`quantailor jobs cancel 1 --home \S+`", run("measure", repo, *TYPES).error_line)
    assert run("jobs", "cancel", 1).code == 0
    assert run("measure", repo, *TYPES).code == 0


def test_a_plan_takes_the_commit_that_was_downloaded(hub: HubServer, run: Command, model: Path, repo: str) -> None:
    assert re.search(r"`quantailor download org/tiny --home \S+` first", run("plan", repo, "--bpw", "7").error_line)
    old = hub.repos[repo].sha
    run("measure", repo, *TYPES)
    hub.add(repo, {path.name: path.read_bytes() for path in model.iterdir()} | {"generation_config.json": b"{}"})
    assert run("plan", repo, "--bpw", "7", "--imatrix", "none", "--json").result["origin"] == f"{repo}@{old}"
    assert run("plan", f"{repo}@{old}", "--bpw", "7", "--imatrix", "none").code == 0
    assert re.search(r"--revision v1 --home \S+` first", run("plan", f"{repo}@v1", "--bpw", "7").error_line)


# Without the hub


def offline(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def unreachable(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


def broken(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.failing = 503


Break = Callable[[HubServer, pytest.MonkeyPatch], None]


@pytest.mark.parametrize("away", [offline, *(pytest.param(away, marks=pytest.mark.slow) for away in (unreachable, broken))])
def test_what_the_cache_has_whole_needs_no_hub(
    hub: HubServer, run: Command, repo: str, monkeypatch: pytest.MonkeyPatch, away: Break
) -> None:
    online = run("measure", repo, *TYPES, "--json").result
    away(hub, monkeypatch)
    again = run("measure", repo, *TYPES, "--json").result
    assert (again["origin"], again["n_already_measured"]) == (online["origin"], online["n_cells"])
    assert any("taking what the cache has" in line for line in run("jobs", "show", 2, "--json").result["log"])


@pytest.mark.parametrize("away", [offline, unreachable, broken])
def test_a_part_of_a_model_is_not_enough(
    hub: HubServer, run: Command, repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: Break
) -> None:
    folder = Path(run("download", repo, "--json").result["folder"])
    away(hub, monkeypatch)
    weights = folder / SHARD
    whole = weights.read_bytes()
    weights.resolve().write_bytes(bytes(len(whole)))
    assert f"{SHARD} of org/tiny is damaged in the cache" in run("measure", repo).error_line
    weights.unlink()
    assert "the cache has org/tiny only in part" in run("measure", repo).error_line
    assert re.search(r"`quantailor download org/tiny --home \S+` first", run("plan", repo, "--bpw", "7").error_line)


# Refusals


def steps(repo: str, folder: Path) -> tuple[tuple[object, ...], ...]:
    strategy = folder / "s.yaml"
    strategy.write_text("model: {fingerprint: abc}\ntensors: {token_embd.weight: Q8_0}\n", encoding="utf-8")
    return (("make", repo, "--bpw", 6, "-o", folder / "out"), ("build", repo, strategy, "-o", folder / "out.gguf"))


@pytest.mark.parametrize(
    "access", ["not-requested", *(pytest.param(access, marks=pytest.mark.slow) for access in ("pending", "rejected", "no-permission"))]
)
def test_a_gated_repository_names_the_page(
    hub: HubServer, run: Command, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, access: Access
) -> None:
    hub.add("org/gated", model, gated="manual")
    granted = tmp_path / "token-of-another"
    granted.write_text(hub.token)
    monkeypatch.setenv("HF_TOKEN", hub.user(access))
    for words in steps("org/gated", tmp_path):
        assert hub.url in run(*words).error_line
    assert run("measure", "org/gated", *TYPES, "--token-file", granted).code == 0


def test_a_login_that_is_missing_is_told(
    hub: HubServer, run: Command, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.add("org/gated", model, gated="manual")
    monkeypatch.delenv("HF_TOKEN")
    for words in steps("org/gated", tmp_path):
        assert "you are not logged in" in run(*words).error_line
    hub.asked.clear()


def test_what_is_neither_here_nor_there(hub: HubServer, run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in steps("org/nothing", tmp_path):
        assert "org/nothing is not here, and there is no model org/nothing at" in run(*words).error_line
    offline(hub, monkeypatch)
    for words in steps("org/nothing", tmp_path):
        assert "org/nothing is not here, and org/nothing cannot be looked up in offline mode" in run(*words).error_line
    monkeypatch.delenv("HF_HUB_OFFLINE")
    unreachable(hub, monkeypatch)
    for words in steps("org/nothing", tmp_path):
        assert "org/nothing is not here, and http://127.0.0.1:9 cannot be reached" in run(*words).error_line


def test_a_token_in_place_of_its_file_is_neither_told_nor_stored(
    hub: HubServer, run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in steps("org/tiny", tmp_path):
        assert "--token-file takes a file" in run(*words, "--token-file", hub.token).error_line
    assert not hub.asked


# Room


def test_a_disk_too_small_for_the_download_is_named_first(hub: HubServer, run: Command, repo: str, tmp_path: Path) -> None:
    hub.repos[repo].listed_sizes = {SHARD: 2**60}
    for words in steps(repo, tmp_path):
        assert "org/tiny needs 1048576.00 TiB more in" in run(*words).error_line
    assert weights_asked(hub) == 0


def test_a_disk_too_small_for_the_work_is_named_before_it(
    hub: HubServer, repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_disk_bytes", lambda path: 1000)
    task = ConvertStep(model=repo, hub=HubModel(repo_id=repo), output=str(tmp_path / "base.gguf"))
    with Workspace.open(tmp_path / "home") as workspace:
        job = submit(workspace, task)
        with pytest.raises(ResourceError, match="cannot start: needs"):
            run_job(workspace, job)
    assert not (tmp_path / "base.gguf").exists()
