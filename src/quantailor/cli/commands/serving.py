"""The command that lets other machines put layers on this one."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from quantailor.app.serving import serve_layers
from quantailor.cli import options
from quantailor.cli.output import console
from quantailor.cli.root import app


@app.command(epilog="Example: quantailor rpc-server --host 10.0.0.2 --trusted-network")
def rpc_server(
    host: Annotated[
        str, typer.Option("--host", help="IPv4 address to listen on; one that others can reach needs --trusted-network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 50052,
    trusted_network: Annotated[
        bool, typer.Option("--trusted-network", help="Let anyone who can reach the address use it: there is no authentication.")
    ] = False,
    threads: options.ThreadCount = None,
) -> None:
    """Hold layers of models that other machines run with --rpc, on this one's GPUs, or else on its processor."""
    with contextlib.suppress(KeyboardInterrupt):
        serve_layers(
            host,
            port,
            n_threads=threads,
            is_trusted=trusted_network,
            say=lambda line: console(stderr=True).print(line, markup=False, soft_wrap=True),
        )
