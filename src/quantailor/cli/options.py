"""Arguments and options that several commands share, each defined once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from quantailor.app import steps as options
from quantailor.app.steps import Conversion, Grouping, HubModel
from quantailor.cli.values import optional_path

_PLAINLY_LOCAL = re.compile(r"\.{1,2}(?:[/\\].*)?|~.*|.*[/\\]", re.DOTALL)


def model_path(text: str) -> Path:
    """A model as it was typed. `./a/b`, `~/b` and `a/b/` are paths even where there is nothing: made absolute, they name no repository."""
    if _PLAINLY_LOCAL.fullmatch(text) is None:
        return Path(text)
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:  # ~NAME of somebody who is not here
        return Path(text).absolute()


Home = Annotated[
    Path | None,
    typer.Option("--home", envvar="QUANTAILOR_HOME", help="Where the store, logs and references live.", rich_help_panel="Common"),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document (see docs/JSON.md).", rich_help_panel="Common")]
Detach = Annotated[bool, typer.Option("--detach", help="Run as a background job and return at once.", rich_help_panel="Common")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads; all cores by default.", rich_help_panel="Common")]
GpuLayers = Annotated[int, typer.Option("--gpu-layers", "-ngl", min=0, help="Layers on the GPU, for inference.", rich_help_panel="Common")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.", rich_help_panel="Common")]
Requantize = Annotated[bool, typer.Option("--allow-requantize", help="Accept a source that is already quantized.")]
Imatrix = Annotated[str, typer.Option("--imatrix", help="auto, none, or an imatrix file (GGUF or .dat).")]
AnyImatrix = Annotated[str, typer.Option("--imatrix", help="auto, none, a file (GGUF or .dat), or repo: the one that ORG/NAME ships.")]
MakeImatrix = Annotated[
    str,
    typer.Option("--imatrix", help="compute, auto (an existing one, else computed), none, a file, or repo: the one that ORG/NAME ships."),
]
Types = Annotated[str | None, typer.Option("--types", help="Types, separated by commas; all that ggml can write by default.")]
Context = Annotated[int, typer.Option("--n-ctx", min=32, help="Tokens in a chunk.")]
Base = Annotated[Path, typer.Argument(metavar="BASE", help="A 16-bit GGUF file (the first shard if it has several).")]
Source = Annotated[Path, typer.Argument(metavar="MODEL", help="A GGUF file or a Hugging Face directory.")]
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", parser=model_path, help="A GGUF file, a Hugging Face directory, or ORG/NAME of the hub.")
]
Runnable = Annotated[
    Path,
    typer.Argument(
        metavar="BASE", parser=model_path, help="A 16-bit GGUF file (the first shard if it has several), or ORG/NAME of one on the hub."
    ),
]
Text = Annotated[Path | None, typer.Option("--file", "-f", help="Text to use instead of the one that ships with Quantailor.")]
Chunks = Annotated[int | None, typer.Option("--chunks", min=1, help="Use at most this many chunks of the text.")]
Against = Annotated[str, typer.Option("--against", help="llama.cpp presets to compare with, separated by commas.")]
ProbeChunks = Annotated[int, typer.Option("--probe-chunks", min=1, help="Chunks for probes, at most.")]
Group = Annotated[Grouping, typer.Option("--group", help="Probe every tensor, a role by quarters of the depth, or whole roles.")]

Converter = Annotated[
    Path | None,
    typer.Option(
        "--converter",
        help="llama.cpp's folder or its convert_hf_to_gguf.py; by default LLAMA_CPP_DIR, else that of the installed llama-cpp-python.",
        rich_help_panel="Conversion",
    ),
]
Way = Annotated[
    options.Way,
    typer.Option(
        "--way",
        help="auto (Quantailor's own conversion if it knows the model, else llama.cpp's converter), native, or llama.cpp.",
        rich_help_panel="Conversion",
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Let llama.cpp's converter run Python code that the directory contains.", rich_help_panel="Conversion"
    ),
]


def conversion(converter: Path | None, way: options.Way, trust_remote_code: bool, hub: HubModel | None) -> Conversion:
    """The part of a task that says how a directory is converted. Raises typer.BadParameter where options contradict each other."""
    if way == "native" and (converter is not None or trust_remote_code):
        raise typer.BadParameter("--converter and --trust-remote-code are llama.cpp's converter's, and --way native does without it")
    if hub is not None and trust_remote_code:
        raise typer.BadParameter("code of a repository is not downloaded: fetch it yourself, read it, and give the directory")
    return Conversion(converter=optional_path(converter), way=way, trust_remote_code=trust_remote_code)
