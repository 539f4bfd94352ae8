"""What the documentation site makes itself: the references of commands and modules, and a check that pages load nothing from elsewhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

SOURCE = Path(__file__).parents[1] / "src" / "quantailor"
LOADED = re.compile(
    r"""<(?:script|img|iframe)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b(?![^>]*\bcanonical\b)[^>]*\bhref=["']?(?:https?:)?//""",
    re.IGNORECASE,
)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the code."""
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    files.append(File.generated(config, "reference/modules.md", content=modules()))
    return files


def commands() -> str:
    """Every command, as Typer describes it; without its lists of shortened sentences and the command that only jobs start."""
    command = [sys.executable, "-m", "typer", "quantailor.cli.app", "utils", "docs", "--name", "quantailor", "--title", "Commands"]
    text = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    text = re.sub(r"\*\*Commands\*\*:\n\n(?:\* .*\n)+", "", text)
    return re.sub(r"## `quantailor worker`\n.*?(?=^## )", "", text, flags=re.DOTALL | re.MULTILINE)


def modules() -> str:
    """Every module by folder, with the first line of its docstring."""
    folders: dict[Path, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        summary, _, _ = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")
        if summary:
            folders.setdefault(path.parent.relative_to(SOURCE.parent), []).append(f"| `{path.name}` | {summary.replace('|', '&#124;')} |")
    parts = [f"## {folder.as_posix()}\n\n| module | what it is |\n|---|---|\n" + "\n".join(rows) for folder, rows in folders.items()]
    return "# Modules\n\n" + "\n\n".join(parts) + "\n"


def on_post_build(*, config: MkDocsConfig) -> None:
    """Refuse a site whose pages would load a script, a picture or a style from another address."""
    for page in Path(config.site_dir).rglob("*.html"):
        outside = LOADED.search(page.read_text(encoding="utf-8"))
        if outside is not None:
            raise PluginError(f"{page} loads something from elsewhere: {outside.group()}")
