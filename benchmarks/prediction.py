"""How honest predictions are: `python -m benchmarks.prediction`.

Random mixes at three sizes, 20 each, that nothing was fitted to, are measured on held-out text, in memory and (ten of
them) as built files, and compared with what was predicted for them. Printed per model: the median of
|ln(predicted / measured)|, the rank correlation among mixes of equal size, how many of the measured values the 80 % and
95 % intervals hold, and how many of the equal-size pairs whose predictions differ by more than 10 % are ordered rightly.

The same table for predictions without what probes know, each with a curve of its own fitted to the same whole mixes:

    parameters   relative_mse x number of weights
    RMSE         the sum of the tensors' RMSE
    imatrix      the sum of weighted_mse, every tensor alike
    shuffled     the probes' damages, each tensor's given to another one of its role
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy.stats import spearmanr

from benchmarks.setting import Probed, Setting, parse, probed, save
from benchmarks.shuffled_damage import with_shuffled_damage
from quantailor.analysis.prediction import fit_curve, predict_kld, scaled_damage
from quantailor.analysis.sensitivity import Scores, mean_kld
from quantailor.control import NullControl
from quantailor.evidence.damages import probed_tables
from quantailor.evidence.grounds import CURVE, file_key
from quantailor.records import Curve, Mix, TensorCells, part_of
from quantailor.steps.options import Compute
from quantailor.steps.probe import ProbeStep, builder, usual
from quantailor.steps.scoring import scoring
from quantailor.strategy.random_mixes import random_mix

SIZES = (2.7, 3.5, 4.8)
MIXES_PER_SIZE = 20
N_FILES = 10
FIRST_SEED = 10_000
Tables = Sequence[TensorCells]


@dataclass(frozen=True)
class Case:
    """One held-out mix: its size class, and its KLD in memory and as a file (None where it was not built)."""

    bits: float
    mix: Mix
    memory: float
    file: float | None


def held_out_mixes(tables: Tables) -> list[tuple[float, Mix]]:
    """Random mixes within 0.1 % of each size."""
    n_weights = sum(table.n_elements for table in tables)
    usual_tables = [usual(table) for table in tables]
    return [
        (bits, Mix.of(random_mix(usual_tables, int(bits * n_weights / 8), seed=FIRST_SEED + number)))
        for bits in SIZES
        for number in range(MIXES_PER_SIZE)
    ]


def measure_cases(setting: Setting, at: Probed, n_chunks: int) -> list[Case]:
    """Score the mixes on the held-out text; what an earlier run scored is taken as it is."""
    task = ProbeStep(base=str(at.model.path), text=str(setting.heldout), compute=Compute(n_threads=setting.threads))
    mixes = held_out_mixes(at.found.tables)
    control = NullControl()
    with scoring(at.workspace, at.model, at.imatrix, task, None) as run:
        indexes = run.first(n_chunks)
        run.run([mix for _, mix in mixes], indexes, control)
        for _, mix in mixes[:: len(mixes) // N_FILES]:
            run.run_file(mix, builder(run, at.model, at.imatrix, mix, control, setting.threads), indexes, control)
        memory, files = at.workspace.store.mix_scores(run.key), at.workspace.store.mix_scores(file_key(run.key))
    chosen = set(indexes)

    def kld(rows: Scores, mix: Mix) -> float | None:
        scores = [score for score in rows.get(mix.id, ()) if score.index in chosen]
        return mean_kld(scores).value if scores else None

    return [Case(bits, mix, kld(memory, mix) or math.nan, kld(files, mix)) for bits, mix in mixes]


def parts_of(tables: Tables, mix: Mix) -> dict[str, float]:
    """A mix's damages by part of the model."""
    parts: dict[str, float] = {}
    for table in tables:
        if table.name in mix.types:
            part = part_of(table.name)
            parts[part] = parts.get(part, 0.0) + table.cell(mix.types[table.name]).damage
    return parts


def fitted(at: Probed, tables: Tables) -> Curve:
    """A curve for these damages, fitted to the same whole mixes as the probes' own."""
    mixes = {mix.id: mix for mix in at.workspace.store.mixes(at.model.fingerprint, CURVE)}
    points = [
        dataclasses.replace(point, parts=parts_of(tables, mixes[point.mix]))
        for point in at.known.curve.points
        if point.kind == "memory" and point.mix in mixes
    ]
    return fit_curve(points)


