"""Mixes set in a loaded model are the built files, and what is put back is the untouched model."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import fuzzing
from quantailor.analysis.corpus import chunks, load_corpus
from quantailor.analysis.importance.imatrix import Imatrix
from quantailor.analysis.importance.imatrix_file import read_imatrix
from quantailor.analysis.rounding.rounding import PLAIN, Rounding
from quantailor.analysis.scores.mix_scores import FileScorer, MixScorer
from quantailor.analysis.scores.resting import resting_types
from quantailor.analysis.scores.swapping import Swapper
from quantailor.errors import TensorNotFoundError, TypeUnavailableError
from quantailor.ggml import codec, library
from quantailor.ggml.devices import Devices
from quantailor.ggml.runtime import LoadedModel
from quantailor.ggml.swapping import WritableModel
from quantailor.making import building
from quantailor.models.gguf_writer import GGUFWriter, layout
from quantailor.models.identity import fingerprint
from quantailor.models.opening import open_model
from quantailor.models.source import ModelSource
from quantailor.numerics import Floats, Tokens
from quantailor.records import ChunkScore, Mix, Strategy, TensorChoice
from quantailor.session import quantizable_tensors

GOLDEN = Path(__file__).parent.parent / "golden"
TYPES = ("IQ2_XXS", "Q2_K", "IQ3_XXS", "Q3_K", "Q4_0", "IQ4_NL", "Q4_K", "Q5_1", "Q6_K", "Q8_0")
MODELS = ("books-llama", "books-moe")


class Bench:
    """One base with its importance matrix and a chunk."""

    def __init__(self, path: Path, text: Path) -> None:
        self.path, self.source = path, open_model(path)
        self.imatrix: Imatrix = read_imatrix(GOLDEN / f"imatrix-{path.stem}.gguf")
        self.tensors = quantizable_tensors(self.source)
        self.names = [tensor.name for tensor in self.tensors]
        self.tokens: Tokens = chunks(load_corpus(path, text), 64, limit=6)

    def swapper(self, *, values: bool = False) -> Swapper:
        kernels = "values" if values else "as built"
        return Swapper(self.source, self.path, self.names, rounding=Rounding(self.imatrix), n_ctx=64, n_threads=1, kernels=kernels)  # type: ignore[arg-type]

    def scorer(self, folder: Path) -> MixScorer:
        return MixScorer(self.source, self.path, self.names, self.tokens, folder, rounding=Rounding(self.imatrix), n_threads=1)

    def random_mix(self, seed: int, every: int) -> dict[str, str]:
        generator = random.Random(seed)
        return {name: generator.choice(self.types(name)) for name in self.names[::every]}

    def types(self, name: str) -> tuple[str, ...]:
        """What a tensor can take: IQ2_XXS only with importances."""
        return TYPES if name in self.imatrix.entries else TYPES[1:]


@pytest.fixture(params=MODELS)
def bench(request: pytest.FixtureRequest, books_llama_base: Path, books_moe_base: Path, calibration_text: Path) -> Bench:
    return Bench({"books-llama": books_llama_base, "books-moe": books_moe_base}[request.param], calibration_text)


@pytest.fixture
def dense(books_llama_base: Path, calibration_text: Path) -> Bench:
    return Bench(books_llama_base, calibration_text)


def write_dequantized(bench: Bench, mix: Mapping[str, str], output: Path) -> Path:
    """The base with the weights of a mix, in the base's own types."""
    source, qtypes = bench.source, library.types()
    with GGUFWriter(output, layout(source.metadata, source.tensors)) as writer:
        for tensor in source.tensors:
            data = source.raw_rows(tensor.name, 0, tensor.n_rows)
            if tensor.name in mix:
                importances = building_importances(bench.imatrix, bench.source, tensor.name)
                per_slice = source.rows(tensor.name, 0, tensor.n_rows).reshape(tensor.n_slices, -1, tensor.n_cols)
                parts = [codec.quantize(rows, qtypes[mix[tensor.name]], w) for rows, w in zip(per_slice, importances, strict=True)]
                values = codec.dequantize(np.concatenate(parts), qtypes[mix[tensor.name]], tensor.n_cols)
                data = codec.quantize(values, qtypes[tensor.type_name])
            writer.write(data.reshape(-1))
    return output


def building_importances(imatrix: Imatrix, source: ModelSource, name: str) -> list[Floats | None]:
    """What llama-quantize gives the quantizer of each slice, spelt out."""
    tensor = source.tensor(name)
    entry = imatrix.entries.get(name)
    if entry is None:
        return [None] * tensor.n_slices
    seen = np.maximum(entry.counts, 1).astype(np.float32)[:, None]
    means = np.where(entry.counts[:, None] > 0, entry.sum2 / seen, np.float32(1)).reshape(tensor.n_slices, tensor.n_cols)
    return list(means.astype(np.float32))


