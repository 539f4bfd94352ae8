"""Whether files are as fast as predicted, and what a speed costs: `python -m benchmarks.speed`.

Of each model, and of a made-up Llama of 200 M weights, types are timed (`quantailor speed`), and then random mixes that were in no figure.
Each draws from a few types of its own, so that mixes differ in speed; how far off one figure for all of them would be is printed, too.
Files of the models are built from their weights with an importance matrix, those of the made-up one as `speed` makes them. Every file runs
in turns with the reference, longer where the machine is busy, so that other work counts little; the load is printed.

Then plans as large as presets with and without a speed: predicted KLD and tokens per second, and the ratio of their times, measured.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.llama_shapes import Shape, write_shape
from benchmarks.setting import MODELS, Setting, parse, save
from quantailor.analysis.racing import race
from quantailor.analysis.rounding.rounding import Rounding
from quantailor.analysis.speed import DISTURBED
from quantailor.errors import InfeasibleError
from quantailor.evidence.recipes import reference_of
from quantailor.evidence.speeds import Speeds, files_to_time, known_speeds, reference_file
from quantailor.ggml import library
from quantailor.ggml.devices import PROCESSOR
from quantailor.making.building import build
from quantailor.making.timing_files import write_timing_file
from quantailor.models.opening import open_model
from quantailor.records import PredictedSpeed, SpeedOf, Strategy, TensorChoice, Timing
from quantailor.session import OpenedModel, Workspace
from quantailor.steps.plan import PlanOptions, PlanResult, plan

TYPES = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "F16"),
)
SHAPE = Shape(12, 1024, 2816, 16, 4, 32_000)
GOAL = 0.07
OF: tuple[SpeedOf, SpeedOf] = ("generation", "prompt")
PRESETS = ("Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_XXS")
SPEEDS = ("1", "1.05", "1.1")
PRECEDENCE = Path("/proc/self/autogroup")


@dataclass(frozen=True)
class Row:
    """One mix: tokens per second, predicted and timed."""

    types: tuple[str, ...]
    predicted: PredictedSpeed
    timed: dict[SpeedOf, float]

    def off(self, of: SpeedOf) -> float:
        """Predicted over timed, less 1."""
        return self.predicted.tokens_per_second(of) / self.timed[of] - 1


@dataclass(frozen=True)
class Plan:
    """One plan, or a preset, as large as the preset."""

    size: str
    label: str
    kld_nats: float | None
    speed: PredictedSpeed
    measured: float
    """Seconds per token of generation over those of the optimum without a speed."""


class Bench:
    """An opened home and model, with the reference that files run against."""

    def __init__(self, workspace: Workspace, model: OpenedModel, speeds: Speeds, folder: Path, threads: int | None) -> None:
        self.workspace, self.model, self.speeds, self.folder, self.threads = workspace, model, speeds, folder, threads
        self.reference, self.candidate = folder / "reference.gguf", folder / "candidate.gguf"
        self.matrix = workspace.imatrices.default(model.fingerprint)
        write_timing_file(model.source, self.reference, reference_file(model.source).types)

    def build(self, types: Mapping[str, str], path: Path) -> None:
        """A file with these types: of the model's own weights where it has an importance matrix, else one that is made to be timed."""
        if self.matrix is None:
            write_timing_file(self.model.source, path, types)
            return
        choices = tuple(TensorChoice(name, each, "benchmark") for name, each in types.items())
        source = self.model.source
        strategy = Strategy(self.model.fingerprint, source.name, source.architecture, "manual", choices)
        build(source, strategy, path, rounding=Rounding(self.matrix), overwrite=True, fingerprint=self.model.fingerprint)

    def planned(self, wanted: PlanOptions | str) -> PlanResult:
        """A plan by everything that is measured."""
        return plan(self.workspace, self.model.path, wanted, rounding="plain")

    def against(self, reference: Path, path: Path, quiet: tuple[float, float] | None) -> Timing:
        """What a file takes over what another takes."""
        return race(reference, path, quiet, n_threads=self.threads, devices=PROCESSOR)

    def timed(self, path: Path) -> dict[SpeedOf, float]:
        """Tokens per second of a file, by its ratio to the reference, from turns in which that was as fast as it was known to be."""
        best = self.speeds.model.reference_s
        timing = self.against(self.reference, path, (DISTURBED * best["prompt"], DISTURBED * best["generation"]))
        return {of: 1 / (best[of] * timing.ratio(of).value) for of in OF}


def mixes(bench: Bench, n_mixes: int) -> Iterator[dict[str, str]]:
    """Random mixes, each of one to four types."""
    source, qtypes = bench.model.source, library.types()
    for seed in range(n_mixes):
        generator = random.Random(1000 + seed)
        drawn = generator.sample(TYPES, generator.randint(1, 4))
        yield {
            name: generator.choice([each for each in drawn if qtypes[each].divides(source.tensor(name).n_cols)] or ["F16"])
            for name in bench.speeds.model.tensors
        }


