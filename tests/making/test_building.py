"""From a strategy to a file: exact sizes, llama-quantize's layout, and nothing half done."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.in_memory import MemorySource
from gguf import GGUFReader

from elsewhere import Elsewhere
from faults import Forked
from quantailor.analysis.importance.imatrix import Imatrix, ImatrixEntry, quantizer_importance
from quantailor.analysis.rounding.rounding import Rounding
from quantailor.control import NullControl
from quantailor.errors import (
    Cancelled,
    ImatrixError,
    NonFiniteWeightError,
    OutputError,
    StrategyMismatchError,
    TypeUnavailableError,
)
from quantailor.ggml import library
from quantailor.ggml.reference import preset_types, quantize_reference
from quantailor.making.building import BuildResult, build, build_preset, output_metadata, predict, predict_layout
from quantailor.models.identity import fingerprint
from quantailor.models.opening import open_model
from quantailor.models.source import ModelSource
from quantailor.numerics import Floats
from quantailor.processes.crews import HERE
from quantailor.qtypes import IMATRIX_REQUIRED, needs_imatrix, never_quantized, unavailable
from quantailor.records import MetadataValue, Strategy, TensorChoice, TensorInfo
from quantailor.strategy.file import loads
from quantailor.strategy.interchange import exact_pattern
from small_base import write_small_base


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_base(tmp_path_factory.mktemp("small") / "base.gguf")


@pytest.fixture(params=["books_llama_base", "books_moe_base"])
def trained(request: pytest.FixtureRequest) -> Iterator[ModelSource]:
    with closing(open_model(request.getfixturevalue(request.param))) as opened:
        yield opened


@pytest.fixture(params=["small", "books_moe_base"])
def source(request: pytest.FixtureRequest) -> Iterator[ModelSource]:
    with closing(open_model(request.getfixturevalue(request.param))) as opened:
        yield opened


def strategy_for(source: ModelSource, types: dict[str, str]) -> Strategy:
    choices = tuple(TensorChoice(name, type_name, f"chosen for {name}", damage=0.5) for name, type_name in types.items())
    return Strategy(fingerprint(source), source.name, source.architecture, "manual", choices)


def quantizable(source: ModelSource) -> list[TensorInfo]:
    return [tensor for tensor in source.tensors if never_quantized(tensor, source.architecture) is None]


def all_of(source: ModelSource, type_name: str) -> Strategy:
    return strategy_for(source, {tensor.name: type_name for tensor in quantizable(source)})


QUICK = ("F32", "F16", "Q4_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K", "MXFP4", "TQ2_0", "Q1_0", "Q2_0")
"""Types that ggml writes fast."""


def random_mix(source: ModelSource, seed: int, imatrix: Imatrix | None, among: Collection[str]) -> Strategy:
    """Any of these types that each tensor can take."""
    choose = random.Random(seed)
    qtypes = library.types()
    types = {}
    for tensor in quantizable(source):
        held = imatrix is not None and tensor.name in imatrix.entries
        fitting = [
            name
            for name, qtype in qtypes.items()
            if name in among and not unavailable(tensor, qtype, architecture=source.architecture, has_imatrix=held, qtypes=qtypes)
        ]
        types[tensor.name] = choose.choice(fitting)
    return strategy_for(source, types)


def synthetic_imatrix(source: ModelSource) -> Imatrix:
    """Plausible activations for every matrix but the outer ones, as llama-imatrix leaves those out."""
    generator = np.random.default_rng(0)
    entries = {}
    for tensor in quantizable(source):
        if tensor.layer is not None:
            sums = generator.lognormal(0, 2, (tensor.n_slices, tensor.n_cols)).astype(np.float32)
            entries[tensor.name] = ImatrixEntry(sums * 100, np.full(tensor.n_slices, 100), None)
    return Imatrix(entries, {}, None, ("calibration.txt",), 12, 512)


@pytest.mark.parametrize("split", [None, 300_000])
def test_a_file_whose_blocks_are_quantized_elsewhere_is_the_same(small: Path, tmp_path: Path, split: int | None) -> None:
    elsewhere = Elsewhere()
    with closing(open_model(small)) as source:
        strategy, imatrix = random_mix(source, 1, None, QUICK), synthetic_imatrix(source)
        here, there = (
            build(source, strategy, tmp_path / name / "m.gguf", rounding=Rounding(imatrix), split_max_bytes=split, executor=executor)
            for name, executor in (("here", HERE), ("there", elsewhere))
        )
    assert [path.read_bytes() for path in there.paths] == [path.read_bytes() for path in here.paths]
    assert len(elsewhere.done) >= len(strategy.tensors)


@pytest.mark.parametrize("preset", ["Q4_K_S", "Q3_K_M", "IQ4_XS"])
def test_a_preset_that_is_quantized_elsewhere_is_llama_cpps_own(small: Path, tmp_path: Path, preset: str) -> None:
    ours, theirs = tmp_path / "ours.gguf", quantize_reference(small, tmp_path / "theirs.gguf", preset=preset)
    with closing(open_model(small)) as source:
        build_preset(source, preset, preset_types(small, preset), ours, fingerprint=fingerprint(source), executor=Elsewhere())
    assert ours.read_bytes() == theirs.read_bytes()


def rows_of(path: Path) -> dict[str, tuple[str, bytes]]:
    """Every tensor's type and bytes."""
    written = open_model(path)
    rows = {tensor.name: (tensor.type_name, written.raw_rows(tensor.name, 0, tensor.n_rows).tobytes()) for tensor in written.tensors}
    written.close()
    return rows


