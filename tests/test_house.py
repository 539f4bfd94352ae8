"""The tool that counts what the house forbids finds each kind of offence, and nothing in code that keeps the rules."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools.house import MOST_MODULES, Source, offences, states_shape


def broken(folder: Path, text: str, *, name: str = "module.py") -> list[str]:
    """The rules that a package of one module breaks."""
    (folder / name).write_text(text, encoding="utf-8")
    return [offence.rule for offence in offences(Source.read(folder))]


@pytest.mark.parametrize(
    ("signature", "docstring", "rules"),
    [
        ("def f(x: npt.NDArray[np.float32]) -> int", "Counts.", ["shapes"]),
        ("def f(x: int) -> npt.NDArray[np.float32]", "Counts (say, one).", ["shapes"]),
        ("def f(x: Floats) -> int", "Counts.", ["shapes"]),
        ("def f(x: Floats) -> int", "Counts (n_rows, n_cols).", []),
        ("def f(*, x: list[Floats] | None = None) -> int", "Counts (n - 1,).", []),
        ("def f(x: Bytes) -> int", "Counts.", []),
        ("def _f(x: Floats) -> int", "Counts.", []),
        ("def f(x: int) -> int", "Counts.", []),
    ],
)
def test_arrays_without_shapes_are_found(tmp_path: Path, signature: str, docstring: str, rules: list[str]) -> None:
    aliases = 'Floats = npt.NDArray[np.float32]\nBytes = npt.NDArray[np.uint8]\n"""Flat, (n_bytes,)."""\n'
    assert broken(tmp_path, f'{aliases}{signature}:\n    """{docstring}"""\n') == rules
    assert broken(tmp_path, f'{aliases}class A:\n    {signature}:\n        """{docstring}"""\n') == rules


@pytest.mark.parametrize(
    ("body", "docstring", "rules"),
    [
        ("raise LookupError(x)", "Looks.", ["raises"]),
        ("raise LookupError(x)", "Looks. Raises OSError.", ["raises"]),
        ("raise LookupError(x)", "Looks. Raises LookupError.", []),
        ("raise Narrow(x)", "Looks. Raises Wide.", []),
        ("raise wrong(x)", "Looks.", ["raises"]),
        ("raise wrong(x)", "Looks. Raises what `wrong` makes.", []),
        ("try: raise LookupError(x)\n    except (LookupError, OSError): pass", "Looks.", []),
        ("try: pass\n    except OSError: raise", "Looks.", []),
        ("try: pass\n    except OSError as error: raise type(error)(x)", "Looks.", []),
        ("def g(): raise LookupError(x)", "Looks.", []),
        ("raise NotImplementedError()", "Looks.", []),
    ],
)
def test_errors_that_are_not_announced_are_found(tmp_path: Path, body: str, docstring: str, rules: list[str]) -> None:
    classes = "class Wide(Exception): pass\nclass Narrow(Wide): pass\n"
    assert broken(tmp_path, f'{classes}def f(x):\n    """{docstring}"""\n    {body}\n') == rules


def test_a_help_text_need_not_say_what_its_command_raises(tmp_path: Path) -> None:
    assert broken(tmp_path, '@app.command()\ndef f(x):\n    """Looks."""\n    raise LookupError(x)\n') == []


def test_getattr_with_a_known_name_is_found_but_where_it_probes(tmp_path: Path) -> None:
    assert broken(tmp_path, 'getattr(source, "files", ())\ngetattr(source, name)\n') == ["getattr"]
    (tmp_path / "module.py").unlink()
    (tmp_path / "strategy").mkdir()
    assert broken(tmp_path, 'getattr(yaml, "CSafeLoader", 0)\n', name="strategy/file.py") == []


def test_two_classes_of_one_name_are_found(tmp_path: Path) -> None:
    assert broken(tmp_path, "class Curve: pass\nclass _Part: pass\n", name="one.py") == []
    assert broken(tmp_path, "class Curve: pass\nclass _Part: pass\n", name="two.py") == ["names"]


def test_too_many_any_and_too_full_a_folder_are_found(tmp_path: Path) -> None:
    assert broken(tmp_path, "x: Any\n" * 151) == ["any"]
    for number in range(MOST_MODULES):
        (tmp_path / f"m{number}.py").touch()
    assert broken(tmp_path, "") == ["folders"]
    for path in tmp_path.iterdir():
        path.unlink()
    assert broken(tmp_path, "x = 1\n" * 2501) == ["folders"]


@pytest.mark.parametrize("text", ["(n_rows, n_cols) float32", "(n,)", "(..., n)", "(n_tokens - first, n_vocab)", "(len(rows), n_cols)"])
def test_shapes_are_recognised(text: str) -> None:
    assert states_shape(text)


@pytest.mark.parametrize("text", ["", "a matrix (say, of two rows)", "f(x)", "(n)", "(see METHODS 1, below)"])
def test_other_brackets_are_no_shapes(text: str) -> None:
    assert not states_shape(text)
