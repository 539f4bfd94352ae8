"""What a worker does: it finds files, refuses what is not the model that is meant, keeps its bench, and tells how it failed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_work import Squares

from quantailor.analysis.rounding.rounding import PLAIN
from quantailor.analysis.weight_errors.cells import CellWork
from quantailor.analysis.weight_errors.measure import MeasureSettings
from quantailor.cluster import check_address, worker
from quantailor.cluster.arithmetic import Arithmetic, arithmetic
from quantailor.cluster.places import Places, packed, unpacked
from quantailor.cluster.worker import IsSetUp, Order, Refused
from quantailor.errors import ClusterError
from quantailor.models.identity import fingerprint
from quantailor.models.opening import open_model
from quantailor.processes.crews import ModelFiles


@pytest.fixture
def model(small_base: Path) -> ModelFiles:
    source = open_model(small_base)
    try:
        return ModelFiles(small_base, fingerprint(source))
    finally:
        source.close()


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    yield
    worker.release("key")


def order(work: Squares, home: Path, *pairs: str, calculates: Arithmetic | None = None) -> Order:
    return Order("key", packed(work), Places.of(home, pairs), calculates or arithmetic())


def test_it_does_tasks_and_what_was_done_before_a_failure_counts(model: ModelFiles, tmp_path: Path) -> None:
    work = Squares(model, refused=frozenset({3}), killing=frozenset({5}))
    assert worker.set_up(order(work, tmp_path)) == IsSetUp("squares")
    assert worker.do("key", [1, 2]).items == ((1, 1), (2, 4))
    failed = worker.do("key", [1, 3, 4])
    assert (failed.items, failed.failure) == (((1, 1),), "3 gives NaN. Leave it out")
    killed = worker.do("key", [4, 5, 6])
    assert killed.items == ((4, 16),)
    assert "it was killed, probably for lack of memory" in str(killed.failure)
    assert worker.do("key", [6]).items == ((6, 36),), "it is set up again after that"
    assert worker.do("other", [6]).is_unknown
    worker.release("key")
    assert worker.do("key", [6]).is_unknown


def test_files_are_where_the_worker_has_them(model: ModelFiles, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / model.path.name).write_bytes(model.path.read_bytes())
    moved = dataclasses.replace(model, path=tmp_path / "here" / model.path.name)
    work = Squares(moved)
    refused = worker.set_up(order(work, tmp_path))
    assert isinstance(refused, Refused)
    assert refused.words.startswith(f"{moved.path} is not there. Share the folder, say where workers have it (--cluster-path HERE=THERE)")
    nowhere, somewhere = f"{tmp_path / 'here'}={tmp_path / 'no'}", f"{tmp_path / 'here'}={there}"
    assert worker.set_up(order(work, tmp_path, nowhere, somewhere)) == IsSetUp("squares"), "the first folder that is there counts"


def test_another_model_under_the_same_name_is_refused(model: ModelFiles, tmp_path: Path) -> None:
    refused = worker.set_up(order(Squares(dataclasses.replace(model, fingerprint="f" * 64)), tmp_path))
    assert isinstance(refused, Refused)
    assert refused.words.startswith(f"{model.path} holds model {model.fingerprint[:12]}, not ffffffffffff")


def test_the_model_is_found_in_the_workers_own_cache_of_the_hub(model: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = Path("models--ORG--NAME") / "snapshots" / ("a" * 40) / "base.gguf"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "own"))
    (tmp_path / "own" / snapshot).parent.mkdir(parents=True)
    (tmp_path / "own" / snapshot).write_bytes(model.path.read_bytes())
    work = Squares(dataclasses.replace(model, path=Path("/elsewhere/hub") / snapshot))
    assert worker.set_up(order(work, tmp_path)) == IsSetUp("squares")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"engine": "llama-cpp-python 0.1"}, "has llama-cpp-python 0.3"),
        ({"processor": "CPU : NEON = 1"}, "runs other kernels of llama.cpp"),
        ({"quantizers": "0"}, "quantizes the same weights to other codes"),
        ({"algebra": "0"}, "rounds linear algebra differently"),
    ],
)
def test_a_machine_that_rounds_otherwise_says_so(changed: dict[str, str], words: str, model: ModelFiles, tmp_path: Path) -> None:
    asks = dataclasses.replace(arithmetic(), **changed)
    refused = worker.set_up(order(Squares(model), tmp_path, calculates=asks))
    assert isinstance(refused, Refused)
    assert refused.words.startswith(words)


def test_what_a_home_keeps_between_runs_is_kept_in_the_workers_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, own = tmp_path / "home", tmp_path / "own"
    home.mkdir()
    monkeypatch.setenv("QUANTAILOR_HOME", str(own))
    kept = home / "base-logp" / "abc"
    assert Places.of(home, ()).there(kept) == kept, "on this machine there is one home"
    assert Places((), home, "another machine").there(kept) == own / "base-logp" / "abc"


def test_an_open_model_does_not_travel(model: ModelFiles, tmp_path: Path) -> None:
    source = open_model(model.path)
    work = CellWork(model, PLAIN, MeasureSettings(), source=source)
    try:
        assert vars(unpacked(packed(work), Places.of(tmp_path, ())))["source"] is None
    finally:
        source.close()


@pytest.mark.parametrize("text", ["local:0", "local", "somewhere", "tcp://host", "http://host:80", "local:2 "])
def test_what_names_no_cluster_is_refused(text: str) -> None:
    with pytest.raises(ClusterError, match="Give local:N, or the scheduler's address"):
        check_address(text)


def test_a_pair_that_names_no_two_folders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"--cluster-path '/data' does not name two folders. Write HERE=THERE"):
        Places.of(tmp_path, ("/data",))


@pytest.mark.slow
def test_threads_of_a_blas_are_no_other_arithmetic() -> None:
    words = (sys.executable, "-c", "from quantailor.cluster.arithmetic import arithmetic; print(arithmetic())")
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    told = [subprocess.check_output(words, env=os.environ | dict.fromkeys(names, n), text=True) for n in ("1", "2")]
    assert told[0] == told[1]
