"""The rules of the house that can be counted: `python -m tools.house` prints what breaks them and ends with 1 if anything does.

shapes    a public function with an array in its signature states the arrays' shapes in its docstring
raises    a public function that raises says in its docstring what
any       `Any` stands at most `MOST_ANY` times in the source, imports aside
getattr   none with a name that is known, which would go past a protocol; `PROBES` says where and why there are some
folders   none holds more than `MOST_MODULES` modules or `MOST_LINES` lines directly
"""

from __future__ import annotations

import ast
import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

MOST_ANY = 150
MOST_MODULES = 15
MOST_LINES = 2500

PROBES: Mapping[str, str] = {
    "cli/__init__.py": "only some of Typer's errors can show themselves with the command's usage",
    "store/database.py": "errors that Python's module raises by itself lack sqlite's code and name",
    "strategy/file.py": "yaml.CSafeLoader exists where PyYAML was built with libyaml",
}
"""Files that may look for what a platform or a library may lack, and what that is."""

Function = ast.FunctionDef | ast.AsyncFunctionDef

_ARRAY = re.compile(r"\b(?:NDArray|ndarray|ArrayLike)\b")
_DIMENSION = r"(?:\.\.\.|len\(\w+\)|\w+(?:\.\w+)?)(?: ?[-+*/]+ ?\w+)*"
_SHAPE = re.compile(rf"\((?P<dimensions>{_DIMENSION}(?:, {_DIMENSION})*,?)\)")
_COUNT = re.compile(r"^(?:n|m|\d+|\.\.\.|n_\w+.*|\w+_bytes|len\(.*|\w+ - \w+)$")
_COMMANDS = ("command", "callback")
"""Decorators of functions whose docstrings are help texts."""


@dataclass(frozen=True, slots=True)
class Offence:
    """One broken rule."""

    place: str
    """File and line, or the folder."""
    rule: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.rule}: {self.what}"


