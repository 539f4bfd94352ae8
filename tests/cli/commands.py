"""What the command tests read: the outcome of a command, and a home in which something was done already."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema.protocols import Validator
from jsonschema.validators import validator_for

SCHEMA = Path(__file__).parents[2] / "docs" / "output.schema.json"


@cache
def _validator() -> Validator:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    kind = validator_for(schema)
    kind.check_schema(schema)
    return kind(schema)


def validate(text: str) -> None:
    """That a command printed a document as docs/output.schema.json describes it."""
    _validator().validate(json.loads(text))


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> Any:
        """The result in its JSON document."""
        return json.loads(self.out)["result"]

    @property
    def error_line(self) -> str:
        """The one line of a command that failed."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert self.code == 1, f"exit {self.code}: {self.out}{self.err}"
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


Command = Callable[..., Outcome]


def probe_words(text: Path) -> tuple[object, ...]:
    """What follows `quantailor probe BASE` for probes by role and depth on short chunks of a text."""
    few = ("--chunks", 4, "--mixes", 6, "--mix-chunks", 4, "--anchors", 2, "--n-ctx", 64, "--threads", 1)
    return ("-f", text, "--type", "Q2_K,Q6_K,Q8_0", "--group", "role-depth", *few)


@dataclass(frozen=True)
class Workbench:
    """A home in which the dense model has an importance matrix and measurements."""

    home: Path
    base: Path
