"""What the documentation site makes itself: the command reference, and the proof that its pages load nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

COMMANDS_PAGE = "reference/commands.md"
LOADED = re.compile(r"""<(?:script|img|iframe)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b[^>]*\bhref=["']?(?:https?:)?//[^>]*stylesheet""")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the reference of all commands, as Typer describes them."""
    command = [sys.executable, "-m", "typer", "quantailor.cli.app", "utils", "docs", "--name", "quantailor", "--title", "Commands"]
    text = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    files.append(File.generated(config, COMMANDS_PAGE, content=text))
    return files


def on_post_build(*, config: MkDocsConfig) -> None:
    """Refuse a site whose pages would load a script, a picture or a style from another address."""
    for page in Path(config.site_dir).rglob("*.html"):
        outside = LOADED.search(page.read_text(encoding="utf-8"))
        if outside is not None:
            raise PluginError(f"{page} loads something from elsewhere: {outside.group()}")
