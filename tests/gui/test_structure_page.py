"""Structure in a browser: thousands of tensors, one tensor's types, and the configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import Browser, Server, serving
from large_model import write_large_model
from visitor import Visitor, words_of

from quantailor.app.library.projects import open_project
from quantailor.session import Workspace

pytestmark = pytest.mark.slow

N_TENSORS = 5000
ROWS = "document.querySelectorAll('.ag-center-cols-container .ag-row')"
FIRST = 'document.querySelector(\'.ag-center-cols-container .ag-row[row-index="0"] [col-id="name"]\')?.textContent'


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A server that knows a model of 5,000 tensors, and the model's fingerprint."""
    folder = tmp_path_factory.mktemp("large")
    write_large_model(folder / "large.gguf", N_TENSORS)
    with Workspace.open(folder / "home") as workspace:
        fingerprint = open_project(workspace, folder / "large.gguf").fingerprint
    with serving(folder / "home", "--allow", str(folder)) as server:
        yield server, fingerprint[:16]


def painted(browser: Browser, script: str) -> None:
    """Runs a script and waits until the browser has painted what it changes; benchmarks/gui.py says how long that takes."""
    browser.driver.execute_async_script(
        f"const done = arguments[0]; {script}; requestAnimationFrame(() => requestAnimationFrame(() => done()));"
    )


def test_a_table_of_5000_tensors_keeps_few_rows_in_the_page(chromium: Browser, large: tuple[Server, str]) -> None:
    server, fingerprint = large
    chromium.enter(server)
    chromium.driver.get(server.url(f"/p/{fingerprint}/structure"))
    chromium.until(lambda: chromium.js(f"return {FIRST} === 'token_embd.weight'"), "the table has rows")
    chromium.ready()
    chromium.sees("5,000 tensors")
    assert chromium.js(f"return {ROWS}.length") <= 60
    api = "getElement(document.querySelector('.nicegui-aggrid').id.slice(1)).api"
    painted(chromium, f"{api}.applyColumnState({{state: [{{colId: 'name', sort: 'asc'}}]}})")
    assert str(chromium.js(f"return {FIRST}")).startswith("blk.0.")
    painted(chromium, f"{api}.applyColumnState({{state: [{{colId: 'name', sort: 'desc'}}]}})")
    assert chromium.js(f"return {FIRST}") == "token_embd.weight"
    assert chromium.js(f"return {ROWS}.length") <= 60
    painted(chromium, f"{api}.setGridOption('quickFilterText', 'blk.12. attn')")
    assert chromium.js(f"return {ROWS}.length") == 11
    painted(chromium, f"{api}.setGridOption('quickFilterText', '')")
    assert chromium.js(f"return {ROWS}.length") <= 60
    assert chromium.errors() == []


def test_the_filter_box_narrows_the_table(chromium: Browser, large: tuple[Server, str]) -> None:
    server, fingerprint = large
    chromium.enter(server, f"/p/{fingerprint}/structure")
    chromium.sees("5,000 tensors")
    chromium.find(".qt-m-table-card input").send_keys("ffn_down_shexp")
    chromium.sees("of 5,000 tensors")
    names = chromium.js(f"return [...{ROWS}].map(row => row.querySelector('[col-id=\"name\"]').textContent)")
    assert names
    assert all("ffn_down_shexp" in name for name in names)
    assert chromium.errors() == []


