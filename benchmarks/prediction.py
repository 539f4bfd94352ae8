"""How honest predictions are: `python -m benchmarks.prediction`.

Mixes of three kinds that nothing was fitted to are measured on held-out text, in memory (which is bit for bit what a built file
computes), and compared with what was predicted for them:

    random     a type for every tensor at random, at sizes from 2.5 to 6 bits per weight
    optima     what plans choose: many sizes, optimal and greedy, all types and subsets of them
    presets    llama.cpp's, as it assigns types with the importance matrix and without one

Printed per model and kind: mean and standard deviation of ln(measured / predicted), the median of its absolute value, and how many of the
measured values the 80 % and 95 % intervals hold; for random mixes also the rank correlation and the share of pairs of
nearly equal size (within 10 %) whose predictions differ by more than 10 % that are ordered rightly. `--seed` draws random mixes and optima
afresh: what a method was developed on is no test of it. Every mix is judged on `--chunks` held-out chunks of its own, of the first `--pool`
of them: what all mixes of a draw share is one draw, however many they are. Intervals are for so many chunks. A few random mixes are
built as files too. The text's own part in it is printed apart: how much the mixes that the curve was fitted to cost on the held-out text
beside their own.

The same for predictions without what probes know, each with a curve of its own fitted to the same whole mixes:

    parameters   relative_mse x number of weights
    RMSE         the sum of the tensors' RMSE
    imatrix      the sum of weighted_mse, every tensor alike
    shuffled     the probes' damages, each tensor's given to another one of its role
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from scipy.stats import spearmanr

from benchmarks.setting import Probed, Setting, parse, probed, save
from benchmarks.shuffled_damage import with_shuffled_damage
from quantailor.analysis.prediction import Damage, fit_curve, predict_kld
from quantailor.analysis.sensitivity import Scores, mean_kld
from quantailor.control import NullControl
from quantailor.errors import InfeasibleError, QuantailorError
from quantailor.evidence.damages import probed_tables
from quantailor.evidence.grounds import CURVE, file_key
from quantailor.evidence.knowledge import bits_per_weight
from quantailor.evidence.measurements import usual_table
from quantailor.evidence.presets import types_of_preset
from quantailor.evidence.roundings import writing_rounding
from quantailor.ggml import library
from quantailor.records import Curve, CurvePoint, Estimate, Mix, TensorCells, part_of
from quantailor.session import AUTO, quantizable_tensors
from quantailor.steps.options import Compute
from quantailor.steps.plan import Evidence, PlanOptions, solve
from quantailor.steps.probe import ProbeStep, builder
from quantailor.steps.scoring import scoring
from quantailor.strategy.random_mixes import random_mix

KINDS = ("random", "optima", "presets")
N_FILES = 4
RANDOM_BITS, OPTIMA_BITS = (2.5, 6.0), (2.9, 6.5)
SUBSETS = (
    (),
    ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0"),
    ("IQ1_S", "IQ2_XXS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS", "Q5_K", "Q6_K", "Q8_0"),
    ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K"),
)
"""Types that optima may use; none means all."""
NOT_FOR_EVERY_MODEL = frozenset({"BF16", "F16", "MXFP4_MOE", "NVFP4", "Q1_0", "Q2_0", "TQ1_0", "TQ2_0"})
Tables = Sequence[TensorCells]


@dataclass(frozen=True)
class Case:
    """One held-out mix: its kind and size, and its KLD in memory and as a file (None where it was not built)."""

    kind: str
    bits: float
    mix: Mix
    memory: float
    file: float | None


def drawn(at: Probed, seed: int, n_mixes: int) -> list[tuple[str, Mix]]:
    """The mixes of all kinds, each once."""
    generator = random.Random(seed)
    names = {tensor.name: tensor.type_name for tensor in quantizable_tensors(at.model.source)}
    found: dict[str, tuple[str, Mix]] = {}

    def add(kind: str, types: Mapping[str, str]) -> None:
        mix = Mix.of({name: type_name for name, type_name in types.items() if names.get(name, type_name) != type_name})
        found.setdefault(mix.id, (kind, mix))

    for preset in sorted(library.presets().keys() - NOT_FOR_EVERY_MODEL):
        for matrix in (at.imatrix, None):
            with contextlib.suppress(QuantailorError):  # some presets need an importance matrix
                add("presets", types_of_preset(at.model, preset, matrix))
    tables, n_weights = [usual_table(table) for table in at.found.tables], sum(table.n_elements for table in at.found.tables)
    for number in range(n_mixes):
        bits = _log_uniform(generator, RANDOM_BITS)
        add("random", random_mix(tables, int(bits * n_weights / 8), seed=1000 * seed + number, tolerance=0.01))
    evidence = Evidence(at.model, at.found, at.known, probed_tables(at.model.source, at.found, at.known), at.imatrix)
    for number in range(n_mixes):
        allow = ",".join(SUBSETS[number % len(SUBSETS)])
        options = PlanOptions(
            method="greedy" if number % 5 == 4 else "optimal",
            bits_per_weight=_log_uniform(generator, OPTIMA_BITS),
            allow=(allow,) if allow else (),
        )
        with contextlib.suppress(InfeasibleError):
            add("optima", solve(evidence, options)[0].types)
    return list(found.values())


def _log_uniform(generator: random.Random, ends: tuple[float, float]) -> float:
    return math.exp(generator.uniform(*map(math.log, ends)))


def measure_cases(setting: Setting, at: Probed, n_chunks: int, n_pool: int, mixes: Sequence[tuple[str, Mix]]) -> list[Case]:
    """Score the mixes on the held-out text; what an earlier run scored is taken as it is."""
    task = ProbeStep(base=str(at.model.path), text=str(setting.heldout), compute=Compute(n_threads=setting.threads))
    control = NullControl()
    tensors = quantizable_tensors(at.model.source)
    key = at.found.key
    rounding = writing_rounding(at.workspace, at.model, at.imatrix, "compensated" if key.swapped else "plain", key.covariances or AUTO)
    with scoring(at.workspace, at.model, rounding, task, None) as run:
        pool = run.order[:n_pool]
        own = {mix.id: random.Random(mix.id).sample(pool, min(n_chunks, len(pool))) for _, mix in mixes}
        for _, mix in mixes:
            run.run([mix], sorted(own[mix.id]), control)
        randoms = [mix for kind, mix in mixes if kind == "random"]
        for mix in randoms[:: max(1, len(randoms) // N_FILES)]:
            run.run_file(mix, builder(run, at.model, rounding, mix, control, setting.threads), sorted(own[mix.id]), NullControl)
        memory, files = at.workspace.store.mix_scores(run.key), at.workspace.store.mix_scores(file_key(run.key))

    def kld(rows: Scores, mix: Mix) -> float | None:
        scores = [score for score in rows.get(mix.id, ()) if score.index in own[mix.id]]
        return mean_kld(scores).value if scores else None

    return [Case(kind, bits_per_weight(tensors, mix.types), mix, kld(memory, mix) or math.nan, kld(files, mix)) for kind, mix in mixes]


def parts_of(tables: Tables, mix: Mix) -> dict[str, float]:
    """A mix's damages by part of the model."""
    parts: dict[str, float] = {}
    for table in tables:
        if table.name in mix.types:
            part = part_of(table.name)
            parts[part] = parts.get(part, 0.0) + table.cell(mix.types[table.name]).damage
    return parts


