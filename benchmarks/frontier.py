"""What a file is worth after so many passes: `python -m benchmarks.frontier`.

A pass is one chunk run through the model with something quantized. For each number of passes, beginning without any and going on from
the probes of the number before: plans at the exact sizes of llama.cpp's presets, built, and measured beside the presets (same
importance matrix) on the same held-out chunks. The last row has probes of every tensor at seven types on four chunks. `--docs FOLDER`
writes the page with table and plot.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np

from benchmarks.presets import score_files
from benchmarks.setting import Setting, parse, save
from quantailor.numerics import BOOTSTRAP_DRAWS, Doubles
from quantailor.records import ChunkScore
from quantailor.session import Workspace
from quantailor.steps.probe import THOROUGH_PROBE_TYPES

PRESETS = ("Q2_K", "Q3_K_M", "IQ4_XS", "Q4_K_M")
PASSES = (0, 8, 16, 32, 64, 128, 256)
EVERYTHING = ("--type", ",".join(THOROUGH_PROBE_TYPES), "--chunks", 4, "--target-error", 0.001)
CAPTION = "Geometric mean of KLD / the preset's at the sizes of Q2_K, Q3_K_M, IQ4_XS and Q4_K_M."


@dataclass(frozen=True)
class Ratio:
    """KLDs beside presets', with the 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Row:
    """One number of passes."""

    n_passes: int
    is_everything: bool
    by_preset: Mapping[str, Ratio]
    mean: Ratio
    """Geometric."""


def homes(setting: Setting, base: Path) -> dict[int, Setting]:
    """A home for each number of passes, with the probes of the one before and so many more; the last one's number is what it took."""
    setting.prepare(base, probes=False)
    found, before = {0: setting}, setting
    for n_passes in PASSES[1:]:
        found[n_passes] = _after(setting, before, base, f"{n_passes} passes", "--passes", n_passes - max(found))
        before = found[n_passes]
    everything = _after(setting, before, base, "everything", *EVERYTHING, "--mixes", 0, "--anchors", 0)
    with Workspace.open(everything.home) as workspace, workspace.model(base) as model:
        n_scored = [sum(map(len, workspace.store.mix_scores(key).values())) for key in workspace.store.swap_runs(model.fingerprint)]
    return {**found, max(n_scored): everything}


def _after(setting: Setting, before: Setting, base: Path, name: str, *words: object) -> Setting:
    """The setting whose home has gone on from the one before with these probes; as it is where it was finished."""
    folder, part = (setting.folder / base.stem / f"{name}{ending}" for ending in ("", ".part"))
    if not folder.exists():
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(before.home, part / "home")
        dataclasses.replace(setting, folder=part).run("probe", base, "-f", setting.text, "--rounding", "plain", *words)
        part.rename(folder)
    return dataclasses.replace(setting, folder=folder)


def build(setting: Setting, base: Path, preset: str) -> Path:
    """Our file at a preset's size, by what the home knows."""
    strategy, file = setting.folder / f"{base.stem}-{preset}.yaml", setting.folder / f"{base.stem}-{preset}.gguf"
    setting.run("plan", base, "--like", preset, "--rounding", "plain", "-o", strategy, "--force")
    setting.run("build", base, strategy, "-o", file, "--force")
    return file


def rows_of(setting: Setting, base: Path, n_chunks: int) -> list[Row]:
    """Probe, plan, build and score."""
    stages = homes(setting, base)
    files = {(n_passes, preset): build(stage, base, preset) for n_passes, stage in stages.items() for preset in PRESETS}
    labels = {key: f"{key[0]} passes, {key[1]}" for key in files}
    scores = score_files(setting, base, {labels[key]: file for key, file in files.items()}, PRESETS, n_chunks)
    return [
        _row(
            n_passes, n_passes == max(stages), [scores[labels[n_passes, preset]] for preset in PRESETS], [scores[name] for name in PRESETS]
        )
        for n_passes in stages
    ]