def reference_rows(source: ModelSource, strategy: Strategy, path: Path, imatrix: Imatrix | None = None) -> Path:
    """The same types from `llama_model_quantize`."""
    importances: dict[str, Floats] = {}
    for name in strategy.types:
        tensor = source.tensor(name)
        importance = quantizer_importance(imatrix, tensor) if imatrix else None
        if importance is not None:
            importances[name] = importance.reshape(-1)
    overrides = [(exact_pattern(name), type_name) for name, type_name in strategy.types.items()]
    return quantize_reference(Path(source.location), path, preset="Q8_0", overrides=overrides, imatrix=importances or None)


@pytest.mark.parametrize(("seed", "split_max_bytes"), [(0, None), (1, 700_000)])
def test_the_size_is_predicted_to_the_byte(source: ModelSource, tmp_path: Path, seed: int, split_max_bytes: int | None) -> None:
    imatrix = synthetic_imatrix(source)
    strategy = random_mix(source, seed, imatrix, QUICK)
    prediction = predict(source, strategy, imatrix=imatrix, split_max_bytes=split_max_bytes)
    result = build(source, strategy, tmp_path / "q.gguf", rounding=Rounding(imatrix), split_max_bytes=split_max_bytes)
    assert (len(result.paths) > 1) == (split_max_bytes is not None)
    assert sum(path.stat().st_size for path in result.paths) == result.size_bytes == prediction.file_size_bytes
    assert (result.tensor_bytes, result.bits_per_weight) == (prediction.tensor_bytes, prediction.bits_per_weight)
    assert prediction.damage == pytest.approx(0.5 * len(strategy.tensors))


def test_a_prediction_in_the_strategy_changes_nothing(source: ModelSource) -> None:
    strategy = all_of(source, "Q4_K")
    with_prediction = replace(strategy, prediction=predict(source, strategy))
    assert predict_layout(source, with_prediction).size_bytes == predict_layout(source, strategy).size_bytes


def test_a_mix_has_the_bytes_that_llama_cpp_writes(source: ModelSource, tmp_path: Path) -> None:
    imatrix = synthetic_imatrix(source)
    strategy = random_mix(source, 7, imatrix, QUICK)
    build(source, strategy, tmp_path / "ours.gguf", rounding=Rounding(imatrix))
    reference = reference_rows(source, strategy, tmp_path / "reference.gguf", imatrix)
    assert rows_of(tmp_path / "ours.gguf") == rows_of(reference)


