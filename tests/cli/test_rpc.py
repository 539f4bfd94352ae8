"""RPC servers: named wrongly, absent, of another version, silent."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from commands import Command

from gguf_models import write_llama
from quantailor.errors import NativeLibraryError, OptionError, RpcError
from quantailor.ggml import library
from quantailor.ggml.devices import Devices
from quantailor.ggml.remote import rpc
from quantailor.ggml.remote.rpc_silence import Watch

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone tells what a thread waits for")


@contextmanager
def answering(answer: bytes | None) -> Iterator[str]:
    """A made-up server that answers every client so, or is silent; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def serve() -> None:
            while True:
                try:
                    line, _ = listener.accept()
                except OSError:
                    return
                with line:
                    line.recv(64)
                    if answer is None:
                        ended.wait(10)
                    else:
                        line.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def connected() -> Iterator[tuple[str, socket.socket, socket.socket]]:
    """The address of a server, a client's end of a connection to it, and the server's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        with client, server:
            yield f"127.0.0.1:{listener.getsockname()[1]}", client, server


@dataclass
class Clock:
    """One that goes on by 20 seconds whenever a watch has looked."""

    watch: Watch = field(init=False)
    now: float = 0.0

    def look(self) -> None:
        self.watch.look()
        self.now += 20.0

    def look_until(self, is_so: Callable[[], object]) -> float:
        """How many seconds that took."""
        began = self.now
        while not is_so():
            assert self.now - began < 10_000, "it takes too long"
            self.look()
        return self.now - began


def until_it_waits(thread: threading.Thread, line: socket.socket) -> None:
    """Until a thread stands in a system call on a connection."""
    call = Path(f"/proc/self/task/{thread.native_id}/syscall")
    while (words := call.read_text(encoding="ascii").split()) and (len(words) < 2 or int(words[1], 16) != line.fileno()):
        time.sleep(0.01)


def watched(server: str, patience: float) -> Clock:
    clock = Clock()
    clock.watch = Watch([server], patience, lambda: clock.now)
    return clock


def hello(*version: int) -> bytes:
    """What a server of that version of the protocol says first."""
    return struct.pack("<QBBBx24x", 28, *version)


def free_address() -> str:
    """One at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("text", [",", "host", "host:", "host:0", "host:70000", "host:1:2", "[::1]:50052", "a b:50052", "a:1,a:1"])
def test_what_names_no_servers_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"Give HOST:PORT|Name 1 to 16 different servers"):
        rpc.servers_of(text)
    assert rpc.servers_of("gpu-1:50052, 10.0.0.2:50053") == ("gpu-1:50052", "10.0.0.2:50053")


def test_a_server_is_asked_for_its_version() -> None:
    with answering(hello(7, 1, 2)) as server:
        assert rpc.protocol(server, patience_seconds=5) == "7.1.2"
    with answering(None) as server:
        assert rpc.protocol(server, patience_seconds=0.05) is None
    for answer in (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(40)):
        with answering(answer) as server, pytest.raises(RpcError, match=f"{server} does not answer as an RPC server of this llama.cpp"):
            rpc.protocol(server, patience_seconds=5)
    server = free_address()
    with pytest.raises(RpcError, match=rf"the RPC server {server} cannot be reached: Connection refused\. Start it there with `quantailor"):
        rpc.protocol(server, patience_seconds=5)


def test_a_server_that_answers_byte_by_byte_is_not_waited_for_longer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            line, _ = listener.accept()
            with line, contextlib.suppress(ConnectionError):
                for _ in range(1000):
                    line.sendall(b"\0")
                    time.sleep(0.02)

        threading.Thread(target=serve, daemon=True).start()
        assert rpc.protocol(f"127.0.0.1:{listener.getsockname()[1]}", patience_seconds=0.1) is None


