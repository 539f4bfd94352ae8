"""A verdict belongs to the bytes that it measured, and goes with them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import made_up_runs as made_up
import pytest
from commands import Command
from test_verdicts import verdict

from quantailor.making.building import verdict_paths
from quantailor.session import Workspace


@pytest.fixture
def built(tmp_path: Path, quantailor: Command) -> Path:
    """A file that was built from a made-up base, in a home of its own."""
    base, output, strategy = made_up.write_model(tmp_path / "base.gguf"), tmp_path / "out.gguf", tmp_path / "s.yaml"
    with Workspace.open(tmp_path / "home") as workspace, workspace.model(base) as model:
        made_up.measure(workspace, model)
    assert quantailor("plan", base, "--bpw", 5, "-o", strategy, "--home", tmp_path / "home").code == 0
    assert quantailor("build", base, strategy, "-o", output, "--home", tmp_path / "home").code == 0
    return output


def test_a_file_that_has_changed_has_no_verdict(built: Path, quantailor: Command) -> None:
    home, base = built.parent / "home", built.parent / "base.gguf"
    with Workspace.open(home) as workspace, workspace.model(base) as model:
        made = verdict(model.fingerprint)
        content = workspace.keep_identity(built).fingerprint
        ours = dataclasses.replace(made.rows[1], size_bytes=built.stat().st_size, content=content)
        workspace.store.record_verdict(dataclasses.replace(made, rows=(made.rows[0], ours, *made.rows[2:])))

    def judged() -> list[str]:
        (found,) = quantailor("builds", base, "--home", home, "--json").result
        return list(found["verdicts"])

    def card() -> str:
        return str(quantailor("card", built, "--base", base, "--home", home, "--json").result["text"])

    assert len(judged()) == 1
    assert "It is what it is." in card()
    with built.open("r+b") as stream:
        stream.seek(-1000, 2)
        stream.write(b"\1")
    assert judged() == []
    assert "were not measured" in card()


def test_building_anew_takes_the_old_verdict_away(built: Path, quantailor: Command) -> None:
    home, base = built.parent / "home", built.parent / "base.gguf"
    beside = verdict_paths(built.with_suffix(".verdict"))
    for path in beside:
        path.write_text("of the file as it was", encoding="utf-8")
    smaller = built.parent / "smaller.yaml"
    assert quantailor("plan", base, "--bpw", 4.6, "-o", smaller, "--home", home).code == 0
    assert quantailor("build", base, smaller, "-o", built, "--home", home).code == 1
    assert all(path.exists() for path in beside)
    assert quantailor("build", base, smaller, "-o", built, "--home", home, "--force").code == 0
    assert not any(path.exists() for path in beside)