@dataclass(frozen=True, slots=True)
class Source:
    """The parsed modules of one package."""

    root: Path
    modules: Mapping[str, ast.Module]
    """Path from the root -> its tree."""
    aliases: Mapping[str, bool] = field(default_factory=dict)
    """Names of array types defined in some module -> whether their description states a shape."""
    bases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Class -> the classes it derives from, of all modules."""

    @classmethod
    def read(cls, root: Path) -> Source:
        """Parse every module below `root`."""
        modules = {path.relative_to(root).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(root.rglob("*.py"))}
        aliases: dict[str, bool] = {}
        bases: dict[str, tuple[str, ...]] = {}
        for tree in modules.values():
            aliases |= _aliases(tree)
            bases |= {node.name: tuple(map(_last_name, node.bases)) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        return cls(root, modules, aliases, bases)


def offences(source: Source) -> Iterator[Offence]:
    """Everything in a package that breaks a rule."""
    n_any = 0
    for path, tree in source.modules.items():
        for function, docstring in _public_functions(tree):
            place = f"{path}:{function.lineno}"
            if _takes_arrays(function, source.aliases) and not states_shape(docstring):
                yield Offence(place, "shapes", f"{function.name} does not state the shapes of its arrays")
            for name in _unnamed_errors(function, docstring, source.bases):
                yield Offence(place, "raises", f"{function.name} does not say that it raises {name}")
        n_any += sum(_last_name(node) == "Any" for node in ast.walk(tree) if isinstance(node, (ast.Name, ast.Attribute)))
        if path not in PROBES:
            for line in _probing_lines(tree):
                yield Offence(f"{path}:{line}", "getattr", "say it in the protocol, or in PROBES why it cannot be said")
    if n_any > MOST_ANY:
        yield Offence(source.root.name, "any", f"{n_any} times Any, at most {MOST_ANY} are allowed")
    yield from _shared_names(source)
    yield from _full_folders(source.root)


def states_shape(docstring: str) -> bool:
    """Whether a text holds a shape such as (n_rows, n_cols) or (n,)."""
    shapes = (match["dimensions"] for match in _SHAPE.finditer(" ".join(docstring.split())) if "," in match["dimensions"])
    return any(_COUNT.match(dimension.strip()) for shape in shapes for dimension in shape.split(",") if dimension.strip())


def _aliases(tree: ast.Module) -> dict[str, bool]:
    found = {}
    for node, after in itertools.pairwise([*tree.body, ast.Pass()]):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and _ARRAY.search(ast.unparse(node.value)):
            text = after.value if isinstance(after, ast.Expr) else None
            stated = isinstance(text, ast.Constant) and isinstance(text.value, str) and states_shape(text.value)
            found[node.targets[0].id] = stated
    return found


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        return _last_name(node.func)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _public_functions(tree: ast.Module) -> Iterator[tuple[Function, str]]:
    """Public functions and methods with their docstrings; a constructor's is its class's too. Commands are left out."""
    for node in tree.body:
        members = [node] if isinstance(node, Function) else node.body if isinstance(node, ast.ClassDef) else []
        if isinstance(node, ast.ClassDef) and node.name.startswith("_"):
            continue
        about_class = ast.get_docstring(node) or "" if isinstance(node, ast.ClassDef) else ""
        for member in members:
            if not isinstance(member, Function) or any(_last_name(each) in _COMMANDS for each in member.decorator_list):
                continue
            docstring = ast.get_docstring(member) or ""
            if member.name in ("__init__", "__post_init__"):
                yield member, f"{about_class}\n{docstring}"
            elif not member.name.startswith("_"):
                yield member, docstring


def _takes_arrays(function: Function, aliases: Mapping[str, bool]) -> bool:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    annotations = [argument.annotation for argument in every if argument is not None] + [function.returns]
    text = " ".join(ast.unparse(annotation) for annotation in annotations if annotation is not None)
    return bool(_ARRAY.search(text)) or any(not aliases.get(name, True) for name in re.findall(r"\w+", text))


def _unnamed_errors(function: Function, docstring: str, bases: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    says_raises = re.search(r"\braises?\b", docstring, re.IGNORECASE)
    for name in sorted(_raised(function.body, ())):
        named = not name[:1].isupper() or any(re.search(rf"\b{each}\b", docstring) for each in _with_bases(name, bases))
        if not (says_raises and named):
            yield name


def _with_bases(name: str, bases: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    yield name
    for base in bases.get(name, ()):
        yield from _with_bases(base, bases)


def _raised(body: Iterable[ast.AST], caught: tuple[str, ...]) -> set[str]:
    """What these statements raise and do not catch themselves; re-raising and nested functions aside."""
    names: set[str] = set()
    for node in body:
        if isinstance(node, ast.Raise):
            # `raise type(error)(...)` is the caught error in other words.
            if (
                isinstance(node.exc, ast.Call)
                and not isinstance(node.exc.func, ast.Call)
                and (name := _last_name(node.exc)) not in (*caught, "NotImplementedError", "Exit")
            ):
                names.add(name)
        elif isinstance(node, ast.Try):
            own = tuple(_last_name(kind) for handler in node.handlers for kind in _kinds(handler.type))
            names |= _raised(node.body, (*caught, *own)) | _raised([*node.handlers, *node.orelse, *node.finalbody], caught)
        elif not isinstance(node, (Function, ast.Lambda, ast.ClassDef)):
            names |= _raised(ast.iter_child_nodes(node), caught)
    return names


def _kinds(node: ast.expr | None) -> list[ast.expr]:
    return list(node.elts) if isinstance(node, ast.Tuple) else [] if node is None else [node]


def _probing_lines(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _last_name(node.func) == "getattr" and isinstance(node.args[1], ast.Constant):
            yield node.lineno


def _shared_names(source: Source) -> Iterator[Offence]:
    homes: dict[str, list[str]] = {}
    for path, tree in source.modules.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(path)
    for name, paths in homes.items():
        if len(paths) > 1:
            yield Offence(paths[0], "names", f"{name} is a class in {' and in '.join(paths)}")


def _full_folders(root: Path) -> Iterator[Offence]:
    for folder in sorted({path.parent for path in root.rglob("*.py")}):
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        n_lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.glob("*.py"))
        if len(modules) > MOST_MODULES or n_lines > MOST_LINES:
            what = f"{len(modules)} modules and {n_lines} lines, at most {MOST_MODULES} and {MOST_LINES} are allowed"
            yield Offence(folder.relative_to(root).as_posix(), "folders", what)


def main(root: Path) -> int:
    """Print the offences of the package in `root`; 1 if there are any."""
    found = list(offences(Source.read(root)))
    for offence in found:
        print(offence)
    print(f"{len(found)} offences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "src/quantailor")))
