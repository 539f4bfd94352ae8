"""The text of a recipe: what a run was told, as YAML whose keys are the command line's options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

import yaml

RECIPE = "recipe.yaml"
MADE = "made"
"""The part of a recipe that tells what was used, for people; it is not read."""
_HEAD = "# Every option of a run of Quantailor. To run it again: quantailor make -r recipe.yaml -o DIRECTORY\n"


def dumps(document: Mapping[str, object]) -> str:
    """The text."""
    return _HEAD + yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True, width=140)


def without_places(text: str) -> str:
    """The same for readers elsewhere: what lies outside of its directory by its name alone."""

    def bare(value: object) -> object:
        return PurePosixPath(value).name if isinstance(value, str) and value.startswith("../") else value

    return dumps({key: bare(value) for key, value in yaml.safe_load(text).items()})
