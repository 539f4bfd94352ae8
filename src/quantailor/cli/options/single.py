"""Arguments and options, each defined once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from quantailor.app import steps as options
from quantailor.app.steps import Grouping, Rest
from quantailor.files import expanded

_PLAINLY_LOCAL = re.compile(r"\.{1,2}(?:[/\\].*)?|~.*|.*[/\\]", re.DOTALL)


def model_path(text: str) -> Path:
    """A model as it was typed. `./a/b`, `~/b` and `a/b/` are paths even where there is nothing: made absolute, they name no repository."""
    if _PLAINLY_LOCAL.fullmatch(text) is None:
        return Path(text)
    return expanded(text).absolute()


def number(of: str, *names: str, help: str, panel: str | None = None, least: float | None = None) -> Any:
    """A numeric option with the range that the field of the steps has, or one that begins at `least`."""
    low, high = options.RANGES[of]
    return typer.Option(*names, min=low if least is None else least, max=high, help=help, rich_help_panel=panel)


Home = Annotated[
    Path | None,
    typer.Option("--home", envvar="QUANTAILOR_HOME", help="Directory of the store, logs and references.", rich_help_panel="Common"),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document (see docs/JSON.md).", rich_help_panel="Common")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.", rich_help_panel="Common")]
Requantize = Annotated[bool, typer.Option("--allow-requantize", help="Accept a source that is already quantized.")]
Imatrix = Annotated[str, typer.Option("--imatrix", help="auto, none, or an imatrix file (GGUF or .dat).")]
AnyImatrix = Annotated[str, typer.Option("--imatrix", help="auto, none, a file (GGUF or .dat), or repo: the one that ORG/NAME ships.")]
Rounding = Annotated[
    options.RoundingWish,
    typer.Option(
        "--rounding",
        help="plain (as ggml rounds), compensated (errors within a row cancel), or auto (what has been measured decides).",
    ),
]
Covariances = Annotated[
    str, typer.Option("--covariances", help="Input covariances for compensated rounding: auto (the newest of the model), none, or a file.")
]
MakeRounding = Annotated[
    options.RoundingWish,
    typer.Option(
        "--rounding",
        help="plain (as ggml rounds), compensated (errors within a row cancel), or auto: compensated where a text runs through the model.",
    ),
]
MakeCovariances = Annotated[
    str,
    typer.Option(
        "--covariances", help="Input covariances for compensated rounding: auto (computed where there are none), none, or a file."
    ),
]
MakeImatrix = Annotated[
    str,
    typer.Option("--imatrix", help="compute, auto (an existing one, else computed), none, a file, or repo: the one that ORG/NAME ships."),
]
Evidence = Annotated[
    str | None, typer.Option("--evidence", help="The probes to use, as `status` names them; by default those that cover most.")
]
Types = Annotated[str | None, typer.Option("--types", help="Types, separated by commas; all that ggml can write by default.")]
UsualTypes = Annotated[
    str | None,
    typer.Option("--types", help="Types, separated by commas; by default those that a plan uses by itself, and any that limits name."),
]
Context = Annotated[int, number("n_ctx", "--n-ctx", help="Tokens in a chunk.")]
Base = Annotated[Path, typer.Argument(metavar="BASE", help="A 16-bit GGUF file (the first shard if it has several).")]
Strategy = Annotated[Path, typer.Argument(metavar="STRATEGY", help="A strategy file (YAML or JSON), or a GGUF file that carries one.")]
Tensors = Annotated[str | None, typer.Option("--tensors", help="Only tensors that match these patterns, e.g. 'blk.0.*'.")]
ProcessOutput = Annotated[bool, typer.Option("--process-output", help="Include output.weight, for the quantizer.")]
Source = Annotated[Path, typer.Argument(metavar="MODEL", help="A GGUF file or a Hugging Face directory.")]
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", parser=model_path, help="A GGUF file, a Hugging Face directory, or ORG/NAME on the hub.")
]
Runnable = Annotated[
    Path,
    typer.Argument(
        metavar="BASE", parser=model_path, help="A 16-bit GGUF file (the first shard if it has several), or ORG/NAME of one on the hub."
    ),
]
TEXT_KINDS = "plain, conversations (.jsonl), or a mix that names several (.yaml)"
Text = Annotated[
    Path | None, typer.Option("--file", "-f", help=f"Text to use instead of the one that ships with Quantailor: {TEXT_KINDS}.")
]
Chunks = Annotated[int | None, number("chunks", "--chunks", help="Use at most this many chunks of the text.")]
Against = Annotated[
    str | None,
    typer.Option(
        "--against",
        help="llama.cpp presets to compare with, separated by commas; by default those around the file's size, and that of --like.",
    ),
]
Beside = Annotated[
    Literal["plain"] | None,
    typer.Option("--beside", help="plain: also compare a file of compensated rounding with the same types rounded plainly."),
]
EvalNames = Annotated[
    list[str] | None,
    typer.Option(
        "--eval",
        help="Also evaluate: greedy (for how long the files write what the base writes), choices (multiple choice), or none.",
        rich_help_panel="Evaluations",
    ),
]
Prompts = Annotated[int, number("prompts", "--prompts", help="Number of prompts for greedy, at most.", panel="Evaluations")]
ChoicesFile = Annotated[
    Path | None,
    typer.Option(
        "--choices",
        help="Questions for choices instead of those that ship: .jsonl lines with question, choices and answer, or what "
        "llama-perplexity reads for multiple choice, HellaSwag (.txt) or Winogrande (.csv).",
        rich_help_panel="Evaluations",
    ),
]
Time = Annotated[
    str | None,
    typer.Option(
        "--time",
        help="Measure as well as possible in this time, for example 30m or 2h: probing ends then, and everything counts. In `make` it "
        "covers measuring, importance matrix and weight errors included; planning, building and the verdict come after it.",
    ),
]
Passes = Annotated[
    int | None,
    number("passes", "--passes", help="The same with this many passes: chunks run through the model with something quantized."),
]
RestOption = Annotated[
    Rest,
    typer.Option(
        "--rest",
        help="Precision of the base while it is probed: 16 (bits, as stored) or q8_0, which takes half the memory; types of many bits "
        "then count as expected, and no KL divergence is predicted.",
    ),
]
ProbeChunks = Annotated[int, number("probe_chunks", "--probe-chunks", help="Chunks for probes, at most.")]
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
ProjectorFile = Annotated[
    Path | None,
    typer.Option(
        "--mmproj",
        help="Also write the vision tower or audio encoder, as a file for llama.cpp's own --mmproj, through llama.cpp's converter.",
        rich_help_panel="Conversion",
    ),
]
ProjectorFileType = Annotated[
    options.ProjectorType,
    typer.Option("--mmproj-type", case_sensitive=False, help="What the file of --mmproj is stored in.", rich_help_panel="Conversion"),
]
ProjectorWish = Annotated[
    options.ProjectorWish,
    typer.Option(
        "--mmproj",
        case_sensitive=False,
        help="Also write the vision tower or audio encoder in that type, as mmproj-TYPE.gguf, through llama.cpp's converter.",
        rich_help_panel="Conversion",
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Let llama.cpp's converter run Python code that the directory contains.", rich_help_panel="Conversion"
    ),
]


GpuLayers = Annotated[
    int, number("n_gpu_layers", "--gpu-layers", "-ngl", help="Layers on the GPU or on RPC servers, for inference.", panel="Common")
]
RpcServers = Annotated[
    str | None,
    typer.Option(
        "--rpc",
        metavar="HOST:PORT,...",
        help="llama.cpp's RPC servers that hold the layers of -ngl together with the GPU. They have no authentication.",
        rich_help_panel="Cluster",
    ),
]
ThreadCount = Annotated[int | None, number("n_threads", "--threads", help="Threads; all cores by default.", panel="Common")]
