"""`--json` prints what docs/output.schema.json says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from commands import SCHEMA, Command, Workbench, validate
from tools.output_schema import output_schema


def test_the_published_schema_is_the_code_s(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-golden"):
        SCHEMA.write_text(json.dumps(output_schema(), indent=2) + "\n", encoding="utf-8")
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == output_schema()


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
