"""Models that cannot do all that a language model can: few learned positions, no predictions of next tokens."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from commands import Command

from gguf_models import HEADS, HIDDEN, write_bert, write_gpt2, write_llama, write_nextn
from quantailor.app.measuring.cost import job_cost
from quantailor.ggml.runtime import LoadedModel
from quantailor.jobs import resolve
from quantailor.models.gguf_file import GGUFSource
from quantailor.pipeline import StudyStep
from quantailor.session import Workspace
from quantailor.store import Store
from small_base import write_small_base
from tiny_models import write_tiny

NO_PREDICTIONS = "does not predict next tokens"
FEW = ("--threads", 1)


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    return write_gpt2(tmp_path / "positions.gguf", positions=64)


def test_chunks_are_as_long_as_a_model_has_positions(run: Command, gpt2: Path) -> None:
    done = run("imatrix", gpt2, "--chunks", 2, *FEW)
    assert (done.code, "2 chunks of 64" in done.out) == (0, True)
    assert "note: positions has 64 positions: chunks have 64 tokens instead of 512" in done.err
    assert run("imatrix", gpt2, "--chunks", 2, "--n-ctx", 64, "--json", *FEW).result["chunk_size"] == 64
    line = run("imatrix", gpt2, "--chunks", 2, "--n-ctx", 128, *FEW).error_line
    assert line == "error: positions has 64 positions, too few for chunks of 128 tokens. Give --n-ctx 64 or less"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "short.txt"
    path.write_text("a quick study of cloth and scissors\n" * 30, encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_model_with_few_positions_is_studied_and_verified(run: Command, gpt2: Path, text: Path, tmp_path: Path) -> None:
    few = ("--level", "quick", "--types", "Q4_K,Q8_0", "-f", text, *FEW)
    with Workspace.open(tmp_path / "home") as workspace:
        assert job_cost(workspace, StudyStep(model=str(gpt2), level="balanced")).stages
    assert run("study", gpt2, *few).code == 0
    assert run("plan", gpt2, "--bpw", 6, "-o", tmp_path / "s.yaml").code == 0
    assert run("build", gpt2, tmp_path / "s.yaml", "-o", tmp_path / "ours.gguf").code == 0
    verified = run("verify", tmp_path / "ours.gguf", "--base", gpt2, "--against", "Q8_0", "--chunks", 2, "--json", *FEW)
    assert verified.result["verdict"]["n_ctx"] == 64
    probed = run("probe", gpt2, "--type", "Q4_K", "--group", "role", "--chunks", 1, "--mixes", 0, "--anchors", 0, "--json", *FEW)
    assert (probed.result["n_ctx"], probed.result["n_scored"] > 0) == (64, True)


def test_too_few_positions_for_any_chunk(run: Command, tmp_path: Path) -> None:
    line = run("imatrix", write_gpt2(tmp_path / "short.gguf", positions=16)).error_line
    assert "short has 16 positions, too few to run it: chunks have at least 32 tokens" in line


def test_what_needs_more_positions_is_refused_before_any_work(run: Command, tmp_path: Path) -> None:
    short = write_gpt2(tmp_path / "short.gguf", positions=16)
    for words in (("probe", short), ("sweep", short, "--types", "Q8_0")):
        assert "short has 16 positions, too few to run it: chunks have at least 32 tokens" in run(*words).error_line
    with Store(resolve(tmp_path / "home").database) as store:
        assert not store.result_rows()["cells"]
    assert "short has 16 positions, too few to time it: a run has 96 tokens" in run("speed", short, "--types", "Q8_0").error_line
    assert run("fit", short, "--memory", "1GiB", "--ctx", 32).error_line.endswith(
        "short has 16 positions, too few for a context of 32 tokens"
    )
    longer = write_gpt2(tmp_path / "longer.gguf", positions=64)
    line = run("fit", longer, "--memory", "1GiB", "--ctx", 65).error_line
    assert "longer has 64 positions, too few for a context of 65 tokens. Give --ctx 64 or less" in line
    assert run("fit", longer, "--memory", "1GiB", "--ctx", 64).code == 0


def test_computed_positions_set_no_limit(run: Command, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "rope.gguf", context=64)
    done = run("imatrix", model, "--chunks", 1, "--json", *FEW)
    assert (done.result["chunk_size"], done.err) == (512, "")


@pytest.fixture(params=["encoder", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("embeddings", "reranker"))])
def no_predictor(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"{request.param}.gguf"
    if request.param == "encoder":
        return write_bert(path, positions=64)
    if request.param == "embeddings":
        return write_llama(path, metadata={"llama.pooling_type": 3})
    norms = {f"blk.0.attn_{part}_norm.weight": (HIDDEN // HEADS,) for part in "qk"}
    return write_llama(path, architecture="qwen3", more={"cls.output.weight": (1, HIDDEN), **norms})


def test_what_needs_no_predictions_works(run: Command, no_predictor: Path, tmp_path: Path) -> None:
    if no_predictor.stem != "reranker":  # llama.cpp wants more of one than this has
        assert run("imatrix", no_predictor, "--chunks", 1, *FEW).code == 0
    assert run("measure", no_predictor, "--types", "Q4_K,Q8_0", "--imatrix", "none").code == 0
    assert run("plan", no_predictor, "--bpw", 12, "--basis", "ranking", "--imatrix", "none", "-o", tmp_path / "s.yaml").code == 0
    assert run("build", no_predictor, tmp_path / "s.yaml", "-o", tmp_path / "ours.gguf").code == 0


def test_what_needs_predictions_ends_with_one_line_and_stores_nothing(run: Command, no_predictor: Path, tmp_path: Path) -> None:
    assert NO_PREDICTIONS in run("plan", no_predictor, "--kld", 0.01, "-o", tmp_path / "kld.yaml").error_line
    assert run("measure", no_predictor, "--types", "Q4_K,Q8_0", "--imatrix", "none").code == 0
    for words in (
        ("verify", no_predictor, "--base", no_predictor, "--against", "Q8_0", "--chunks", 1),
        ("probe", no_predictor, "--chunks", 1),
        ("sweep", no_predictor, "--chunks", 1),
        ("plan", no_predictor, "--kld", 0.01, "-o", tmp_path / "kld.yaml"),
        ("plan", no_predictor, "--bpw", 9, "--basis", "probes", "-o", tmp_path / "kld.yaml"),
        ("make", no_predictor, "--bpw", 9, "-o", tmp_path / "made"),
        ("make", no_predictor, "--bpw", 9, "--basis", "ranking", "-o", tmp_path / "made"),
        ("study", no_predictor),
    ):
        assert NO_PREDICTIONS in run(*words).error_line
    assert not list((tmp_path / "home").rglob("*.npy"))
    with Store(resolve(tmp_path / "home").database) as store:
        rows = store.result_rows()
        assert {table: len(rows[table]) for table in ("chunk_scores", "mix_scores", "verdicts", "imatrices") if rows.get(table)} == {}


def test_the_ways_that_the_refusal_names_work(run: Command, text: Path, tmp_path: Path) -> None:
    model, few = write_bert(tmp_path / "bert.gguf", positions=64), ("-f", text, "--types", "Q4_K,Q8_0", *FEW)
    assert run("study", model, "--level", "quick", *few).code == 0
    assert run("make", model, "--bpw", 12, "--basis", "ranking", "--no-verify", "-o", tmp_path / "made", *few).code == 0


@pytest.mark.slow
def test_logits_that_are_all_equal_are_no_predictions(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder whose header does not say that it is one."""
    model = write_llama(tmp_path / "flat.gguf", flat=True)
    line = run("verify", model, "--base", model, "--against", "Q8_0", "--chunks", 1, *FEW).error_line
    assert "gives no predictions of next tokens: all logits are 0" in line


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"block_count": 0}, "llama.block_count = 0"),
        ({"block_count": 513}, "llama.block_count = 513"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, "llama.attention.layer_norm_rms_epsilon = nan"),
        ({"attention.layer_norm_rms_epsilon": -1.0}, "llama.attention.layer_norm_rms_epsilon = -1.0"),
        ({"rope.freq_base": float("inf")}, "llama.rope.freq_base = inf"),
        ({"expert_count": 4}, "llama.expert_used_count = 0 where llama.expert_count is 4"),
        ({"expert_used_count": 3}, "llama.expert_used_count = 3 where llama.expert_count is 0"),
    ],
)
def test_a_hyperparameter_that_no_model_can_have_is_named(run: Command, tmp_path: Path, changed: dict[str, float], what: str) -> None:
    base = write_small_base(tmp_path / "odd.gguf", changed=changed)
    for words in (("imatrix", base), ("measure", base), ("verify", base, "--base", base)):
        line = run(*words).error_line
        assert f"odd.gguf has {what}, which no model can have. Convert the model again, or get an intact copy" in line


