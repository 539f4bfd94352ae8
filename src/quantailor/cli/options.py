"""Options that several commands share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[
    Path | None,
    typer.Option("--home", envvar="QUANTAILOR_HOME", help="Where the store, logs and references live.", rich_help_panel="Common"),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document (see docs/JSON.md).", rich_help_panel="Common")]
Detach = Annotated[bool, typer.Option("--detach", help="Run as a background job and return at once.", rich_help_panel="Common")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads; all cores by default.", rich_help_panel="Common")]
GpuLayers = Annotated[int, typer.Option("--gpu-layers", "-ngl", min=0, help="Layers on the GPU, for inference.", rich_help_panel="Common")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.", rich_help_panel="Common")]
Requantize = Annotated[bool, typer.Option("--allow-requantize", help="Accept a source that is quantized already.")]
Imatrix = Annotated[str, typer.Option("--imatrix", help="auto, none, or an imatrix file (GGUF or .dat).")]
Types = Annotated[str | None, typer.Option("--types", help="Types, separated by commas; all that ggml can write by default.")]
Context = Annotated[int, typer.Option("--n-ctx", min=32, help="Tokens in a chunk.")]