def build_file(bench: Bench, mix: Mapping[str, str], output: Path) -> Path:
    choices = tuple(TensorChoice(name, type_name, "") for name, type_name in mix.items())
    strategy = Strategy(fingerprint(bench.source), bench.source.name, bench.source.architecture, "manual", choices)
    building.build(bench.source, strategy, output, rounding=Rounding(bench.imatrix), n_threads=1)
    return output


@pytest.mark.slow
@pytest.mark.parametrize(("n_swaps", "finer"), [(20, True), (fuzzing.n_cases(500, 5), False)])
def test_after_random_swaps_the_model_is_untouched(bench: Bench, n_swaps: int, finer: bool) -> None:
    generator = random.Random(n_swaps + fuzzing.seed())
    with bench.swapper() as swapper:
        if finer:
            swapper.rest_finer()
        before = swapper.logits(bench.tokens[0])
        for _ in range(n_swaps):
            name = generator.choice(bench.names)
            swapper.set_mix({name: generator.choice(bench.types(name))})
        swapper.set_mix({})
        assert np.array_equal(swapper.logits(bench.tokens[0]), before)
        swapper.rest_finer(back=True)
        stored = swapper.logits(bench.tokens[0])
    with LoadedModel(bench.path, n_ctx=64, n_threads=1) as model:
        assert np.array_equal(model.logits(bench.tokens[0]), stored)


@pytest.mark.parametrize(("seed", "every"), [(2, 7), pytest.param(1, 1, marks=pytest.mark.slow)])
def test_values_alone_are_a_base_that_holds_the_dequantized_weights(bench: Bench, tmp_path: Path, seed: int, every: int) -> None:
    mix = bench.random_mix(seed, every)
    path = write_dequantized(bench, mix, tmp_path / "dequantized.gguf")
    with bench.swapper(values=True) as swapper, LoadedModel(path, n_ctx=64, n_threads=1) as model:
        swapper.set_mix(mix)
        assert np.array_equal(swapper.logits(bench.tokens[0]), model.logits(bench.tokens[0]))


@pytest.mark.parametrize(("seed", "every"), [(2, 7), pytest.param(3, 1, marks=pytest.mark.slow)])
def test_a_mix_as_built_is_the_built_file(bench: Bench, tmp_path: Path, seed: int, every: int) -> None:
    mix = bench.random_mix(seed, every)
    path = build_file(bench, mix, tmp_path / "built.gguf")
    with bench.swapper() as swapper, WritableModel(path, [], n_ctx=64, n_threads=1) as model:
        swapper.set_mix({bench.names[0]: "Q8_0"})
        swapper.set_mix(mix)
        assert np.array_equal(swapper.logits(bench.tokens[0]), model.logits(bench.tokens[0]))
        assert swapper.weights == set(bench.names)


@pytest.mark.slow
def test_the_built_file_costs_more_than_its_values(dense: Bench, tmp_path: Path) -> None:
    mix = dict.fromkeys(dense.names, "Q6_K")
    scored = score(dense, tmp_path, [mix])[0]
    with MixScorer(
        dense.source, dense.path, dense.names, dense.tokens, tmp_path, rounding=Rounding(dense.imatrix), kernels="values"
    ) as scorer:
        values = sum(found.kld_sum for _, found in scorer.score([Mix.of(mix)], range(6)))
    assert sum(found.kld_sum for found in scored) > 1.2 * values


def score(bench: Bench, folder: Path, mixes: list[dict[str, str]]) -> list[list[ChunkScore]]:
    with bench.scorer(folder) as scorer:
        found = list(scorer.score([Mix.of(mix) for mix in mixes], range(6)))
    return [[scored for mix, scored in found if mix.id == Mix.of(wanted).id] for wanted in mixes]


@pytest.mark.slow
def test_scores_in_memory_are_those_of_the_file(dense: Bench, tmp_path: Path) -> None:
    mix = dict.fromkeys(dense.names, "Q4_K")
    path = build_file(dense, mix, tmp_path / "built.gguf")
    memory = score(dense, tmp_path, [mix])[0]
    file = list(FileScorer(dense.path, dense.tokens, tmp_path, n_threads=1).score(path, range(6)))
    assert sum(one.kld_sum for one in file) == pytest.approx(sum(one.kld_sum for one in memory), rel=0.1)
    assert sum(one.nll_sum for one in file) == pytest.approx(sum(one.nll_sum for one in memory), rel=1e-3)


