"""Fixtures that most tests share: the two trained models, their bases and small texts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """Golden files change only when somebody asks for it."""
    parser.addoption("--update-golden", action="store_true", help="write golden files anew")


@pytest.fixture(scope="session")
def books_llama_dir() -> Path:
    """A trained dense model as a Hugging Face directory."""
    return ROOT / "demo" / "books-llama"


@pytest.fixture(scope="session")
def books_moe_dir() -> Path:
    """A trained mixture of experts as a Hugging Face directory."""
    return ROOT / "tests" / "data" / "books-moe"


@pytest.fixture(scope="session")
def calibration_text() -> Path:
    """120 kB of English prose."""
    return ROOT / "tests" / "data" / "calibration.txt"


@pytest.fixture(scope="session")
def heldout_text() -> Path:
    """Prose that no importance matrix has seen."""
    return ROOT / "src" / "quantailor" / "data" / "heldout.txt"


def _base(directory: Path, folder: Path) -> Path:
    if ready := os.environ.get("QUANTAILOR_TEST_BASES"):
        return Path(ready) / f"{directory.name}.gguf"
    from quantailor.models.convert.base import write_base
    from quantailor.models.opening import open_model

    output = folder / f"{directory.name}.gguf"
    source = open_model(directory)
    write_base(source, output)
    source.close()
    return output


@pytest.fixture(scope="session")
def books_llama_base(books_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense model's 16-bit base GGUF."""
    return _base(books_llama_dir, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def books_moe_base(books_moe_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mixture's 16-bit base GGUF."""
    return _base(books_moe_dir, tmp_path_factory.mktemp("base"))
