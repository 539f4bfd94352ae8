"""`make -r recipe.yaml`: a recipe's keys are options of the command; what is typed beside it goes before."""

from __future__ import annotations

import difflib
from pathlib import Path

import typer
import yaml

from quantailor.errors import OptionError
from quantailor.files import expanded, read_bytes
from quantailor.present.recipes import MADE

_PATHS = ("model", "file", "verify-text", "imatrix", "covariances", "converter", "choices")
"""Keys whose values may be paths; they are looked for beside the recipe."""
_LISTS = ("pin", "allow", "min", "max", "tie", "budget", "eval")
_RENAMED = {"text": "file"}


def from_recipe(context: typer.Context, place: Path | None) -> Path | None:
    """Take a recipe's values for the options that are not typed.

    Raises OptionError for a recipe that cannot be read, or a key that is no option.
    """
    if place is None:
        return None
    names = {option.lstrip("-"): each for each in context.command.params for option in (*each.opts, *each.secondary_opts)}
    document = _read(place)
    known = sorted(key for key in names if len(key) > 1 and not key.startswith("no-"))
    defaults: dict[str, object] = {}
    for key, value in document.items():
        name = _RENAMED.get(key, key)
        parameter = names.get(name)
        if parameter is None or name in ("recipe", "r"):
            close = difflib.get_close_matches(str(key), known, n=1)
            remedy = f"Did you mean {close[0]}?" if close else f"Known: {', '.join(known)}"
            raise OptionError(f"{place}: {key} is not an option of make", remedy=remedy)
        if value is not None:
            defaults[parameter.name] = _value(name, value, place)
    context.default_map = defaults
    return place


def _read(place: Path) -> dict[str, object]:
    try:
        document = yaml.safe_load(read_bytes(expanded(place)).decode("utf-8"))
    except OSError as error:
        raise OptionError(f"cannot read the recipe {place}: {error.strerror or error}", remedy="Give the path of a recipe.yaml") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise OptionError(f"the recipe {place} is not YAML: {' '.join(str(error).split())}", remedy="Correct it") from error
    if not isinstance(document, dict):
        raise OptionError(f"the recipe {place} holds no options", remedy="Write for example `sizes: [Q4_K_M, 4.0bpw]`")
    return {str(key): value for key, value in document.items() if key != MADE}


def _value(name: str, value: object, place: Path) -> object:
    """As the option takes it. Raises OptionError for a mapping."""
    if isinstance(value, dict):
        raise OptionError(f"{place}: {name} has parts, but must be one value or a list", remedy=f"Write for example `{name}: [a, b]`")
    if isinstance(value, list):
        texts = [str(each) for each in value]
        return texts if name in _LISTS else ",".join(texts)
    if name in _LISTS:
        return [str(value)]
    if name in _PATHS and (beside := expanded(place).parent / str(value)).exists():
        return str(beside.absolute())
    return value if isinstance(value, bool) else str(value)
