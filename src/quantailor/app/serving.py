"""This machine as a server of llama.cpp's RPC backend: it holds layers of models that others run."""

from __future__ import annotations

from collections.abc import Callable

from quantailor.errors import CrashError, RpcError
from quantailor.ggml.remote import rpc
from quantailor.processes import apart


def serve_layers(host: str, port: int, *, n_threads: int | None, is_trusted: bool, say: Callable[[str], None]) -> None:
    """Serve one client after the other until it is interrupted; `say` is told what is going on.

    Raises:
        OptionError: the host is no address, or others may reach it and `is_trusted` does not say that they may.
        RpcError: the port cannot be had, or the server ended.
        NativeLibraryError: llama.cpp was built without the RPC backend.
    """
    rpc.check_serving(host, port, is_trusted=is_trusted)
    if is_trusted:
        say(f"warning: {rpc.NO_AUTHENTICATION}")
    say(f"Holding layers for clients of {host}:{port}, one at a time. Ctrl-C ends it.")
    try:
        apart.call(rpc.serve, host, port, n_threads)
    except CrashError as error:
        raise RpcError(f"the RPC server ended: {error.reason}", remedy="Start it again") from error
    raise RpcError(f"the RPC server cannot listen on {host}:{port}", remedy="Choose another --port")
