"""A home in which both models are studied, and the screens that it fills."""

from __future__ import annotations

from pathlib import Path

from quantailor import cli
from quantailor.app.library.projects import list_projects
from quantailor.session import Workspace

_CONTEXT = ("--n-ctx", 64, "--threads", 1)
_FEW = ("--chunks", 2, "--mixes", 0, "--anchors", 0, "--group", "role-depth", "--type", "Q2_K")
SCREENS = ("home", "open", "model", "structure", "measure", "choose", "build", "verify", "compare", "experts", "try")


def study(base: Path, text: Path, home: Path) -> None:
    """Importance matrix, measurement and probes of a model, as few as the screens need."""
    run("imatrix", base, "-f", text, "--chunks", 4, "--threads", 1, "--home", home)
    run("measure", base, "--types", "Q2_K,Q4_K,Q8_0", "--home", home)
    run("probe", base, "-f", text, *_FEW, *_CONTEXT, "--home", home)


def prove(base: Path, text: Path, home: Path, folder: Path) -> None:
    """A strategy, its file and a verdict on it."""
    strategy, output = folder / "strategy.yaml", folder / "tailored.gguf"
    run("plan", base, "--bpw", 4.5, "-o", strategy, "--home", home)
    run("build", base, strategy, "-o", output, "--home", home)
    run("verify", output, "--base", base, "--against", "Q4_K_M", "-f", text, "--chunks", 2, *_CONTEXT, "--home", home)


def run(*words: object) -> None:
    """A command that must succeed."""
    assert cli.run([*map(str, words), "--json"]) == 0, words


def screen_path(home: Path, screen: str) -> str:
    """The address of a screen; of the dense model, where it is a model's own."""
    if screen in ("home", "open", "compare"):
        return "/" if screen == "home" else f"/{screen}"
    with Workspace.open(home) as workspace:
        wanted = "Books Moe" if screen == "experts" else "Books Llama"
        project = next(project for project in list_projects(workspace) if project.name == wanted)
    return f"/p/{project.fingerprint[:16]}/{screen}"
