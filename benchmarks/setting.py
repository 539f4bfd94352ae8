"""What the benchmarks of sensitivities share: models, texts and a home, prepared with the commands a user types."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quantailor import cli
from quantailor.analysis.importance.imatrix import Imatrix
from quantailor.evidence.knowledge import Knowledge, load_knowledge
from quantailor.evidence.measurements import Measured, measured
from quantailor.session import AUTO, CALIBRATION_TEXT, HELDOUT_TEXT, OpenedModel, Workspace

ROOT = Path(__file__).parent.parent
MODELS = (ROOT / "demo" / "books-llama", ROOT / "tests" / "data" / "books-moe")
OUT = ROOT / "benchmarks" / "out"


@dataclass(frozen=True)
class Setting:
    """Where a benchmark works, and with what."""

    folder: Path
    models: tuple[Path, ...]
    text: Path
    heldout: Path
    threads: int | None

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def base(self, model: Path) -> Path:
        """The model's base, converted once; a GGUF file is one already."""
        if model.suffix == ".gguf":
            return model
        path = self.folder / f"{model.name}.gguf"
        if not path.exists():
            self.run("convert", model, "-o", path)
        return path

    def run(self, *words: object) -> None:
        """A command of Quantailor, in this home."""
        arguments = [str(word) for word in words]
        threads = ["--threads", str(self.threads)] if self.threads and words[0] not in ("convert", "plan", "predict") else []
        code = cli.run([*arguments, *threads, "--home", str(self.home), "--json"])
        if code:
            raise SystemExit(f"quantailor {' '.join(arguments)} failed with exit code {code}")

    def prepare(self, base: Path, *, probes: bool = True, rounding: str = "plain") -> None:
        """Importance matrix (and covariances), measurements, probes; what is there already is taken as it is."""
        self.run("imatrix" if rounding == "plain" else "calibrate", base, "-f", self.text)
        self.run(*(("probe", base, "-f", self.text) if probes else ("measure", base)), "--rounding", rounding)


@dataclass(frozen=True)
class Probed:
    """A model with everything that is known of it."""

    workspace: Workspace
    model: OpenedModel
    imatrix: Imatrix | None
    found: Measured
    known: Knowledge


@contextmanager
def probed(setting: Setting, base: Path, rounding: str = AUTO) -> Iterator[Probed]:
    """Open the home and the model after `prepare`."""
    with Workspace.open(setting.home) as workspace, workspace.model(base) as model:
        imatrix = workspace.imatrices.default(model.fingerprint)
        found = measured(workspace, model, AUTO, rounding=rounding)
        known = load_knowledge(workspace, model, found.key, found.cells)
        assert known is not None
        yield Probed(workspace, model, imatrix, found, known)


def parse(description: str, *extra: tuple[str, Callable[[str], object], object, str]) -> tuple[Setting, argparse.Namespace]:
    """The options that all of these benchmarks have, and `extra` ones: (name, type, default, help)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("models", nargs="*", type=Path, default=MODELS, help="Hugging Face directories, or bases in GGUF")
    parser.add_argument("--text", type=Path, default=CALIBRATION_TEXT, help="calibration text")
    parser.add_argument("--heldout", type=Path, default=HELDOUT_TEXT, help="text that nothing was fitted to")
    parser.add_argument("--out", type=Path, default=OUT, help="where everything is kept; run again to go on")
    parser.add_argument("--threads", type=int, default=None)
    for name, kind, default, text in extra:
        parser.add_argument(name, type=kind, default=default, help=text)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    return Setting(options.out, tuple(options.models), options.text, options.heldout, options.threads), options


def save(path: Path, figures: object) -> None:
    """Figures as JSON beside the rest."""
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
