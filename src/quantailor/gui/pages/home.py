"""Home: the models that are worked on, each with what to do next."""

from __future__ import annotations

from nicegui import run, ui

from quantailor.app.library.demo import demo_model, open_demo
from quantailor.app.library.projects import ProjectReport, list_projects
from quantailor.gui.context import workspace
from quantailor.gui.frame import address, frame, next_step, results_of
from quantailor.gui.widgets import box, card, empty, primary, quiet, text
from quantailor.gui.widgets import told as told_of_errors
from quantailor.present.words import count_of, plural, size


async def home() -> None:
    """All projects, the latest first."""
    projects = await run.io_bound(list_projects, workspace()) or []
    with frame("home", "Projects", subtitle=plural(len(projects), "model") if projects else ""):
        if not projects:
            first = empty(
                "Cut a model to measure",
                "Open a GGUF file, a Hugging Face directory or a repository. Quantailor measures what each type costs in every tensor,"
                " chooses the mix for your size, builds the file and proves what it is worth.",
                action="Open a model",
                target="/open",
            )
            if demo_model() is not None:
                with first:
                    quiet("Try it on a small model, already measured", told_of_errors(_open_demo), icon="bolt")
            return
        with box("qt-stack"):
            with box("qt-row"):
                primary("Open a model", lambda: ui.navigate.to("/open"), icon="add")
            for project in projects:
                _project(project)


async def _open_demo() -> None:
    ui.notify("Opening the demonstration…")
    project = await run.io_bound(open_demo, workspace())
    if project is not None:
        ui.navigate.to(address(project, "choose"))


def _project(project: ProjectReport) -> None:
    step = next_step(project)
    with card(classes="qt-project"), box("qt-row qt-spread"):
        with box("qt-grow"):
            with box("qt-row"):
                ui.link(project.name, address(project, step.key)).classes("qt-project-name")
                text(
                    f"{project.architecture} · {count_of(project.n_parameters, 'weight')} · {size(project.size_bytes)}", "qt-muted qt-small"
                )
            text(told(project), "qt-small qt-muted")
            text(project.base or project.source or "its file is gone", "qt-mono qt-small qt-muted qt-ellipsis")
        quiet(f"Continue: {step.label}", lambda: ui.navigate.to(address(project, step.key)), icon="arrow_forward")


def told(project: ProjectReport) -> str:
    """What is there already, in words."""
    parts = []
    if project.active_jobs:
        parts.append("a job runs or waits")
    if project.n_cells:
        parts.append(f"{plural(project.n_cells, 'cell')} measured" + (", probed" if project.is_probed else ""))
    parts += results_of(project)
    return ", ".join(parts) or "not measured yet"
