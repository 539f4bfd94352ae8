"""Rail, theme toggle and job dock around every screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from nicegui import ElementFilter, run, ui

from quantailor.app.library.projects import ProjectReport
from quantailor.errors import QuantailorError
from quantailor.gui import theme
from quantailor.gui.context import outside
from quantailor.gui.jobs.dock import dock
from quantailor.gui.widgets import box, error_note, heading, named, note, primary, quiet, text
from quantailor.present.words import plural

Read = TypeVar("Read")
TICK = "✓"
_SIGN = "qt-sign"
_THEME_SCRIPT = f"""
<script>
(() => {{
  const found = document.cookie.match(/(?:^|; ){theme.COOKIE}=(\\w+)/);
  if (found) return;
  const wanted = window.matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light';
  document.cookie = '{theme.COOKIE}=' + wanted + ';path=/;max-age=31536000;samesite=strict';
  if (wanted === 'dark' && document.cookie.includes('{theme.COOKIE}=')) location.reload();
}})();
</script>
"""


@dataclass(frozen=True, slots=True)
class Stage:
    """One of the six screens on a project's way."""

    key: str
    label: str


STEPS = (
    Stage("model", "Model"),
    Stage("structure", "Structure"),
    Stage("measure", "Measure"),
    Stage("choose", "Choose"),
    Stage("build", "Build"),
    Stage("verify", "Verify"),
)


def address(project: ProjectReport | str, screen: str) -> str:
    """The path of a project's screen; projects go by the first 16 digits of the model's fingerprint."""
    fingerprint = project if isinstance(project, str) else project.fingerprint
    return f"/p/{fingerprint[:16]}/{screen}"


@contextmanager
def frame(
    screen: str, title: str, *, project: ProjectReport | None = None, subtitle: str = "", actions: Callable[[], None] | None = None
) -> Iterator[ui.element]:
    """Build a screen inside the frame: `with frame("choose", "Choose", project=project): ...`.

    Args:
        screen: the key of the entry in the rail.
        title: the page's heading.
        project: the model that the screen is about.
        subtitle: a few words beside the heading.
        actions: builds buttons at the right end of the heading.
    """
    ui.page_title(f"{title} · {project.name if project else 'Quantailor'}")
    ui.add_head_html(f'<link rel="stylesheet" href="{outside("/static/quantailor.css")}">')
    ui.add_head_html(f'<script src="{outside("/static/notify.js")}"></script>')
    ui.add_head_html(_THEME_SCRIPT)
    ui.dark_mode(theme.theme() == "dark")
    ui.colors(primary=theme.palette().accent, negative=theme.palette().bad, positive=theme.palette().good)
    with box("qt-app qt-plain-view" if theme.is_plain() else "qt-app"):
        _rail(screen, project)
        with ui.element("main").classes("qt-main").props('id="main" tabindex="0"') as main:
            ui.skip_link("Skip to the content", target=main)
            with box("qt-head"):
                heading(title, 1, "qt-title")
                if subtitle:
                    text(subtitle, "qt-subtitle")
                if actions is not None:
                    with box("qt-row qt-actions"):
                        actions()
            yield main
        dock()


def not_found(path: str) -> None:
    """The page of an address that none of ours has."""
    with frame("", "No such page"), box("qt-stack"):
        note(f"There is nothing at {path}. The address may be mistyped, or belong to a newer version.", "warn")
        with box("qt-row"):
            primary("To the projects", lambda: ui.navigate.to("/"), icon="apps")


def failed(error: Exception) -> None:
    """The page in place of one that could not be built for a reason that nobody thought of."""
    with frame("", "This page cannot be shown"), box("qt-stack"):
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        note(f"This is a fault in Quantailor, not something you did: {reason}. Nothing is lost, and jobs keep running.", "bad")
        text("The server's output says more: please include it in a report.", "qt-muted")
        with box("qt-row"):
            primary("Try again", lambda: ui.navigate.reload(), icon="refresh")
            quiet("To the projects", lambda: ui.navigate.to("/"), icon="apps")


async def opened(screen: str, read: Callable[[], Read]) -> Read | None:
    """What a thread reads for a screen; None where it cannot be read, and then a page that says why is built."""
    try:
        return await run.io_bound(read)
    except QuantailorError as error:
        with frame(screen, screen.capitalize()):
            error_note(error)
        return None