def test_order_and_metadata_are_llama_quantizes(source: ModelSource, tmp_path: Path) -> None:
    imatrix, strategy = synthetic_imatrix(source), all_of(source, "Q8_0")
    build(source, strategy, tmp_path / "ours.gguf", rounding=Rounding(imatrix))
    metadata: dict[str, str | int] = {
        "quantize.imatrix.file": f"{imatrix.fingerprint[:12]}.imatrix.gguf",
        "quantize.imatrix.dataset": "calibration.txt",
        "quantize.imatrix.entries_count": len(imatrix.entries),
        "quantize.imatrix.chunks_count": 12,
    }
    reference = quantize_reference(Path(source.location), tmp_path / "reference.gguf", preset="Q8_0", metadata=metadata)
    ours, theirs = open_model(tmp_path / "ours.gguf"), open_model(reference)
    own = {key: value for key, value in ours.metadata.items() if not key.startswith("quantailor.")}
    assert list(own.items()) == list(theirs.metadata.items())
    assert list(ours.metadata)[-2:] == ["quantailor.version", "quantailor.strategy"]
    assert list(ours.tensors) == list(theirs.tensors)
    ours.close()
    theirs.close()


def test_the_file_tells_which_strategy_made_it(source: ModelSource, tmp_path: Path) -> None:
    strategy = all_of(source, "Q8_0")
    build(source, strategy, tmp_path / "q.gguf")
    text = GGUFReader(tmp_path / "q.gguf").fields["quantailor.strategy"].contents()
    assert loads(text) == strategy
    assert "prediction" not in json.loads(text) or json.loads(text)["prediction"] is None


@pytest.mark.parametrize(("type_name", "number"), [("Q4_K", 15), ("Q8_0", 7), ("IQ4_XS", 30), ("MXFP4", 38), ("F16", 1)])
def test_the_file_type_is_the_most_common_types(books_llama_base: Path, type_name: str, number: int) -> None:
    source = open_model(books_llama_base)
    metadata = output_metadata(source, all_of(source, type_name))
    assert metadata["general.file_type"] == MetadataValue("uint32", number)
    source.close()


@pytest.mark.slow
def test_the_number_of_threads_changes_no_byte(trained: ModelSource, tmp_path: Path) -> None:
    strategy = all_of(trained, "Q4_K")
    build(trained, strategy, tmp_path / "one.gguf", n_threads=1)
    build(trained, strategy, tmp_path / "five.gguf", n_threads=5)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "five.gguf").read_bytes()


def test_parts_hold_what_one_file_holds(source: ModelSource, tmp_path: Path) -> None:
    strategy = all_of(source, "Q8_0")
    build(source, strategy, tmp_path / "whole.gguf")
    result = build(source, strategy, tmp_path / "parts.gguf", split_max_bytes=700_000)
    assert result.paths[0].name == f"parts-00001-of-{len(result.paths):05d}.gguf"
    assert rows_of(result.paths[0]) == rows_of(tmp_path / "whole.gguf")


def test_tensors_the_strategy_does_not_name_keep_their_type(source: ModelSource, tmp_path: Path) -> None:
    result = build(source, strategy_for(source, {"output.weight": "Q6_K"}), tmp_path / "q.gguf")
    types = {name: type_name for name, (type_name, _) in rows_of(tmp_path / "q.gguf").items()}
    assert (types["output.weight"], types["token_embd.weight"]) == ("Q6_K", source.tensor("token_embd.weight").type_name)
    assert set(result.kept) == {tensor.name for tensor in quantizable(source)} - {"output.weight"}