def test_only_types_that_divide_the_row_are_offered_and_it_says_why(visit: Callable[..., Visitor], large: tuple[Server, str]) -> None:
    server, fingerprint = large
    page = visit(server.home)
    page.go(f"/p/{fingerprint}/structure?tensor=blk.7.ffn_down.weight")
    page.sees("It can take")
    groups = page.all(".qt-m-chips")
    offered = {name for group in groups if "qt-m-refused" not in group.classes for name in words_of(group).splitlines()}
    refused = {name for group in groups if "qt-m-refused" in group.classes for name in words_of(group).splitlines()}
    assert {"Q8_0", "Q4_0", "IQ4_NL"} <= offered
    assert {"Q4_K", "Q6_K", "IQ4_XS", "IQ2_XXS"} <= refused
    assert not offered & refused
    said = page.text(".qt-m-tensor")
    assert "Its rows are 1408 weights wide, not a multiple of 256" in said
    assert "llama.cpp would write Q4_0 for Q2_K" in said
    page.go(f"/p/{fingerprint}/structure?tensor=blk.7.attn_norm.weight")
    page.sees("It stays F32: it has one dimension.")


def test_a_tensor_chosen_in_the_table_is_in_the_address_and_survives_a_reload(chromium: Browser, large: tuple[Server, str]) -> None:
    server, fingerprint = large
    chromium.enter(server, f"/p/{fingerprint}/structure")
    chromium.find('.ag-center-cols-container .ag-row[row-index="2"] [col-id="role"]').click()
    chromium.until(lambda: "tensor=output.weight" in chromium.driver.current_url, "the address names the tensor")
    chromium.driver.refresh()
    chromium.ready()
    chromium.until(lambda: chromium.all(".ag-row-selected"), "its row is marked")
    assert "output.weight" in chromium.text(".qt-m-tensor")
    assert chromium.errors() == []


def test_the_largest_tensors_are_counted(chromium: Browser, visit: Callable[..., Visitor], large: tuple[Server, str]) -> None:
    server, fingerprint = large
    page = visit(server.home)
    page.go(f"/p/{fingerprint}/structure")
    page.sees("The 10 largest tensors hold 0.8 % of the bytes")
    page.fill("How many", 2)
    page.sees("The 2 largest tensors hold 0.3 % of the bytes")
    chromium.enter(server, f"/p/{fingerprint}/structure")
    chromium.click("Show them")
    chromium.until(lambda: chromium.js(f"return {FIRST}") in ("token_embd.weight", "output.weight"), "the largest is first")
    assert chromium.errors() == []


def test_metadata_can_be_searched(visit: Callable[..., Visitor], large: tuple[Server, str]) -> None:
    server, fingerprint = large
    page = visit(server.home)
    page.go(f"/p/{fingerprint}/structure?view=configuration")
    page.sees("tokenizer.ggml.tokens")
    page.sees("… 4,096 in all]")
    page.fill("Search keys and values", "feed_forward")
    page.sees("1 of 17 entries")
    assert "tokenizer.ggml.tokens" not in page.text()


def test_configuration_files_of_a_directory_are_readable(visit: Callable[..., Visitor], books_llama_dir: Path, tmp_path: Path) -> None:
    with Workspace.open(tmp_path / "home") as workspace:
        fingerprint = open_project(workspace, books_llama_dir).fingerprint[:16]
    page = visit(tmp_path / "home")
    page.go(f"/p/{fingerprint}/structure?view=configuration")
    page.sees('"LlamaForCausalLM"')
    page.fill("File", "tokenizer_config.json")
    page.sees("tokenizer_config.json: 240 B")


def test_the_table_s_rows_come_with_the_token_only(large: tuple[Server, str]) -> None:
    import httpx

    server, fingerprint = large
    address = server.url(f"/api/p/{fingerprint}/tensors")
    assert httpx.get(address).status_code == 401
    with httpx.Client() as client:
        client.get(server.entry, follow_redirects=True)
        rows = client.get(address).json()
        assert client.get(server.url("/api/p/..%2f..%2fetc/tensors")).status_code == 404
        assert client.get(server.url("/api/p/0000000000000000/tensors")).status_code == 404
    assert len(rows) == N_TENSORS
    assert rows[0] == {
        "name": "token_embd.weight",
        "role": "token_embd",
        "layer": None,
        "shape": "4096 x 512",
        "weights": 4096 * 512,
        "type": "F16",
        "bytes": 2 * 4096 * 512,
        "types": 25,
    }
