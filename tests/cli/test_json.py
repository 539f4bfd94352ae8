"""`--json` prints what docs/output.schema.json says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from commands import Command, Workbench

from quantailor.app.schema import output_schema

pytestmark = pytest.mark.xdist_group("workbench")


SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "output.schema.json"


def validate(text: str) -> None:
    jsonschema.validate(json.loads(text), json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))


def test_the_published_schema_is_the_code_s(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-golden"):
        SCHEMA_FILE.write_text(json.dumps(output_schema(), indent=2) + "\n", encoding="utf-8")
    assert json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) == output_schema()


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "BASE"),
        ("imatrix", "BASE", "--show"),
        ("measure", "BASE", "--types", "Q4_K"),
        ("plan", "BASE", "--bpw", "4.5"),
        ("jobs",),
        ("jobs", "show", "1"),
        ("inspect", "missing.gguf"),
    ],
)
def test_documents_follow_the_schema(quantailor: Command, workbench: Workbench, arguments: Any) -> None:
    words = [workbench.base if word == "BASE" else word for word in arguments]
    home = () if arguments[0] == "inspect" else ("--home", workbench.home)
    validate(quantailor(*words, *home, "--json").out)
