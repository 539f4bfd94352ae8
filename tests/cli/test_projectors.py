"""Vision towers as files of their own: `convert --mmproj`, `make --mmproj`, the cards and `publish`.

A small script stands in for llama.cpp's converter; tests/oracle has the real one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
from commands import Command, validate
from hub_server import HubServer
from vision_models import ARCHITECTURE, TOWER, projector_bytes, write_vision

import quantailor as quantailor_library
from quantailor import files
from quantailor.session import Workspace
from quantailor.steps.conversion.convert import ConvertStep
from tiny_models import write_tiny

pytestmark = pytest.mark.usefixtures("converter")

FEW = ("--types", "Q8_0", "--imatrix", "none", "--chunks", 2, "--against", "Q8_0", "--basis", "ranking", "--threads", 1)


@pytest.fixture
def seeing(tmp_path: Path, runs: Path) -> Path:
    """A model that takes images."""
    return write_vision(tmp_path / "seeing", runs=str(runs))


def lines(runs: Path) -> list[str]:
    return runs.read_text(encoding="utf-8").splitlines() if runs.exists() else []


def test_convert_writes_the_tower_beside_the_base_and_says_how_to_run_both(
    quantailor: Command, seeing: Path, runs: Path, tmp_path: Path
) -> None:
    base, projector, home = tmp_path / "base.gguf", tmp_path / "mmproj.gguf", ("--home", tmp_path / "home")

    outcome = quantailor("convert", seeing, "-o", base, "--mmproj", projector, *home, "--json")

    validate(outcome.out)
    found = outcome.result["mmproj"]
    assert projector.read_bytes() == (seeing / "projector.data").read_bytes()
    assert (found["path"], found["type_name"], found["size_bytes"]) == (str(projector), "F16", projector.stat().st_size)
    assert found["takes"] == ["images"]
    assert found["run"] == [
        f"llama-mtmd-cli -m {base} --mmproj {projector} --image picture.jpg -p 'What is in this picture?'",
        f"llama-server -m {base} --mmproj {projector}",
    ]
    assert outcome.result["way"] == "native"
    assert sorted(outcome.result["left_out"]) == sorted(TOWER)
    assert outcome.result["left_out_why"] == []
    assert lines(runs) == ["--mmproj --outtype f16"]
    assert sorted(path.name for path in tmp_path.glob("*.gguf")) == ["base.gguf", "mmproj.gguf"]


def test_room_for_the_tower_is_looked_for_before(seeing: Path, tmp_path: Path) -> None:
    """In Q8_0, the least, half of its 16-bit arrays."""
    with Workspace.open(tmp_path / "home") as workspace:
        alone = ConvertStep(model=str(seeing), output=str(tmp_path / "base.gguf"))
        both = dataclasses.replace(alone, mmproj=str(tmp_path / "mmproj.gguf"))
        more = sum(math.prod(shape) for shape in TOWER.values())
        assert sum(n for _, n in both.needs(workspace).disk) == sum(n for _, n in alone.needs(workspace).disk) + more


def test_without_it_the_tower_is_named_with_the_reason(quantailor: Command, seeing: Path, runs: Path, tmp_path: Path) -> None:
    shown = quantailor("convert", seeing, "-o", tmp_path / "base.gguf", "--home", tmp_path / "home").out
    said = f"left out: {len(TOWER)} arrays (multi_modal_projector, vision_tower): they process images or sound"
    assert said in shown
    assert "`--mmproj` makes it" in shown
    assert lines(runs) == []


def test_a_projector_that_is_there_is_not_made_again_and_another_file_not_replaced(
    quantailor: Command, seeing: Path, runs: Path, tmp_path: Path
) -> None:
    base, projector = tmp_path / "base.gguf", tmp_path / "tower.gguf"
    asked = ("convert", seeing, "-o", base, "--mmproj", projector, "--home", tmp_path / "home")
    for _ in range(2):
        assert quantailor(*asked).code == 0
        assert len(lines(runs)) == 1

    assert "exists" in quantailor(*asked, "--mmproj-type", "Q8_0").error_line
    assert quantailor(*asked, "--mmproj-type", "Q8_0", "--force").code == 0
    assert lines(runs)[1:] == ["--mmproj --outtype q8_0"]

    projector.write_bytes(b"somebody's")
    line = quantailor(*asked).error_line
    assert f"{projector} exists. Choose another name, or give --force to replace it" in line
    assert projector.read_bytes() == b"somebody's"
    assert len(lines(runs)) == 2


def test_a_run_that_ends_once_the_projector_has_its_name_goes_on(
    quantailor: Command, seeing: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("convert", seeing, "-o", tmp_path / "base.gguf", "--mmproj", tmp_path / "mmproj.gguf", "--home", tmp_path / "home")
    assert quantailor(*asked[:4], *asked[6:]).code == 0

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files, "sync_folder", killed)
        assert quantailor(*asked).code != 0
    assert (tmp_path / "mmproj.gguf").exists()
    assert quantailor(*asked).code == 0
    assert len(lines(runs)) == 1


def test_a_changed_tower_is_converted_anew(quantailor: Command, seeing: Path, runs: Path, tmp_path: Path) -> None:
    asked = ("convert", seeing, "-o", tmp_path / "base.gguf", "--mmproj", tmp_path / "mmproj.gguf", "--home", tmp_path / "home", "--force")
    assert quantailor(*asked).code == 0
    (seeing / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0]}', encoding="utf-8")
    assert quantailor(*asked).code == 0
    assert len(lines(runs)) == 2


def test_what_cannot_be_done_is_one_line_before_any_work(quantailor: Command, seeing: Path, runs: Path, tmp_path: Path) -> None:
    base, home = tmp_path / "base.gguf", ("--home", tmp_path / "home")
    projector = ("--mmproj", tmp_path / "mmproj.gguf")

    blind = write_tiny("llama2", tmp_path)
    line = quantailor("convert", blind, "-o", base, *projector, *home).error_line
    assert f"{blind} has no vision tower and no audio encoder" in line
    assert "Leave out --mmproj" in line
    line = quantailor("make", blind, "--bpw", 7, "-o", tmp_path / "out", "--mmproj", "f16", *home).error_line
    assert f"{blind} has no vision tower and no audio encoder" in line

    (seeing / "code.py").touch()
    assert "brings code: code.py" in quantailor("convert", seeing, "-o", base, *projector, *home).error_line
    (seeing / "code.py").unlink()

    assert "Give --output and --mmproj different names" in quantailor("convert", seeing, "-o", base, "--mmproj", base, *home).error_line
    outcome = quantailor("convert", seeing, "-o", base, "--mmproj", "f16", *home)
    assert outcome.code == 2
    assert "--mmproj-type" in outcome.err
    assert lines(runs) == []
    assert not base.exists()


def test_a_gguf_file_has_no_tower_to_convert(quantailor: Command, seeing: Path, tmp_path: Path) -> None:
    base, home = tmp_path / "base.gguf", ("--home", tmp_path / "home")
    assert quantailor("convert", seeing, "-o", base, *home).code == 0
    line = quantailor("make", base, "--bpw", 7, "-o", tmp_path / "out", "--mmproj", "bf16", *home).error_line
    assert f"{base} is not a Hugging Face directory, which a projector is made from. Give the directory, or leave out --mmproj" in line


def test_a_tower_that_the_converter_does_not_know_is_refused_before_an_interpreter_is_set_up(
    quantailor: Command, seeing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTAILOR_CONVERT_PYTHON", str(tmp_path / "nowhere"))
    script = tmp_path / "llama.cpp" / "convert_hf_to_gguf.py"
    (script.parent / "conversion").mkdir(parents=True)
    script.write_text('parser.add_argument("--mmproj")', encoding="utf-8")
    listed = 'TEXT_MODEL_MAP: dict[str, str] = {\n    "%s": "gemma",\n}\n\nMMPROJ_MODEL_MAP: dict[str, str] = {\n    "Other": "other",\n}\n'
    (script.parent / "conversion" / "__init__.py").write_text(listed % ARCHITECTURE, encoding="utf-8")
    base = tmp_path / "base.gguf"
    asked = ("convert", seeing, "-o", base, "--converter", script.parent, "--home", tmp_path / "home")

    line = quantailor(*asked, "--mmproj", tmp_path / "mmproj.gguf").error_line
    assert f"{seeing} has a tower of the architecture '{ARCHITECTURE}'" in line
    assert f"for which llama.cpp's converter at {script} makes no projector" in line
    assert "Leave out --mmproj: the text model is made without it" in line
    assert not base.exists()

    script.write_text("", encoding="utf-8")
    line = quantailor(*asked, "--mmproj", tmp_path / "mmproj.gguf").error_line
    assert "makes no projectors: it has no option --mmproj. Give a newer llama.cpp with --converter" in line

    monkeypatch.delenv("QUANTAILOR_CONVERT_PYTHON")
    assert quantailor("convert", seeing, "-o", base, "--home", tmp_path / "home").code == 0


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ("ERROR:hf-to-gguf:Model TailoredVision is not supported", "has a tower of the architecture 'TailoredVision'"),
        ("ValueError: vision_config / audio_config not found in hparams", "has no vision_config and no audio_config"),
        ("KeyError: 'image_mean'", "has no preprocessor_config.json, where llama.cpp's converter at"),
        ("error: unrecognized arguments: --mmproj", "makes no projectors: it has no option --mmproj"),
        ("ValueError: Can not map tensor 'vision_tower.odd.weight'", "has the tensor vision_tower.odd.weight"),
    ],
)
def test_what_the_converter_says_of_a_tower_is_told_in_one_line(says: str, expected: str, quantailor: Command, tmp_path: Path) -> None:
    model = write_vision(tmp_path / "seeing", fails=[says])
    (model / "preprocessor_config.json").unlink()
    line = quantailor(
        "convert", model, "-o", tmp_path / "base.gguf", "--mmproj", tmp_path / "mmproj.gguf", "--home", tmp_path / "home"
    ).error_line
    assert expected in line
    assert not (tmp_path / "mmproj.gguf").exists()


def test_both_halves_go_through_the_converter_where_ours_does_not_take_the_text(
    quantailor: Command, seeing: Path, runs: Path, tmp_path: Path
) -> None:
    home = ("--home", tmp_path / "home")
    assert quantailor("convert", seeing, "-o", tmp_path / "text.gguf", *home).code == 0
    (seeing / "ready.data").write_bytes((tmp_path / "text.gguf").read_bytes())
    asked = ("convert", seeing, "-o", tmp_path / "base.gguf", "--way", "llama.cpp", *home, "--json")
    assert "arrays of a tower: they process images or sound" in quantailor(*asked).result["left_out_why"][0]
    result = quantailor(*asked, "--force", "--mmproj", tmp_path / "mmproj.gguf").result
    assert (result["way"], result["left_out_why"], result["mmproj"]["takes"]) == ("llama.cpp", [], ["images"])
    assert lines(runs) == ["--outtype auto", "--outtype auto", "--mmproj --outtype f16"]


def test_a_configuration_without_its_tower_makes_no_empty_projector(quantailor: Command, seeing: Path, tmp_path: Path) -> None:
    """As llama.cpp's converter writes one: a header alone."""
    (seeing / "projector.data").write_bytes(projector_bytes(tmp_path, width=0))
    line = quantailor(
        "convert", seeing, "-o", tmp_path / "base.gguf", "--mmproj", tmp_path / "mmproj.gguf", "--home", tmp_path / "home"
    ).error_line
    assert f"config.json of {seeing} names a vision tower or an audio encoder, and the directory holds no array of it" in line
    assert not (tmp_path / "mmproj.gguf").exists()


