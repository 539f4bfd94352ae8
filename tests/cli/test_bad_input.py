"""Bad input: one clear line, exit 1, nothing under the final name, and no measurement lost."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import Command, Workbench

from gguf_models import write_llama
from quantailor.jobs import resolve
from quantailor.models.gguf_writer import GGUFWriter, layout
from quantailor.models.opening import open_model
from quantailor.store import Store
from tiny_models import write_tiny


def cells_in(home: Path) -> int:
    with Store(resolve(home).database) as store:
        return len(store.result_rows()["cells"])


def with_weights(base: Path, output: Path, tensor: str, value: float) -> Path:
    """A copy of a model with one weight of one tensor replaced."""
    source = open_model(base)
    planned = layout(source.metadata, source.tensors)
    with GGUFWriter(output, planned) as writer:
        for info in source.tensors:
            rows = source.raw_rows(info.name, 0, info.n_rows).copy()
            if info.name == tensor:
                bits = np.float32(value).view(np.uint32) >> 16
                rows.reshape(-1).view(np.uint16)[7] = bits
            writer.write(rows)
    source.close()
    return output


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(quantailor: Command, workbench: Workbench, tmp_path: Path, value: float) -> None:
    broken = with_weights(workbench.base, tmp_path / "broken.gguf", "blk.3.ffn_down.weight", value)
    home = tmp_path / "home"
    line = quantailor("measure", broken, "--types", "Q4_K", "--home", home).error_line
    assert "blk.3.ffn_down.weight has 1 weight that is NaN or Inf" in line
    assert cells_in(home) == 0


def test_a_truncated_model_says_where_it_ends(quantailor: Command, workbench: Workbench, tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(workbench.base.read_bytes()[:-1000])
    assert "truncated" in quantailor("measure", short, "--home", tmp_path).error_line


def test_a_quantized_source_is_refused_unless_allowed(quantailor: Command, workbench: Workbench, tmp_path: Path) -> None:
    strategy, quantized = tmp_path / "s.yaml", tmp_path / "q.gguf"
    home = ("--home", workbench.home)
    quantailor("plan", workbench.base, "--bpw", "8", "-o", strategy, *home)
    quantailor("build", workbench.base, strategy, "-o", quantized, *home)
    line = quantailor("measure", quantized, "--types", "Q4_0", "--home", tmp_path).error_line
    assert "loses quality twice" in line
    assert "--allow-requantize" in line
    arguments = ("--types", "Q4_0", "--tensors", "attn_k", "--allow-requantize")
    assert quantailor("measure", quantized, *arguments, "--home", tmp_path).code == 0


def test_a_strategy_for_another_model_is_refused(quantailor: Command, workbench: Workbench, books_moe_base: Path, tmp_path: Path) -> None:
    strategy, output = tmp_path / "s.yaml", tmp_path / "out.gguf"
    quantailor("plan", workbench.base, "--bpw", "5", "--imatrix", "none", "-o", strategy, "--home", workbench.home)
    if not strategy.exists():
        quantailor("plan", workbench.base, "--bpw", "5", "-o", strategy, "--home", workbench.home)
    line = quantailor("build", books_moe_base, strategy, "-o", output, "--imatrix", "none", "--home", workbench.home).error_line
    assert "made for" in line or "does not have" in line
    assert not output.exists()


def test_an_edited_type_that_does_not_exist_is_named(quantailor: Command, workbench: Workbench, tmp_path: Path) -> None:
    strategy, output = tmp_path / "s.yaml", tmp_path / "out.gguf"
    quantailor("plan", workbench.base, "--bpw", "5", "-o", strategy, "--home", workbench.home)
    text = strategy.read_text(encoding="utf-8")
    start = text.index("blk.0.attn_k.weight: {type: ") + len("blk.0.attn_k.weight: {type: ")
    strategy.write_text(text[:start] + "Q9_K" + text[text.index(",", start) :], encoding="utf-8")
    line = quantailor("build", workbench.base, strategy, "-o", output, "--home", workbench.home).error_line
    assert "blk.0.attn_k.weight has the unknown type Q9_K" in line
    assert "line " in line
    assert not output.exists()


def test_an_imatrix_of_another_model_is_refused(quantailor: Command, workbench: Workbench, books_moe_base: Path, tmp_path: Path) -> None:
    export = tmp_path / "imatrix.gguf"
    quantailor("imatrix", workbench.base, "--show", "--export", export, "--home", workbench.home)
    line = quantailor("imatrix", books_moe_base, "--import", export, "--home", tmp_path).error_line
    assert "importance matrix" in line
    line = quantailor("measure", books_moe_base, "--imatrix", export, "--home", tmp_path).error_line
    assert "importance matrix" in line
    assert "there is no importance matrix" in quantailor("imatrix", books_moe_base, "--show", "--home", tmp_path).error_line


@pytest.mark.parametrize(("content", "word"), [(b"", "empty"), (b"\xff\xfe\x00", "UTF-8"), (b"Too short.", "fills no chunk")])
def test_a_text_that_is_no_text_is_refused(quantailor: Command, workbench: Workbench, tmp_path: Path, content: bytes, word: str) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    assert word in quantailor("imatrix", workbench.base, "-f", text, "--home", tmp_path / "home").error_line


@pytest.mark.parametrize(
    "address",
    ["https://huggingface.co/org/name-1.5B", "https://huggingface.co/org/name-1.5B/tree/main", "hf.co/org/name-1.5B", "hf://org/name-1.5B"],
)
@pytest.mark.parametrize("command", [("inspect",), ("measure",), ("convert", "-o", "base.gguf")])
def test_an_address_of_the_hub_is_answered_with_the_name(run: Command, address: str, command: tuple[str, ...]) -> None:
    line = run(command[0], address, *command[1:]).error_line
    assert line.endswith("Give a repository on the hub by its name: org/name-1.5B")


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_a_name_that_is_not_unicode_is_told_by_jobs_too(run: Command, tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base.gguf").rename(tmp_path / os.fsdecode(b"na\xefve.gguf"))
    for words in (("imatrix", base, "--chunks", 1), ("measure", base), ("status", base)):
        line = run(*words).error_line
        assert r"cannot hold a text that is not Unicode: '" in line, line
        assert r"na\udcefve.gguf" in line, line
    assert run("jobs", "--json").result == []


def test_brackets_in_a_path_are_shown_as_they_are(run: Command, tmp_path: Path) -> None:
    """Square brackets mean styles to the library that prints: [red] vanished, and [/b] ended the command in a traceback."""
    folder = tmp_path / "[red]old" / "["
    folder.mkdir(parents=True)
    base, strategy, built = write_llama(folder / "b].gguf"), folder / "s].yaml", folder / "q].gguf"
    for words, shown in (
        (("inspect", base), base),
        (("measure", base, "--types", "Q8_0"), None),
        (("plan", base, "--bpw", 9, "-o", strategy), strategy),
        (("build", base, strategy, "-o", built), built),
        (("convert", base, "-o", folder / "copy].gguf"), folder / "copy].gguf"),
        (("imatrix", base, "--chunks", 1), None),
        (("status", base), None),
        (("models",), "b]"),
        (("jobs",), "b].gguf"),
        (("jobs", "show", 1), "b].gguf"),
        (("diff", base, strategy, "Q8_0"), "s]"),
        (("clean",), None),
    ):
        outcome = run(*words)
        assert outcome.code == 0, (words, outcome.err)
        assert shown is None or str(shown) in outcome.out.replace("\n", ""), words


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
def test_pipes_and_devices_are_refused_and_not_waited_for(run: Command, tmp_path: Path) -> None:
    """`-f <(zcat ...)` is one; whoever opens it waits for a writer, and a text is read twice."""
    base, pipe = write_llama(tmp_path / "base.gguf"), tmp_path / "pipe"
    os.mkfifo(pipe)
    questions, mix = tmp_path / "questions", tmp_path / "mix.yaml"
    questions.symlink_to(pipe)
    mix.write_text("texts: [{file: pipe}]", encoding="utf-8")
    for words in (
        ("imatrix", base, "-f", pipe),
        ("imatrix", base, "-f", mix),
        ("imatrix", base, "--import", pipe),
        ("measure", base, "--imatrix", pipe),
        ("probe", base, "-f", "/dev/zero"),
        ("verify", base, "--base", base, "-f", pipe),
        ("verify", base, "--base", base, "--eval", "choices", "--choices", questions),
        ("plan", base, "--types-of", pipe),
        ("build", base, pipe, "-o", tmp_path / "out.gguf"),
        ("make", base, "--recipe", pipe, "-o", tmp_path / "out"),
    ):
        outcome = run(*words)
        assert "it is a pipe or a device. Save what it gives as a file" in outcome.err, (words, outcome)
    for path in (pipe, "/dev/zero"):
        assert str(path) in run("inspect", path).error_line


def test_a_vocabulary_without_tokens_for_a_text_is_told(run: Command, tmp_path: Path, calibration_text: Path) -> None:
    base = write_llama(tmp_path / "base.gguf", tokens=[f"token{number}" for number in range(256)])
    assert "has no token for anything in calibration.txt" in run("imatrix", base, "-f", calibration_text).error_line


def test_no_command_writes_over_what_it_reads(run: Command, tmp_path: Path) -> None:
    model, text = write_llama(tmp_path / "model.gguf"), tmp_path / "text.txt"
    text.write_text("words", encoding="utf-8")
    before = model.read_bytes()
    (tmp_path / "link.gguf").symlink_to(model)
    commands = (
        ("imatrix", model),
        ("plan", model, "--bpw", 6),
        ("verify", text, "--base", model),
        ("build", model, text, "--imatrix", model),
    )
    for command in commands:
        for output in model, tmp_path / "link.gguf", text if text in command else model:
            line = run(*command, "-o", output, "--force").error_line
            assert f"{output} is the input " in line
            assert "Choose another name" in line
    assert (model.read_bytes(), text.read_text(encoding="utf-8")) == (before, "words")


def test_only_files_are_replaced(run: Command, tmp_path: Path) -> None:
    """A device that is replaced is lost to every program of the machine."""
    model, pipe, loop = write_llama(tmp_path / "model.gguf"), tmp_path / "pipe", tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    for output, words in (pipe, "is a device or a pipe"), (tmp_path, "is a folder"), (loop, "Too many levels of symbolic links"):
        for command in ("imatrix", model), ("plan", model, "--bpw", 9):
            assert words in run(*command, "-o", output, "--force").error_line
    assert pipe.is_fifo()


def test_a_user_that_nobody_is(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = write_llama(tmp_path / "model.gguf")
    assert "~nobody-here/s.yaml" in run("build", model, "~nobody-here/s.yaml", "-o", "~nobody-here/out.gguf").error_line
    assert "~nobody-here/x.gguf" in run("inspect", "~nobody-here/x.gguf").error_line
    assert "~nobody-here" in run("diff", model, "~nobody-here/a.yaml", "Q8_0").error_line


def test_an_output_that_cannot_be_written_is_named(quantailor: Command, workbench: Workbench, tmp_path: Path) -> None:
    strategy = tmp_path / "s.yaml"
    quantailor("plan", workbench.base, "--bpw", "5", "-o", strategy, "--home", workbench.home)
    blocked = tmp_path / "a file"
    blocked.write_text("in the way")
    line = quantailor("build", workbench.base, strategy, "-o", blocked / "out.gguf", "--home", workbench.home).error_line
    assert "cannot write" in line
    assert quantailor("plan", workbench.base, "--bpw", "5", "-o", strategy, "--home", workbench.home).error_line.startswith("error: ")


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_nothing_behind(workbench: Workbench, tmp_path: Path) -> None:
    strategy, output = tmp_path / "s.yaml", tmp_path / "out" / "out.gguf"
    command = [sys.executable, "-m", "quantailor"]
    home = ["--home", str(tmp_path / "home")]
    shutil.copytree(workbench.home, tmp_path / "home")
    subprocess.run([*command, "plan", str(workbench.base), "--bpw", "5", "-o", str(strategy), *home], check=True, capture_output=True)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))

    before = cells_in(tmp_path / "home")
    build = [*command, "build", str(workbench.base), str(strategy), "-o", str(output), *home]
    done = subprocess.run(build, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1
    assert next(line for line in done.stderr.splitlines() if line.startswith("error: ")).startswith("error: cannot write")
    assert list(output.parent.iterdir()) == []
    assert cells_in(tmp_path / "home") == before


NOT_FETCHED = "it is a Git LFS pointer, not the file itself. Run `git lfs pull` there, or download the file"


@pytest.mark.parametrize(
    "words",
    [
        ("measure", "BASE", "--types", "Q8_0", "--imatrix", "IT"),
        ("imatrix", "BASE", "--import", "IT"),
        ("imatrix", "BASE", "-f", "IT", "--chunks", 1, "--n-ctx", 32),
        ("build", "BASE", "IT", "-o", "built.gguf"),
        ("make", "-r", "IT", "-o", "made"),
    ],
)
def test_what_stands_in_place_of_a_file_is_called_what_it_is(
    words: tuple[object, ...], quantailor: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base, place = write_llama(tmp_path / "base.gguf"), tmp_path / "it.yaml"
    named = [{"BASE": base, "IT": place}.get(str(word), word) for word in words]
    place.write_bytes(b"\xef\xbb\xbf" + f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 12345\n".encode())
    assert NOT_FETCHED in quantailor(*named, "--home", tmp_path / "home").error_line
    place.unlink()
    place.symlink_to("/nowhere/it.yaml")
    assert "it is a link to /nowhere/it.yaml, which is not there" in quantailor(*named, "--home", tmp_path / "home").error_line


def test_a_model_that_is_no_file_is_called_what_it_is(quantailor: Command, tmp_path: Path) -> None:
    place = tmp_path / "m.gguf"
    place.symlink_to("/nowhere/m.gguf")
    assert f"{place} is a link to /nowhere/m.gguf, which is not there" in quantailor("inspect", place).error_line
    place.unlink()
    os.mkfifo(place)
    assert f"there is no file {place} (it is a pipe or a device)" in quantailor("inspect", place).error_line


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja", "config.json"])
def test_a_directory_in_place_of_a_model_s_file_is_told(name: str, quantailor: Command, tmp_path: Path) -> None:
    folder = write_tiny("llama3", tmp_path)
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    assert f"{folder / name} is a directory where a file belongs" in quantailor("inspect", folder).error_line
