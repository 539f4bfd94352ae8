"""Directories that our own conversion does not know: `convert`, `make` and `study` through the converter of llama.cpp.

A small script stands in for it; tests/oracle has the real one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Command, validate
from foreign_models import ARCHITECTURE, SCRIPT, write_foreign
from hub_server import HubServer

from quantailor.models.convert.base import write_base
from quantailor.models.opening import open_model
from quantailor.models.upstream import checkpoint_digest
from tiny_models import write_tiny

pytestmark = pytest.mark.usefixtures("converter")

TYPES = ("--types", "Q4_0,Q5_0,Q8_0", "--threads", 1)
UNKNOWN = f"has the architecture '{ARCHITECTURE}', which Quantailor's own conversion does not support"


@pytest.fixture
def foreign(tmp_path: Path, runs: Path) -> Path:
    """A directory of an unknown family whose conversion llama.cpp can run."""
    source = open_model(write_tiny("llama2", tmp_path / "known"))
    ready = write_base(source, tmp_path / "known" / "ready.gguf").read_bytes()
    source.close()
    return write_foreign(tmp_path / "foreign", ready=ready, runs=str(runs))


@pytest.fixture
def text(tmp_path: Path, calibration_text: Path) -> Path:
    path = tmp_path / "short.txt"
    path.write_text(calibration_text.read_text(encoding="utf-8")[:16_000], encoding="utf-8")
    return path


def n_runs(runs: Path) -> int:
    return len(runs.read_text(encoding="utf-8").splitlines()) if runs.exists() else 0


def test_convert_takes_the_other_way_and_says_why(quantailor: Command, foreign: Path, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    shown = quantailor("convert", foreign, "-o", tmp_path / "a.gguf", *home)
    assert f"llama.cpp's converter at {SCRIPT}: {foreign}/config.json {UNKNOWN}" in shown.out

    outcome = quantailor("convert", foreign, "-o", tmp_path / "b.gguf", *home, "--json")
    validate(outcome.out)
    assert outcome.result["way"] == "llama.cpp"
    assert (tmp_path / "b.gguf").read_bytes() == (foreign / "ready.data").read_bytes()
    assert outcome.result["fingerprint"] == quantailor("inspect", tmp_path / "b.gguf", "--json").result["fingerprint"]
    assert quantailor("jobs", "show", 1, *home).out.count(UNKNOWN) == 1


def test_known_families_stay_with_ours_unless_asked(quantailor: Command, tmp_path: Path) -> None:
    known, home = write_tiny("llama2", tmp_path), ("--home", tmp_path / "home")
    result = quantailor("convert", known, "-o", tmp_path / "a.gguf", *home, "--json").result
    assert (result["way"], result["why"]) == ("native", "native: the Llama family")

    (known / "ready.data").write_bytes((tmp_path / "a.gguf").read_bytes())
    result = quantailor("convert", known, "-o", tmp_path / "b.gguf", "--way", "llama.cpp", *home, "--json").result
    assert (result["way"], result["why"]) == ("llama.cpp", f"llama.cpp's converter at {SCRIPT}: it was asked for")


def test_what_cannot_be_done_is_one_line(quantailor: Command, foreign: Path, runs: Path, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    output = tmp_path / "base.gguf"

    line = quantailor("convert", foreign, "-o", output, "--way", "native", *home).error_line
    assert UNKNOWN in line
    assert "Without `--way native`" in line
    assert "quantailor convert" not in line
    line = quantailor("convert", foreign, "-o", output, "--converter", tmp_path, *home).error_line
    assert f"--converter names {tmp_path}, which is neither convert_hf_to_gguf.py nor a folder that contains it" in line
    (foreign / "code.py").touch()
    assert "brings code: code.py. Read the code" in quantailor("convert", foreign, "-o", output, *home).error_line
    output.touch()
    assert "exists" in quantailor("convert", foreign, "-o", output, *home).error_line
    assert n_runs(runs) == 0

    assert quantailor("convert", foreign, "-o", output, "--trust-remote-code", "--force", *home).code == 0
    assert n_runs(runs) == 1


def test_an_architecture_that_the_converter_does_not_name_is_refused_before_an_interpreter_is_set_up(
    quantailor: Command, foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTAILOR_CONVERT_PYTHON", str(tmp_path / "nowhere"))
    script = tmp_path / "llama.cpp" / "convert_hf_to_gguf.py"
    (script.parent / "conversion").mkdir(parents=True)
    script.write_text("", encoding="utf-8")
    (script.parent / "conversion" / "llama.py").write_text('@ModelBase.register("LlamaForCausalLM")', encoding="utf-8")
    output = tmp_path / "base.gguf"
    line = quantailor("convert", foreign, "-o", output, "--converter", script.parent, "--home", tmp_path / "home").error_line
    assert f"has the architecture '{ARCHITECTURE}', which llama.cpp's converter at {script} does not know either" in line


@pytest.mark.parametrize("command", ["inspect", "measure", "build", "plan"])
def test_steps_that_need_no_base_say_what_to_run(command: str, quantailor: Command, foreign: Path, tmp_path: Path) -> None:
    strategy = tmp_path / "s.yaml"
    strategy.write_text("model: {fingerprint: abc}\ntensors: {token_embd.weight: Q8_0}\n", encoding="utf-8")
    rest = {"build": (strategy, "-o", tmp_path / "o.gguf"), "plan": ("--bpw", 5)}.get(command, ())
    home = () if command == "inspect" else ("--home", tmp_path / "home")
    line = quantailor(command, foreign, *rest, *home).error_line
    assert UNKNOWN in line
    assert "Run `quantailor convert` first" in line


def test_a_repository_of_an_unknown_family_says_what_will_be_tried_and_goes_that_way(
    hub: HubServer, run: Command, foreign: Path, runs: Path, tmp_path: Path
) -> None:
    names = ("config.json", "model.safetensors", "tokenizer_config.json")
    needed = {"spiece.model": b"x", "merges.txt": b"x", "vocab.txt": b"x", "qwen.tiktoken": b"x"}
    code = {"modeling_tailored.py": b"raise SystemExit"}
    hub.add("org/foreign", {**{name: (foreign / name).read_bytes() for name in names}, **needed, **code})

    assert f"{UNKNOWN}; llama.cpp's own converter will be tried" in " ".join(run("inspect", "org/foreign").out.split())
    downloaded = run("download", "org/foreign", "--json").result
    assert set(downloaded["files"]) == {*names, *needed}

    (Path(downloaded["path"]) / "ready.data").write_bytes((foreign / "ready.data").read_bytes())
    converted = run("convert", "org/foreign", "-o", tmp_path / "base.gguf", "--json").result
    assert converted["way"] == "llama.cpp"
    assert n_runs(runs) == 1


def make(quantailor: Command, foreign: Path, text: Path, tmp_path: Path, *, out: str = "out") -> dict[str, str]:
    few = ("-f", text, "--verify-text", text, "--chunks", 2, "--imatrix-chunks", 2, "--against", "Q8_0", "--basis", "ranking")
    outcome = quantailor("make", foreign, "--bpw", 7, "-o", tmp_path / out, *TYPES, *few, "--home", tmp_path / "home", "--json")
    assert outcome.code == 0, outcome.err
    found: dict[str, str] = outcome.result
    return found


@pytest.mark.slow
def test_make_goes_from_such_a_directory_to_a_verdict_and_converts_once(
    quantailor: Command, foreign: Path, text: Path, runs: Path, tmp_path: Path
) -> None:
    first = make(quantailor, foreign, text, tmp_path)
    again = make(quantailor, foreign, text, tmp_path)

    assert first["base"] == again["base"] == str(tmp_path / "out" / "base.gguf")
    assert [path.name for path in (tmp_path / "out").glob("foreign-*bpw.gguf")]
    assert n_runs(runs) == 1


@pytest.mark.slow
def test_a_base_made_before_is_found_while_both_are_what_they_were(
    quantailor: Command, foreign: Path, text: Path, runs: Path, tmp_path: Path
) -> None:
    base, home = tmp_path / "mine.gguf", ("--home", tmp_path / "home")
    quantailor("convert", foreign, "-o", base, *home)
    study = ("study", foreign, "--level", "quick", "-f", text, *TYPES, *home, "--json")

    assert quantailor(*study).result["base"] == str(base)
    assert quantailor(*study, "--cost").code == 0
    assert n_runs(runs) == 1

    base.write_bytes((foreign / "ready.data").read_bytes()[:-4096] + bytes(4096))
    in_home = tmp_path / "home" / "bases" / f"foreign-{checkpoint_digest(foreign)[:8]}.gguf"
    assert quantailor(*study).result["base"] == str(in_home)
    assert n_runs(runs) == 2

    (foreign / "tokenizer_config.json").write_text('{"add_bos_token": true}', encoding="utf-8")
    assert quantailor(*study).result["base"] != str(in_home)
    assert n_runs(runs) == 3


def test_a_study_replaces_no_file_that_it_did_not_make(quantailor: Command, foreign: Path, text: Path, runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"somebody's")
    line = quantailor("study", foreign, "--level", "quick", "-f", text, *TYPES, "-o", other, "--home", tmp_path / "home").error_line
    assert f"{other} exists" in line
    assert other.read_bytes() == b"somebody's"
    assert n_runs(runs) == 0


def test_another_converter_converts_anew(quantailor: Command, foreign: Path, text: Path, runs: Path, tmp_path: Path) -> None:
    study = ("study", foreign, "--level", "quick", "-f", text, *TYPES, "--home", tmp_path / "home", "--json")
    for _ in range(2):
        assert quantailor(*study).code == 0
        assert n_runs(runs) == 1
    for _ in range(2):
        assert quantailor(*study, "--converter", SCRIPT).code == 0
        assert n_runs(runs) == 2


@pytest.mark.parametrize("option", [("--converter", SCRIPT), ("--trust-remote-code",)])
def test_options_of_the_other_way_do_not_go_with_ours(
    option: tuple[object, ...], quantailor: Command, foreign: Path, tmp_path: Path
) -> None:
    outcome = quantailor("convert", foreign, "-o", tmp_path / "b.gguf", "--way", "native", *option, "--home", tmp_path / "home")
    assert outcome.code == 2
    assert "--way native does not use" in outcome.err


def test_code_of_a_repository_is_not_fetched(quantailor: Command, tmp_path: Path) -> None:
    outcome = quantailor("convert", "org/name", "-o", tmp_path / "b.gguf", "--trust-remote-code", "--home", tmp_path / "home")
    assert outcome.code == 2
    assert "give the directory" in outcome.err


def test_the_cost_of_a_study_says_what_to_run_first(quantailor: Command, foreign: Path, tmp_path: Path) -> None:
    line = quantailor("study", foreign, "--cost", "--home", tmp_path / "home").error_line
    assert "Run `quantailor convert` first" in line
