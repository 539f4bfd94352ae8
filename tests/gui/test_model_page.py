"""Opening models: files, directories, repositories of the hub, and the file picker."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, serving
from foreign_models import ARCHITECTURE, write_foreign
from hub_server import HubServer, assert_no_token, running_hub
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from vision_models import write_vision
from visitor import Visitor

from gguf_models import HIDDEN, write_llama
from quantailor.ggml.reference import quantize_reference
from quantailor.models.safetensors_file import SafetensorsFile
from tiny_models import numbers, packed, safetensors_bytes, write_tiny

pytestmark = pytest.mark.slow


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub of our own that the servers of these tests use."""
    with running_hub() as server:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN_PATH"):
            monkeypatch.delenv(name, raising=False)
        for name, value in server.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def page(visit: Callable[..., Visitor], tmp_path: Path) -> Visitor:
    """A visitor of pages that may use the test's folder."""
    return visit(tmp_path / "home", tmp_path)


def ask(page: Visitor, words: str) -> None:
    """Type something into the one box and open it."""
    page.go("/open")
    page.fill("Repository, directory or GGUF file", words)
    page.click("Open")


def test_a_gguf_file_is_opened_and_named(page: Visitor, books_llama_base: Path, tmp_path: Path) -> None:
    model = tmp_path / "mine.gguf"
    shutil.copy(books_llama_base, model)
    ask(page, str(model))
    page.until(lambda: page.address.endswith("/model"), "its page opens")
    for words in ("llama", "8.39 M", "75", "16.01", "not stated", "mine.gguf", "Nothing is measured yet", "Continue: Measure"):
        page.sees(words)
    page.sees("free at")
    page.click("Look at its structure")
    page.until(lambda: page.address.endswith("/structure"), "Structure opens")


def test_a_model_that_cannot_run_is_told_where_it_is_looked_at(page: Visitor, tmp_path: Path) -> None:
    norm = np.full(HIDDEN, np.nan, np.float32)
    ask(page, str(write_llama(tmp_path / "broken.gguf", arrays={"blk.0.attn_norm.weight": norm})))
    page.until(lambda: page.address.endswith("/model"), "its page opens")
    page.sees(f"This model cannot be used as it is: blk.0.attn_norm.weight has {HIDDEN} weights that are NaN or Inf.")
    page.click("Look at its structure")
    page.until(lambda: page.address.endswith("/structure"), "Structure opens")
    page.sees("This model cannot be used as it is: blk.0.attn_norm.weight")


def test_rows_that_a_base_loses_are_told_where_the_checkpoint_is_looked_at(page: Visitor, tmp_path: Path) -> None:
    """In the words of `inspect`."""
    folder, arrays = write_tiny("llama3", tmp_path), {}
    with closing(SafetensorsFile(folder / "model.safetensors")) as file:
        for name, array in file.arrays.items():
            values = numbers(name, array.shape)
            if name.endswith("0.self_attn.q_proj.weight"):
                values[5] *= 1e-10
            arrays[name] = ("F32", array.shape, packed(values, "F32"))
    (folder / "model.safetensors").write_bytes(safetensors_bytes(arrays))
    ask(page, str(folder))
    page.until(lambda: page.address.endswith("/model"), "its page opens")
    page.sees("blk.0.attn_q.weight has 1 of 64 rows whose weights are too small for F16")
    page.sees("save the checkpoint in bfloat16, which holds them.")
    assert "cannot be used" not in page.text()
    page.click("Look at its structure")
    page.until(lambda: page.address.endswith("/structure"), "Structure opens")
    page.sees("blk.0.attn_q.weight has 1 of 64 rows whose weights are too small for F16")


def test_a_model_that_llama_cpp_does_not_know_is_told_where_it_is_looked_at(page: Visitor, tmp_path: Path) -> None:
    ask(page, str(write_llama(tmp_path / "new.gguf", architecture="notyet")))
    page.until(lambda: page.address.endswith("/model"), "its page opens")
    page.sees("unknown model architecture: 'notyet' (it can be measured and built, but not run).")
    page.sees("update llama-cpp-python")


