"""Layers on two RPC servers: what is found is what one process finds; and what happens where a server dies or falls silent."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from real_workers import PATIENCE_S, Words, free_port, result, start, wait_until

from quantailor.ggml import library
from quantailor.store import Store
from small_base import write_small_base

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not library.load().llama.llama_supports_rpc(), reason="llama-cpp-python was built without GGML_RPC"),
]

TYPES = "Q2_K,Q4_K,Q8_0"
ON: Words = ("--n-ctx", 64, "--threads", 1)
REPACKED = 2e-3
"""llama.cpp repacks weights of some types of files that it loads on this processor, and none on servers: sums are added in another order,
so that now and then an input of the next product is rounded to another code."""


@pytest.fixture(scope="session")
def base(share: Callable[..., Path]) -> Path:
    return share("servers-base", lambda folder: write_small_base(folder / "base.gguf")) / "base.gguf"


@pytest.fixture(scope="session")
def text(share: Callable[..., Path], calibration_text: Path) -> Path:
    short = calibration_text.read_text(encoding="utf-8")[:6_000]
    return share("servers-text", lambda folder: (folder / "short.txt").write_text(short, encoding="utf-8")) / "short.txt"


@pytest.fixture(scope="session")
def swept_homes(base: Path, text: Path, share: Callable[..., Path]) -> Path:
    """`measured`, a home in which weight errors are measured, to copy; and `alone`, that of a sweep that one process made."""

    def make(folder: Path) -> None:
        result(start(folder / "measured", "measure", base, "--types", TYPES, "--threads", 1))
        result(start(shutil.copytree(folder / "measured", folder / "alone"), *swept(base, text)))

    return share("servers-swept", make)


def swept(base: Path, text: Path) -> Words:
    return ("sweep", base, "-f", text, "--n-ctx", 64, "--types", TYPES, "--chunks", 12, "--threads", 1)


@contextmanager
def server(port: int) -> Iterator[subprocess.Popen[str]]:
    """One on this machine; its processes end with it."""
    words = (sys.executable, "-m", "quantailor", "rpc-server", "--port", str(port), "--threads", "1")
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "Holding layers for clients" in process.stderr.readline()
            yield process
        finally:
            serving = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            for each in serving:  # one that was stopped does not see that
                with suppress(psutil.NoSuchProcess):
                    each.kill()


def scores(home: Path, kernels: str) -> list[tuple[object, ...]]:
    """(mix, chunk, figures...) of mixes "as built" in memory, or of those built as a "file"."""
    with Store(home / "quantailor.db") as store:
        rows = store.result_rows()
    runs = {run for run, *key in rows["swap_runs"] if kernels in key}
    return sorted(row[1:] for row in rows["mix_scores"] if row[0] in runs)


@pytest.mark.long
def test_what_two_servers_find_is_what_one_process_finds(base: Path, text: Path, tmp_path: Path) -> None:
    ports, klds = (free_port(), free_port()), {}
    with server(ports[0]), server(ports[1]):
        for name, layers in (("here", ()), ("there", ("-ngl", 99, "--rpc", ",".join(f"127.0.0.1:{port}" for port in ports)))):
            home: Path = tmp_path / name
            on: Words = ("-f", text, *ON, *layers)
            result(start(home, "calibrate", base, "--chunks", 4, *on))
            result(start(home, "measure", base, "--types", TYPES, "--threads", 1))  # or probing begins with that of every type
            result(start(home, "probe", base, "--types", TYPES, "--chunks", 2, "--mixes", 3, "--anchors", 2, "--mix-chunks", 2, *on))
            found = result(start(home, "verify", base, "--base", base, "--against", "Q4_K_M", "--chunks", 2, "-o", home / "verdict", *on))
            klds[name] = [row["statistics"]["kld_mean"]["value"] for row in found["verdict"]["rows"]]
    here, there = tmp_path / "here", tmp_path / "there"
    for pattern in ("imatrices/*", "covariances/*"):
        ours, theirs = (sorted(home.glob(pattern)) for home in (here, there))
        assert [path.name for path in ours] == [path.name for path in theirs] != [], pattern
        assert all(one.read_bytes() == two.read_bytes() for one, two in zip(ours, theirs, strict=True)), pattern
    assert scores(here, "as built") == scores(there, "as built") != []
    assert klds["here"] == pytest.approx(klds["there"], rel=REPACKED, abs=1e-7)


def kill(server: subprocess.Popen[str]) -> None:
    server.send_signal(signal.SIGKILL)


def stop(server: subprocess.Popen[str]) -> None:
    """It goes on holding its connections, and never answers again."""
    for each in psutil.Process(server.pid).children(recursive=True):
        each.suspend()


@pytest.mark.long
@pytest.mark.parametrize(("fail", "words"), [(kill, "was lost"), (stop, "gave no sign of life for 15 seconds")])
def test_a_server_that_fails_is_named_and_the_job_goes_on(
    fail: Callable[[subprocess.Popen[str]], None],
    words: str,
    base: Path,
    text: Path,
    swept_homes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QUANTAILOR_RPC_PATIENCE_SECONDS", "15")
    home, ports = shutil.copytree(swept_homes / "measured", tmp_path / "home"), (free_port(), free_port())
    layers: Words = ("-ngl", 99, "--rpc", ",".join(f"127.0.0.1:{port}" for port in ports))
    with server(ports[0]):
        with server(ports[1]) as second:
            command = start(home, *swept(base, text), *layers)
            wait_until(lambda: len(scores(home, "as built")) >= 20 or command.poll() is not None)
            fail(second)
            out, _ = command.communicate(timeout=PATIENCE_S)
        assert f"the RPC server 127.0.0.1:{ports[1]} {words}" in out, out
        before = scores(home, "as built")
        assert before
        with server(ports[1]):
            result(start(home, "jobs", "resume", 2))
    after = scores(home, "as built")
    assert len(before) < len(after)
    assert all(row in after for row in before)
    assert after == scores(swept_homes / "alone", "as built")
