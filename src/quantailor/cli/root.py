"""The command line's root, and how a command is hung on it.

A parameter whose type is a dataclass stands for a group of options that several commands share: its fields become the command's
options, and the command gets the filled-in group.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import typer

from quantailor.files import refuse_own_input

_REPLACING = ("edit", "refine")
"""Commands whose output may replace the strategy that it comes from."""

app = typer.Typer(
    name="quantailor",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Cut a language model to measure: measure what each GGUF type costs in every tensor, choose, build, prove.",
)

Command = Callable[..., None]


def command(name: str | None = None, *, epilog: str, to: typer.Typer = app) -> Callable[[Command], Command]:
    """Make a function a command of `to`; `epilog` is its example."""

    def hang(function: Command) -> Command:
        to.command(name, epilog=epilog)(with_groups(function))
        return function

    return hang


def _default(item: dataclasses.Field[Any]) -> object:
    return inspect.Parameter.empty if item.default is dataclasses.MISSING else item.default


def with_groups(function: Command) -> Command:
    """The function with its groups of options spread out."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, type[Any]] = {name: hint for name, hint in hints.items() if isinstance(hint, type) and dataclasses.is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        group = groups.get(parameter.name)
        if group is None:
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[parameter.name]))
            continue
        types = get_type_hints(group, include_extras=True)
        parameters += [
            inspect.Parameter(item.name, parameter.KEYWORD_ONLY, default=_default(item), annotation=types[item.name])
            for item in dataclasses.fields(group)
        ]

    def run(**values: Any) -> None:
        listed = {f"{name} {n}": each for name, value in values.items() if isinstance(value, list) for n, each in enumerate(value)}
        given = {name: value for name, value in {**values, **listed}.items() if isinstance(value, Path)}
        given["imatrix"] = Path(values.get("imatrix") or "")
        output = given.pop("output", None)
        if output is not None:
            if function.__name__ in _REPLACING:
                given.pop("strategy")
            refuse_own_input(output, given.values())
        for name, group in groups.items():
            values[name] = group(**{item.name: values.pop(item.name) for item in dataclasses.fields(group)})
        function(**values)

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__dict__["__signature__"] = inspect.Signature(parameters)
    return run
