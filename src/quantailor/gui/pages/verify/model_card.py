"""The model card of the judged file on the Verify screen: rendered, as text, and saved."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from nicegui import run, ui

from quantailor.app.products.builds import BuiltFile
from quantailor.app.products.card import CardResult, write_card
from quantailor.app.products.verdicts import (
    StoredVerdict,
)
from quantailor.gui.context import context, workspace
from quantailor.gui.picker import path_input
from quantailor.gui.widgets import box, card, quiet, segment, text, told


class CardCard:
    """The model card of the judged file: rendered, as text, and saved."""

    def __init__(self, base: Path, builds: Sequence[BuiltFile]) -> None:
        self._base, self.builds = base, list(builds)
        self._file = ""
        with card("Model card", "qt-card-part") as self._element:
            with box("qt-row"):
                self._of = text("", "qt-muted qt-small qt-grow qt-ellipsis")
                self._tabs = segment({"preview": "Preview", "text": "Text"}, "preview", "How to show the model card", self._switch)
                quiet("Copy", self._copy, icon="content_copy")
            with box("qt-row"):
                self._repo = ui.input("Original on the hub", placeholder="ORG/NAME, as its metadata say").props(
                    'outlined dense debounce="600"'
                )
                self._repo.classes("qt-grow").on("update:model-value", told(self._write))
                self._path = path_input("Save as", ("text",), title="Where the model card goes")
                self._overwrite = ui.checkbox("Replace")
                quiet("Save", told(self._save), icon="save")
            self._front = text("", "qt-code qt-front", tag="pre")
            self._rendered = ui.markdown("", extras=["fenced-code-blocks", "tables", "code-friendly"]).classes("qt-markdown")
            self._rendered.props('tabindex="0" role="region" aria-label="The rendered model card"')
            self._raw = text("", "qt-code qt-raw", tag="pre")
        self._text = ""
        self._element.set_visibility(False)

    async def show(self, stored: StoredVerdict | None) -> None:
        """Write the card of the file that a verdict judges; where it is gone, of the latest built file."""
        judged = [item for item in self.builds if stored is not None and stored.fingerprint in item.verdicts]
        chosen = next(iter(judged), None)
        self._element.set_visibility(chosen is not None)
        if chosen is None:
            return
        self._file = chosen.path
        self._of.set_text(f"of {chosen.path}")
        self._path.set_value(str(Path(chosen.path).with_name("README.md")))
        await self._write()

    async def _write(self) -> None:
        if self._file:
            found = await run.io_bound(self._card, None, False)
            if found is not None:
                self._fill(found.text)

    def _card(self, output: Path | None, overwrite: bool) -> CardResult:
        repo_id = str(self._repo.value or "").strip() or None
        return write_card(workspace(), self._base, Path(self._file), output, repo_id=repo_id, overwrite=overwrite)

    def _fill(self, content: str) -> None:
        self._text = content
        _, front, body = content.split("---\n", 2)
        self._front.set_text(f"---\n{front}---")
        self._rendered.set_content(harmless(body))
        self._raw.set_text(content)
        self._switch()

    def _switch(self) -> None:
        is_preview = self._tabs.value == "preview"
        self._front.set_visibility(is_preview)
        self._rendered.set_visibility(is_preview)
        self._raw.set_visibility(not is_preview)

    def _copy(self) -> None:
        ui.clipboard.write(self._text)
        ui.notify("Copied")

    async def _save(self) -> None:
        path = context().allowed(str(self._path.value or "README.md"))
        found = await run.io_bound(self._card, path, bool(self._overwrite.value))
        if found is not None:
            ui.notify(f"Saved {found.path}")


def harmless(markdown: str) -> str:
    """Markdown for a place under a card's heading: its own are one level lower, its HTML is shown as text, and pictures are not fetched.

    Names in a model's metadata are anybody's.
    """
    return re.sub(r"(?m)^#", "##", markdown.replace("<", "&lt;").replace("![", "!&#91;"))