def points_of(at: Probed, tables: Tables) -> list[CurvePoint]:
    """The whole mixes in memory that the probes' curve was fitted to, with these damages."""
    mixes = {mix.id: mix for mix in at.workspace.store.mixes(at.model.fingerprint, CURVE)}
    return [
        dataclasses.replace(point, parts=parts_of(tables, mixes[point.mix]), spread=0.0)
        for point in at.known.curve.points
        if point.kind == "memory" and point.mix in mixes
    ]


def in_nats(at: Probed, tables: Tables) -> list[TensorCells]:
    """The tables with damages in a unit in which whole mixes do what was measured, on average; what is expected of a curve is in nats."""
    ratios = [point.measured.value / math.fsum(point.parts.values()) for point in points_of(at, tables)]
    unit = statistics.geometric_mean(ratios)
    return redefined(tables, lambda table, index: unit * table.cells[index].damage)


def fitted(at: Probed, tables: Tables) -> Curve:
    """A curve for these damages, fitted to the same whole mixes as the probes' own."""
    own = at.known.curve
    return fit_curve(points_of(at, tables), floor=Estimate(own.c0_nats, own.c0_se), text_sd=own.text_sd, n_chunks=own.n_chunks)


def redefined(tables: Tables, damage: Callable[[TensorCells, int], float]) -> list[TensorCells]:
    """The tables with another damage."""
    return [
        dataclasses.replace(
            table, cells=tuple(dataclasses.replace(cell, damage=damage(table, index)) for index, cell in enumerate(table.cells))
        )
        for table in tables
    ]


def bases(at: Probed) -> dict[str, tuple[Callable[[Mix], Damage], Curve]]:
    """Name -> what a mix does on that basis, and its curve."""
    unscaled = dataclasses.replace(at.known, curve=dataclasses.replace(at.known.curve, scales={}, unseen=Estimate(0.0)))
    probes = probed_tables(at.model.source, at.found, unscaled)
    found: dict[str, Tables] = {
        "parameters": at.found.tables,
        "RMSE": redefined(at.found.tables, lambda table, index: table.cells[index].rmse),
        "imatrix": redefined(at.found.tables, lambda table, index: table.cells[index].weighted_mse),
        "shuffled": with_shuffled_damage(probes, seed=0),
    }
    found = {name: in_nats(at, tables) for name, tables in found.items()}
    own: dict[str, tuple[Callable[[Mix], Damage], Curve]] = {"probes": (lambda mix: at.known.mix(mix.types), at.known.curve)}
    return own | {name: (partial(damage_of, tables, curve := fitted(at, tables)), curve) for name, tables in found.items()}


