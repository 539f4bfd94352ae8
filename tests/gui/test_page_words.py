"""Advice of errors on pages, where nothing is typed at a prompt; names and files that no system takes."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Command
from visitor import Visitor

from quantailor.app.library.projects import list_projects
from quantailor.errors import OutputError, QuantailorError
from quantailor.ggml import library
from quantailor.ggml.remote import rpc
from quantailor.gui.context import Context
from quantailor.gui.page_words import on_page
from quantailor.gui.server import _kept_token
from quantailor.session import Workspace
from quantailor.steps.calibration.imatrix import ImatrixStep
from quantailor.steps.options import Compute


@pytest.mark.parametrize(
    ("remedy", "said"),
    [
        ("Choose another name, or give --force to replace it", "Choose another name, or tick the box to replace it"),
        ("`inspect` lists the names that can be quantized", "The Structure screen lists the names that can be quantized"),
        ("Run `quantailor measure base.gguf --rounding compensated` first", "The Measure screen does that"),
        ("See `quantailor models`", "The Projects screen lists the known ones"),
        ("Give a file that `plan` wrote", "Give a strategy file, as Choose saves it"),
        ("the pattern of --pin attn=Q8_0 matches no tensor", "the pattern of pin attn=Q8_0 matches no tensor"),
        ("Start it again; the same command then goes on where it stopped", "Start it again; Try again then goes on where it stopped"),
        ("See what it says; the same command goes on where it stopped", "See what it says; Try again goes on where it stopped"),
        ("Start workers again, then run the same command again", "Start workers again, then press Resume"),
        ("Begin anew: `quantailor jobs cancel 3`, then the same command", "Cancel it in the dock below, and begin anew"),
        ("say where workers have it (--cluster-path HERE=THERE), or", "say where workers have it, or"),
        (
            "smaller, probe it at 8 bits (--rest q8_0), put layers on other machines (--rpc), or plan without probes (--basis ranking)",
            "smaller, plan without probes",
        ),
        ("Give a number above zero", "Give a number above zero"),
    ],
)
def test_advice_is_in_the_words_of_a_page(remedy: str, said: str) -> None:
    assert on_page(remedy) == said


def refused(step: ImatrixStep, home: Path) -> str:
    """What stands on a page about a step that is refused."""
    with Workspace.open(home) as workspace, pytest.raises(QuantailorError) as caught:
        step.check(workspace)
    return on_page(str(caught.value))


def test_refusals_of_other_machines_are_in_the_words_of_a_page(small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.load().llama, "llama_supports_rpc", lambda: True)
    monkeypatch.setattr(rpc, "protocol", lambda server, **_: "1.0.0")
    for compute, words in (
        (Compute(rpc=("a:1",)), "With 0 GPU layers no layer is on an RPC server. Give 99 GPU layers for all, or how many"),
        (Compute(n_gpu_layers=9, rpc=("a:1", "a:1")), "The list of RPC servers is 'a:1,a:1'. Name 1 to 16 different servers"),
        (Compute(n_gpu_layers=9, rpc=("a:1",), cluster="local:2"), "A cluster and RPC servers cannot be combined"),
        (Compute(cluster="here"), "'here' names no cluster. Give local:N, or the scheduler's address"),
        (Compute(cluster="local:2", cluster_paths=("/data",)), "'/data' does not name two folders. Write HERE=THERE"),
    ):
        said = refused(ImatrixStep(base=str(small_base), compute=compute), tmp_path / "home")
        assert said.startswith(words), said
        assert "--" not in said


@pytest.mark.parametrize("name", ["n" * 300, "é" * 200, "a\0b"])
def test_a_name_that_no_file_can_have_is_refused(name: str, tmp_path: Path) -> None:
    with Workspace.open(tmp_path / "home") as workspace, pytest.raises(OutputError, match="which no file can be called"):
        Context(workspace, (tmp_path,)).allowed(tmp_path / name)


@pytest.mark.slow
def test_what_cannot_be_read_or_named_is_told_on_the_page(
    visit: Callable[..., Visitor], run: Command, small_base: Path, tmp_path: Path
) -> None:
    run("measure", small_base, "--types", "Q4_0,Q8_0")
    with Workspace.open(tmp_path / "home") as workspace:
        (project,) = list_projects(workspace)
    odd = tmp_path / "odd.yaml"
    odd.write_bytes(b"\xff\xfe\x00types")
    page = visit(tmp_path / "home", tmp_path)
    page.go(f"/p/{project.fingerprint[:16]}/build?file={odd}")
    page.sees("odd.yaml is not UTF-8 text. Give a strategy file, as Choose saves it")
    page.go(f"/p/{project.fingerprint[:16]}/build?preset=Q8_0")
    page.sees("bytes, exactly")
    page.fill("File name", "n" * 300 + ".gguf")
    page.sees("is longer than 255 bytes")
    page.fill("File name", "n" * 248 + ".gguf")
    page.until(lambda: "n" * 248 + ".gguf" in page.text(), "it is offered")
    page.click("Build")
    page.sees("File name too long")
    page.go("/p/0123456789abcdef/build")
    page.sees("The Projects screen lists the known ones")
    page.go(f"/p/{project.fingerprint[:16]}/choose")
    page.sees("For plain rounding.")
    page.click("Rule and limits")
    page.fill("Pins by pattern", "nothing=Q8_0")
    page.click("Apply")
    page.sees("The Structure screen lists the names that can be quantized")


def test_a_server_that_starts_again_has_the_token_of_its_home(tmp_path: Path) -> None:
    path = tmp_path / "gui" / "token"
    token = _kept_token(path)
    assert len(token) >= 24
    assert _kept_token(path) == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)  # others may have read it
    assert _kept_token(path) != token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("short", encoding="ascii")
    assert len(_kept_token(path)) >= 24
    (tmp_path / "file").touch()
    assert len(_kept_token(tmp_path / "file" / "token")) >= 24


@pytest.mark.slow
def test_a_rule_opens_as_it_was_applied_and_says_what_it_lacks(
    visit: Callable[..., Visitor], run: Command, small_base: Path, tmp_path: Path
) -> None:
    run("measure", small_base, "--types", "Q4_0,Q5_0,Q8_0")
    with Workspace.open(tmp_path / "home") as workspace:
        (project,) = list_projects(workspace)
    page = visit(tmp_path / "home")
    rules = (("knee", "Knee test", "second-difference"), ("greedy", "Penalty", "max_error"), ("greedy", "Penalty", "damage"))
    for method, field, value in rules:
        page.go(f"/p/{project.fingerprint[:16]}/choose")
        page.click("Rule and limits")
        page.fill("Rule", method)
        page.fill(field, value)
        page.click("Apply")
        page.until(lambda: not page.all(".qt-dialog"), "it is applied")
        page.go(f"/p/{project.fingerprint[:16]}/choose")
        page.click("Rule and limits")
        assert (page.field("Rule").value, page.field(field).value) == (method, value)
        page.click("Apply")
        page.until(lambda: not page.all(".qt-dialog"), "it can be applied again")
    page.click("Rule and limits")
    page.fill("Rule", "knee")
    page.fill("Threshold", -3)
    page.click("Apply")
    page.sees("the knee's threshold (base) is -3. Give a number from 0 on")
    page.fill("Rule", "bins")
    page.fill("Target", "none")
    page.fill("Bins: top per cent = type", "10=Q8_0")
    page.click("Apply")
    page.sees("the other 90 % of the tensors would get their smallest types. Add a bin for the rest")
