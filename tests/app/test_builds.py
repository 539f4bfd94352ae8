"""A build before it starts: its figures, its commands, what stands in the way; and the files that were built."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import made_up_runs as made_up
import pytest
from commands import Command, Workbench
from test_verdicts import verdict

from quantailor import cli
from quantailor.app.choosing.drafts import Draft
from quantailor.app.choosing.planner import Planner
from quantailor.app.jobs import list_jobs
from quantailor.app.products.builds import (
    BuildWish,
    StrategyChoice,
    build_offer,
    check_built,
    chosen_strategy,
    keep_type_list,
    list_builds,
    list_choices,
    start_build,
)
from quantailor.errors import OutputError, StrategyError, StrategyMismatchError
from quantailor.models.gguf_file import GGUFSource
from quantailor.numerics import Bytes
from quantailor.records import Strategy
from quantailor.session import Workspace
from quantailor.steps.plan import PlanOptions


@pytest.fixture
def workspace(workbench: Workbench, tmp_path: Path) -> Iterator[Workspace]:
    """A copy of the measured home with a draft of it."""
    shutil.copytree(workbench.home, tmp_path / "home")
    with Workspace.open(tmp_path / "home") as opened:
        with Planner.open(opened, workbench.base) as desk:
            draft = Draft.start(desk, PlanOptions(bits_per_weight=4.5), name="mine")
            draft.save(opened, desk.model.fingerprint)
        yield opened


def drafted(workspace: Workspace, base: Path) -> Strategy:
    return chosen_strategy(workspace, base, StrategyChoice("draft", "mine"))


def test_drafts_are_offered_and_read(workspace: Workspace, workbench: Workbench) -> None:
    with workspace.model(workbench.base) as model:
        fingerprint = model.fingerprint
    first = list_choices(workspace, fingerprint)[0]
    assert (first.kind, first.name) == ("draft", "mine")
    assert drafted(workspace, workbench.base).model_fingerprint == fingerprint
    with pytest.raises(StrategyError, match="no draft 'other'"):
        chosen_strategy(workspace, workbench.base, StrategyChoice("draft", "other"))


def test_an_offer_names_size_parts_and_commands(workspace: Workspace, workbench: Workbench, tmp_path: Path) -> None:
    strategy = drafted(workspace, workbench.base)
    wish = BuildWish(base=workbench.base, strategy=strategy, output=tmp_path / "out.gguf")
    whole = build_offer(workspace, wish)
    assert strategy.prediction is not None
    assert whole.prediction.file_size_bytes == strategy.prediction.file_size_bytes
    assert whole.paths == (str(tmp_path / "out.gguf"),)
    assert sum(whole.type_counts.values()) == whole.n_tensors
    assert "out.strategy.yaml" in whole.own_lines[0]
    assert whole.quantize is not None
    assert whole.quantize.line.startswith("llama-quantize ")
    split = build_offer(workspace, dataclasses.replace(wish, split_max_bytes=2_000_000))
    assert len(split.paths) > 1
    assert split.prediction.file_size_bytes > whole.prediction.file_size_bytes
    assert "--split-max-size 2000000" in split.own_lines[0]


def test_another_s_strategy_file_is_not_replaced(workspace: Workspace, workbench: Workbench, tmp_path: Path) -> None:
    wish = BuildWish(base=workbench.base, strategy=drafted(workspace, workbench.base), output=tmp_path / "out.gguf")
    wish.strategy_path.write_text("my notes\n", encoding="utf-8")
    before = len(list_jobs(workspace))
    with pytest.raises(OutputError, match="something other than a strategy"):
        start_build(workspace, wish)
    assert wish.strategy_path.read_text(encoding="utf-8") == "my notes\n"
    assert len(list_jobs(workspace)) == before


def test_a_strategy_file_of_its_own_is_kept_and_another_refused(workspace: Workspace, workbench: Workbench, tmp_path: Path) -> None:
    strategy = drafted(workspace, workbench.base)
    wish = BuildWish(base=workbench.base, strategy=strategy, output=tmp_path / "out.gguf")
    written = keep_type_list(workspace, wish)
    assert Path(written.text_path).read_text(encoding="utf-8").count("=") >= len(strategy.tensors) - 2
    keep_type_list(workspace, wish)
    other = dataclasses.replace(strategy, tensors=tuple(dataclasses.replace(item, type_name="Q8_0") for item in strategy.tensors))
    with pytest.raises(OutputError, match="another strategy"):
        keep_type_list(workspace, dataclasses.replace(wish, strategy=other))


@pytest.mark.parametrize(("name", "words"), [("out.bin", "not a name for a GGUF"), ("missing/out.gguf", "there is no folder")])
def test_places_that_cannot_be(workspace: Workspace, workbench: Workbench, tmp_path: Path, name: str, words: str) -> None:
    wish = BuildWish(base=workbench.base, strategy=drafted(workspace, workbench.base), output=tmp_path / name)
    with pytest.raises(OutputError, match=words):
        start_build(workspace, wish)


def test_a_strategy_of_another_model_is_refused(workspace: Workspace, workbench: Workbench, books_moe_base: Path, tmp_path: Path) -> None:
    wish = BuildWish(base=books_moe_base, strategy=drafted(workspace, workbench.base), output=tmp_path / "out.gguf")
    with pytest.raises(StrategyMismatchError):
        build_offer(workspace, wish)


@pytest.mark.slow
def test_built_files_are_listed_whole_and_checked(workspace: Workspace, workbench: Workbench, tmp_path: Path) -> None:
    strategy = tmp_path / "s.yaml"
    home = ("--home", str(workspace.home.path))
    assert cli.run(["plan", str(workbench.base), "--bpw", "4.5", "-o", str(strategy), *home]) == 0
    out = tmp_path / "parts.gguf"
    assert cli.run(["build", str(workbench.base), str(strategy), "-o", str(out), "--split-max-size", "2000000", *home]) == 0
    with workspace.model(workbench.base) as model:
        before = list_builds(workspace, model.fingerprint)
        found = next(item for item in before if Path(item.path).parent == tmp_path)
    assert len(found.paths) > 1
    assert found.path.endswith("parts-00001-of-0000" + str(len(found.paths)) + ".gguf")
    assert found.size_bytes == sum(Path(path).stat().st_size for path in found.paths)
    assert check_built(workspace, workbench.base, Path(found.path)).ok
    Path(found.path).unlink()
    with workspace.model(workbench.base) as model:
        assert list_builds(workspace, model.fingerprint) == [item for item in before if item != found]


def test_listing_built_files_reads_their_headers_alone(tmp_path: Path, quantailor: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    base, home, strategy = made_up.write_model(tmp_path / "base.gguf"), tmp_path / "home", tmp_path / "s.yaml"
    with Workspace.open(home) as workspace, workspace.model(base) as model:
        made_up.measure(workspace, model)
    assert quantailor("plan", base, "--bpw", 5, "-o", strategy, "--home", home).code == 0
    judged, other, later = (tmp_path / f"{name}.gguf" for name in ("judged", "other", "later"))
    for file in (judged, other, later):
        assert quantailor("build", base, strategy, "-o", file, "--home", home).code == 0
        os.utime(file)  # of a file as it is now nothing is known, however long ago building looked at it
    with Workspace.open(home) as workspace, workspace.model(base) as model:
        made = verdict(model.fingerprint)
        ours = dataclasses.replace(made.rows[1], size_bytes=judged.stat().st_size, content=workspace.keep_identity(judged).fingerprint)
        workspace.store.record_verdict(dataclasses.replace(made, rows=(made.rows[0], ours, *made.rows[2:])))
    read: list[str] = []
    rows_of = GGUFSource.raw_rows

    def noted(self: GGUFSource, name: str, start: int, stop: int) -> Bytes:
        read.append(self.location)
        return rows_of(self, name, start, stop)

    monkeypatch.setattr(GGUFSource, "raw_rows", noted)
    with Workspace.open(home) as workspace:
        found = {Path(item.path): item for item in list_builds(workspace, made.model_fingerprint)}
        assert set(found) == {judged, other, later}
        assert [len(found[file].verdicts) for file in (judged, other, later)] == [1, 0, 0]
        assert {item.size_bytes for item in found.values()} == {judged.stat().st_size}
        assert read == []
        workspace.keep_identity(other)
        assert set(read) == {str(other)}
        assert {Path(item.path).stem for item in list_builds(workspace, made.model_fingerprint) if item.verdicts} == {"judged", "other"}
