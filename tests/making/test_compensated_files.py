"""Files whose rounding is compensated: what is built is what is set in memory, and the file says how it was rounded."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.in_memory import MemorySource

from made_up_covariances import MadeUpCovariances, output_errors, rounded
from quantailor.analysis.quantize import quantized_blocks
from quantailor.analysis.rounding.compensation import PANEL_ROWS
from quantailor.analysis.rounding.rounding import PLAIN, Rounding
from quantailor.analysis.scores.swapping import Swapper
from quantailor.ggml import library
from quantailor.making.building import as_rounded, build, predict
from quantailor.models.identity import fingerprint
from quantailor.models.opening import open_model
from quantailor.models.source import ModelSource
from quantailor.processes import apart
from quantailor.records import Prediction, Strategy, TensorChoice
from quantailor.session import quantizable_tensors
from quantailor.strategy.file import loads
from small_base import write_small_base

TYPES = ("Q4_0", "Q8_0", "Q5_0", "F16")
COVARIANCES = MadeUpCovariances()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_base(tmp_path_factory.mktemp("base") / "small.gguf")


@pytest.fixture
def source(base: Path) -> Iterator[ModelSource]:
    opened = open_model(base)
    yield opened
    opened.close()


def rounding() -> Rounding:
    return Rounding(None, COVARIANCES, compensated=True)


def write_wide(path: Path) -> None:
    """Build one matrix whose H a BLAS would factor with several threads, if it were let."""
    weights = np.random.default_rng(0).normal(size=(64, 1024)).astype(np.float32)
    source = MemorySource({"blk.0.attn_q.weight": weights})
    choice = TensorChoice("blk.0.attn_q.weight", "Q4_0", "")
    build(source, Strategy(fingerprint(source), source.name, source.architecture, "manual", (choice,)), path, rounding=rounding())


def rows_of(path: Path) -> dict[str, tuple[str, bytes]]:
    """Every tensor's type and bytes."""
    written = open_model(path)
    rows = {tensor.name: (tensor.type_name, written.raw_rows(tensor.name, 0, tensor.n_rows).tobytes()) for tensor in written.tensors}
    written.close()
    return rows


def strategy_for(source: ModelSource) -> Strategy:
    tensors = [tensor for tensor in quantizable_tensors(source) if tensor.layer in (0, None)]
    choices = tuple(TensorChoice(tensor.name, TYPES[at % len(TYPES)], "") for at, tensor in enumerate(tensors))
    return Strategy(fingerprint(source), source.name, source.architecture, "manual", choices)


def test_a_compensated_file_is_what_the_swapper_puts_in_memory(source: ModelSource, base: Path, tmp_path: Path) -> None:
    strategy = strategy_for(source)
    build(source, strategy, tmp_path / "out.gguf", rounding=rounding())
    written = open_model(tmp_path / "out.gguf")
    with Swapper(source, base, strategy.types, rounding=rounding(), n_ctx=64, n_threads=1) as swapper:
        swapper.set_mix({name: type_name for name, type_name in strategy.types.items() if name in swapper.weights})
        for name in swapper.weights:
            data = written.raw_rows(name, 0, written.tensor(name).n_rows)
            assert np.array_equal(swapper.read(name, 0, data.size), data.reshape(-1)), name
        assert len(swapper.weights) == 9
    written.close()


@pytest.mark.slow
def test_any_number_of_threads_writes_the_same_bytes(source: ModelSource, tmp_path: Path) -> None:
    files = []
    for n_threads in (1, 2, 5):
        build(source, strategy_for(source), tmp_path / f"{n_threads}.gguf", rounding=rounding(), n_threads=n_threads)
        files.append((tmp_path / f"{n_threads}.gguf").read_bytes())
    assert files[0] == files[1] == files[2]


def test_shards_of_the_base_and_of_the_file_change_no_row(source: ModelSource, tmp_path: Path) -> None:
    whole = build(source, strategy_for(source), tmp_path / "whole.gguf", rounding=rounding())
    as_it_is = replace(strategy_for(source), tensors=(TensorChoice("output.weight", "F16", ""),))
    shards = build(source, as_it_is, tmp_path / "base.gguf", split_max_bytes=1_000_000)
    sharded = open_model(shards.paths[0])
    parts = build(sharded, strategy_for(source), tmp_path / "parts.gguf", rounding=rounding(), split_max_bytes=500_000)
    sharded.close()
    assert min(len(shards.paths), len(parts.paths)) > 2
    assert rows_of(parts.paths[0]) == rows_of(whole.paths[0])


