"""RPC servers: named wrongly, absent, of another version, lost; and layers on two of them beside the same run here."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import Command

from gguf_models import write_llama
from quantailor.errors import NativeLibraryError, OptionError, RpcError
from quantailor.ggml import library, rpc
from quantailor.ggml.devices import Devices


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
    assert "--cluster and --rpc cannot go together" in line


def test_a_server_listens_beyond_this_machine_only_where_that_is_said(quantailor: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.load().llama, "llama_supports_rpc", lambda: True)
    assert "no authentication" in quantailor("rpc-server", "--host", "10.255.255.1").error_line
    assert "--trusted-network" in quantailor("rpc-server", "--host", "10.255.255.1").error_line
    assert "--host is 'somewhere'" in quantailor("rpc-server", "--host", "somewhere").error_line
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in quantailor("rpc-server", "--port", port).error_line
