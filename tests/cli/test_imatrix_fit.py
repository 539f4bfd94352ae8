"""Importance matrices that fit a model in part, and those in which nothing was seen."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from commands import Command
from gguf import GGUFReader
from gguf.quants import dequantize

from gguf_models import HIDDEN, INNER, write_llama
from quantailor.analysis.importance.imatrix import ImatrixEntry
from quantailor.analysis.importance.imatrix_file import read_imatrix, write_imatrix

EXPERTS, EXPERT = 4, "blk.0.ffn_up_exps.weight"
CALLS = 40
Arrays = dict[str, npt.NDArray[np.float32]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "mixture.gguf", more={EXPERT: (EXPERTS, INNER, HIDDEN)})


@pytest.fixture
def values() -> Arrays:
    """Importances of every matrix: experts end to end."""
    rng = np.random.default_rng(0)
    names = [f"blk.0.{part}.weight" for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")]
    return {name: rng.lognormal(0, 1, HIDDEN).astype(np.float32) for name in names} | {
        EXPERT: rng.lognormal(0, 1, EXPERTS * HIDDEN).astype(np.float32)
    }


def write_legacy(path: Path, entries: Mapping[str, npt.NDArray[np.float32]]) -> Path:
    with path.open("wb") as stream:
        stream.write(struct.pack("<i", len(entries)))
        for name, numbers in entries.items():
            stream.write(struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", CALLS, numbers.size))
            stream.write((numbers * CALLS).astype("<f4").tobytes())
    return path


def slice_errors(file: Path, model: Path, name: str) -> list[float]:
    """Relative squared error of every matrix of a tensor."""
    base, built = ({tensor.name: tensor for tensor in GGUFReader(path).tensors}[name] for path in (model, file))
    exact = base.data.astype(np.float64).reshape(-1, INNER, HIDDEN)
    rounded = dequantize(built.data, built.tensor_type).reshape(exact.shape)
    return [float(np.square(a - b).sum() / np.square(a).sum()) for a, b in zip(exact, rounded, strict=True)]


def built(run: Command, model: Path, matrix: Path, folder: Path, pin: str) -> Path:
    strategy, output = folder / "s.yaml", folder / "out.gguf"
    assert run("measure", model, "--imatrix", matrix, "--types", "Q4_K,Q8_0").code == 0
    planned = run("plan", model, "--bpw", 5, "--basis", "ranking", "--imatrix", matrix, "--pin", pin, "-o", strategy)
    assert planned.code == 0, planned.err
    assert run("build", model, strategy, "--imatrix", matrix, "-o", output).code == 0
    return output


def test_an_expert_of_zeros_is_weighted_evenly_and_told(run: Command, model: Path, values: Arrays, tmp_path: Path) -> None:
    values[EXPERT][3 * HIDDEN :] = 0
    matrix = write_legacy(tmp_path / "unseen.dat", values)
    shown = run("imatrix", model, "--import", matrix)
    assert "Experts that no token reached, in which all columns count alike: blk.0.ffn_up_exps.weight (1 of 4)" in " ".join(
        shown.out.split()
    )
    statistics = {item["tensor"]: item for item in run("imatrix", model, "--import", matrix, "--json").result["statistics"]}
    assert statistics[EXPERT]["n_unseen_experts"] == 1
    assert run("measure", model, "--imatrix", matrix, "--types", "Q4_K", "--json").result["unseen_experts"] == {EXPERT: 1}
    errors = slice_errors(built(run, model, matrix, tmp_path, f"{EXPERT}=Q4_K"), model, EXPERT)
    assert max(errors) < 0.02


@pytest.mark.parametrize(("seen", "weight"), [(0, 0), (0, 1), (1, 0)])
def test_an_expert_of_a_gguf_file_is_unseen_by_its_count_or_by_its_values(
    run: Command, model: Path, values: Arrays, tmp_path: Path, seen: int, weight: int
) -> None:
    found = read_imatrix(write_legacy(tmp_path / "whole.dat", values))
    sums, counts = found.entries[EXPERT].sum2.reshape(EXPERTS, HIDDEN).copy(), np.full(EXPERTS, CALLS * 512)
    sums[-1] *= weight
    counts[-1] *= seen
    write_imatrix(dataclasses.replace(found, entries={**found.entries, EXPERT: ImatrixEntry(sums, counts)}), tmp_path / "unseen.gguf")
    assert run("measure", model, "--imatrix", tmp_path / "unseen.gguf", "--types", "Q4_K", "--json").result["unseen_experts"] == {EXPERT: 1}
    errors = slice_errors(built(run, model, tmp_path / "unseen.gguf", tmp_path, f"{EXPERT}=Q4_K"), model, EXPERT)
    assert max(errors) < 0.02


@pytest.mark.parametrize("n_experts", [1, EXPERTS - 1, 2 * EXPERTS])
def test_experts_of_a_gguf_file_that_are_not_as_many_are_left_out(
    run: Command, model: Path, values: Arrays, tmp_path: Path, n_experts: int
) -> None:
    found = read_imatrix(write_legacy(tmp_path / "whole.dat", values))
    other = ImatrixEntry(np.ones((n_experts, HIDDEN), np.float32), np.full(n_experts, 512))
    write_imatrix(dataclasses.replace(found, entries={**found.entries, EXPERT: other}), tmp_path / "other.gguf")
    report = run("imatrix", model, "--import", tmp_path / "other.gguf", "--json").result
    assert (report["left_out"], report["missing_tensors"], report["not_in_model"]) == ([EXPERT], [EXPERT], [])


def test_a_file_that_says_it_saw_no_chunk_is_told(run: Command, model: Path, values: Arrays, tmp_path: Path) -> None:
    found = read_imatrix(write_legacy(tmp_path / "whole.dat", values))
    write_imatrix(dataclasses.replace(found, chunk_count=0), tmp_path / "none.gguf")
    shown = " ".join(run("imatrix", model, "--import", tmp_path / "none.gguf").out.split())
    assert "an unknown number of chunks" in shown
    assert "The file says that it saw no chunk" in shown
    assert "saw no chunk" not in run("imatrix", model, "--import", tmp_path / "whole.dat").out


def test_a_tensor_of_zeros_is_weighted_evenly_and_named(run: Command, model: Path, values: Arrays, tmp_path: Path) -> None:
    values["blk.0.attn_q.weight"][:] = 0
    matrix = write_legacy(tmp_path / "zeros.dat", values)
    assert "No token reached blk.0.attn_q.weight" in " ".join(run("imatrix", model, "--import", matrix).out.split())
    output = built(run, model, matrix, tmp_path, "blk.0.attn_q.weight=Q4_K")
    assert slice_errors(output, model, "blk.0.attn_q.weight")[0] < 0.02


def test_what_no_token_reached_is_named_where_it_is_measured(run: Command, model: Path, values: Arrays, tmp_path: Path) -> None:
    values["blk.0.attn_q.weight"][:] = 0
    matrix = write_legacy(tmp_path / "zeros.dat", values)
    shown = " ".join(run("measure", model, "--imatrix", matrix, "--types", "Q4_K").out.split())
    assert "No token reached 1 of the matrices in blk.0.attn_q.weight: all columns count alike there." in shown


def test_an_importance_matrix_of_zeros_is_refused(run: Command, model: Path, values: Arrays, tmp_path: Path) -> None:
    matrix = write_legacy(tmp_path / "zeros.dat", {name: array * 0 for name, array in values.items()})
    for words in (("imatrix", model, "--import", matrix), ("measure", model, "--imatrix", matrix, "--types", "Q4_K")):
        line = run(*words).error_line
        assert f"the importance matrix says nothing: all values of its {len(values)} tensors are zero" in line
        assert "--imatrix none" in line


def test_columns_of_zeros_are_not_given_up(run: Command, model: Path, values: Arrays, tmp_path: Path) -> None:
    values["blk.0.attn_q.weight"][: HIDDEN // 2] = 0
    output = built(run, model, write_legacy(tmp_path / "half.dat", values), tmp_path, "blk.0.attn_q.weight=Q4_K")
    assert slice_errors(output, model, "blk.0.attn_q.weight")[0] < 0.02


@pytest.mark.parametrize("length", [*(pytest.param(length, marks=pytest.mark.slow) for length in (HIDDEN, 8 * HIDDEN)), 17])
def test_what_does_not_fit_is_named_and_the_rest_is_taken(run: Command, model: Path, values: Arrays, tmp_path: Path, length: int) -> None:
    values[EXPERT] = np.ones(length, np.float32)
    matrix = write_legacy(tmp_path / "part.dat", values)
    shown = run("imatrix", model, "--import", matrix)
    assert f"lengths are not those of this model's tensors: {EXPERT}." in " ".join(shown.out.split())
    report = run("imatrix", model, "--import", matrix, "--json").result
    assert (report["left_out"], report["missing_tensors"], report["n_tensors"]) == ([EXPERT], [EXPERT], 7)
    measured = run("measure", model, "--imatrix", matrix, "--types", "Q4_K,IQ2_XXS", "--json").result
    assert measured["without_importances"] == [EXPERT]
    assert measured["n_unavailable"] == 3  # this one, token embeddings and output


def test_a_matrix_of_a_wider_model_is_refused(run: Command, model: Path, values: Arrays, tmp_path: Path) -> None:
    wider = {name: np.ones(2 * numbers.size, np.float32) for name, numbers in values.items()}
    line = run("imatrix", model, "--import", write_legacy(tmp_path / "wider.dat", wider)).error_line
    assert "of another model: 8 of 8 tensors have other lengths" in line
    assert "512 values instead of 256" in line


@pytest.mark.parametrize("value", [np.nan, -1.0, np.inf])
def test_values_that_no_sum_of_squares_has_are_refused_by_name(
    run: Command, model: Path, values: Arrays, tmp_path: Path, value: float
) -> None:
    values["blk.0.ffn_up.weight"][5] = value
    line = run("imatrix", model, "--import", write_legacy(tmp_path / "bad.dat", values)).error_line
    assert "blk.0.ffn_up.weight" in line
    assert "which a sum of squares cannot have" in line


def of_deeper_model(values: Arrays, n_more: int) -> Arrays:
    """The same with the entries of further layers."""
    more = {name.replace("blk.0.", f"blk.{layer}."): array for layer in range(1, 1 + n_more) for name, array in values.items()}
    return values | more


def test_what_a_deeper_model_left_is_told_wherever_it_is_used(run: Command, model: Path, values: Arrays, tmp_path: Path) -> None:
    matrix = write_legacy(tmp_path / "deeper.dat", of_deeper_model(values, 1))
    said = "is probably another model's: it has 2 layers in place of 1, with 8 tensors that mixture lacks (blk.1.attn_q.weight and 7 more)"
    assert said in " ".join(run("imatrix", model, "--import", matrix).out.split())
    report = run("imatrix", model, "--import", matrix, "--json").result
    assert (len(report["not_in_model"]), report["missing_tensors"]) == (8, [])
    assert said in " ".join(run("measure", model, "--imatrix", matrix, "--types", "Q4_K,Q8_0").err.split())
    strategy = tmp_path / "s.yaml"
    planned = run("plan", model, "--bpw", 5, "--basis", "ranking", "--imatrix", matrix, "-o", strategy)
    assert said in " ".join((planned.out + planned.err).split())
    built_file = run("build", model, strategy, "--imatrix", matrix, "-o", tmp_path / "out.gguf")
    assert said in " ".join(built_file.err.split())
    made = run(
        "make", model, "--bpw", 6, "--imatrix", matrix, "--basis", "ranking", "--rounding", "plain", "--no-verify", "-o", tmp_path / "o"
    )
    assert (made.code, " ".join(made.err.split()).count(said)) == (0, 1)


def test_a_tensor_too_many_is_told_and_the_output_matrix_is_none(run: Command, values: Arrays, tmp_path: Path) -> None:
    values |= {name: np.ones(HIDDEN, np.float32) for name in ("blk.0.ffn_gate_inp.weight", "output.weight")}
    dense = write_llama(tmp_path / "dense.gguf")
    shown = " ".join(run("imatrix", dense, "--import", write_legacy(tmp_path / "more.dat", values)).out.split())
    assert (
        "may be of another model, or of another conversion of it: it holds 2 tensors that dense lacks (blk.0.ffn_up_exps.weight and 1 more)"
        in shown
    )


def test_a_matrix_most_of_which_does_not_fit_is_refused_before_anything_runs(
    run: Command, model: Path, values: Arrays, tmp_path: Path
) -> None:
    """Of 16 tensors half have the model's names, and of these some have other lengths."""
    few = dict.fromkeys(("blk.0.attn_q.weight", "blk.0.attn_k.weight"), np.ones(2 * HIDDEN, np.float32))
    matrix = write_legacy(tmp_path / "part.dat", of_deeper_model(values, 1) | few)
    for words in (("imatrix", model, "--import", matrix), ("make", model, "--bpw", 5, "--imatrix", matrix, "-o", tmp_path / "o")):
        line = run(*words).error_line
        assert "the importance matrix is of another model: of its 16 tensors mixture lacks 8, and 2 have other lengths" in line
    assert run("jobs", "list", "--json").result == []