@pytest.mark.slow
def test_a_base_at_8_bits_is_its_own_reference_and_is_put_back(bench: Bench, tmp_path: Path) -> None:
    resting = resting_types(bench.source)
    assert set(bench.names) - set(resting) == {"output.weight"}
    path = build_file(bench, resting, tmp_path / "resting.gguf")
    mix = {name: "Q2_K" for name in bench.names if name.endswith("attn_q.weight")}
    with (
        MixScorer(
            bench.source, path, bench.names, bench.tokens, tmp_path / "8", rounding=Rounding(bench.imatrix), resting=resting, n_threads=1
        ) as scorer,
        bench.scorer(tmp_path / "16") as stored,
    ):
        before = [scorer.read(name, 0, 1000) for name in bench.names]
        mixes = [Mix.of({}), Mix.of(mix), Mix.of(dict.fromkeys(bench.names, "Q4_0"))]
        found, wanted = ({mix.id: one.kld_sum for mix, one in each.score(mixes, [0])} for each in (scorer, stored))
        scorer.set_mix({})
        assert all(np.array_equal(one, scorer.read(name, 0, 1000)) for name, one in zip(bench.names, before, strict=True))
    assert abs(found[""]) < 1e-4
    for each in mixes[1:]:
        assert found[each.id] == pytest.approx(wanted[each.id], rel=0.15)


@pytest.mark.slow
def test_a_score_does_not_depend_on_what_was_scored_before(dense: Bench, tmp_path: Path) -> None:
    first, second = {dense.names[3]: "Q2_K"}, {dense.names[9]: "Q3_K", dense.names[10]: "IQ3_XXS"}
    together = score(dense, tmp_path / "a", [first, second])
    with dense.scorer(tmp_path / "b") as scorer:
        done = {Mix.of(second).id: {0, 1, 2}}
        found = list(scorer.score([Mix.of(second), Mix.of(first)], range(6), done=done))
    assert [scored for mix, scored in found if mix.id == Mix.of(first).id] == together[0]
    assert [scored for mix, scored in found if mix.id == Mix.of(second).id] == together[1][3:]


@pytest.mark.slow
def test_the_null_control_is_below_everything(bench: Bench, tmp_path: Path) -> None:
    stored = {tensor.name: tensor.type_name for tensor in bench.tensors}
    null, as_stored, one = (
        sum(found.kld_sum for found in rows) / sum(found.n_tokens for found in rows)
        for rows in score(bench, tmp_path, [{}, stored, {bench.names[4]: "Q2_K"}])
    )
    assert abs(null) < 1e-7
    assert null < as_stored < 1e-3
    assert as_stored < one


@pytest.mark.slow
@pytest.mark.skipif(not library.load().llama.llama_supports_gpu_offload(), reason="this build of llama-cpp-python has no GPU backend")
def test_weights_are_swapped_on_the_device(bench: Bench) -> None:
    with Swapper(bench.source, bench.path, bench.names, rounding=Rounding(bench.imatrix), n_ctx=64, devices=Devices(-1)) as swapper:
        before = swapper.logits(bench.tokens[0])
        swapper.set_mix(bench.random_mix(4, 1))
        assert np.abs(swapper.logits(bench.tokens[0]) - before).max() > 0.1
        swapper.set_mix({})
        assert np.array_equal(swapper.logits(bench.tokens[0]), before)


def test_on_a_gpu_a_graph_serves_one_chunk(dense: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []
    opened = LoadedModel._open_context

    def watched(model: LoadedModel, callback: object) -> None:
        seen.append(os.environ.get("LLAMA_GRAPH_REUSE_DISABLE"))
        opened(model, callback)

    monkeypatch.setattr(LoadedModel, "_open_context", watched)
    monkeypatch.delenv("LLAMA_GRAPH_REUSE_DISABLE", raising=False)
    for layers, wanted in ((0, None), (-1, "1")):
        seen.clear()
        with Swapper(dense.source, dense.path, dense.names[:1], rounding=PLAIN, n_ctx=64, n_threads=1, devices=Devices(layers)):
            assert set(seen) == {wanted}
    assert "LLAMA_GRAPH_REUSE_DISABLE" not in os.environ


def test_what_a_mix_cannot_hold(dense: Bench) -> None:
    with dense.swapper() as swapper:
        with pytest.raises(TypeUnavailableError, match="takes"):
            swapper.set_mix({dense.names[0]: "F32"})
        swapper.set_mix({})
        with pytest.raises(TensorNotFoundError, match="no such"):
            swapper.set_mix({"no such": "Q4_K"})
