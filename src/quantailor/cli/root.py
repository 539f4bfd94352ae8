"""The command line's root, on which the modules of commands hang theirs."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="quantailor",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Cut a language model to measure: measure what each GGUF type costs in every tensor, choose, build, prove.",
)
