"""From a path to a model, or to a sentence that says why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.in_memory import MemorySource
from gguf_files import joined, write

from quantailor.errors import AlreadyQuantizedError, ModelError
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.opening import open_model, require_unquantized


def test_a_gguf_file_opens_by_path_and_by_text(tmp_path: Path) -> None:
    path = write(tmp_path, joined())
    for given in (path, str(path)):
        source = open_model(given)
        assert isinstance(source, GGUFSource)
        source.close()


def test_the_home_directory_may_be_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, joined())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    open_model("~/small.gguf").close()


@pytest.mark.parametrize("name", ["missing", "n" * 300, "zero\0", "missing/model.gguf", "~no-such-user-here/model.gguf"])
def test_a_path_that_leads_nowhere_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match=r"there is no|cannot read"):
        open_model(name if name.startswith("~") else tmp_path / name)


def test_other_files_and_folders_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for place in (write(tmp_path, b"PK\x03\x04" * 100, "model.zip"), write(tmp_path, b"", "empty.gguf"), tmp_path / "folder"):
        with pytest.raises(ModelError, match=place.name):
            open_model(place)


def test_a_path_that_may_not_be_searched_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(ModelError, match=r"cannot read secret\.gguf: Permission denied"):
        open_model("secret.gguf")


def test_quantized_models_need_leave(tmp_path: Path) -> None:
    source = open_model(write(tmp_path, joined()))
    with pytest.raises(AlreadyQuantizedError, match="Q4_K, Q8_0"):
        require_unquantized(source)
    require_unquantized(source, allow_requantize=True)
    require_unquantized(MemorySource({"a.weight": np.zeros((2, 32), dtype=np.float16)}))
    source.close()
