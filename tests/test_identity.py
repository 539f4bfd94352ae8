"""No two models that could differ in a result share one, and those that are equal do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.in_memory import MemorySource
from commands import Command
from numpy.typing import NDArray

from quantailor.app.jobs import run_job, submit
from quantailor.control import QUIET, Control
from quantailor.errors import ModelError, NonFiniteWeightError, Paused
from quantailor.ggml import library
from quantailor.jobs import this_worker
from quantailor.models import identity
from quantailor.models.convert.base import write_base
from quantailor.models.gguf_writer import GGUFWriter, layout
from quantailor.models.opening import open_model
from quantailor.models.source import ModelSource
from quantailor.numerics import Bytes
from quantailor.records import MetadataValue, Verdict
from quantailor.session import Workspace
from quantailor.steps.calibration.calibrate import CalibrateStep
from quantailor.steps.calibration.imatrix import ImatrixStep
from quantailor.steps.measure import MeasureStep
from quantailor.steps.options import Compute
from quantailor.steps.probe import ProbeStep
from quantailor.steps.step import Step, StepResult
from quantailor.steps.sweep import SweepStep
from quantailor.steps.verify import VerifyStep
from quantailor.store import Progress
from tiny_models import write_tiny

ONE_THREAD = Compute(n_threads=1)
N_CTX = 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory with a byte-level vocabulary and merges."""
    return write_tiny("llama3", tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def base(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its base."""
    source = open_model(checkpoint)
    try:
        return write_base(source, tmp_path_factory.mktemp("base") / "base.gguf")
    finally:
        source.close()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, calibration_text: Path) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(calibration_text.read_text(encoding="utf-8")[:4000], encoding="utf-8")
    return path


@dataclass(frozen=True)
class Change:
    """What a copy of a model has otherwise."""

    metadata: Callable[[dict[str, MetadataValue]], Mapping[str, MetadataValue]] = dict
    tensor: str = ""
    weights: Callable[[Bytes], object] = len
    """Changes a tensor's rows, (n_rows, row_bytes), in place."""


def altered(base: Path, path: Path, change: Change, *, split_max_bytes: int | None = None) -> Path:
    """A copy of a model with a change."""
    source = open_model(base)
    try:
        planned = layout(change.metadata(dict(source.metadata)), source.tensors, split_max_bytes=split_max_bytes)
        with GGUFWriter(path, planned) as writer:
            for tensor in source.tensors:
                rows = source.raw_rows(tensor.name, 0, tensor.n_rows)
                if tensor.name == change.tensor:
                    change.weights(rows)
                writer.write(rows)
        return writer.paths[0]
    finally:
        source.close()


def fingerprint(path: Path) -> str:
    source = open_model(path)
    try:
        return identity.fingerprint(source)
    finally:
        source.close()


def item(key: str, number: int, new: str | float) -> Change:
    """One entry of an array of the metadata replaced."""

    def change(metadata: dict[str, MetadataValue]) -> Mapping[str, MetadataValue]:
        values = metadata[key].value
        assert isinstance(values, tuple)
        assert values[number] != new
        return {**metadata, key: replace(metadata[key], value=(*values[:number], new, *values[number + 1 :]))}

    return Change(change)


def entry(key: str, value: str | float) -> Change:
    """One value of the metadata replaced."""
    return Change(lambda metadata: {**metadata, key: replace(metadata[key], value=value)})


def swapped_merges(metadata: dict[str, MetadataValue]) -> Mapping[str, MetadataValue]:
    merges = metadata["tokenizer.ggml.merges"].value
    assert isinstance(merges, tuple)
    return {**metadata, "tokenizer.ggml.merges": replace(metadata["tokenizer.ggml.merges"], value=(merges[1], merges[0], *merges[2:]))}


def last_bit(rows: Bytes) -> None:
    rows[-1, -2] ^= 1


def half_zero(rows: Bytes) -> None:
    rows[len(rows) // 4 : len(rows) // 4 + len(rows) // 2] = 0


def not_a_number(rows: Bytes) -> None:
    """BF16: one NaN and one Inf, in the middle."""
    rows[len(rows) // 2].view(np.uint16)[5:7] = (0x7FC0, 0x7F80)


OTHERS: Mapping[str, Change] = {
    "last element of the last tensor": Change(tensor="LAST", weights=last_bit),
    "rows in the middle": Change(tensor="token_embd.weight", weights=half_zero),
    "token renamed": item("tokenizer.ggml.tokens", 300, "renamed"),
    "type of a token": item("tokenizer.ggml.token_type", 300, 4),
    "merges swapped": Change(swapped_merges),
    "special token": entry("tokenizer.ggml.eos_token_id", 7),
    "pre-tokenizer": entry("tokenizer.ggml.pre", "gpt-2"),
    "rope base": entry("llama.rope.freq_base", 500001.0),
    "norm epsilon": entry("llama.attention.layer_norm_rms_epsilon", 1e-6),
    "softcap": Change(lambda metadata: {**metadata, "llama.final_logit_softcapping": MetadataValue("float32", 30.0)}),
    "a key that nobody knows": Change(lambda metadata: {**metadata, "llama.unheard_of": MetadataValue("bool", True)}),
    "scores": Change(lambda metadata: {**metadata, "tokenizer.ggml.scores": MetadataValue("array", (1.0, 2.0), "float32")}),
}
SAME: Mapping[str, Change] = {
    "nothing": Change(),
    "name": Change(lambda metadata: {**metadata, "general.name": MetadataValue("string", "Other")}),
    "chat template": Change(lambda metadata: {**metadata, "tokenizer.chat_template": MetadataValue("string", "{{ messages }}")}),
    "order of metadata": Change(lambda metadata: dict(reversed(metadata.items()))),
    "file type": Change(lambda metadata: {**metadata, "general.file_type": MetadataValue("uint32", 7)}),
}


@pytest.mark.parametrize("what", OTHERS)
def test_whatever_inference_depends_on_makes_another_model(base: Path, what: str, tmp_path: Path) -> None:
    change = OTHERS[what]
    if change.tensor == "LAST":
        source = open_model(base)
        change = replace(change, tensor=source.tensors[-1].name)
        source.close()
    assert fingerprint(altered(base, tmp_path / "copy.gguf", change)) != fingerprint(base)


@pytest.mark.parametrize("what", SAME)
def test_what_only_describes_a_model_leaves_it_the_same(base: Path, what: str, tmp_path: Path) -> None:
    copy = altered(base, tmp_path / "copy.gguf", SAME[what])
    assert fingerprint(copy) == fingerprint(base)
    source, other = open_model(base), open_model(copy)
    same_file = identity.description(source, "f") == identity.description(other, "f")
    assert same_file == (what == "nothing"), "but not what a file made from it would say"
    source.close()
    other.close()


def test_a_checkpoint_its_base_its_shards_and_its_copies_are_one_model(checkpoint: Path, base: Path, tmp_path: Path) -> None:
    shards = altered(base, tmp_path / "split.gguf", Change(), split_max_bytes=20_000)
    assert len(list(tmp_path.glob("split-*.gguf"))) > 2
    moved = shutil.copytree(checkpoint, tmp_path / "moved")
    (tmp_path / "link.gguf").symlink_to(base)
    os.utime(moved / "model.safetensors", (1, 1))
    places = (checkpoint, base, shards, moved, tmp_path / "link.gguf", shutil.copy(base, tmp_path / "renamed.gguf"))
    with Workspace.open(tmp_path / "home") as workspace:
        assert len({workspace.identity(place).fingerprint for place in places}) == 1


def test_inspect_tells_them_apart(quantailor: Command, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTAILOR_HOME", str(tmp_path / "home"))
    copy = altered(base, tmp_path / "copy.gguf", OTHERS["rows in the middle"])
    seen = {path: quantailor("inspect", path, "--json").result["fingerprint"] for path in (base, copy)}
    assert seen[base] != seen[copy]
    assert not (tmp_path / "home").exists(), "looking at a model makes no home"
    Workspace.open(tmp_path / "home").store.close()
    assert {path: quantailor("inspect", path, "--json").result["fingerprint"] for path in (base, copy)} == seen


# Results


def verified(home: Path, file: Path, base: Path, text: Path) -> Verdict:
    step = VerifyStep(
        file=str(file),
        base=str(base),
        against=(),
        text=str(text),
        chunks=2,
        n_ctx=N_CTX,
        output=str(home / "v"),
        overwrite=True,
        compute=ONE_THREAD,
    )
    with Workspace.open(home) as workspace:
        result = run_job(workspace, submit(workspace, step))
    assert isinstance(result, step.result)
    return result.verdict  # type: ignore[attr-defined, no-any-return]


@pytest.mark.slow
def test_a_changed_copy_is_verified_as_in_a_fresh_home(base: Path, text: Path, tmp_path: Path) -> None:
    copy = altered(base, tmp_path / "copy.gguf", OTHERS["rows in the middle"])
    before = verified(tmp_path / "home", base, base, text)
    after, fresh = (verified(tmp_path / home, base, copy, text) for home in ("home", "fresh"))
    assert after.rows == fresh.rows
    assert after.rows[0].statistics.perplexity.value != before.rows[0].statistics.perplexity.value
    assert after.rows[1].statistics.kld_mean.value > 0.01
    assert verified(tmp_path / "home", copy, base, text).rows == verified(tmp_path / "fresh", copy, base, text).rows


@pytest.mark.parametrize("role", ["base", "file"])
def test_weights_that_are_not_finite_are_named_before_anything_runs(base: Path, text: Path, role: str, tmp_path: Path) -> None:
    broken = altered(base, tmp_path / "broken.gguf", Change(tensor="token_embd.weight", weights=not_a_number))
    verified(tmp_path / "home", base, base, text)
    with pytest.raises(NonFiniteWeightError, match=r"^token_embd.weight has 2 weights that are NaN or Inf\. Get an intact copy"):
        verified(tmp_path / "home", *((base, broken) if role == "base" else (broken, base)), text)
    steps = (
        ImatrixStep(base=str(broken), text=str(text), n_ctx=N_CTX, chunks=1, compute=ONE_THREAD),
        ProbeStep(base=str(broken), text=str(text), n_ctx=N_CTX, chunks=1, types=("Q8_0",), mixes=0, anchors=0, compute=ONE_THREAD),
    )
    with Workspace.open(tmp_path / "home") as workspace:
        for step in steps:
            with pytest.raises(NonFiniteWeightError, match="token_embd"):
                run_job(workspace, submit(workspace, step))


# Remembered


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The places of the models that were read whole; files count as settled at once."""
    read: list[str] = []

    def counted(source: ModelSource, *, control: Control = QUIET) -> identity.Identity:
        read.append(source.location)
        return identity.identify(source, control=control)

    monkeypatch.setattr("quantailor.session.workspace.identify", counted)
    monkeypatch.setattr("quantailor.files._TICK_S", 0.0)
    return read


def identified(home: Path, path: Path) -> str:
    """In a process of its own, as far as what it holds in memory goes."""
    with Workspace.open(home) as workspace, workspace.model(path) as model:
        assert workspace.identity(path) == model.identity
        return model.fingerprint


def test_a_model_is_read_once_and_again_when_any_of_its_files_changed(checkpoint: Path, tmp_path: Path, readings: list[str]) -> None:
    model, home = shutil.copytree(checkpoint, tmp_path / "model"), tmp_path / "home"
    first = identified(home, model)
    assert identified(home, model) == first
    assert len(readings) == 1
    for number, name in enumerate(("tokenizer.json", "config.json", "model.safetensors"), 2):
        path = model / name
        times, data = path.stat(), path.read_bytes()
        path.write_bytes(data[:-2] + bytes((data[-2] ^ 1, data[-1])) if name == "model.safetensors" else data.replace(b"1", b"1", 1))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert path.stat().st_mtime_ns == times.st_mtime_ns
        assert (identified(home, model) == first) == (name != "model.safetensors"), name
        assert len(readings) == number, "same size, same time, and still another state"


def test_a_shard_that_changed_is_noticed(base: Path, tmp_path: Path, readings: list[str]) -> None:
    shards = altered(base, tmp_path / "split.gguf", Change(), split_max_bytes=20_000)
    first = identified(tmp_path / "home", shards)
    last = sorted(tmp_path.glob("split-*.gguf"))[-1]
    data = bytearray(last.read_bytes())
    data[-40] ^= 1
    last.write_bytes(data)
    assert identified(tmp_path / "home", shards) != first
    assert len(readings) == 2


def test_what_was_changed_a_moment_ago_is_not_remembered(
    base: Path, tmp_path: Path, readings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantailor.files._TICK_S", 3600.0)
    path = Path(shutil.copy(base, tmp_path / "copy.gguf"))
    with Workspace.open(tmp_path / "home") as workspace:
        assert workspace.identity(path) == workspace.identity(path)
    assert len(readings) == 2


def test_a_file_that_changes_while_it_is_read_has_no_identity(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(shutil.copy(base, tmp_path / "copy.gguf"))

    def meanwhile(source: ModelSource, *, control: Control = QUIET) -> identity.Identity:
        found = identity.identify(source, control=control)
        with path.open("r+b") as stream:
            stream.seek(-64, os.SEEK_END)
            stream.write(b"\1")
        return found

    monkeypatch.setattr("quantailor.session.workspace.identify", meanwhile)
    with (
        Workspace.open(tmp_path / "home") as workspace,
        pytest.raises(ModelError, match=r"copy.gguf changed while it was read\. Try again"),
    ):
        workspace.identity(path)


def test_reading_a_large_model_is_a_stage_that_can_be_paused(
    quantailor: Command, base: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantailor.session.workspace.SHOWN_BYTES", 0)
    monkeypatch.setattr("quantailor.jobs.job_control.SHOW_EVERY_S", 0.0)
    step = ImatrixStep(base=str(base), text=str(text), n_ctx=N_CTX, chunks=1, compute=ONE_THREAD)
    seen: list[Progress] = []
    with Workspace.open(tmp_path / "home") as workspace:
        job = submit(workspace, step)
        monkeypatch.setattr("quantailor.jobs.JobControl.check", paused)
        with pytest.raises(Paused):
            run_job(workspace, job, seen.append)
        assert workspace.store.jobs.get(job).state == "paused"
        monkeypatch.undo()
        monkeypatch.setattr("quantailor.session.workspace.SHOWN_BYTES", 0)
        monkeypatch.setattr("quantailor.jobs.job_control.SHOW_EVERY_S", 0.0)
        run_job(workspace, submit(workspace, step), seen.append)
    read = [report for report in seen if report.stage == "identify"]
    assert read[-1].done == read[-1].total > 0
    assert {report.unit for report in read} == {"bytes"}


def paused(control: object) -> None:
    raise Paused("asked to")


# What is written


@pytest.mark.parametrize("template", ["{{ a }}", pytest.param("{{ b }}", marks=pytest.mark.slow)])
def test_a_file_is_built_again_where_what_it_copies_changed(run: Command, checkpoint: Path, template: str, tmp_path: Path) -> None:
    model = shutil.copytree(checkpoint, tmp_path / "model")
    words = ("make", model, "--types", "Q4_0,Q8_0", "--basis", "ranking", "--no-verify", "--imatrix", "none", "--bpw", 6)

    def made() -> Path:
        return Path(run(*words, "-o", tmp_path / "out", "--json").result["build"]["paths"][0])

    def said(path: Path) -> object:
        source = open_model(path)
        source.close()
        return source.metadata["tokenizer.chat_template"].value

    settings = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    for chosen in ("{{ x }}", template):
        (model / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": chosen}), encoding="utf-8")
        built = made()
        assert said(built) == chosen
    state = built.stat()
    assert made().stat().st_mtime_ns == state.st_mtime_ns, "nothing changed: it is kept"
    data = bytearray(built.read_bytes())
    data[-50] ^= 1
    built.write_bytes(data)
    assert made().read_bytes()[-50] == data[-50] ^ 1, "a file that was changed beneath its name is built anew"


def test_a_base_is_used_again_only_where_it_says_what_its_checkpoint_says(checkpoint: Path, tmp_path: Path) -> None:
    model = shutil.copytree(checkpoint, tmp_path / "model")
    with Workspace.open(tmp_path / "home") as workspace:
        with workspace.model(model) as opened:
            written = write_base(opened.source, tmp_path / "base.gguf")
            assert workspace.holds(written, opened.description)
        settings = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
        (model / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{{ new }}"}), encoding="utf-8")
        with workspace.model(model) as opened:
            assert workspace.identity(written) == opened.identity
            assert not workspace.holds(written, opened.description)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weights_of_any_float_type_are_looked_at(dtype: type[np.floating]) -> None:
    weights = np.zeros((3, 32), dtype=dtype)
    weights[1, 4], weights[2, 0] = np.nan, -np.inf
    found = identity.identify(MemorySource({"blk.0.attn_q.weight": np.ones((2, 2), dtype), "blk.0.attn_v.weight": weights}))
    assert found.not_finite == "blk.0.attn_v.weight has 2 weights that are NaN or Inf"
    assert identity.identify(MemorySource({"blk.0.attn_v.weight": np.full((2, 32), 6e4, dtype)})).not_finite == ""


def test_matrices_norms_and_blocks_of_zeros_are_told_and_biases_are_not() -> None:
    whole, hole, none = np.ones((4, 64), np.float32), np.ones((2048, 2048), np.float32), np.ones((3, 32), np.float16)
    none[1:] = 0  # a block holds more than these
    sound: dict[str, NDArray[np.floating]] = {
        "blk.0.attn_q.bias": np.zeros(64, np.float32),
        "blk.0.attn_v.weight": none,
        "blk.1.ffn_up.weight": hole,
    }
    assert identity.identify(MemorySource(sound)).zeros == ""
    whole[:], hole[512:1024] = 0, 0  # 4 MiB: the second of four blocks
    found = identity.identify(MemorySource({**sound, "blk.0.attn_q.weight": whole}))
    assert found.zeros == "all weights of blk.0.attn_q.weight are zero (1 more tensor is like it)"
    norm = {"blk.0.attn_norm.weight": np.zeros(64, np.float32)}
    assert identity.identify(MemorySource(norm)).zeros == "all weights of blk.0.attn_norm.weight are zero"
    assert identity.identify(MemorySource(sound)).zeros == "512 of 2,048 rows of blk.1.ffn_up.weight are zero"


def test_a_model_with_a_hole_is_told_of_by_what_uses_it(quantailor: Command, checkpoint: Path, base: Path, tmp_path: Path) -> None:
    def zero(rows: Bytes) -> None:
        rows[:] = 0

    holed, home = (
        altered(base, tmp_path / "holed.gguf", Change(tensor="blk.0.ffn_down.weight", weights=zero)),
        ("--home", tmp_path / "home"),
    )
    said = "All weights of blk.0.ffn_down.weight are zero, as in a file that was not downloaded whole"
    for _ in range(2):  # as it is read, and as it is remembered
        told = quantailor("measure", holed, "--types", "Q8_0", "--tensors", "attn_k", *home)
        assert told.code == 0
        assert said in told.err
    assert said in quantailor("inspect", holed).out
    assert "are zero" not in quantailor("measure", base, "--types", "Q8_0", "--tensors", "attn_k", *home).err


# Every key


@dataclass(frozen=True)
class Asked:
    """What a result depends on."""

    base: Path
    text: Path
    n_ctx: int = N_CTX
    imatrix: str = "none"


def step_for(thing: str, asked: Asked) -> Step[StepResult]:
    """The step that gives a result of one kind."""
    shared: dict[str, Any] = {"base": str(asked.base), "compute": ONE_THREAD}
    scored: dict[str, Any] = {**shared, "text": str(asked.text), "n_ctx": asked.n_ctx}
    if thing == "importance matrix":
        return ImatrixStep(**scored, chunks=1)
    if thing == "covariances":
        return CalibrateStep(**scored, chunks=1)
    if thing == "weight errors":
        return MeasureStep(**shared, types=("Q8_0",), tensors=("attn_v",), imatrix=asked.imatrix)
    if thing == "scores":
        return VerifyStep(**scored, file=str(asked.base), against=(), chunks=1, output=str(asked.base.with_name("verdict")))
    if thing == "reference":
        scored |= {"file": str(asked.base), "output": str(asked.base.with_name("verdict"))}
        return VerifyStep(**scored, against=("Q8_0",), chunks=1, imatrix=asked.imatrix)
    return SweepStep(**scored, types=("Q8_0",), tensors=("blk.0.attn_v.weight",), chunks=1, imatrix=asked.imatrix)


TABLES = {
    "covariances": "covariance_computations",
    "importance matrix": "imatrix_computations",
    "weight errors": "cells",
    "scores": "chunk_scores",
    "mixes": "mix_scores",
    "reference": "reference_files",
}
FOLDERS = {"reference": "references", "base log-probabilities": "base-logp", "importance matrix": "imatrices", "covariances": "covariances"}


def results_of(home: Path, thing: str) -> object:
    """Every row and file that holds a result of one kind, with the time at which it was written."""
    with Workspace.open(home) as workspace:
        rows = workspace.store.result_rows()[TABLES[thing]] if thing in TABLES else []
    files = (home / FOLDERS[thing]).rglob("*.*") if thing in FOLDERS else ()
    return rows, {path: path.stat().st_mtime_ns for path in files}


def ask(home: Path, thing: str, asked: Asked) -> object:
    with Workspace.open(home) as workspace:
        run_job(workspace, submit(workspace, step_for(thing, asked)))
    return results_of(home, thing)


KEYS = [
    *(("importance matrix", part) for part in ("weight", "token", "text", "n_ctx", "llama.cpp", "file")),
    *(("covariances", part) for part in ("weight", "token", "text", "n_ctx", "llama.cpp", "file")),
    *(("weight errors", part) for part in ("weight", "token", "imatrix", "llama.cpp")),
    *(("scores", part) for part in ("weight", "token", "text", "n_ctx", "llama.cpp")),
    *(("mixes", part) for part in ("weight", "token", "text", "n_ctx", "imatrix", "llama.cpp")),
    *(("base log-probabilities", part) for part in ("weight", "token", "text", "n_ctx", "llama.cpp")),
    *(("reference", part) for part in ("weight", "token", "chat template", "imatrix", "llama.cpp", "file")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("thing", "part"), KEYS)
def test_a_result_is_found_again_only_with_everything_it_depends_on(
    base: Path, text: Path, thing: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    asked = Asked(Path(shutil.copy(base, tmp_path / "base.gguf")), Path(shutil.copy(text, tmp_path / "text.txt")))
    if (thing, part) == ("reference", "file"):  # which goes when its verdict is told, unless another job is running
        with Workspace.open(home) as workspace:
            workspace.store.jobs.claim(workspace.store.jobs.create("verify", {}).id, this_worker())
    first = ask(home, thing, asked)
    assert ask(home, thing, asked) == first, "remembered"
    if part in ("weight", "token", "chat template"):
        # One tensor that is asked about, or one entry of the header; beneath the same name.
        changes = {"weight": Change(tensor="blk.0.attn_v.weight", weights=last_bit), "token": OTHERS["token renamed"]}
        asked.base.unlink()
        altered(base, asked.base, changes.get(part, SAME["chat template"]))
    elif part == "text":
        asked.text.write_text(text.read_text(encoding="utf-8").replace("e", "o"), encoding="utf-8")
    elif part == "n_ctx":
        asked = replace(asked, n_ctx=N_CTX // 2)
    elif part == "imatrix":
        computed = ImatrixStep(base=str(base), text=str(text), n_ctx=N_CTX, chunks=1, compute=ONE_THREAD, output=str(tmp_path / "m.gguf"))
        with Workspace.open(tmp_path / "another home") as workspace:
            run_job(workspace, submit(workspace, computed))
        asked = replace(asked, imatrix=str(tmp_path / "m.gguf"))
    elif part == "llama.cpp":
        monkeypatch.setattr(library, "engine", lambda **_: "llama-cpp-python 99")
    else:
        (path,) = (home / FOLDERS[thing]).glob("*.gguf")
        data = bytearray(path.read_bytes())
        data[-100] ^= 1
        path.write_bytes(data)
        broken = results_of(home, thing)
        if thing == "reference":
            asked = replace(asked, n_ctx=N_CTX // 2)  # its scores on these chunks need it
        assert ask(home, thing, asked) != broken
        data[-100] ^= 1
        assert path.read_bytes() == data, "what was written at first"
        return
    assert ask(home, thing, asked) != first


def test_a_command_shows_how_far_reading_a_large_model_is(
    quantailor: Command, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("plan", base, "--bpw", 5, "-o", tmp_path / "s.yaml", "--home", tmp_path / "home")
    for shown in (0, 1 << 40):
        monkeypatch.setattr("quantailor.session.workspace.SHOWN_BYTES", shown)
        monkeypatch.setattr("quantailor.app.jobs.SHOWN_BYTES", shown)
        (tmp_path / "home" / "quantailor.db").unlink(missing_ok=True)
        answer = quantailor(*words)
        assert "nothing is measured" in answer.error_line
        assert ("identify: 100 %" in answer.err) == (shown == 0), answer.err
