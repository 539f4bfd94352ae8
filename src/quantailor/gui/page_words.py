"""Advice that is written for a terminal, in the words of a page: where to click instead of what to type."""

from __future__ import annotations

import re

_DOING = r"`quantailor (?:measure|probe|calibrate|imatrix|study)\b[^`]*`"
_RULES = (
    (rf"Run {_DOING}(?: first| there)?", "The Measure screen does that"),
    (rf"Compute (one|them)( again| for this model)? with {_DOING}", r"Compute \1\2 on the Measure screen"),
    (r"Run `quantailor convert\b[^`]*` first and give base\.gguf", "Convert it on the Model screen first"),
    (r"`(?:quantailor )?inspect\b[^`]*` lists", "The Structure screen lists"),
    (r"(?:See|Check the (?:model|file) with) `(?:quantailor )?inspect`", "See the Structure screen"),
    (r"See `quantailor models`", "The Projects screen lists the known ones"),
    (r"Make one with `quantailor verify[^`]*`", "Make one on the Verify screen"),
    (r"Begin anew: `quantailor jobs cancel \d+`, then the same command", "Cancel it in the dock below, and begin anew"),
    (r"the same command (then )?goes on where it stopped", r"Try again \1goes on where it stopped"),
    (r"then run the same command again", "then press Resume"),
    (r"--rpc with -ngl 0 puts no layer on a server", "With 0 GPU layers no layer is on an RPC server"),
    (r"Add -ngl 99 for all layers, or how many", "Give 99 GPU layers for all, or how many"),
    (r"--cluster and --rpc cannot be combined", "A cluster and RPC servers cannot be combined"),
    (r"--rpc is (?=')", "The list of RPC servers is "),
    (r"--cluster (?='\S*' names no cluster)", ""),
    (r"--cluster-path (?='.*' does not name two folders)", ""),
    (r"say where workers have it \(--cluster-path HERE=THERE\)", "say where workers have it"),
    (r"`quantailor jobs resume \d+` goes on where it stopped", "Resume goes on where it stopped"),
    (r"Stop it first: `quantailor jobs cancel \d+`", "Cancel it first in the dock below"),
    (r"(?:Follow it with )?`quantailor jobs [^`]*`(?: shows all jobs| says more)?", "See the dock below"),
    (r"Give (a|the YAML or JSON) file that `plan` wrote", "Give a strategy file, as Choose saves it"),
    (r"let `plan` write the file", "let Choose save the file"),
    (r", or give --force to replace it", ", or tick the box to replace it"),
    (r", or give --allow-requantize", ", or tick the box on Measure to go on anyway"),
    (r"Choose (one|another) with --gguf-file", r"Choose \1 in the list of its files"),
    (r", or name the file with --gguf-file to take it anyway", ", or choose the file in the list to take it anyway"),
    (r"do without a verdict \(--no-verify\)", "do without a verdict"),
    (
        r"(probe it at 8 bits \(--rest q8_0\), )?put layers on other machines \(--rpc\), or plan without probes \(--basis ranking\)",
        "plan without probes",
    ),
    (r", or plan without probes \(--basis ranking\)", ""),
    (r", or --import a file|, or name their file with --covariances", ", or take a file there"),
    (r"(?<!\S)--(pin|allow|min|max|tie|budget|set)\b", r"\1"),
)
_COMPILED = tuple((re.compile(pattern), words) for pattern, words in _RULES)


def on_page(advice: str) -> str:
    """An error's message or remedy without the words of the command line, as far as a page has words of its own."""
    for pattern, words in _COMPILED:
        advice = pattern.sub(words, advice)
    return advice