def test_a_strategy_for_another_model_is_refused(source: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(StrategyMismatchError, match="made for"):
        build(source, replace(all_of(source, "Q8_0"), model_fingerprint="0" * 64), tmp_path / "q.gguf")
    with pytest.raises(StrategyMismatchError, match=r"blk\.99"):
        predict(source, strategy_for(source, {"blk.99.attn_q.weight": "Q8_0"}))


@pytest.mark.parametrize(
    ("name", "type_name", "reason"),
    [
        ("blk.0.attn_norm.weight", "Q8_0", "one dimension"),
        ("blk.0.attn_q.weight", "IQ2_XS", "importance matrix"),
        ("output.weight", "IQ2_XXS", "importance matrix"),
        ("token_embd.weight", "IQ1_S", "importance matrix"),
        ("blk.0.attn_q.weight", "Q9_K", "no such type"),
    ],
)
def test_types_a_tensor_cannot_take_are_refused_by_name(
    source: ModelSource, tmp_path: Path, name: str, type_name: str, reason: str
) -> None:
    with pytest.raises(TypeUnavailableError, match=rf"{name}.*{type_name}.*{reason}"):
        build(source, strategy_for(source, {name: type_name}), tmp_path / "q.gguf")
    assert list(tmp_path.iterdir()) == []


class CancelAfter(NullControl):
    def __init__(self, n_blocks: int) -> None:
        self.left = n_blocks

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Cancelled("enough")


def test_a_cancelled_build_leaves_nothing(source: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        build(source, all_of(source, "Q4_K"), tmp_path / "q.gguf", control=CancelAfter(9))
    assert list(tmp_path.iterdir()) == []


def memory_model(weights: Floats) -> MemorySource:
    metadata = {"general.architecture": MetadataValue("string", "llama")}
    return MemorySource({"blk.0.attn_q.weight": weights, "output_norm.weight": np.ones(256, np.float32)}, metadata=metadata)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("type_name", ["Q4_K", "F16"])
def test_weights_that_are_no_numbers_stop_the_build(tmp_path: Path, bad: float, type_name: str) -> None:
    weights = np.ones((64, 256), np.float32)
    weights[17, 3] = bad
    source = memory_model(weights)
    with pytest.raises(NonFiniteWeightError, match=r"blk\.0\.attn_q"):
        build(source, strategy_for(source, {"blk.0.attn_q.weight": type_name}), tmp_path / "q.gguf")
    assert list(tmp_path.iterdir()) == []


def test_weights_beyond_a_types_range_stop_the_build(tmp_path: Path) -> None:
    source = memory_model(np.full((64, 256), 3e5, np.float32))
    with pytest.raises(TypeUnavailableError, match="overflow"):
        build(source, strategy_for(source, {"blk.0.attn_q.weight": "F16"}), tmp_path / "q.gguf")
    assert list(tmp_path.iterdir()) == []


def test_broken_weights_that_would_only_be_copied_are_found_too(tmp_path: Path) -> None:
    weights = np.ones((64, 256), np.float32)
    weights[17, 3] = np.nan
    source = memory_model(weights)
    with pytest.raises(NonFiniteWeightError, match=r"blk\.0\.attn_q"):
        build(source, strategy_for(source, {"blk.0.attn_q.weight": "F32"}), tmp_path / "q.gguf")


def test_an_imatrix_of_another_model_is_refused(books_llama_base: Path, tmp_path: Path) -> None:
    source = open_model(books_llama_base)
    entry = ImatrixEntry(np.ones((1, 100), np.float32), np.full(1, 10), None)
    imatrix = Imatrix({"blk.0.attn_q.weight": entry}, {}, None, (), 1, 512)
    with pytest.raises(ImatrixError, match=r"blk\.0\.attn_q"):
        build(source, all_of(source, "Q4_K"), tmp_path / "q.gguf", rounding=Rounding(imatrix))
    assert list(tmp_path.iterdir()) == []
    source.close()


def build_small(folder: Path, *, overwrite: bool = False) -> BuildResult:
    source = memory_model(np.ones((64, 256), np.float32))
    return build(source, strategy_for(source, {"blk.0.attn_q.weight": "Q4_K"}), folder / "q.gguf", overwrite=overwrite)


def test_an_existing_file_is_replaced_only_on_request(tmp_path: Path) -> None:
    (tmp_path / "q.gguf").write_text("precious")
    with pytest.raises(OutputError, match="exists"):
        build_small(tmp_path)
    assert (tmp_path / "q.gguf").read_text() == "precious"
    assert build_small(tmp_path, overwrite=True).size_bytes == (tmp_path / "q.gguf").stat().st_size


def test_the_source_is_never_overwritten(small: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.gguf"
    base.write_bytes(small.read_bytes())
    source = open_model(base)
    with pytest.raises(OutputError, match="source"):
        build(source, all_of(source, "Q4_K"), base, overwrite=True)
    source.close()
    assert base.stat().st_size == small.stat().st_size


def fitting_types(source: ModelSource, tensor: TensorInfo, with_imatrix: bool) -> list[str]:
    """All types that a tensor can take; those that it cannot are those that need importances, where it has none."""
    held, qtypes = with_imatrix and tensor.layer is not None, library.types()
    fitting = []
    for name, qtype in qtypes.items():
        reason = unavailable(tensor, qtype, architecture=source.architecture, has_imatrix=held, qtypes=qtypes)
        assert reason is None or (not held and needs_imatrix(tensor.name, qtype))
        if reason is None:
            fitting.append(name)
    return fitting


def assert_bytes_of_llama_cpp(source: ModelSource, types: dict[str, str], imatrix: Imatrix | None, folder: Path) -> None:
    strategy = strategy_for(source, types)
    build(source, strategy, folder / "ours.gguf", rounding=Rounding(imatrix), overwrite=True)
    reference = reference_rows(source, strategy, folder / "reference.gguf", imatrix)
    assert rows_of(folder / "ours.gguf") == rows_of(reference)
    reference.unlink()


imatrix_or_none = pytest.mark.parametrize("with_imatrix", [False, True], ids=["without imatrix", "with imatrix"])


@pytest.mark.tables
@pytest.mark.usefixtures("quantizing_here")
@pytest.mark.slow
@imatrix_or_none
def test_every_tensor_at_every_type_has_the_bytes_that_llama_cpp_writes(small: Path, tmp_path: Path, with_imatrix: bool) -> None:
    with closing(open_model(small)) as source:
        imatrix = synthetic_imatrix(source) if with_imatrix else None
        fitting = {tensor.name: fitting_types(source, tensor, with_imatrix) for tensor in quantizable(source)}
        for type_name in library.types():
            types = {name: type_name if type_name in choices else "Q8_0" for name, choices in fitting.items()}
            assert_bytes_of_llama_cpp(source, types, imatrix, tmp_path)


@pytest.mark.tables
@pytest.mark.usefixtures("quantizing_here")
@pytest.mark.slow
@imatrix_or_none
def test_every_type_in_every_role_has_the_bytes_that_llama_cpp_writes(trained: ModelSource, tmp_path: Path, with_imatrix: bool) -> None:
    """Each layer's tensor of a role takes another type, over as many files as it takes to have had them all."""
    imatrix = synthetic_imatrix(trained) if with_imatrix else None
    fitting = {tensor.name: fitting_types(trained, tensor, with_imatrix) for tensor in quantizable(trained)}
    n_layers = 1 + max(tensor.layer or 0 for tensor in trained.tensors)
    taken: dict[str, set[str]] = {}
    for number in range(-(-len(library.types()) // n_layers)):
        types = {}
        for tensor in quantizable(trained):
            choices = fitting[tensor.name]
            types[tensor.name] = choices[(number * n_layers + (tensor.layer or 0)) % len(choices)]
            taken.setdefault(tensor.role, set()).add(types[tensor.name])
        assert_bytes_of_llama_cpp(trained, types, imatrix, tmp_path)
    assert all(taken[tensor.role] == set(fitting[tensor.name]) for tensor in quantizable(trained) if tensor.layer is not None)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_what_needs_importances_is_what_llama_cpp_cannot_write_without(forked: Forked, tmp_path: Path) -> None:
    base, names = write_small_base(tmp_path / "base.gguf"), ("token_embd.weight", "output.weight", "blk.0.attn_q.weight")
    written = forked.run(base, tmp_path, *names, function="without_importances:write_each").result
    qtypes = library.types()
    with closing(open_model(base)) as source:
        for name in names:
            assert set(written[name]) == IMATRIX_REQUIRED
            for type_name, is_written in written[name].items():
                tensor = source.tensor(name)
                reason = unavailable(tensor, qtypes[type_name], architecture="llama", has_imatrix=False, qtypes=qtypes)
                assert is_written == (reason is None), (name, type_name, reason)