@on_linux
def test_a_silent_server_is_given_up_where_somebody_waits_for_it() -> None:
    with connected() as (server, client, _):
        clock, came = watched(server, 600), list[bytes]()
        for _ in range(50):
            clock.look()  # nobody waits
        assert clock.watch.given_up == {}
        waiting = threading.Thread(target=lambda: came.append(client.recv(8)), daemon=True)
        waiting.start()
        until_it_waits(waiting, client)
        assert clock.look_until(lambda: clock.watch.given_up) >= 600
        waiting.join(30)
        assert came == [b""], "whoever waited is told that the connection has ended"
        assert clock.watch.given_up == {server: 600}
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), "a machine that is gone is found by itself"


@on_linux
def test_a_server_that_is_slow_is_given_longer_and_one_that_sends_is_not_silent() -> None:
    with connected() as (server, client, there):
        clock, came = watched(server, 600), list[bytes]()

        def wait_for(n_bytes: int) -> threading.Thread:
            thread = threading.Thread(target=lambda: came.append(client.recv(n_bytes, socket.MSG_WAITALL)), daemon=True)
            thread.start()
            until_it_waits(thread, client)
            return thread

        waiting = wait_for(3)
        for _ in range(3):  # 1,500 seconds, never 600 without a byte
            for _ in range(25):
                clock.look()
            there.sendall(b"a")
        waiting.join(30)
        assert (came, clock.watch.given_up) == ([b"aaa"], {})
        waiting = wait_for(1)
        assert clock.look_until(lambda: clock.watch.given_up) >= 10 * 400
        waiting.join(30)


def test_patience_is_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch, run: Command, tmp_path: Path) -> None:
    monkeypatch.setattr(library.load().llama, "llama_supports_rpc", lambda: True)
    base = write_llama(tmp_path / "tiny.gguf")
    for text in ("long", "0", "nan", "inf"):
        monkeypatch.setenv("QUANTAILOR_RPC_PATIENCE_SECONDS", text)
        line = run("imatrix", base, "-ngl", 99, "--rpc", "127.0.0.1:1").error_line
        assert f"QUANTAILOR_RPC_PATIENCE_SECONDS is '{text}'. Give seconds, 1 or more" in line


@pytest.mark.skipif(not library.load().llama.llama_supports_rpc(), reason="llama-cpp-python was built without GGML_RPC")
def test_a_server_that_never_answers_is_named_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "BUSY_SECONDS", 0.05)
    with answering(None) as server, pytest.raises(RpcError, match=rf"the RPC server {server} does not answer\. It serves one client"):
        rpc.connected(Devices(99, (server,)))


def test_without_the_backend_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.load().llama, "llama_supports_rpc", lambda: False)
    with pytest.raises(NativeLibraryError, match=r'CMAKE_ARGS="-DGGML_RPC=ON" pip install .* llama-cpp-python==\d'):
        rpc.check_devices(Devices(99, ("127.0.0.1:50052",)))


def test_commands_refuse_servers_before_any_work(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.load().llama, "llama_supports_rpc", lambda: True)
    base, server = write_llama(tmp_path / "tiny.gguf"), free_address()
    assert "-ngl 0 puts no layer on a server" in run("imatrix", base, "--rpc", server).error_line
    assert f"the RPC server {server} cannot be reached" in run("probe", base, "-ngl", 99, "--rpc", server).error_line
    with answering(hello(7, 0, 0)) as there:
        line = run("sweep", base, "-ngl", 99, "--rpc", there, "--cluster", "local:2").error_line
    assert "--cluster and --rpc cannot be combined" in line


def test_a_server_listens_beyond_this_machine_only_where_that_is_said(quantailor: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.load().llama, "llama_supports_rpc", lambda: True)
    assert "no authentication" in quantailor("rpc-server", "--host", "10.255.255.1").error_line
    assert "--trusted-network" in quantailor("rpc-server", "--host", "10.255.255.1").error_line
    assert "--host is 'somewhere'" in quantailor("rpc-server", "--host", "somewhere").error_line
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in quantailor("rpc-server", "--port", port).error_line
