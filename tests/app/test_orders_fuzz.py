"""Whatever is done to one home, in whatever order: it answers as a fresh home would that was given the same evidence.

Measurements, probes, sweeps, imported matrices, verdicts, kills in the middle of them, files renamed, copied, edited and
restored. Scores are made up, as the model is; what is asked are `plan`, `predict` and `card`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_up_runs as made_up
import pytest
from commands import Command
from test_verdicts import verdict

import fuzzing
from quantailor.analysis.importance.imatrix_file import write_imatrix
from quantailor.session import OpenedModel, Workspace

pytestmark = pytest.mark.slow

N_STEPS = 40 if fuzzing.LONG else 10
Fact = Callable[[Workspace, OpenedModel], object]
Named = tuple[str, Fact]


class Trial:
    """One home, the files around it, and what each content was given."""

    def __init__(self, folder: Path, quantailor: Command, seed: int) -> None:
        self.folder, self.run, self.dice = folder, quantailor, random.Random(seed)
        self.home = folder / "home"
        self.models = [made_up.write_model(folder / "base.gguf")]
        self.texts = [folder / f"{name}.txt" for name in ("first", "second")]
        for text in self.texts:
            text.write_text(text.name, encoding="utf-8")
        self.facts: dict[str, list[Named]] = {}
        self.matrices: dict[str, list[int]] = {}
        """Content -> seeds of the matrices that it was given, the newest last."""
        self.log: list[str] = []

    def learn(self, path: Path, name: str, fact: Fact) -> None:
        """Give the home a piece of evidence about what is at that path now."""
        with Workspace.open(self.home) as workspace, workspace.model(path) as model:
            fact(workspace, model)
        self.facts.setdefault(_content(path), []).append((name, fact))

    def step(self) -> None:
        """Something happens."""
        what = self.dice.choice((self.measure, self.measure, self.probe, self.probe, self.sweep, self.matrix, self.file, self.file))
        self.log.append(f"{what.__name__} {what(self.dice.choice(self.models))}")

    def _matrix(self, path: Path) -> int | None:
        return self.dice.choice([None, *self.matrices.get(_content(path), [])])

    def measure(self, path: Path) -> str:
        seed = self._matrix(path)

        def fact(workspace: Workspace, model: OpenedModel) -> None:
            made_up.measure(workspace, model, _fingerprint(model, seed), factor=_factor(seed))

        self.learn(path, f"1 measure {seed}", fact)
        return f"{path.name} {seed}"

    def probe(self, path: Path) -> str:
        """All of it, a part, or what a kill left of it."""
        seed, text = self._matrix(path), self.dice.randrange(2)
        only, n_chunks, n_mixes = self.dice.choice(("", "", "attn")), self.dice.choice((2, 4, 8)), self.dice.choice((0, 8))
        return self._score(path, seed, text, made_up.PROBES, only, n_chunks, n_mixes)

    def sweep(self, path: Path) -> str:
        return self._score(path, self._matrix(path), self.dice.randrange(2), ("Q4_K",), "attn_v", 2, 0)

    def _score(self, path: Path, seed: int | None, text: int, types: tuple[str, ...], only: str, n_chunks: int, n_mixes: int) -> str:
        place, content = self.texts[text], self.texts[text].read_bytes()

        def fact(workspace: Workspace, model: OpenedModel) -> None:
            if not place.exists():
                place.write_bytes(content)
            made_up.measure(workspace, model, _fingerprint(model, seed), factor=_factor(seed))
            made_up.probe(
                workspace,
                model,
                place,
                _fingerprint(model, seed),
                factor=_factor(seed),
                n_chunks=n_chunks,
                n_mixes=n_mixes,
                types=types,
                only=only,
                salt=str(text),
            )

        name = f"2 score {seed} {text} {only} {n_chunks} {n_mixes} {types}"
        self.learn(path, name, fact)
        return f"{path.name} {name}"

    def matrix(self, path: Path) -> str:
        """Imported from a file."""
        seed = self.dice.randrange(1, 4)
        file = self.folder / f"{seed}.imatrix.gguf"
        with Workspace.open(self.home) as workspace, workspace.model(path) as model:
            if not file.exists():
                write_imatrix(made_up.imatrix(model, seed), file)
        assert self.run("imatrix", path, "--import", file, "--home", self.home).code == 0
        known = self.matrices.setdefault(_content(path), [])
        if seed in known:
            known.remove(seed)
        known.append(seed)
        return f"{path.name} {seed}"

    def file(self, path: Path) -> str:
        """Renamed, copied, edited, or put in place of the other."""
        what = self.dice.choice(("rename", "copy", "edit", "replace"))
        if what == "rename":
            self.models.remove(path)
            self.models.append(path.rename(self.folder / f"model-{self.dice.randrange(10**6)}.gguf"))
        elif what == "copy" and len(self.models) < 3:
            self.models.append(Path(shutil.copyfile(path, self.folder / f"copy-{self.dice.randrange(10**6)}.gguf")))
        elif what == "edit":
            with path.open("r+b") as stream:
                stream.seek(-self.dice.randrange(1, 5000), 2)
                stream.write(bytes([self.dice.randrange(4)]))
        elif what == "replace":
            shutil.copyfile(self.dice.choice([other for other in self.models if other != path] or [path]), self.folder / "x")
            (self.folder / "x").replace(path)
        return f"{what} {path.name}"

    def check(self) -> None:
        """This home answers as a fresh one for every file."""
        for path in self.models:
            fresh = self.folder / f"fresh-{self.dice.randrange(10**9)}"
            facts = dict(self.facts.get(_content(path), []))
            with Workspace.open(fresh) as workspace, workspace.model(path) as model:
                for seed in self.matrices.get(_content(path), []):
                    workspace.imatrices.keep(model.fingerprint, made_up.imatrix(model, seed), imported=True)
                for name in sorted(facts):
                    facts[name](workspace, model)
            for words in ((), ("--imatrix", "none")):
                ours, theirs = (self._answer(path, home, words) for home in (self.home, fresh))
                assert ours == theirs, "\n".join(self.log)

    def _answer(self, path: Path, home: Path, words: tuple[str, ...]) -> Any:
        strategy = home / "s.yaml"
        planned = self.run("plan", path, "--bpw", 5, *words, "-o", strategy, "--force", "--home", home, "--json")
        if planned.code:
            return planned.err.replace(str(home), "HOME")
        predicted = self.run("predict", path, strategy, "--home", home, "--json")
        found = [planned.result, predicted.result if predicted.code == 0 else predicted.err.replace(str(home), "HOME")]
        for result in found:
            if isinstance(result, dict):
                for name in ("path", "strategy"):
                    result.pop(name, None)
                if result["grounds"]:
                    result["grounds"]["command"] = result["grounds"]["command"].replace(str(home), "HOME")
        return found


def _content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fingerprint(model: OpenedModel, seed: int | None) -> str:
    return "" if seed is None else made_up.imatrix(model, seed).fingerprint


def _factor(seed: int | None) -> float:
    return 1.0 if seed is None else 0.5 + 0.1 * seed


@pytest.mark.parametrize("seed", fuzzing.seeds(200))
def test_a_home_answers_as_a_fresh_one_would(seed: int, tmp_path: Path, quantailor: Command) -> None:
    trial = Trial(tmp_path, quantailor, seed)
    for number in range(N_STEPS):
        trial.step()
        if number % 10 == 9 or number == N_STEPS - 1:
            trial.check()


@pytest.mark.parametrize("seed", fuzzing.seeds(50))
def test_verdicts_follow_the_bytes(seed: int, tmp_path: Path, quantailor: Command) -> None:
    dice, base, home = random.Random(seed), made_up.write_model(tmp_path / "base.gguf"), tmp_path / "home"
    file, strategy = tmp_path / "out.gguf", tmp_path / "s.yaml"
    with Workspace.open(home) as workspace, workspace.model(base) as model:
        made_up.measure(workspace, model)
    for words in (("plan", base, "--bpw", 5, "-o", strategy), ("build", base, strategy, "-o", file)):
        assert quantailor(*words, "--home", home).code == 0
    judged: dict[str, str] = {}
    for _ in range(N_STEPS // 2):
        if dice.random() < 0.4:
            with Workspace.open(home) as workspace, workspace.model(base) as model:
                made, sentence = verdict(model.fingerprint), f"The verdict number {len(judged)}."
                ours = dataclasses.replace(made.rows[1], size_bytes=file.stat().st_size, content=workspace.identity(file).fingerprint)
                workspace.store.record_verdict(dataclasses.replace(made, rows=(made.rows[0], ours, *made.rows[2:]), sentence=sentence))
            judged[_content(file)] = sentence
        elif dice.random() < 0.5:
            file = file.rename(tmp_path / f"{dice.randrange(10**6)}.gguf")
        else:
            with file.open("r+b") as stream:
                stream.seek(-100, 2)
                stream.write(bytes([dice.randrange(3)]))
        assert quantailor("card", file, "--base", base, "--home", home, "--json").result["verdict"] == judged.get(_content(file))