def redefined(tables: Tables, damage: Callable[[TensorCells, int], float]) -> list[TensorCells]:
    """The tables with another damage."""
    return [
        dataclasses.replace(
            table, cells=tuple(dataclasses.replace(cell, damage=damage(table, index)) for index, cell in enumerate(table.cells))
        )
        for table in tables
    ]


def bases(at: Probed) -> dict[str, tuple[Tables, Curve]]:
    """Name -> tables with that basis's damages, and their curve."""
    unscaled = dataclasses.replace(at.known, curve=dataclasses.replace(at.known.curve, scales={}))
    probes = probed_tables(at.model.source, at.found, unscaled)
    found: dict[str, Tables] = {
        "probes": probes,
        "parameters": at.found.tables,
        "RMSE": redefined(at.found.tables, lambda table, index: table.cells[index].rmse),
        "imatrix": redefined(at.found.tables, lambda table, index: table.cells[index].weighted_mse),
        "shuffled": with_shuffled_damage(probes, seed=0),
    }
    return {name: (tables, at.known.curve if name == "probes" else fitted(at, tables)) for name, tables in found.items()}


def figures(cases: Sequence[Case], tables: Tables, curve: Curve) -> dict[str, object]:
    """The row of one basis."""
    predictions = [predict_kld(curve, scaled_damage(curve.scales, parts_of(tables, case.mix))) for case in cases]
    errors = [math.log(p.kld_nats / case.memory) for p, case in zip(predictions, cases, strict=True)]
    files = [math.log(p.kld_nats / case.file) for p, case in zip(predictions, cases, strict=True) if case.file]
    held = {
        level: statistics.fmean(
            low <= case.memory <= high for case, (low, high) in zip(cases, (p.interval(level) for p in predictions), strict=True)
        )
        for level in (0.80, 0.95)
    }
    return {
        "median |ln|, memory": statistics.median(map(abs, errors)),
        "mean ln, memory": statistics.fmean(errors),
        "sd ln, memory": statistics.stdev(errors),
        "median |ln|, files": statistics.median(map(abs, files)) if files else None,
        "rank": [rank(cases, [p.kld_nats for p in predictions], bits) for bits in SIZES],
        "in 80 %": held[0.80],
        "in 95 %": held[0.95],
        "ordered": ordered(cases, [p.kld_nats for p in predictions]),
    }


def rank(cases: Sequence[Case], predictions: Sequence[float], bits: float) -> float:
    """Spearman's correlation among the mixes of one size."""
    pairs = [(p, case.memory) for p, case in zip(predictions, cases, strict=True) if case.bits == bits]
    return float(spearmanr([p for p, _ in pairs], [kld for _, kld in pairs]).statistic)


def ordered(cases: Sequence[Case], predictions: Sequence[float]) -> float:
    """The share of equal-size pairs whose predictions differ by more than 10 % that are ordered rightly."""
    rows = list(zip(cases, predictions, strict=True))
    right = [
        (one > other) == (a.memory > b.memory)
        for (a, one), (b, other) in itertools.combinations(rows, 2)
        if a.bits == b.bits and abs(math.log(one / other)) > math.log(1.1)
    ]
    return statistics.fmean(right) if right else math.nan


def c0_of_files(cases: Sequence[Case]) -> list[float]:
    """What the built files have beyond the same mixes in memory, nats."""
    return [case.file - case.memory for case in cases if case.file is not None]


def main() -> None:
    """Print the table of every model."""
    setting, options = parse(__doc__, ("--chunks", int, 64, "held-out chunks"))
    for model in setting.models:
        base = setting.base(model)
        setting.prepare(base)
        with probed(setting, base) as at:
            cases = measure_cases(setting, at, options.chunks)
            rows = {name: figures(cases, tables, curve) for name, (tables, curve) in bases(at).items()}
            curve = at.known.curve
        print(f"\n{model.name}: {len(cases)} random mixes, {options.chunks} chunks of {setting.heldout.name}")
        print(f"gamma {curve.gamma:.3f}, kappa {curve.kappa:+.2f}, c0 {curve.c0_nats:.2g}, scatter {curve.residual_sd:.3f}")
        print("built file less the same mix in memory, nats: " + ", ".join(f"{value:+.1e}" for value in c0_of_files(cases)))
        for name, row in rows.items():
            print(f"{name:11s} " + ", ".join(f"{key} {_told(value)}" for key, value in row.items()))
        save(setting.folder / f"prediction-{model.name}.json", rows)


def _told(value: object) -> str:
    if isinstance(value, list):
        return " ".join(f"{item:.3f}" for item in value)
    return f"{value:.3f}" if isinstance(value, float) else "-"


if __name__ == "__main__":
    main()