def _row(n_passes: int, is_everything: bool, ours: Sequence[Sequence[ChunkScore]], theirs: Sequence[Sequence[ChunkScore]]) -> Row:
    """Ratios from the same resamples of chunks for all files."""
    klds = np.array([[[score.kld_sum for score in scores] for scores in side] for side in (ours, theirs)])  # (2, n_presets, n_chunks)
    n_chunks = klds.shape[2]
    counts = np.random.default_rng(0).multinomial(n_chunks, np.full(n_chunks, 1 / n_chunks), BOOTSTRAP_DRAWS)
    drawn: Doubles = np.log(klds @ counts.T)
    logs: Doubles = np.log(klds.sum(axis=2))
    ratios, draws = logs[0] - logs[1], drawn[0] - drawn[1]  # (n_presets,), (n_presets, n_draws)
    by_preset = {preset: _ratio(ratio, row) for preset, ratio, row in zip(PRESETS, ratios.tolist(), draws, strict=True)}
    return Row(n_passes, is_everything, by_preset, _ratio(float(ratios.mean()), draws.mean(axis=0)))


def _ratio(ln_ratio: float, draws: Doubles) -> Ratio:
    low, high = np.exp(np.quantile(draws, [0.025, 0.975])).tolist()
    return Ratio(math.exp(ln_ratio), low, high)


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| passes | geometric mean | " + " | ".join(PRESETS) + " |", "|" + "---|" * (2 + len(PRESETS))]
    for row in rows:
        n_passes = f"all: {row.n_passes:,}" if row.is_everything else f"{row.n_passes}"
        lines.append(f"| {n_passes} | **{row.mean.value:.3f}** ({row.mean.low:.3f} to {row.mean.high:.3f}) | ")
        lines[-1] += " | ".join(str(row.by_preset[preset]) for preset in PRESETS) + " |"
    return "\n".join([*lines, ""])


def draw(found: Mapping[str, Sequence[Row]], file: Path) -> None:
    """The geometric means over the number of passes."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, rows in found.items():
        places = [max(row.n_passes, PASSES[1] / 2) for row in rows]
        means = [row.mean.value for row in rows]
        ends = [[row.mean.value - row.mean.low for row in rows], [row.mean.high - row.mean.value for row in rows]]
        axes.errorbar(places, means, yerr=ends, marker="o", capsize=3, label=name)
    axes.set_xscale("log", base=2)
    ticks = [PASSES[1] / 2, *PASSES[1:], max(row.n_passes for rows in found.values() for row in rows)]
    axes.set_xticks(ticks, ["0", *map(str, PASSES[1:]), "all"])
    axes.set_xlabel("passes: chunks run through the model with something quantized")
    axes.set_ylabel("KLD / the preset's, geometric mean")
    axes.grid(alpha=0.3)
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def page(found: Mapping[str, Sequence[Row]], n_chunks: int, text: Path) -> str:
    """The page of the documentation."""
    what = (
        "A pass is one chunk of text run through the model with something quantized (`--passes`). For each number of passes, plans at"
        " the exact sizes of llama.cpp's presets are built as files; the tables show their KLD over the preset's (same importance"
        f" matrix, plain rounding) on the first {n_chunks} chunks of `{text.name}`, which neither the importance"
        " matrix nor a probe has seen."
        " Below 1 is better than the preset; intervals are 95 %, from 10,000 paired bootstrap draws over chunks. Each row adds to the"
        " probes of the row before; 0 is a plan without probes; the last row has every tensor at seven types on four chunks. Made by"
    )
    command = "    python -m benchmarks.frontier --docs docs"
    parts = ["# What a few passes are worth", what, command, f"![{CAPTION}](images/frontier.png)"]
    return "\n\n".join([*parts, *(f"## {name}\n\n{table(rows)}" for name, rows in found.items())])


def main() -> None:
    """Measure every model, print the tables, write table and plot."""
    setting, options = parse(
        __doc__,
        ("--chunks", int, 200, "held-out chunks"),
        ("--docs", Path, None, "folder of the documentation to write table and plot into"),
    )
    setting = dataclasses.replace(setting, folder=setting.folder / "frontier")
    setting.folder.mkdir(exist_ok=True)
    found: dict[str, list[Row]] = {}
    for model in setting.models:
        rows = rows_of(setting, setting.base(model), options.chunks)
        found[model.stem] = rows
        print(f"## {model.stem}\n\n{table(rows)}", flush=True)
    save(setting.folder / "frontier.json", {name: [dataclasses.asdict(row) for row in rows] for name, rows in found.items()})
    out = setting.folder if options.docs is None else options.docs
    draw(found, out / "images" / "frontier.png")
    (out / "FRONTIER.md").write_text(page(found, options.chunks, setting.heldout), encoding="utf-8")


if __name__ == "__main__":
    main()