def test_a_file_that_is_no_projector_is_not_kept(quantailor: Command, seeing: Path, tmp_path: Path) -> None:
    asked = ("convert", seeing, "-o", tmp_path / "base.gguf", "--mmproj", tmp_path / "mmproj.gguf", "--home", tmp_path / "home")
    assert quantailor("convert", seeing, "-o", tmp_path / "text.gguf", "--home", tmp_path / "home").code == 0
    (seeing / "projector.data").write_bytes((tmp_path / "text.gguf").read_bytes())
    assert "is not a projector" in quantailor(*asked).error_line
    assert not list(tmp_path.glob("*mmproj*"))


@pytest.mark.slow
def test_make_puts_the_projector_beside_the_file_and_into_the_recipe(
    quantailor: Command, seeing: Path, runs: Path, calibration_text: Path, tmp_path: Path
) -> None:
    text, out, home = tmp_path / "short.txt", tmp_path / "out", ("--home", tmp_path / "home")
    text.write_text(calibration_text.read_text(encoding="utf-8")[:16_000], encoding="utf-8")
    asked = ("make", seeing, "--bpw", 9, "-o", out, *FEW, "--verify-text", text, "--mmproj", "q8_0", *home, "--json")
    for _ in range(2):
        outcome = quantailor(*asked)
        assert outcome.code == 0, outcome.err
        validate(outcome.out)
        found = outcome.result["mmproj"]
        assert found["path"] == str(out / "mmproj-Q8_0.gguf")
        assert found["run"][-1] == f"llama-server -m {outcome.result['build']['paths'][0]} --mmproj {out / 'mmproj-Q8_0.gguf'}"
        assert lines(runs) == ["--mmproj --outtype q8_0"]
    assert (out / "mmproj-Q8_0.gguf").read_bytes() == (seeing / "projector.data").read_bytes()

    again = quantailor("make", "-r", out / "recipe.yaml", "-o", tmp_path / "again", "--threads", 1, *home, "--json")
    assert again.code == 0, again.err
    assert (tmp_path / "again" / "mmproj-Q8_0.gguf").read_bytes() == (out / "mmproj-Q8_0.gguf").read_bytes()

    (out / "mmproj-other.gguf").write_bytes(projector_bytes(tmp_path, width=128))
    file = Path(outcome.result["build"]["paths"][0])
    card = quantailor("card", file, "--base", out / "base.gguf", *home, "--json").result["text"]
    assert "## With images" in card
    assert f"llama-mtmd-cli -m {file.name} --mmproj mmproj-Q8_0.gguf --image picture.jpg" in card
    assert "mmproj-other.gguf" not in card  # made for embeddings of another length


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub hands files to httpx in an older way
def test_a_ladder_has_one_projector_on_its_card_and_publishes_it(
    hub: HubServer, run: Command, seeing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the small hub takes large files the older way
    out = tmp_path / "out"
    few = ("--types", "Q8_0,Q4_0", "--imatrix", "none", "--basis", "ranking", "--no-verify", "--threads", 1)
    outcome = run("make", seeing, "--sizes", "Q8_0,7bpw", "-o", out, *few, "--mmproj", "f16", "--json")
    assert outcome.code == 0, outcome.err
    validate(outcome.out)
    assert outcome.result["mmproj"]["path"] == str(out / "mmproj-F16.gguf")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "[mmproj-F16.gguf](mmproj-F16.gguf)" in card
    assert "pipeline_tag: image-text-to-text" in card
    assert "--mmproj mmproj-F16.gguf --image picture.jpg -p 'What is in this picture?'" in card

    result = run("publish", out, "--repo", "me/model", "--json").result
    assert {file["name"]: file["state"] for file in result["files"]}["mmproj-F16.gguf"] == "new"
    assert hub.repos["me/model"].files["mmproj-F16.gguf"] == (out / "mmproj-F16.gguf").read_bytes()
    assert not any("mmproj" in note for note in result["notes"])

    (tmp_path / "alone").mkdir()
    for name in ("mmproj-F16.gguf", "README.md"):
        shutil.copyfile(out / name, tmp_path / "alone" / name)
    assert "holds no GGUF file to publish" in run("publish", tmp_path / "alone", "--repo", "me/model", "--dry-run").error_line


def test_a_repository_without_a_tower_is_refused_before_its_weights_are_fetched(hub: HubServer, run: Command, tmp_path: Path) -> None:
    blind = write_tiny("llama3", tmp_path)
    hub.add("org/blind", {path.name: path.read_bytes() for path in blind.iterdir()})
    line = run("convert", "org/blind", "-o", tmp_path / "base.gguf", "--mmproj", tmp_path / "mmproj.gguf").error_line
    assert "org/blind has no vision tower and no audio encoder" in line
    assert hub.gets("tokenizer.json") == 0

    hub.add("org/gguf", {"m-BF16.gguf": projector_bytes(tmp_path)})
    line = run("make", "org/gguf", "--bpw", 5, "-o", tmp_path / "out", "--mmproj", "f16").error_line
    assert "org/gguf is used as GGUF, but a projector is made from safetensors" in line


def test_scripts_ask_for_it_in_the_same_way(seeing: Path, tmp_path: Path) -> None:
    with quantailor_library.open_model(seeing, home=tmp_path / "home") as model:
        quantailor_library.convert(model, tmp_path / "base.gguf", mmproj=tmp_path / "mmproj.gguf", mmproj_type="bf16")
    assert (tmp_path / "mmproj.gguf").read_bytes() == (seeing / "projector.data").read_bytes()


def test_a_repository_brings_what_a_projector_takes(hub: HubServer, run: Command, seeing: Path, runs: Path, tmp_path: Path) -> None:
    names = ("config.json", "model.safetensors", "tokenizer.model", "preprocessor_config.json")
    hub.add("org/seeing", {**{name: (seeing / name).read_bytes() for name in names}, "processor_config.json": b"{}"})
    downloaded = run("download", "org/seeing", "--json").result
    assert set(downloaded["files"]) == {*names, "processor_config.json"}

    (Path(downloaded["path"]) / "projector.data").write_bytes((seeing / "projector.data").read_bytes())
    result = run("convert", "org/seeing", "-o", tmp_path / "base.gguf", "--mmproj", tmp_path / "mmproj.gguf", "--json").result
    assert json.loads((Path(downloaded["path"]) / "preprocessor_config.json").read_text(encoding="utf-8"))["image_seq_length"] == 4
    assert result["mmproj"]["path"] == str(tmp_path / "mmproj.gguf")
    assert len(lines(runs)) == 1
