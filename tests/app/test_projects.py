"""The models that somebody works on, as a start page lists them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantailor.app.jobs import cancel_job, run_job, submit
from quantailor.app.library import projects
from quantailor.app.library.projects import list_projects, open_project
from quantailor.errors import ModelError
from quantailor.pipeline import StudyStep
from quantailor.session import Workspace
from quantailor.steps.build import BuildStep
from quantailor.steps.conversion.convert import ConvertStep
from quantailor.steps.measure import MeasureStep
from quantailor.steps.plan import PlanOptions, plan
from tiny_models import write_tiny


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.open(tmp_path / "home") as workspace:
        yield workspace


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_tiny("llama2", tmp_path / "models")


def test_a_model_that_was_opened_is_a_project_of_which_nothing_is_known(workspace: Workspace, directory: Path) -> None:
    found = open_project(workspace, directory)
    assert (found.source, found.base) == (str(directory), None)
    assert (found.n_cells, found.level, found.has_imatrix, found.is_probed) == (0, None, False, False)
    assert found.n_parameters > 0
    assert list_projects(workspace) == [found]
    assert projects.project(workspace, found.fingerprint) == found


def test_what_is_measured_is_told(workspace: Workspace, directory: Path) -> None:
    for types in (("Q4_0",), ("Q4_0", "Q8_0")):
        run_job(workspace, submit(workspace, MeasureStep(base=str(directory), types=types)))
    (found,) = list_projects(workspace)
    n_tensors = len(workspace.store.tensors(found.fingerprint))
    assert n_tensors < found.n_cells <= 2 * n_tensors
    assert (found.level, found.is_probed, found.is_quantized) == ("quick", False, False)


def test_directory_and_base_are_one_project(workspace: Workspace, directory: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.gguf"
    job = submit(workspace, ConvertStep(model=str(directory), output=str(base)))
    run_job(workspace, job)
    (found,) = list_projects(workspace)
    assert (found.source, found.base) == (str(directory), str(base))


def test_jobs_of_a_model_are_found_by_its_files(workspace: Workspace, directory: Path, books_llama_base: Path) -> None:
    first = submit(workspace, StudyStep(model=str(directory), level="quick"))
    other = submit(workspace, MeasureStep(base=str(books_llama_base)))
    assert open_project(workspace, directory).active_jobs == (first,)
    assert open_project(workspace, books_llama_base).active_jobs == (other,)
    cancel_job(workspace, first)
    assert open_project(workspace, directory).active_jobs == ()


def test_a_model_whose_files_are_gone_stays_only_with_results(workspace: Workspace, directory: Path, tmp_path: Path) -> None:
    open_project(workspace, directory)
    measured = write_tiny("biases", tmp_path / "models")
    job = submit(workspace, MeasureStep(base=str(measured), types=("Q4_0",)))
    run_job(workspace, job)
    for folder in (directory, measured):
        shutil.rmtree(folder)
    (left,) = list_projects(workspace)
    assert (left.source, left.base) == (None, None)
    assert left.n_cells > 0


def test_files_that_we_built_are_no_projects(workspace: Workspace, directory: Path, tmp_path: Path) -> None:
    base, strategy, built = tmp_path / "base.gguf", tmp_path / "s.yaml", tmp_path / "built.gguf"
    for task in (
        ConvertStep(model=str(directory), output=str(base)),
        MeasureStep(base=str(base), types=("Q4_0", "Q8_0")),
    ):
        run_job(workspace, submit(workspace, task))
    options = PlanOptions(bits_per_weight=6.0, allow=("Q4_0,Q8_0",))
    plan(workspace, base, options, output=strategy)
    run_job(workspace, submit(workspace, BuildStep(base=str(base), strategy=str(strategy), output=str(built))))
    assert open_project(workspace, built).is_quantized
    (project,) = list_projects(workspace)
    assert project.base == str(base)
    assert (project.n_strategies, project.n_builds) == (1, 1)
    built.unlink()
    assert list_projects(workspace)[0].n_builds == 0


def test_an_unknown_identity_is_refused(workspace: Workspace) -> None:
    with pytest.raises(ModelError, match="0 known models have the identity abc"):
        projects.project(workspace, "abc")
