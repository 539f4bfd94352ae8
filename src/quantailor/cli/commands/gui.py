"""The command that serves the GUI."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from quantailor.cli import options
from quantailor.cli.output import console
from quantailor.cli.root import app
from quantailor.errors import QuantailorError


@app.command(epilog="Example: quantailor gui --port 8371")
def gui(
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="0 for any free one; by default 8371, or a free one.")
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; any other than this machine's own needs --token.")
    ] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option("--token", envvar="QUANTAILOR_GUI_TOKEN", help="Token that a browser must present; by default one kept in the home."),
    ] = None,
    allow: Annotated[list[Path] | None, typer.Option("--allow", help="A further folder that file pickers may show.")] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host", metavar="NAME", help="Name of a proxy that browsers go through, such as lab.example or lab.example:8443."
        ),
    ] = None,
    root_path: Annotated[
        str,
        typer.Option(
            "--root-path", metavar="PATH", help="Path below which a proxy serves the GUI, if the proxy does not send it, such as /tools/qt."
        ),
    ] = "",
    native: Annotated[bool, typer.Option("--native", help="Open a window of its own, if possible.")] = False,
    open_browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser, if there is one.")] = True,
    home: options.Home = None,
) -> None:
    """Serve the GUI on this machine, for one user: from a model to a verdict, in a browser tab."""
    if find_spec("nicegui") is None:
        raise QuantailorError("the GUI is not installed", remedy="Install it with: pip install 'quantailor[gui]'")
    from quantailor.gui import ServeOptions, serve

    options_ = ServeOptions(
        home=home,
        host=host,
        port=port,
        token=token,
        allow=tuple(allow or ()),
        allow_hosts=tuple(allow_host or ()),
        root_path=root_path,
        native=native,
        open_browser=open_browser,
    )
    serve(options_, say=lambda line: console().print(line, soft_wrap=True, highlight=False, markup=False))
