"""Our conversion against llama.cpp's own: the files are equal, byte for byte.

Exceptions: none. One thing is given to llama.cpp's converter that it decides otherwise: the name of the pre-tokenizer
(`tokenizer.ggml.pre`) of the made-up BPE vocabularies, as it knows published ones only, by a hash of the ids of a text.
For published vocabularies it decides, and the files are equal too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from published import PUBLISHED, write_published
from upstream import Upstream, llama_cpp_sources

from gguf_description import describe
from quantailor.models.convert.base import write_base
from quantailor.models.opening import open_model
from tiny_models import TINY, write_tiny

pytestmark = pytest.mark.oracle

GOLDEN = Path(__file__).parent.parent / "golden" / "convert.json"
TRAINED = ("books-llama", "books-moe")


@pytest.fixture(scope="module")
def llama_cpp() -> Path:
    return llama_cpp_sources()


@pytest.fixture(scope="module")
def models(books_llama_dir: Path, books_moe_dir: Path, llama_cpp: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    tiny = {name: write_tiny(name, folder) for name in TINY}
    published = {f"vocabulary-{name}": write_published(name, llama_cpp, folder) for name in PUBLISHED}
    return {"books-llama": books_llama_dir, "books-moe": books_moe_dir, **tiny, **published}


@pytest.fixture(scope="module")
def converted(models: Mapping[str, Path], llama_cpp: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    upstream = Upstream(llama_cpp, tmp_path_factory.mktemp("upstream"))
    return upstream.convert(models, {name: tiny.pre for name, tiny in TINY.items() if tiny.pre})


@pytest.mark.parametrize("name", [*TRAINED, *TINY, *(f"vocabulary-{name}" for name in PUBLISHED)])
def test_the_base_is_the_file_that_llama_cpp_writes(
    name: str, models: Mapping[str, Path], converted: Mapping[str, Path], tmp_path: Path
) -> None:
    ours = write_base(open_model(models[name]), tmp_path / "ours.gguf")

    # Describing a large vocabulary takes long.
    if ours.read_bytes() != converted[name].read_bytes():
        assert describe(ours) == describe(converted[name])
        pytest.fail("the files differ")


def test_the_golden_file_is_what_llama_cpp_writes(converted: Mapping[str, Path], request: pytest.FixtureRequest) -> None:
    upstreams = {name: describe(converted[name]) for name in (*TRAINED, *TINY)}
    if request.config.getoption("--update-golden"):
        GOLDEN.write_text(json.dumps(upstreams, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")

    assert json.loads(GOLDEN.read_text(encoding="utf-8")) == upstreams
