"""Texts and models that end llama.cpp's process: commands and jobs say so in one line, and nothing else ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Command

from gguf_models import write_llama
from quantailor.analysis import corpus
from quantailor.app.measuring.cost import job_cost
from quantailor.errors import CorpusError
from quantailor.pipeline import StudyStep
from quantailor.session import Workspace


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "tiny.gguf", pre="gpt-4o")


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text whose longest run overflows a stack that cannot grow."""
    monkeypatch.setattr(corpus, "MAX_STACK_BYTES", 8 << 20)
    path = tmp_path / "run.txt"
    path.write_text("One line.\n" + "Q" * 100_000, encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_job_fails_with_the_reason_and_says_it_again_when_resumed(run: Command, model: Path, text: Path) -> None:
    line = run("imatrix", model, "-f", text, "--chunks", 2).error_line
    assert "its longest unbroken run, 100,000 letters, begins in line 2" in line
    job = run("jobs", "show", 1, "--json").result
    assert (job["state"], f"error: {job['error']}") == ("failed", line)
    assert run("jobs", "resume", 1).error_line == line


@pytest.mark.slow
def test_a_model_that_ends_llama_cpp_while_it_is_loaded(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mixture of experts that uses none of them; it stands for what is not known of llama.cpp, for this is refused by its key."""
    monkeypatch.setattr("quantailor.models.contents._require_possible_hyperparameters", lambda source: None)
    model = write_llama(tmp_path / "none.gguf", metadata={"llama.expert_count": 4, "llama.expert_used_count": 0})
    assert run("measure", model, "--types", "Q8_0,Q4_0").code == 0  # else the probe would measure all types first
    for command in ("imatrix", model), ("probe", model), ("verify", model, "--base", model, "--against", "Q8_0"):
        line = run(*command, "--chunks", 1).error_line
        assert f"llama.cpp ended its process while loading {model}: aborted, SIGABRT: " in line
        assert "GGML_ASSERT(" in line


def test_a_token_that_is_there_twice_is_named(run: Command, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "twice.gguf", specials=("A", "</s>"))
    for command in ("imatrix", model), ("measure", model), ("verify", model, "--base", model):
        line = run(*command).error_line
        assert f"the vocabulary of {model} has the token 'A' 2 times, 65 for one" in line
        assert "Convert the model again" in line


@pytest.mark.slow
def test_what_llama_cpp_does_not_load_comes_with_a_remedy(run: Command, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "odd.gguf", architecture="notyet")
    for command in ("imatrix", model, "--chunks", 1), ("fit", model, "--memory", "1GiB", "--ctx", 128):
        line = run(*command).error_line
        assert "unknown model architecture: 'notyet'. Convert the model again" in line
        assert "update llama-cpp-python" in line


def test_what_llama_cpp_does_not_quantize_comes_with_a_remedy(run: Command, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "odd.gguf", metadata={"llama.rope.dimension_count": True})
    line = run("plan", model, "--types-of", "Q8_0", "-o", tmp_path / "s.yaml").error_line
    assert "llama.cpp cannot quantize odd.gguf to Q8_0: key llama.rope.dimension_count has wrong type bool" in line
    assert "Convert the model again" in line


@pytest.mark.slow
def test_the_cost_of_a_study_of_such_a_text_is_refused_and_the_next_one_told(model: Path, text: Path, tmp_path: Path) -> None:
    with Workspace.open(tmp_path / "home") as workspace:
        with pytest.raises(CorpusError, match="longest unbroken run"):
            job_cost(workspace, StudyStep(model=str(model), level="quick", text=str(text)))
        assert job_cost(workspace, StudyStep(model=str(model), level="quick")).stages
