"""Whatever is converted loads in llama.cpp: a checkpoint of each family with any one array left out, or one too many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from test_families import SMALL, write_small

from quantailor.errors import ModelError
from quantailor.ggml.runtime import LoadedModel
from quantailor.models.convert.base import write_base
from quantailor.models.huggingface import HuggingFaceSource
from quantailor.models.safetensors_file import SafetensorsFile
from tiny_models import safetensors_bytes, write_tiny

Arrays = dict[str, tuple[str, tuple[int, ...], bytes]]
WRITERS: Mapping[str, Callable[[Path], Path]] = {
    **{name: lambda place, name=name: write_tiny(name, place) for name in ("llama2", "mistral", "mixtral")},  # type: ignore[misc]
    **{name: lambda place, name=name: write_small(name, place) for name in SMALL},  # type: ignore[misc]
}


@pytest.fixture(params=WRITERS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory of each family, its weights in one file."""
    folder = WRITERS[request.param](tmp_path / "model")
    arrays = dict(stored(folder))
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    (folder / "model.safetensors").write_bytes(safetensors_bytes(arrays))
    return folder


def stored(folder: Path) -> Iterator[tuple[str, tuple[str, tuple[int, ...], bytes]]]:
    for path in sorted(folder.glob("model*.safetensors")):
        file = SafetensorsFile(path)
        for name, array in file.arrays.items():
            yield name, (array.dtype, array.shape, array.read(0, array.size_bytes).tobytes())
        file.close()


def refused_or_loads(folder: Path, arrays: Arrays, output: Path) -> str:
    """What is said of the arrays; empty where they convert, and llama.cpp loads what they become."""
    (folder / "model.safetensors").write_bytes(safetensors_bytes(arrays))
    try:
        source = HuggingFaceSource(folder)
    except ModelError as error:
        return str(error)
    base = write_base(source, output, overwrite=True)
    source.close()
    with LoadedModel(base, n_ctx=64, n_threads=1):
        return ""


@pytest.mark.slow
def test_a_checkpoint_without_any_one_array_is_refused_or_loads(place: Path, tmp_path: Path) -> None:
    arrays = dict(stored(place))
    assert refused_or_loads(place, arrays, tmp_path / "base.gguf") == ""
    kept = []
    for name in arrays:
        message = refused_or_loads(place, {other: entry for other, entry in arrays.items() if other != name}, tmp_path / "base.gguf")
        assert "\n" not in message
        kept += [] if message else [name]
    tied = ["lm_head.weight"] if "SmolLM3" in (place / "config.json").read_text(encoding="utf-8") else []
    assert [name for name in kept if "bias" not in name] == tied


@pytest.mark.slow
def test_a_checkpoint_with_a_bias_anywhere_is_refused_or_loads(place: Path, tmp_path: Path) -> None:
    arrays = dict(stored(place))
    for name, (dtype, shape, _) in arrays.items():
        if name.endswith(".weight"):
            bias = {name.replace(".weight", ".bias"): (dtype, shape[:1], bytes(2 * shape[0]))}
            refused_or_loads(place, {**arrays, **bias}, tmp_path / "base.gguf")