def test_what_can_be_computed_again_is_removed(
    page: Visitor, books_llama_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ask(page, str(Path(shutil.copy(books_llama_base, tmp_path / "mine.gguf"))))
    page.sees("free at")
    chunk = tmp_path / "home" / "base-logp" / "0123456789abcdef-text-512" / "chunk-000000.npy"
    chunk.parent.mkdir(parents=True)
    chunk.write_bytes(bytes(5000))
    page.click("Free disk space …")
    page.sees("can be removed; computed again by running the base on the text")
    page.sees("everything that was measured")
    page.click("Remove 4.88 KiB")
    page.until(lambda: not chunk.exists(), "it is gone")
    page.sees("4.88 KiB removed")
    covariances = tmp_path / "home" / "covariances" / "0123456789abcdef-run-fedcba.state"
    covariances.write_bytes(bytes(3000))
    page.click("Free disk space …")
    page.sees("3 things")
    page.sees("on request; computed again by running the base on the text")
    page.fill("Also remove covariances (2.93 KiB)", value=True)
    page.click("Remove 2.93 KiB")
    page.until(lambda: not covariances.exists(), "they are gone")
    assert (tmp_path / "home" / "quantailor.db").exists()


def test_a_file_of_something_else_is_told_apart(page: Visitor, tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parents[1] / "golden" / "imatrix-books-llama.gguf", tmp_path / "some.gguf")
    ask(page, str(tmp_path / "some.gguf"))
    page.sees("is an importance matrix, not a language model")
    page.sees("--imatrix")


def test_a_directory_is_converted_to_a_base(page: Visitor, books_llama_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(books_llama_dir, tmp_path / "books")
    ask(page, str(tmp_path / "books"))
    page.sees("Convert to a base")
    page.sees("generation_config.json")
    assert "--mmproj" not in page.text()
    page.click("Convert to a base (16.02 MiB)")
    page.sees("Its 16-bit base", seconds=40)
    base = next((tmp_path / "home" / "bases").glob("books-????????.gguf"))
    page.sees(base.name)


@pytest.mark.usefixtures("converter")
def test_a_vision_tower_becomes_a_file_where_it_is_wanted(page: Visitor, tmp_path: Path) -> None:
    seeing = write_vision(tmp_path / "seeing")
    ask(page, str(seeing))
    page.sees("This model takes images or sound, too")
    assert "--mmproj" not in page.text()
    page.fill("Vision tower or audio encoder", "bf16")
    page.sees("--mmproj-type bf16")
    suggested = str(page.field("Write the projector to").value)
    assert suggested.endswith("-BF16.gguf")
    page.fill("Write the projector to", str(tmp_path / "eyes.gguf"))
    page.sees(f"--mmproj {tmp_path}/eyes.gguf --mmproj-type bf16")
    page.fill("Vision tower or audio encoder", "f16")
    assert page.field("Write the projector to").value == str(tmp_path / "eyes.gguf")
    page.click(next(line for line in page.text().splitlines() if line.startswith("Convert to a base (")))
    page.sees("Its vision tower or audio encoder", seconds=60)
    page.sees("eyes.gguf")
    assert (tmp_path / "eyes.gguf").read_bytes() == (seeing / "projector.data").read_bytes()


@pytest.mark.usefixtures("converter")
def test_a_directory_of_an_unknown_family_is_offered_to_llama_cpp(page: Visitor, books_llama_base: Path, tmp_path: Path) -> None:
    folder = write_foreign(tmp_path / "foreign", ready=books_llama_base.read_bytes())
    ask(page, str(folder))
    page.sees(f"has the architecture '{ARCHITECTURE}', which Quantailor's own conversion does not support")
    page.sees("Code that comes with a model is never run from here.")
    page.click("Convert with llama.cpp")
    page.until(lambda: page.address.endswith("/model"), "the converted model opens")
    page.sees("8.39 M")
    base = next((tmp_path / "home" / "bases").glob("foreign-????????.gguf"))
    page.sees(base.name)
    assert base.read_bytes() == books_llama_base.read_bytes()


def test_a_quantized_file_says_so_with_the_remedy(page: Visitor, books_llama_base: Path, tmp_path: Path) -> None:
    quantized = tmp_path / "q8.gguf"
    quantize_reference(books_llama_base, quantized, preset="Q8_0")
    page.go(f"/open?model={quantized}")
    page.sees("These weights are quantized already (Q8_0)")
    page.sees("Open the 16-bit model instead.")


def test_nothing_opens_outside_the_allowed_folders(page: Visitor) -> None:
    ask(page, "/etc/hostname")
    page.sees("lies outside the folders that this server may use")
    ask(page, "no such thing")
    page.sees("there is nothing at no such thing, and it is not ORG/NAME")


def test_a_repository_is_looked_at_downloaded_and_opened(hub: HubServer, page: Visitor, books_llama_dir: Path, tmp_path: Path) -> None:
    hub.add("books/llama", {**{path.name: path.read_bytes() for path in books_llama_dir.iterdir()}, "notes.pdf": b"x"})
    ask(page, "books/llama")
    for words in ("apache-2.0", "8.39 M", "1 other file is not needed", "model.safetensors", "to download", "free at"):
        page.sees(words)
    assert "model=books%2Fllama" in page.address
    page.click("Download 16.08 MiB")
    page.button("Open the model")
    page.sees("All of it is here")
    snapshots = tmp_path / "hf" / "hub" / "models--books--llama" / "snapshots"
    assert [path.name for path in snapshots.rglob("*.pdf")] == []
    assert next(snapshots.rglob("model.safetensors")).read_bytes() == (books_llama_dir / "model.safetensors").read_bytes()
    page.click("Open the model")
    page.until(lambda: page.address.endswith("/model"), "its page opens")
    page.sees("Convert to a base")


REFUSALS = {
    "not-requested": ("Its authors ask you to accept terms", "accept the terms", "/books/gated"),
    "pending": ("Your request waits for its authors", "they answer themselves", "/settings/gated-repos"),
    "rejected": ("The authors refused access", "take another model", "/books/gated"),
}


def test_three_refusals_have_three_texts_and_the_right_link(hub: HubServer, page: Visitor, books_llama_dir: Path, tmp_path: Path) -> None:
    hub.add("books/gated", books_llama_dir, gated="manual")
    page.go("/open?model=books/gated")
    page.sees("It is gated, and nobody is logged in here")
    page.sees("hf auth login")
    for access, (title, step, link) in REFUSALS.items():
        login = tmp_path / "hf" / "token"
        login.parent.mkdir(exist_ok=True)
        login.write_text(hub.user(access))  # type: ignore[arg-type]
        page.click("Look again")
        page.sees(title)
        page.sees(step)
        assert page.find(".qt-outside").props["href"] == f"{hub.url}{link}"


def test_a_token_file_opens_a_gated_repository_and_is_never_shown(
    chromium: Browser, hub: HubServer, books_llama_dir: Path, tmp_path: Path
) -> None:
    hub.add("books/gated", books_llama_dir, gated="auto")
    (tmp_path / "token.txt").write_text(hub.token)
    with serving(tmp_path / "home", "--allow", str(tmp_path)) as server:
        chromium.enter(server, "/open?model=books/gated")
        chromium.click("Choose a token file")
        write(chromium.find(".qt-pick input"), f"{tmp_path / 'token.txt'}\n")
        chromium.click("Choose token.txt")
        chromium.sees("gated, you have access")
        chromium.click("Download 16.08 MiB")
        chromium.button("Open the model")
        assert_no_token(hub, tmp_path / "home", chromium.driver.page_source, "".join(server.lines))
        assert chromium.errors() == []


def write(field: WebElement, words: str) -> None:
    """Replace what a box holds."""
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(words)


def test_the_picker_works_by_keyboard_and_stays_inside(
    chromium: Browser, books_llama_base: Path, books_llama_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "allowed"
    (folder / "deep").mkdir(parents=True)
    (folder / "notes.txt").write_text("not a model")
    shutil.copy(books_llama_base, folder / "deep" / "b.gguf")
    shutil.copytree(books_llama_dir, folder / "deep" / "a-directory")
    (folder / "out").symlink_to("/etc")
    with serving(tmp_path / "home", "--allow", str(folder)) as server:
        chromium.enter(server, "/open")
        chromium.click("Browse")
        write(chromium.find(".qt-pick input"), f"{folder}\n")
        chromium.until(lambda: rows(chromium) == ["deep", "out"], "only folders: there is no model")
        chromium.find('.qt-pick input[aria-label="Filter"]').send_keys(Keys.ARROW_DOWN)
        chromium.driver.switch_to.active_element.send_keys(Keys.ENTER)
        chromium.until(lambda: rows(chromium) == ["b.gguf", "a-directory"], "GGUF files first")
        chromium.find('.qt-pick input[aria-label="Filter"]').send_keys(Keys.ARROW_DOWN)
        chromium.driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
        chromium.driver.switch_to.active_element.send_keys(Keys.ENTER)
        chromium.button("Choose a-directory")
        chromium.click("The folder above")
        chromium.until(lambda: rows(chromium) == ["deep", "out"], "back")
        next(row for row in chromium.all(".qt-pick-row") if "out" in row.text).click()
        chromium.sees("lies outside the folders")
        assert rows(chromium) == ["deep", "out"]
        assert chromium.errors() == []


def rows(browser: Browser) -> list[str]:
    """Names in the picker."""
    return list(browser.js("return [...document.querySelectorAll('.qt-pick-row .qt-grow')].map(e => e.textContent)"))