@pytest.mark.slow
def test_a_fresh_process_writes_the_same_bytes_whatever_threads_its_blas_has(tmp_path: Path) -> None:
    """One that has not used scipy before, whose BLAS is not loaded yet."""
    program = f"import sys, pathlib, {__name__} as test; test.write_wide(pathlib.Path(sys.argv[1]))"
    for n_threads in ("1", "4"):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": n_threads}
        subprocess.run([sys.executable, "-c", program, str(tmp_path / n_threads)], env=environment, check=True)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "4").read_bytes()


def test_the_outputs_change_less_than_with_plain_rounding(source: ModelSource, tmp_path: Path) -> None:
    tensor = source.tensor("blk.0.ffn_down.weight")
    covariance = COVARIANCES.of(tensor)
    assert covariance is not None
    strategy = replace(strategy_for(source), tensors=(TensorChoice(tensor.name, "Q4_K", ""),))
    original, errors = source.rows(tensor.name, 0, tensor.n_rows), []
    for name, how in (("plain", PLAIN), ("compensated", rounding())):
        build(source, strategy, tmp_path / name, rounding=how)
        written = open_model(tmp_path / name)
        deltas = written.rows(tensor.name, 0, tensor.n_rows) - original
        errors.append(output_errors(deltas[None], [covariance.matrix]))
        written.close()
    assert errors[1] < 0.7 * errors[0]


def test_the_file_says_how_it_was_rounded(source: ModelSource, tmp_path: Path) -> None:
    strategy = strategy_for(source)
    build(source, strategy, tmp_path / "plain.gguf")
    build(source, strategy, tmp_path / "compensated.gguf", rounding=rounding())
    told = {name: embedded(tmp_path / f"{name}.gguf").inputs for name in ("plain", "compensated")}
    assert told == {"plain": {}, "compensated": {"rounding": "compensated", "covariances": COVARIANCES.fingerprint[:16]}}
    again = replace(strategy, inputs=told["compensated"])
    assert predict(source, again).file_size_bytes == (tmp_path / "compensated.gguf").stat().st_size
    build(source, again, tmp_path / "otherwise.gguf")
    assert embedded(tmp_path / "otherwise.gguf").inputs == {"rounding": "plain"}


def test_what_was_predicted_for_the_other_rounding_is_not_told_of_a_file(source: ModelSource) -> None:
    prediction = Prediction(1000, 900, 4.5, 0.01, "probes", 0.004, (0.003, 0.005))
    planned = replace(strategy_for(source), inputs={"rounding": "plain"}, prediction=prediction)
    assert as_rounded(planned, PLAIN).prediction == prediction
    told = as_rounded(planned, rounding()).prediction
    assert told is not None
    assert (told.kld_nats, told.kld_interval_nats) == (None, None)
    assert told.no_prediction == "the types were planned for plain rounding, and the file's is compensated"
    assert told.file_size_bytes == prediction.file_size_bytes


def embedded(path: Path) -> Strategy:
    written = open_model(path)
    text = str(written.metadata["quantailor.strategy"].value)
    written.close()
    return loads(text)


@pytest.mark.slow
def test_another_process_rounds_alike(source: ModelSource) -> None:
    ours = rounding()
    tensor = source.tensor("blk.0.attn_q.weight")
    assert ours.metric(tensor, 0) is not None
    values = source.rows(tensor.name, 0, 64)
    q4 = library.types()["Q4_0"]
    theirs = apart.call(rounded, ours, tensor, values, q4)
    assert np.array_equal(theirs, ours.quantize(tensor, 0, values, q4))
    assert len(pickle.dumps(ours)) < 1000
    assert ours.bytes_key.startswith("compensated")
    assert Rounding(None, COVARIANCES).bytes_key == PLAIN.key == ""


def test_wide_rows_go_through_in_whole_panels_however_small_the_blocks() -> None:
    """Fewer at a time would be filled up with zeros, at the cost of as many."""
    source = MemorySource({"blk.0.attn_q.weight": np.ones((2 * PANEL_ROWS, 256), dtype=np.float32)})
    tensor = library.types()["Q4_0"].retyped(source.tensor("blk.0.attn_q.weight"))
    for asked, n_blocks in ((rounding(), 2), (PLAIN, 2 * PANEL_ROWS)):
        assert len(list(quantized_blocks(source, [tensor], asked, n_threads=1, block_weights=256))) == n_blocks
