"""Tensors, configuration and metadata as people look at them, and what a typed text means."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Command

from quantailor.app.library import projects
from quantailor.app.library.opening import Repository, list_folder, model_overview, understand
from quantailor.app.library.projects import open_project
from quantailor.app.library.structure import (
    TensorTypes,
    configuration_files,
    configuration_text,
    inspect,
    largest_tensors,
    metadata_row,
    tensor_rows,
    tensor_types,
)
from quantailor.errors import ModelError, TensorNotFoundError
from quantailor.ggml import library
from quantailor.records import MetadataValue, TensorInfo
from quantailor.session import Workspace
from quantailor.store import ModelRecord

NARROW = TensorInfo("blk.0.ffn_down.weight", (512, 1408), "F16", 512 * 1408 * 2)
ODD = TensorInfo("blk.0.ffn_up.weight", (16, 33), "F16", 16 * 33 * 2)
NORM = TensorInfo("blk.0.attn_norm.weight", (512,), "F32", 2048)
OUTPUT = TensorInfo("output.weight", (512, 512), "F16", 512 * 512 * 2)
WIDE = TensorInfo("blk.0.attn_q.weight", (512, 512), "F16", 512 * 512 * 2)


@pytest.fixture
def made_up(tmp_path: Path) -> Iterator[Workspace]:
    """A home that knows a model of five tensors whose files are gone."""
    tensors = (NARROW, ODD, NORM, WIDE, OUTPUT)
    with Workspace.open(tmp_path / "home") as workspace:
        workspace.store.record_model(ModelRecord.of("f" * 64, "made up", "llama", tensors), tensors)
        yield workspace


def types_of(workspace: Workspace, tensor: TensorInfo) -> TensorTypes:
    return tensor_types(workspace, projects.project(workspace, "f" * 64), tensor.name)


def test_rows_that_256_does_not_divide_hide_k_and_iq_types_and_say_why(made_up: Workspace) -> None:
    found = types_of(made_up, NARROW)
    (refusal,) = found.refusals
    assert {"Q4_K", "Q6_K", "IQ4_XS", "IQ2_XXS", "TQ1_0"} <= set(refusal.types)
    assert "1408 weights wide, not a multiple of 256" in refusal.reason
    assert refusal.instead["Q4_K"] == "Q5_0"
    assert {"Q8_0", "Q4_0", "IQ4_NL", "F16"} <= set(found.types)
    assert set(found.types) | set(refusal.types) == set(library.types())
    assert not set(found.types) & set(refusal.types)


def test_every_block_size_that_does_not_fit_is_a_reason_of_its_own(made_up: Workspace) -> None:
    found = types_of(made_up, ODD)
    assert set(found.types) == {"F32", "F16", "BF16"}
    assert [refusal.reason.split("pack ")[1].split()[0] for refusal in found.refusals] == ["256", "128", "64", "32"]
    assert found.refusals[-1].instead["Q8_0"] == "F16"


def test_a_tensor_that_is_never_quantized_has_one_reason(made_up: Workspace) -> None:
    found = types_of(made_up, NORM)
    assert found.types == ("F32",)
    (refusal,) = found.refusals
    assert refusal.reason == "It stays F32: it has one dimension."
    assert refusal.instead == {}


def test_types_that_need_an_importance_matrix_are_named(made_up: Workspace) -> None:
    found = types_of(made_up, WIDE)
    assert found.refusals == ()
    assert set(found.imatrix_types) == {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"}
    bits = [library.types()[name].bits_per_weight for name in found.types]
    assert bits == sorted(bits, reverse=True)


def test_types_that_need_importances_which_no_usual_matrix_holds_are_not_offered(made_up: Workspace) -> None:
    found = types_of(made_up, OUTPUT)
    (refusal,) = found.refusals
    assert set(refusal.types) == {"IQ1_S", "IQ2_XXS", "IQ2_XS"}
    assert "need importances" in refusal.reason
    assert not set(found.types) & set(refusal.types)


def test_the_table_counts_what_inspect_lists(books_moe_base: Path, tmp_path: Path) -> None:
    report = inspect(books_moe_base)
    with Workspace.open(tmp_path) as workspace:
        project = open_project(workspace, books_moe_base)
        rows = tensor_rows(workspace, project.fingerprint, project.architecture)
        experts = tensor_types(workspace, project, "blk.0.ffn_up_exps.weight")
    assert [(row.name, row.n_types) for row in rows] == [(tensor.name, len(tensor.available_types)) for tensor in report.tensors]
    assert experts.tensor.n_slices == 8


def test_an_unknown_tensor_is_an_error(made_up: Workspace) -> None:
    with pytest.raises(TensorNotFoundError, match="made up has no tensor nothing"):
        tensor_types(made_up, projects.project(made_up, "f" * 64), "nothing")


def test_the_largest_tensors_and_their_share() -> None:
    found = largest_tensors([NARROW, ODD, NORM, WIDE], 2)
    assert [share.name for share in found.tensors] == [NARROW.name, WIDE.name]
    assert found.size_bytes == NARROW.size_bytes + WIDE.size_bytes
    assert found.share == found.size_bytes / found.total_bytes
    assert largest_tensors([NORM], 5).share == 1.0
    assert largest_tensors([], 5).share == 0.0


# Configuration


def test_text_files_of_a_directory_are_read(books_llama_dir: Path) -> None:
    names = [file.name for file in configuration_files(books_llama_dir)]
    assert names == ["config.json", "generation_config.json", "tokenizer_config.json"]
    found = configuration_text(books_llama_dir, "config.json")
    assert json.loads(found.text)["model_type"] == "llama"
    assert found.is_whole
    short = configuration_text(books_llama_dir, "config.json", max_bytes=10)
    assert short.text == found.text[:10]
    assert not short.is_whole


@pytest.mark.parametrize(
    "name", ["../secret.json", "/etc/hostname", "model.safetensors", "linked.json", "folder", "", "config.json/", "a\0b"]
)
def test_nothing_but_its_own_text_files_is_read(books_llama_dir: Path, tmp_path: Path, name: str) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in ("config.json", "model.safetensors"):
        (model / file).write_bytes((books_llama_dir / file).read_bytes())
    (tmp_path / "secret.json").write_text("secret")
    (model / "linked.json").symlink_to(tmp_path / "secret.json")
    (model / "folder").mkdir()
    assert [file.name for file in configuration_files(model)] == ["config.json"]
    with pytest.raises(ModelError, match="has no configuration file"):
        configuration_text(model, name)


def test_links_within_the_hub_s_cache_are_followed(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    (blobs / "abc").write_text("{}")
    (snapshot / "config.json").symlink_to(Path("../../blobs/abc"))
    assert configuration_text(snapshot, "config.json").text == "{}"


def test_control_characters_do_not_reach_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"a\x1b[31m\r\nb\xff")
    assert configuration_text(tmp_path, "config.json").text == "a\ufffd[31m\nb\ufffd"


def test_metadata_is_abbreviated() -> None:
    tokens = metadata_row("tokenizer.ggml.tokens", MetadataValue("array", tuple(f"t{number}" for number in range(5000)), "string"))
    assert tokens.value == "[t0, t1, t2, t3, t4, t5, … 5,000 in all]"
    assert tokens.type_name == "array of string"
    template = metadata_row("tokenizer.chat_template", MetadataValue("string", "line\n" * 100))
    assert template.value.startswith("line line")
    assert template.long_value == "line\n" * 100
    assert metadata_row("x", MetadataValue("string", "a\udcffb")).value == "a\ufffdb"
    assert metadata_row("x", MetadataValue("float32", 1e-5)).value == "1e-05"


def test_inspect_prints_files_and_the_largest_tensors(quantailor: Command, books_llama_dir: Path) -> None:
    assert json.loads(quantailor("inspect", books_llama_dir, "--config", "config.json").out)["model_type"] == "llama"
    table = quantailor("inspect", books_llama_dir, "--largest", 2).out
    assert "token_embd.weight" in table
    assert "2 of 75 tensors hold 25.0 % of the bytes" in table
    found = json.loads(quantailor("inspect", books_llama_dir, "--largest", 2, "--json").out)["result"]
    assert found["n_tensors"] == 75
    missing = quantailor("inspect", books_llama_dir, "--config", "../README.md")
    assert missing.code == 1
    assert "It has config.json, generation_config.json, tokenizer_config.json" in missing.err


# Opening


def test_what_was_typed_decides(books_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(books_llama_dir.parent)
    assert understand(" books-llama ") == books_llama_dir
    assert understand("org/name") == Repository("org/name")
    assert understand("https://huggingface.co/org/na-me.1/tree/v2") == Repository("org/na-me.1", "v2")
    for nothing in ("", "no such model", "/nowhere/at/all.gguf", "https://example.com/a/b"):
        with pytest.raises(ModelError):
            understand(nothing)


def test_the_overview_names_files_licence_and_the_base_to_be(books_llama_dir: Path, books_llama_base: Path, tmp_path: Path) -> None:
    with Workspace.open(tmp_path) as workspace:
        project = open_project(workspace, books_llama_dir)
        overview = model_overview(workspace, project)
        assert (overview.kind, overview.license, overview.n_layers, overview.n_tensors) == ("huggingface", None, 8, 75)
        assert {Path(file.path).name for file in overview.files} >= {"model.safetensors", "config.json", "tokenizer.model"}
        assert re.fullmatch(re.escape(str(tmp_path / "bases")) + r"/books-llama-[0-9a-f]{8}\.gguf", overview.suggested_base or "")
        assert overview.base is None
        converted = model_overview(workspace, open_project(workspace, books_llama_base))
        assert converted.base is not None
        assert converted.base.path == str(books_llama_base)
        assert converted.suggested_base is None


def test_folders_list_models_first_and_survive_odd_entries(books_llama_dir: Path, tmp_path: Path) -> None:
    for name in ("b.gguf", "a.imatrix.gguf", "notes.txt", "x.bin", ".hidden.gguf"):
        (tmp_path / name).touch()
    (tmp_path / "zoo").mkdir()
    (tmp_path / "model").symlink_to(books_llama_dir)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    found = [(entry.name, entry.kind) for entry in list_folder(tmp_path)]
    assert found == [
        ("b.gguf", "gguf"),
        ("model", "huggingface"),
        ("zoo", "folder"),
        ("a.imatrix.gguf", "imatrix"),
        ("notes.txt", "text"),
        ("x.bin", "file"),
        (".hidden.gguf", "gguf"),
    ]
    with pytest.raises(ModelError, match="cannot read"):
        list_folder(tmp_path / "nowhere")
