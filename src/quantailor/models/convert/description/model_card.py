"""The head of a model card: YAML that anybody may have written, read so that nothing in it can do more than be refused."""

from __future__ import annotations

from pathlib import Path

import yaml

from quantailor.errors import ModelFormatError
from quantailor.models.json_files import JsonObject, is_there, mapping, read_text

REMEDY = "Correct or remove README.md"
MAX_HEAD = 512 << 10
"""Letters; tables of results take up to two hundred thousand. PyYAML reads some fifty thousand in a second."""
_LONGEST_NUMBER, _DEEPEST = 100, 20
_REFUSALS = (yaml.YAMLError, ValueError, LookupError, ArithmeticError, AttributeError, TypeError, RecursionError)
"""What PyYAML raises, also for values that do not fit their tags."""

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Loader(yaml.SafeLoader):
    """Plain values, without merges: a few lines of them make billions of entries."""

    def fetch_flow_collection_start(self, token_class: object) -> None:
        if self.flow_level >= _DEEPEST:
            raise yaml.scanner.ScannerError(None, None, "lists in lists", self.get_mark())
        super().fetch_flow_collection_start(token_class)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leaves `<<` in place, which is then an unknown tag."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> str:
        value = super().construct_scalar(node)
        if node.tag in _NUMBERS and len(str(value)) > _LONGEST_NUMBER:
            raise yaml.constructor.ConstructorError(None, None, "a number too long to be one", node.start_mark)
        # Half of a surrogate pair is not text and could not be written.
        str(value).encode()
        return value


# "no" is Norwegian, "on" and "y" are words: of YAML 1.1's booleans those of YAML 1.2 are left.
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool" or letter in "tTfF"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def model_card(folder: Path) -> JsonObject:
    """The YAML between the `---` lines at the head of README.md; empty where there is none. Raises ModelFormatError."""
    path = folder / "README.md"
    lines = read_text(path).splitlines() if is_there(path) else []
    if not lines or lines[0] != "---":
        return {}
    head = lines[1 : lines.index("---", 1)] if "---" in lines[1:] else lines[1:]
    # Tabs are not YAML.
    text = ("\n".join(head) + "\n").replace("\t", "  ")
    if len(text) > MAX_HEAD:
        raise ModelFormatError(f"the head of {path} has {len(text):,} letters", remedy=REMEDY)
    try:
        return mapping(yaml.load(text, _Loader))  # noqa: S506 - a safe loader
    except _REFUSALS as error:
        raise ModelFormatError(f"the head of {path} is not valid YAML", remedy=REMEDY) from error


def texts_in(value: object) -> list[str]:
    """The texts that a card has in a list or alone; what is blank, and numbers, tables and nulls among them, are left out."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str) and item.strip()]