def test_a_directory_that_is_typed_with_two_dots_is_read(quantailor: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_tiny("llama2", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    outcome = quantailor("convert", f"../{model.name}", "-o", "base.gguf", "--home", tmp_path / "home")
    assert outcome.code == 0, outcome.err


@pytest.mark.slow
def test_layers_that_predict_further_tokens_are_kept_and_quantized_like_others(
    quantailor: Command, calibration_text: Path, tmp_path: Path
) -> None:
    base, out, text = write_nextn(tmp_path / "nextn.gguf"), tmp_path / "out", tmp_path / "short.txt"
    text.write_text(calibration_text.read_text(encoding="utf-8")[:8_000], encoding="utf-8")
    few = ("-f", text, "--imatrix-chunks", 2, "--types", "Q2_K,Q4_K,Q6_K,IQ2_XS", "--rounding", "plain", "--probe-chunks", 1, "--no-verify")
    outcome = quantailor("make", base, "--bpw", 5, "-o", out, *few, *FEW, "--home", tmp_path / "home", "--json")
    assert outcome.code == 0, outcome.err

    file = Path(outcome.result["build"]["paths"][0])
    with closing(GGUFSource(file)) as made, closing(GGUFSource(base)) as source:
        types = {tensor.name: tensor.type_name for tensor in made.tensors}
        assert types.keys() == {tensor.name for tensor in source.tensors}
        assert made.metadata["glm4moe.nextn_predict_layers"].value == 1
    further = {types[name] for name in types if name.startswith("blk.1.") and types[name] != "F32"}
    assert further <= {"Q2_K", "Q4_K", "Q6_K"}  # no text runs through them, and IQ2_XS does not do without an importance matrix
    assert types["blk.1.nextn.eh_proj.weight"] in further
    with LoadedModel(file, n_ctx=64, n_threads=1):
        pass