def _rail(screen: str, project: ProjectReport | None) -> None:
    with ui.element("nav").classes("qt-rail").props('aria-label="Steps"'):
        ui.link("Quantailor", "/").classes("qt-brand")
        text(project.name if project else "cut to measure", "qt-model-name")
        if project is not None:
            done = done_steps(project)
            for number, step in enumerate(STEPS, start=1):
                mark = TICK if step.key in done else str(number)
                _entry(step.label, address(project, step.key), mark, current=screen == step.key).mark(_marker(step.key))
            if project.n_builds:
                _entry("Try it", address(project, "try"), "forum", current=screen == "try")
            if project.is_moe:
                _entry("Experts", address(project, "experts"), "hub", current=screen == "experts")
        else:
            _entry("Projects", "/", "apps", current=screen == "home")
            _entry("Open a model", "/open", "add", current=screen == "model")
        with box("qt-rail-foot"):
            _entry("Compare models", "/compare", "compare_arrows", current=screen == "compare")
            _view_toggle()
            _theme_toggle()


def tick(*steps: str) -> None:
    """Mark steps in the rail as done: the page saw it happen."""
    for step in steps:
        for link in ElementFilter(kind=ui.link, marker=_marker(step)):
            link.classes("qt-done")
            for sign in ElementFilter(kind=ui.label, marker=_SIGN).within(instance=link):
                sign.set_text(TICK)


def _marker(step: str) -> str:
    return f"qt-step-{step}"


def done_steps(project: ProjectReport) -> set[str]:
    """The steps that a project has results of; the structure, which leaves none, counts once somebody has gone on from it."""
    found = {
        "model": True,
        "structure": project.n_cells > 0,
        "measure": project.n_cells > 0,
        "choose": project.n_strategies > 0,
        "build": project.n_builds > 0,
        "verify": project.n_verdicts > 0,
    }
    return {key for key, is_done in found.items() if is_done}


def results_of(project: ProjectReport) -> list[str]:
    """What was made of a model, in words: ["1 strategy", "2 built files"]."""
    kept = ((project.n_strategies, "strategy"), (project.n_builds, "built file"), (project.n_verdicts, "verdict"))
    return [plural(number, what) for number, what in kept if number]


def next_step(project: ProjectReport) -> Stage:
    """The step to go on with: the first without results, and Verify where there is none."""
    done = {"structure", *done_steps(project)}
    return next((step for step in STEPS if step.key not in done), STEPS[-1])


def _entry(label: str, target: str, mark: str, *, current: bool) -> ui.link:
    """`mark` is a number, a tick, or an icon's name."""
    link = ui.link(target=target).classes("qt-step" + (" qt-done" if mark == TICK else ""))
    if current:
        link.props('aria-current="page"')
    with link:
        sign = ui.label(mark) if mark == TICK or mark.isdecimal() else ui.icon(mark, size="16px")
        sign.classes("qt-mark").props('aria-hidden="true"').mark(_SIGN)
        ui.label(label)
    return link


def _view_toggle() -> None:
    """Plain pages leave out what has a default; what is marked `qt-advanced` is that."""
    plain = theme.is_plain()
    what = "rules, limits and other settings that have a default"
    label, meaning = ("All settings", f"show {what}") if plain else ("Fewer settings", f"hide {what}")
    _cookie_button(label, "tune", meaning, theme.PLAIN_COOKIE, "no" if plain else "yes")


def _theme_toggle() -> None:
    dark = theme.theme() == "dark"
    wanted = "light" if dark else "dark"
    label, icon = ("Light", "light_mode") if dark else ("Dark", "dark_mode")
    _cookie_button(label, icon, f"switch to the {wanted} theme", theme.COOKIE, wanted)


def _cookie_button(label: str, icon: str, meaning: str, cookie: str, value: str) -> None:
    """A button of the rail that keeps a choice in this browser and shows the page anew."""
    script = f"() => {{ document.cookie = '{cookie}={value};path=/;max-age=31536000;samesite=strict'; location.reload(); }}"
    button = ui.button(label, icon=icon, color=None).props('flat no-caps align="left"').classes("qt-rail-button")
    named(button, f"{label}: {meaning}").on("click", js_handler=script)
