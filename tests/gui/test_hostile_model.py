"""A model whose names are made of markup and code: every screen shows them as text and runs none of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from benchmarks.in_memory import MemorySource
from browser import Browser, Server, serving
from commands import Command

from quantailor.app.library.projects import open_project
from quantailor.models.gguf_writer import GGUFWriter, layout
from quantailor.records import MetadataValue
from quantailor.session import Workspace

pytestmark = pytest.mark.slow

CODE = "window.pwned=1"
TENSORS = (
    "token_embd.weight",
    f"blk.0.<img src=x onerror={CODE}>.weight",
    f'blk.0.a" :title="{CODE}" b=".weight',
    f'blk.0.a" @focus="{CODE}" b=".weight',
    f"blk.0.{{{{$el.append.constructor('{CODE}')()}}}}",
    f"blk.1.'+({CODE})+'.weight",
    f"blk.1.`${{{CODE}}}`.weight",
    f"blk.1.</script><script>{CODE}</script>",
)
NAMES = {
    "general.name": f'</script><script>{CODE}</script>"><svg onload={CODE}>',
    "general.license": f'x" onmouseover="{CODE}" y="',
    "general.description": f"<iframe srcdoc='<script>parent.{CODE}</script>'>",
}
SCREENS = ("model", "structure", "measure", "choose", "build", "verify", "experts")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path, str]]:
    """A server, its home, and the project's address; the model lies in a folder with such a name as well."""
    folder = tmp_path_factory.mktemp("hostile")
    place = folder / f"<img src=x onerror={CODE}>"
    place.mkdir()
    path = place / f'a"@click="{CODE}".gguf'
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((8, 256)).astype(np.float16) for name in TENSORS}
    facts = {"general.architecture": "llama", **NAMES}
    source = MemorySource(arrays, metadata={key: MetadataValue("string", value) for key, value in facts.items()})
    with GGUFWriter(path, layout(source.metadata, source.tensors)) as writer:
        for tensor in source.tensors:
            writer.write(source.raw_rows(tensor.name, 0, tensor.n_rows))
    with Workspace.open(folder / "home") as workspace:
        fingerprint = open_project(workspace, path).fingerprint
    with serving(folder / "home", "--allow", str(folder)) as server:
        yield server, path, f"/p/{fingerprint[:16]}"


@pytest.mark.long
def test_every_screen_shows_hostile_names_as_text(chromium: Browser, hostile: tuple[Server, Path, str], quantailor: Command) -> None:
    server, path, root = hostile
    assert quantailor("measure", path, "--types", "Q2_K,Q4_K,Q8_0", "--home", server.home).code == 0
    chromium.enter(server)
    seen = ""
    addresses = ["/", f"/compare?a={root[3:]}&b={root[3:]}", *(f"{root}/{screen}" for screen in SCREENS)]
    queries = ("", *(f"?tensor={quote(name)}&draft={quote(NAMES['general.name'][:60])}" for name in TENSORS[1:3]))
    for address in addresses:
        for query in queries if address.startswith("/p/") else ("",):
            chromium.go(server, address + query)
            chromium.settle()
            assert not chromium.js("return window.pwned"), f"{address}{query} ran the model's code"
            assert chromium.js("return document.querySelectorAll('img[src=x], svg[onload], iframe[srcdoc]').length") == 0, address
            seen += str(chromium.js("return document.body.innerText"))
    for name in TENSORS[1:]:
        assert name in seen, f"no screen shows {name}"
