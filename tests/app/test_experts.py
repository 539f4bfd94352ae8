"""The experts' figures against what the importance matrix' file holds."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from commands import Command
from gguf import GGUFReader

from quantailor.app.library.experts import ExpertsReport, experts
from quantailor.errors import ImatrixError, UnsupportedModelError
from quantailor.session import Workspace
from tiny_models import write_tiny

GOLDEN = Path(__file__).parent.parent / "golden" / "imatrix-books-moe.gguf"
CALIBRATION = Path(__file__).parent.parent / "data" / "calibration.txt"
ROLES = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


@pytest.fixture(scope="module")
def report(books_moe_base: Path, tmp_path_factory: pytest.TempPathFactory) -> ExpertsReport:
    with Workspace.open(tmp_path_factory.mktemp("home")) as workspace:
        return experts(workspace, books_moe_base, imatrix=str(GOLDEN))


def stored(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    tensors = {str(tensor.name): tensor for tensor in GGUFReader(GOLDEN).tensors}
    return np.asarray(tensors[name].data, dtype=np.float64)


def test_shares_add_up_to_one(report: ExpertsReport) -> None:
    assert [layer.layer for layer in report.layers] == list(range(6))
    for layer in report.layers:
        assert len(layer.shares) == len(layer.importance) == report.n_experts == 8
        assert sum(layer.shares) == pytest.approx(1)
        assert sum(layer.importance) == pytest.approx(1)
        assert all(sum(tensor.importance) == pytest.approx(1) for tensor in layer.tensors)


def test_every_token_goes_to_two_experts(report: ExpertsReport) -> None:
    assert report.n_used == 2
    assert {layer.n_routed for layer in report.layers} == {2 * report.n_tokens}


def test_figures_are_the_file_s(report: ExpertsReport) -> None:
    for layer in report.layers:
        counts = stored(f"blk.{layer.layer}.ffn_up_exps.weight.counts").reshape(-1)
        shares = counts / counts.sum()
        assert layer.shares == pytest.approx(tuple(shares))
        assert layer.unseen == tuple(index for index, count in enumerate(counts) if count == 0)
        entropy = -sum(share * math.log2(share) for share in shares if share) / 3
        assert layer.normalized_entropy == pytest.approx(entropy)
        squares = [stored(f"blk.{layer.layer}.{role}.weight.in_sum2").sum(axis=1) for role in ROLES]
        assert layer.importance == pytest.approx(tuple(sum(squares) / np.sum(squares)))
        by_role = {tensor.role: tensor.importance for tensor in layer.tensors}
        assert by_role == {role: pytest.approx(tuple(square / square.sum())) for role, square in zip(ROLES, squares, strict=True)}


def test_some_expert_of_this_model_is_never_used_on_the_text(report: ExpertsReport) -> None:
    assert any(layer.unseen for layer in report.layers)
    assert all(0 < layer.normalized_entropy < 1 for layer in report.layers)


def test_without_probes_sensitivities_are_unknown(report: ExpertsReport) -> None:
    assert not report.probed
    assert {(tensor.alpha, tensor.alpha_status) for layer in report.layers for tensor in layer.tensors} == {(None, "not probed")}


@pytest.mark.slow
def test_probes_of_compensated_measurements_tell_sensitivities(run: Command, tmp_path: Path) -> None:
    text, base = ("-f", CALIBRATION, "--n-ctx", 64, "--threads", 1), tmp_path / "base.gguf"
    assert run("convert", write_tiny("mixtral", tmp_path / "models"), "-o", base).code == 0
    assert run("calibrate", base, *text, "--chunks", 4).code == 0
    assert run("measure", base, "--types", "Q4_0", "--rounding", "compensated").code == 0
    few = ("--chunks", 1, "--type", "Q4_0", "--group", "role-depth", "--mixes", 0, "--anchors", 0)
    assert run("probe", base, *text, *few).code == 0
    with Workspace.open(tmp_path / "home") as workspace:
        found = experts(workspace, base)
    assert found.probed
    assert "not probed" not in {tensor.alpha_status for layer in found.layers for tensor in layer.tensors}


def test_a_dense_model_has_none(books_llama_base: Path, tmp_path: Path) -> None:
    with Workspace.open(tmp_path) as workspace, pytest.raises(UnsupportedModelError, match=r"Books Llama is dense.*Give a mixture"):
        experts(workspace, books_llama_base)


def test_without_an_importance_matrix_it_says_what_to_run(books_moe_base: Path, tmp_path: Path) -> None:
    with Workspace.open(tmp_path) as workspace, pytest.raises(ImatrixError, match="quantailor imatrix"):
        experts(workspace, books_moe_base)


def test_the_older_form_has_no_counts_per_expert(books_moe_base: Path, tmp_path: Path) -> None:
    names = [f"blk.{layer}.{role}.weight" for layer in range(6) for role in ROLES]
    file = tmp_path / "old.dat"
    values = np.ones(8 * 256, np.float32).tobytes()
    entries = [struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 1, 8 * 256) + values for name in names]
    file.write_bytes(struct.pack("<i", len(names)) + b"".join(entries))
    with Workspace.open(tmp_path / "home") as workspace, pytest.raises(ImatrixError, match=r"each expert of blk\.0.*\.dat"):
        experts(workspace, books_moe_base, imatrix=str(file))
