"""llama.cpp's converter as a process: progress, stopping, its failures as errors, and what it may not do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from foreign_models import SCRIPT, write_foreign
from gguf_files import joined
from vision_models import write_vision

from quantailor.control import Control, NullControl
from quantailor.errors import (
    AlreadyQuantizedError,
    ConverterError,
    ModelError,
    ModelFormatError,
    OutputError,
    Paused,
    QuantailorError,
    ResourceError,
    UnsupportedModelError,
)
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.upstream import Converter, checkpoint_digest, convert_directory, product

CONVERTER = Converter(SCRIPT, "llama.cpp's converter 1.2.3")
PATIENCE_S = 30.0


def convert(folder: Path, output: Path, *, control: Control | None = None, trust_remote_code: bool = False) -> Path:
    return convert_directory(
        folder,
        output,
        converter=CONVERTER,
        python=Path(sys.executable),
        log=output.parent / "logs" / "convert.log",
        control=control or NullControl(),
        trust_remote_code=trust_remote_code,
    )


class Watched:
    """A control that remembers, and pauses once so many bytes are written."""

    def __init__(self, pause_at: float = float("inf")) -> None:
        self.told: list[tuple[float, float, str]] = []
        self._pause_at = pause_at

    def check(self) -> None:
        if self.told and self.told[-1][0] >= self._pause_at:
            raise Paused("enough")

    def advance(self, done: float, total: float, message: str = "") -> None:
        self.told.append((done, total, message))


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_base_appears_whole_and_nothing_else(tmp_path: Path) -> None:
    folder, watched = write_foreign(tmp_path / "model"), Watched()

    output = convert(folder, tmp_path / "out" / "base{1}.gguf", control=watched)

    assert output.read_bytes() == (folder / "ready.data").read_bytes()
    assert sorted(path.name for path in output.parent.rglob("*")) == ["base{1}.gguf", "logs"]
    assert (0, 1, "Loading model: model") in watched.told
    written = [done for done, total, _ in watched.told if total == 200e6]
    assert written == sorted(written)
    assert watched.told[-1][:2] == (200e6, 200e6)


TRACEBACK = ["Traceback (most recent call last):", '  File "/x/conversion/base.py", line 1953, in get_vocab_base_pre']
FAILURES: dict[str, tuple[list[str], type[QuantailorError], str]] = {
    "architecture": (
        ["ERROR:hf-to-gguf:Model TailoredForCausalLM is not supported"],
        UnsupportedModelError,
        "architecture 'TailoredForCausalLM', which llama.cpp's converter 1.2.3 does not know either",
    ),
    "pre-tokenizer": (
        [*TRACEBACK, "NotImplementedError: BPE pre-tokenizer was not recognized - update get_vocab_base_pre()"],
        UnsupportedModelError,
        "whose pre-tokenizer",
    ),
    "package": (
        [*TRACEBACK, "ModuleNotFoundError: No module named 'tiktoken'"],
        ConverterError,
        "pip install 'quantailor[convert]' tiktoken",
    ),
    "library": (
        [
            *TRACEBACK,
            "ImportError: This modeling file requires the following packages: einops. Run `pip install einops`",
        ],
        ConverterError,
        "the Python package 'einops'",
    ),
    "tokenizer file": ([*TRACEBACK, "FileNotFoundError: File not found: /x/model/tokenizer.model"], ModelError, "needs: tokenizer.model"),
    "tokenizer": ([*TRACEBACK, "OSError: Can't load tokenizer for '/x/model'. If you were trying"], ModelError, "needs: tokenizer"),
    "memory": ([*TRACEBACK, "MemoryError"], ResourceError, "more memory"),
    "torch's memory": (
        [*TRACEBACK, "RuntimeError: [enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"],
        ResourceError,
        "more memory",
    ),
    "disk": ([*TRACEBACK, "OSError: [Errno 28] No space left on device"], OutputError, "the disk is full"),
    "tensor": ([*TRACEBACK, "ValueError: Can not map tensor 'model.extra.weight'"], UnsupportedModelError, "the tensor model.extra.weight"),
    "anything": ([*TRACEBACK, "ValueError: 3 is too many"], ConverterError, "ValueError: 3 is too many"),
    "a bare assertion": (
        [*TRACEBACK, "    assert max(ids) < vocab_size", "           ^^^^^^^^^^", "AssertionError"],
        ConverterError,
        "AssertionError at assert max(ids) < vocab_size",
    ),
    "a million digits": ([f"5%|| {'1' * 1_000_000}/3 [byte/s", "ValueError: too many"], ConverterError, "ValueError: too many"),
    "no figures": (["5%|| 1..2/3 [byte/s", "ValueError: no figures"], ConverterError, "ValueError: no figures"),
    "no reason": ([], ConverterError, "cannot convert"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures_are_one_line_that_names_the_thing(name: str, tmp_path: Path) -> None:
    lines, kind, told = FAILURES[name]
    folder = write_foreign(tmp_path / "model", fails=[*lines, ""])

    with pytest.raises(kind) as caught:
        convert(folder, tmp_path / "out" / "base.gguf")

    assert type(caught.value) is kind
    assert told in str(caught.value)
    assert str(folder) in str(caught.value) or kind is OutputError
    assert "\n" not in str(caught.value)
    log = tmp_path / "out" / "logs" / "convert.log"
    assert all(line[:500] in log.read_text(encoding="utf-8") for line in lines)
    assert name == "architecture" or str(log) in str(caught.value)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["logs"]


@pytest.mark.skipif(os.name == "nt", reason="no such signal")
def test_a_converter_that_the_system_kills_lacked_memory(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    folder = write_foreign(tmp_path / "model", slow=30, pid=str(pid))

    class Killer(Watched):
        def advance(self, done: float, total: float, message: str = "") -> None:
            os.kill(int(pid.read_text(encoding="utf-8")), signal.SIGKILL)

    with pytest.raises(ResourceError, match="more memory"):
        convert(folder, tmp_path / "out" / "base.gguf", control=Killer())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["logs"]


def test_a_python_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    folder, log = write_foreign(tmp_path / "model"), tmp_path / "convert.log"
    with pytest.raises(ConverterError, match=r"cannot run .*config\.json.*QUANTAILOR_CONVERT_PYTHON"):
        convert_directory(folder, tmp_path / "b.gguf", converter=CONVERTER, python=folder / "config.json", log=log, control=NullControl())


@pytest.mark.parametrize("name", ["mmproj.gguf", "tower.gguf"])
def test_a_projector_appears_whole_or_not_at_all(name: str, tmp_path: Path) -> None:
    output, log = tmp_path / "out" / name, tmp_path / "convert.log"
    settings: Any = {"converter": CONVERTER, "python": Path(sys.executable), "log": log, "product": product("f16")}
    stopped = write_vision(tmp_path / "slow", slow=0.05)
    with pytest.raises(Paused):
        convert_directory(stopped, output, control=Watched(pause_at=50e6), **settings)
    assert list(output.parent.iterdir()) == []

    folder = write_vision(tmp_path / "model")
    assert convert_directory(folder, output, control=NullControl(), **settings).read_bytes() == (folder / "projector.data").read_bytes()
    assert [path.name for path in output.parent.iterdir()] == [name]


def test_what_is_no_model_or_quantized_does_not_get_the_name(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"the file that llama\.cpp's converter 1\.2\.3 wrote for"):
        convert(write_foreign(tmp_path / "broken", ready=joined()[:200]), tmp_path / "out" / "a.gguf")
    with pytest.raises(AlreadyQuantizedError, match="is quantized, though"):
        convert(write_foreign(tmp_path / "quantized", ready=joined()), tmp_path / "out" / "b.gguf")

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["logs"]


def test_a_checkpoint_that_is_quantized_may_stay_so(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path / "model", ready=joined())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}), encoding="utf-8")

    GGUFSource(convert(folder, tmp_path / "base.gguf")).close()


def test_it_sees_no_secret_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "environment.json"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MY_API_KEY", "DB_PASSWORD"):
        monkeypatch.setenv(name, "hf_secret_of_the_test")
    monkeypatch.setenv("HARMLESS", "kept")

    convert(write_foreign(tmp_path / "model", environment=str(seen)), tmp_path / "base.gguf")

    assert "hf_secret_of_the_test" not in seen.read_text(encoding="utf-8")
    found = json.loads(seen.read_text(encoding="utf-8"))
    assert (found["HF_HUB_OFFLINE"], found["TRANSFORMERS_OFFLINE"], found["HARMLESS"]) == ("1", "1", "kept")
    assert not Path(found["HF_MODULES_CACHE"]).exists()


def test_pausing_kills_it_and_leaves_nothing(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    folder = write_foreign(tmp_path / "model", slow=0.5, pid=str(pid))

    with pytest.raises(Paused):
        convert(folder, tmp_path / "out" / "base.gguf", control=Watched(pause_at=20e6))

    assert not psutil.pid_exists(int(pid.read_text(encoding="utf-8")))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["logs"]


def test_it_does_not_outlive_whoever_started_it(tmp_path: Path) -> None:
    pid, output = tmp_path / "pid", tmp_path / "out" / "base.gguf"
    folder = write_foreign(tmp_path / "model", slow=0.5, pid=str(pid))
    code = f"""