def damage_of(tables: Tables, curve: Curve, mix: Mix) -> Damage:
    """What a mix does by the damages of these tables."""
    parts = {name: curve.scales.get(name, 1.0) * value for name, value in parts_of(tables, mix).items()}
    return Damage(math.fsum(parts.values()), parts)


def figures(cases: Sequence[Case], damage: Callable[[Mix], Damage], curve: Curve, n_chunks: int) -> dict[str, object]:
    """The row of one basis and kind; what every file has is no part of mixes in memory."""
    curve = dataclasses.replace(curve, c0_nats=0.0, c0_se=0.0)
    predictions = [predict_kld(curve, damage(case.mix), n_chunks=n_chunks) for case in cases]
    errors = [math.log(case.memory / p.kld_nats) for p, case in zip(predictions, cases, strict=True)]
    held = {
        level: sum(low <= case.memory <= high for case, (low, high) in zip(cases, (p.interval(level) for p in predictions), strict=True))
        for level in (0.80, 0.95)
    }
    return {
        "n": len(cases),
        "mean ln": statistics.fmean(errors),
        "sd ln": statistics.stdev(errors),
        "stated sd": statistics.fmean(p.relative_sd for p in predictions),
        "median |ln|": statistics.median(map(abs, errors)),
        "in 80 %": held[0.80] / len(cases),
        "in 95 %": held[0.95] / len(cases),
        "rank": float(spearmanr([p.kld_nats for p in predictions], [case.memory for case in cases]).statistic),
        "ordered": ordered(cases, [p.kld_nats for p in predictions]),
    }


def ordered(cases: Sequence[Case], predictions: Sequence[float]) -> float:
    """The share of pairs of nearly equal size whose predictions differ by more than 10 % that are ordered rightly."""
    rows = list(zip(cases, predictions, strict=True))
    right = [
        (one > other) == (a.memory > b.memory)
        for (a, one), (b, other) in itertools.combinations(rows, 2)
        if abs(math.log(a.bits / b.bits)) < math.log(1.1) < abs(math.log(one / other))
    ]
    return statistics.fmean(right) if right else math.nan


def fitted_to(at: Probed) -> list[tuple[str, Mix]]:
    """Every fourth of the mixes that the curve was fitted to, which tell what the text alone does."""
    return [("fitted", mix) for mix in at.workspace.store.mixes(at.model.fingerprint, CURVE)[::4]]


def shift_of_text(cases: Sequence[Case], curve: Curve) -> Estimate:
    """ln(KLD on the held-out text / on the curve's), mean over the curve's own mixes, with the standard error over mixes."""
    measured = {point.mix: point.measured.value for point in curve.points if point.kind == "memory"}
    logs = [math.log(case.memory / measured[case.mix.id]) for case in cases if case.kind == "fitted" and case.mix.id in measured]
    if len(logs) < 2:
        return Estimate(math.nan)
    return Estimate(statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs)))


def c0_of_files(cases: Sequence[Case]) -> list[float]:
    """What the built files have beyond the same mixes in memory, nats."""
    return [case.file - case.memory for case in cases if case.file is not None]


def main() -> None:
    """Print the table of every model."""
    setting, options = parse(
        __doc__,
        ("--chunks", int, 64, "held-out chunks"),
        ("--pool", int, 192, "held-out chunks that they are drawn from"),
        ("--seed", int, 1, "of random mixes and optima"),
        ("--mixes", int, 20, "random mixes, and as many optima"),
        ("--rounding", str, "plain", "plain or compensated"),
    )
    for model in setting.models:
        base = setting.base(model)
        setting.prepare(base, rounding=options.rounding)
        with probed(setting, base, options.rounding) as at:
            mixes = [*drawn(at, options.seed, options.mixes), *fitted_to(at)]
            cases = measure_cases(setting, at, options.chunks, options.pool, mixes)
            rows = {
                f"{kind}, {name}": figures([case for case in cases if case.kind == kind], damage, curve, options.chunks)
                for name, (damage, curve) in bases(at).items()
                for kind in KINDS
            }
            curve, shift = at.known.curve, shift_of_text(cases, at.known.curve)
        chunks = f"{options.chunks} of {options.pool} chunks of {setting.heldout.name} each"
        print(f"\n{model.name}: {len(cases)} mixes of seed {options.seed}, {chunks}")
        print(f"gamma {curve.gamma:.3f}, kappa {curve.kappa:+.2f}, c0 {curve.c0_nats:.2g}, scatter {curve.residual_sd:.3f}")
        print(f"ln of the curve's own mixes, held-out text / theirs: {shift.value:+.3f} (se {shift.se:.3f}); ", end="")
        print(f"expected {curve.unseen.value:+.3f} (sd {curve.unseen.se:.3f})")
        print("built file less the same mix in memory, nats: " + ", ".join(f"{value:+.1e}" for value in c0_of_files(cases)))
        for name, row in rows.items():
            print(f"{name:20s} " + ", ".join(f"{key} {_told(value)}" for key, value in row.items()))
        save(setting.folder / f"prediction-{model.name}-{options.seed}.json", rows)


def _told(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