def predictions(bench: Bench, n_mixes: int) -> list[Row]:
    """Every mix, predicted and timed."""
    rows = []
    for types in mixes(bench, n_mixes):
        predicted = bench.speeds.predicted(types)
        assert predicted is not None
        bench.build(types, bench.candidate)
        rows.append(Row(tuple(sorted(set(types.values()))), predicted, bench.timed(bench.candidate)))
        off = ", ".join(f"{of} {rows[-1].timed[of]:,.0f} timed, {100 * rows[-1].off(of):+.1f} %" for of in OF)
        print(f"  {'+'.join(rows[-1].types):34} {off}", flush=True)
    return rows


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Median and largest relative error, and the median error of one prediction for all."""
    figures: dict[str, float] = {}
    for of in OF:
        errors = [abs(row.off(of)) for row in rows]
        middle = statistics.median(row.timed[of] for row in rows)
        figures[f"{of}, median error"] = statistics.median(errors)
        figures[f"{of}, largest error"] = max(errors)
        figures[f"{of}, median error of one figure for all"] = statistics.median(abs(middle / row.timed[of] - 1) for row in rows)
        figures[f"{of}, fastest over slowest"] = max(row.timed[of] for row in rows) / min(row.timed[of] for row in rows)
    return figures


def plans(bench: Bench) -> list[Plan]:
    """The preset, the optimum of its size, and plans with a speed, at several presets' sizes."""
    found = []
    for preset in PRESETS:
        free = bench.folder / "free.gguf"
        asked: dict[str, PlanOptions | str] = {preset: reference_of(preset), "the optimum": PlanOptions(like=preset)}
        asked |= {f"--speed {speed}": PlanOptions(like=preset, speed=speed) for speed in SPEEDS}
        bench.build(types_of(bench.planned(asked["the optimum"])), free)
        print(f"  at the size of {preset}", flush=True)
        for label, wanted in asked.items():
            try:
                result = bench.planned(wanted)
            except InfeasibleError as error:
                print(f"    {label:14} {error}", flush=True)
                continue
            assert result.speed is not None
            bench.build(types_of(result), bench.candidate)
            ratio, kld = bench.against(free, bench.candidate, None).generation.value, result.prediction.kld_nats
            found.append(Plan(preset, label, kld, result.speed, ratio))
            told = "unknown" if kld is None else f"{kld:.5f}"
            speed = f"{result.speed.generation_tokens_per_second:,.0f} tokens per second"
            print(f"    {label:14} KLD {told}, {speed}, {ratio:.3f} of the optimum's time as measured", flush=True)
    return found


def types_of(result: PlanResult) -> dict[str, str]:
    """Tensor -> type of a plan."""
    return {choice.name: choice.type_name for choice in result.tensors}


def main() -> int:
    """Run it all; 1 where a median error is above the goal."""
    setting, options = parse(__doc__.splitlines()[0], ("--mixes", int, 20, "random mixes of each model"))
    with contextlib.suppress(OSError):  # before other work on this machine, where that is allowed
        PRECEDENCE.write_text("-15", encoding="ascii")
    vocabulary = open_model(setting.base(MODELS[0]))
    made_up = write_shape(setting.folder / "llama-200m.gguf", "200M", "F16", vocabulary, shape=SHAPE)
    vocabulary.close()
    worst, figures = 0.0, {}
    for base in (*map(setting.base, setting.models), made_up):
        if base != made_up:
            setting.prepare(base)
        setting.run("speed", base)
        errors, figures[base.stem] = of_model(setting, base, options.mixes, is_made_up=base == made_up)
        worst = max(worst, *(errors[f"{of}, median error"] for of in OF))
    save(setting.folder / "speed.json", figures)
    print(f"largest median error {100 * worst:.1f} %, goal {100 * GOAL:.0f} %: {'met' if worst <= GOAL else 'NOT MET'}")
    return int(worst > GOAL)


def of_model(setting: Setting, base: Path, n_mixes: int, *, is_made_up: bool) -> tuple[dict[str, float], dict[str, object]]:
    """The errors of one model's predictions, and everything of it, printed as it comes."""
    folder = setting.folder / "speed"
    folder.mkdir(exist_ok=True)
    with Workspace.open(setting.home) as workspace, workspace.model(base) as model:
        speeds = known_speeds(workspace, model.source)
        assert speeds is not None
        bench = Bench(workspace, model, speeds, folder, setting.threads)
        print(f"{base.stem}, {len(files_to_time(model.source, TYPES, 0))} files timed, load {os.getloadavg()[0]:.1f}", flush=True)
        rows = predictions(bench, n_mixes)
        found = summary(rows)
        for label, value in found.items():
            print(f"  {label:48} {value:.2f}" if "over" in label else f"  {label:48} {100 * value:.1f} %")
        print(f"  load {os.getloadavg()[0]:.1f}", flush=True)
        rest = [] if is_made_up else plans(bench)
    return found, {"summary": found, "mixes": [asdict(row) for row in rows], "plans": [asdict(plan) for plan in rest]}


if __name__ == "__main__":
    raise SystemExit(main())