import sys; sys.path[:0] = {sys.path!r}
from pathlib import Path
from typing import Any
from test_upstream_converting import convert
convert(Path({str(folder)!r}), Path({str(output)!r}))"""
    starter = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: any(path.suffix == ".part" and path.stat().st_size > 0 for path in output.parent.glob(".*")))
    converter = psutil.Process(int(pid.read_text(encoding="utf-8")))

    starter.kill()
    starter.wait()

    wait_until(lambda: not converter.is_running() or converter.status() == psutil.STATUS_ZOMBIE)
    assert [path.name for path in output.parent.iterdir()] == ["logs"]


# Code


def _bring_module(folder: Path) -> None:
    (folder / "tokenization_tailored.py").write_text("raise SystemExit", encoding="utf-8")


def _name_code(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["x.Y", null]}}', encoding="utf-8")


def _name_code_within(folder: Path) -> None:
    (folder / "config.json").write_text('{"text_config": [{"\\u0061uto_map": {"AutoConfig": "some/where--x.Y"}}]}', encoding="utf-8")


@pytest.mark.parametrize("bring", [_bring_module, _name_code, _name_code_within])
def test_a_directory_that_brings_code_is_refused_unless_trusted(bring: Callable[[Path], None], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    folder = write_foreign(tmp_path / "model", runs=str(runs))
    bring(folder)

    with pytest.raises(UnsupportedModelError, match="--trust-remote-code"):
        convert(folder, tmp_path / "base.gguf")
    assert not runs.exists()

    assert convert(folder, tmp_path / "base.gguf", trust_remote_code=True).is_file()


def test_damaged_json_is_told_before_anything_runs(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path / "model")
    (folder / "generation_config.json").write_text('{"a": ', encoding="utf-8")

    with pytest.raises(ModelFormatError, match=r"generation_config\.json"):
        convert(folder, tmp_path / "base.gguf")


# The digest


def test_the_digest_changes_with_what_a_conversion_depends_on(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path / "model")
    digests = [checkpoint_digest(folder)]
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())

    (folder / "README.md").write_text("no part of it", encoding="utf-8")
    assert checkpoint_digest(folder) == digests[0]

    data[-2000] ^= 1
    weights.write_bytes(data)
    digests.append(checkpoint_digest(folder))
    (folder / "merges.txt").write_text("a b", encoding="utf-8")
    digests.append(checkpoint_digest(folder))
    weights.rename(folder / "model-00001-of-00001.safetensors")
    digests.append(checkpoint_digest(folder))
    assert len(set(digests)) == len(digests)
