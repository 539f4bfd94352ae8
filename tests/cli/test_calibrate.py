"""`quantailor calibrate`: both results, taken from the home when asked for again, and covariance files that do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import Command

from quantailor.analysis.covariances.covariance_file import CovarianceFile
from quantailor.app.library.cleaning import clean
from quantailor.errors import CovarianceError
from quantailor.models.gguf_file import GGUFSource
from quantailor.session import Workspace
from small_base import write_small_base


@pytest.fixture
def text(tmp_path: Path, calibration_text: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(calibration_text.read_text(encoding="utf-8")[:6000], encoding="utf-8")
    return path


FEW = ("--chunks", 2, "--n-ctx", 64, "--threads", 1)


def test_it_gives_both_and_takes_them_from_the_home_again(run: Command, small_base: Path, text: Path, tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "out.gguf"
    first = run("calibrate", small_base, "-f", text, *FEW, "-o", out, "--json").result
    assert (first["chunk_count"], first["missing_tensors"], first["n_few"]) == (2, [], 0)
    assert first["imatrix"] == run("imatrix", small_base, "-f", text, *FEW, "--json").result
    assert out.read_bytes() == Path(first["path"]).read_bytes()
    assert [path.name for path in (home / "covariances").iterdir()] == [Path(first["path"]).name]

    written = Path(first["path"]).stat().st_mtime_ns
    again = run("calibrate", small_base, "-f", text, *FEW)
    assert Path(first["path"]).stat().st_mtime_ns == written
    assert f"covariances {first['fingerprint'][:12]}" in again.out
    Path(first["path"]).unlink()
    assert run("calibrate", small_base, "-f", text, *FEW, "--json").result == first


def test_an_importance_matrix_that_is_there_does_not_keep_it_from_computing(run: Command, small_base: Path, text: Path) -> None:
    matrix = run("imatrix", small_base, "-f", text, *FEW, "--json").result
    found = run("calibrate", small_base, "-f", text, *FEW, "--json").result
    assert found["imatrix"] == matrix
    assert "importance matrix, covariances" in " ".join(run("models").out.split())
    assert run("models", "--json").result[0]["has_covariances"]
    assert Path(found["path"]).is_file()


def test_covariances_are_chosen_like_importance_matrices(run: Command, small_base: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    one = run("calibrate", small_base, "-f", text, *FEW, "-o", out, "--json").result
    with Workspace.open(tmp_path / "other home") as workspace, workspace.model(small_base) as model:
        assert workspace.covariances.choose(model, "auto") is None
        assert workspace.covariances.choose(model, "none") is None
        taken = workspace.covariances.choose(model, str(out))
        newest = workspace.covariances.choose(model, "auto")
        assert taken is not None
        assert newest is not None
        assert taken.path == newest.path == workspace.covariances.path(model.fingerprint, one["fingerprint"])
        assert [record.origin for record in workspace.store.covariances(model.fingerprint)] == ["imported"]
        listed = clean(workspace, kinds=["covariances"], remove=True)
    assert [item.stays for item in listed.items if item.kind == "covariances"] == ["imported: they cannot be computed again"]
    assert newest.path.is_file()
    run("clean", "--kind", "covariances", "--yes")
    assert not Path(one["path"]).exists()


def test_a_later_trial_does_not_replace_what_saw_more(run: Command, small_base: Path, text: Path, tmp_path: Path) -> None:
    found = [
        run("calibrate", small_base, "-f", text, *FEW[2:], "--chunks", n_chunks, "--json").result["fingerprint"] for n_chunks in (2, 3, 1)
    ]
    with Workspace.open(tmp_path / "home") as workspace, workspace.model(small_base) as model:
        chosen = workspace.covariances.choose(model, "auto")
        assert chosen is not None
        assert chosen.fingerprint == found[1]
        again = workspace.covariances.choose(model, str(workspace.covariances.path(model.fingerprint, found[2])))
        assert again is not None
        assert again.fingerprint == found[2]


def test_covariances_of_another_model_are_refused(
    run: Command, small_base: Path, books_llama_base: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    run("calibrate", small_base, "-f", text, *FEW, "-o", out)
    with Workspace.open(tmp_path / "home") as workspace, workspace.model(books_llama_base) as model:
        with pytest.raises(CovarianceError, match=r"out\.gguf holds covariances of model .*Compute them for this model"):
            workspace.covariances.choose(model, str(out))
        # A file that says that it is of this model, and is not.
        with CovarianceFile(out) as file, pytest.raises(CovarianceError, match="which needs 1 x 256"):
            file.of(model.source.tensor("output.weight"))


def test_covariances_of_another_model_are_refused_before_anything_is_computed(
    run: Command, small_base: Path, text: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "out.gguf", write_small_base(tmp_path / "other.gguf", seed="other")
    run("calibrate", small_base, "-f", text, *FEW, "-o", out)
    n_jobs = len(run("jobs", "list", "--json").result)
    for words in (("make", other, "--bpw", 5, "-o", tmp_path / "made"), ("study", other)):
        assert "out.gguf holds covariances of model" in run(*words, "--covariances", out).error_line
        assert "gone.gguf" in run(*words, "--covariances", tmp_path / "gone.gguf").error_line
    assert len(run("jobs", "list", "--json").result) == n_jobs


def test_a_file_of_covariances_is_no_model(run: Command, small_base: Path, text: Path, tmp_path: Path) -> None:
    run("calibrate", small_base, "-f", text, *FEW, "-o", tmp_path / "out.gguf")
    assert "is a file of input covariances, not a language model" in run("measure", tmp_path / "out.gguf").error_line


def test_a_file_that_was_damaged_in_the_home_is_told_of(run: Command, small_base: Path, text: Path, tmp_path: Path) -> None:
    found = run("calibrate", small_base, "-f", text, *FEW, "--json").result
    path = Path(found["path"])
    whole = path.read_bytes()
    copy = shutil.copy(path, tmp_path / "copy.gguf")
    data = bytearray(whole)
    data[-50] ^= 4
    path.write_bytes(data)
    with Workspace.open(tmp_path / "home") as workspace, workspace.model(small_base) as model:
        taken = workspace.covariances.choose(model, str(copy))
        assert taken is not None
        assert path.read_bytes() == whole
        source = GGUFSource(small_base)
        seen = [covariance for tensor in source.tensors if (covariance := taken.of(tensor)) is not None]
        source.close()
    assert all(np.isfinite(covariance.matrix).all() for covariance in seen)
