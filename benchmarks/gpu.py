"""Whether a GPU gives what the CPU gives, and how fast: `python -m benchmarks.gpu`, the last step of `make gpu-check`.

On both small models: importance matrix and covariances from the GPU beside those from the CPU; every type swapped into the
loaded model beside the built file, logit by logit; the base after a swap beside the base before, bit by bit; divergences of
the same mixes. Then the commands, from calibration to verdict, and passes per second of made-up models with the shapes of real
ones. Each check runs even where another failed; the exit code is the number of those that did.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.large import pass_rates, written
from benchmarks.llama_shapes import SHAPES
from benchmarks.setting import MODELS
from quantailor import cli
from quantailor.analysis.corpus import chunks, load_corpus
from quantailor.analysis.covariances.calibrating import compute_calibration
from quantailor.analysis.covariances.capture import Calibration
from quantailor.analysis.covariances.covariance_file import CovarianceFile
from quantailor.analysis.importance.computing import ImatrixWork, compute_imatrix
from quantailor.analysis.importance.imatrix import Imatrix
from quantailor.analysis.rounding.rounding import Rounding
from quantailor.analysis.scores.mix_scores import MixScorer
from quantailor.analysis.scores.swapping import Swapper
from quantailor.ggml import library
from quantailor.ggml.devices import Devices
from quantailor.ggml.runtime import LoadedModel
from quantailor.making import building
from quantailor.models.convert.base import write_base
from quantailor.models.identity import fingerprint
from quantailor.models.opening import open_model
from quantailor.models.source import ModelSource
from quantailor.numerics import Floats, Tokens
from quantailor.processes.crews import ModelFiles
from quantailor.qtypes import needs_imatrix
from quantailor.records import Mix, Strategy, TensorChoice
from quantailor.session import CALIBRATION_TEXT, HELDOUT_TEXT, quantizable_tensors

N_CTX, N_CHUNKS = 512, 4
LARGEST_INPUT_DIFFERENCE = 0.02
"""Of importances and covariances, relative to the largest of their tensor: the GPU rounds products' inputs and sums otherwise."""
LARGEST_KLD_RATIO = 1.25
"""Between the divergences of one mix on GPU and CPU, whose kernels round the inputs of products differently."""
LARGEST_LOGIT_DIFFERENCE = 1e-3
"""Between a swapped mix and the built file on the same GPU, which may choose another kernel for another place in memory."""
MIXES = ("Q2_K", "IQ3_XXS", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")


@dataclass
class Checks:
    """What was found so far."""

    failed: list[str] = field(default_factory=list)

    def run(self, name: str, check: Callable[[], str | None]) -> None:
        """Run one; it gives what is wrong, or None."""
        started = time.perf_counter()
        try:
            wrong = check()
        except Exception:
            traceback.print_exc()
            wrong = "it raised"
        if wrong:
            self.failed.append(name)
        print(f"{'FAILED' if wrong else 'ok'}  {name}  ({time.perf_counter() - started:.1f} s){': ' + wrong if wrong else ''}", flush=True)


class Model:
    """A base and some chunks, run with so many layers on the GPU."""

    def __init__(self, directory: Path, folder: Path, layers: int) -> None:
        self.name, self.folder, self.layers = directory.name, folder, layers
        self.path = folder / f"{self.name}.gguf"
        opened = open_model(directory)
        write_base(opened, self.path)
        opened.close()
        self.source: ModelSource = open_model(self.path)
        self.names = [tensor.name for tensor in quantizable_tensors(self.source)]
        self.tokens: Tokens = chunks(load_corpus(self.path, CALIBRATION_TEXT), N_CTX, limit=N_CHUNKS)
        self.imatrix = self._imatrix(0)

    def _imatrix(self, layers: int) -> Imatrix:
        return compute_imatrix(ImatrixWork(ModelFiles(self.path), self.tokens, devices=Devices(layers)))

    def importances(self) -> str | None:
        """Compare importance matrices."""
        other, worst = self._imatrix(self.layers), 0.0
        for name, entry in self.imatrix.entries.items():
            worst = max(worst, _difference(entry.sum2, other.entries[name].sum2))
        print(f"    importances of {len(self.imatrix.entries)} tensors differ by at most {worst:.2e} of the largest")
        return _above(worst, LARGEST_INPUT_DIFFERENCE)

    def covariances(self) -> str | None:
        """Compare covariances."""
        files = [self.folder / f"{self.name}-{where}.cov" for where in ("cpu", "gpu")]
        for place, layers in zip(files, (0, self.layers), strict=True):
            compute_calibration(Calibration(self.path, fingerprint(self.source), place, devices=Devices(layers)), self.tokens)
        worst, n_compared = 0.0, 0
        with CovarianceFile(files[0]) as cpu, CovarianceFile(files[1]) as gpu:
            for tensor in quantizable_tensors(self.source):
                one, other = cpu.of(tensor), gpu.of(tensor)
                if one and other:
                    worst, n_compared = max(worst, _difference(one.matrix, other.matrix)), n_compared + 1
        print(f"    covariances of {n_compared} tensors differ by at most {worst:.2e} of the largest")
        return _above(worst, LARGEST_INPUT_DIFFERENCE) or (None if n_compared else "none was compared")

    def swaps(self) -> str | None:
        """Every type: swapped in beside the built file; the base again afterwards, twice with each so that graphs are replayed."""
        wrong, worst = [], ("", 0.0)
        rounding = Rounding(self.imatrix)
        with Swapper(self.source, self.path, self.names, rounding=rounding, n_ctx=N_CTX, devices=Devices(self.layers)) as swapper:
            base = [swapper.logits(self.tokens[0]) for _ in range(3)]
            if not all(np.array_equal(base[0], other) for other in base[1:]):
                wrong.append("the base differs from itself")
            for type_name in self._types():
                mix = self._mix(type_name, every=5)
                swapper.set_mix(mix)
                print(f"    {type_name}", flush=True)
                swapped = [swapper.logits(self.tokens[0]) for _ in range(3)]
                if not all(np.array_equal(swapped[0], other) for other in swapped[1:]):
                    wrong.append(f"{type_name} differs from itself")
                swapper.set_mix({})
                if not np.array_equal(swapper.logits(self.tokens[0]), base[0]):
                    wrong.append(f"the base after {type_name} is another")
                with LoadedModel(self._built(mix), n_ctx=N_CTX, devices=Devices(self.layers), writable=True) as model:  # not repacked
                    difference = float(np.abs(model.logits(self.tokens[0]) - swapped[-1]).max())
                worst = max(worst, (type_name, difference), key=lambda pair: pair[1])
                if difference > LARGEST_LOGIT_DIFFERENCE:
                    wrong.append(f"{type_name}: logits differ from the file's by {difference:.2e}")
        print(f"    {len(self._types())} types; logits differ from the file's by at most {worst[1]:.2e} ({worst[0]})")
        return "; ".join(wrong) or None

    def divergences(self) -> str | None:
        """Divergences of the same mixes."""
        mixes = [Mix.of(self._mix(type_name)) for type_name in MIXES] + [
            Mix.of({name: "Q2_K"}) for name in self.names[:: len(self.names) // 6]
        ]
        cpu, gpu = (self._klds(mixes, layers) for layers in (0, self.layers))
        ratios = [gpu[mix.id] / cpu[mix.id] for mix in mixes]
        print("    KLD on the GPU / on the CPU: " + ", ".join(f"{ratio:.3f}" for ratio in ratios))
        return _above(max(max(ratio, 1 / ratio) for ratio in ratios), LARGEST_KLD_RATIO)

    def _klds(self, mixes: Sequence[Mix], layers: int) -> dict[str, float]:
        folder, sums = self.folder / f"{self.name}-{layers}", dict.fromkeys((mix.id for mix in mixes), 0.0)
        with MixScorer(
            self.source, self.path, self.names, self.tokens, folder, rounding=Rounding(self.imatrix), devices=Devices(layers)
        ) as scorer:
            for mix, scored in scorer.score(mixes, range(N_CHUNKS)):
                sums[mix.id] += scored.kld_sum
        return sums

    def _types(self) -> tuple[str, ...]:
        return tuple(name for name, qtype in library.types().items() if qtype.is_quantized)

    def _mix(self, type_name: str, every: int = 1) -> dict[str, str]:
        qtype, known = library.types()[type_name], self.imatrix.entries
        fits = [tensor.name for tensor in quantizable_tensors(self.source) if qtype.divides(tensor.n_cols)]
        return {name: type_name for name in fits[::every] if name in known or not needs_imatrix(name, qtype)}

    def _built(self, mix: dict[str, str]) -> Path:
        choices = tuple(TensorChoice(name, type_name, "") for name, type_name in mix.items())
        strategy = Strategy(fingerprint(self.source), self.source.name, self.source.architecture, "manual", choices)
        output = self.folder / "built.gguf"
        building.build(self.source, strategy, output, rounding=Rounding(self.imatrix), overwrite=True)
        return output


def _difference(one: Floats, other: Floats) -> float:
    return float(np.abs(one - other).max() / np.abs(one).max())


def _above(value: float, limit: float) -> str | None:
    return f"{value:.3g} is above {limit}" if not value <= limit else None


def commands(base: Path, folder: Path, layers: int) -> str | None:
    """The way of a user, from calibration to verdict."""
    home, built = folder / "home", folder / "ours.gguf"
    for words in (
        ("calibrate", base, "--chunks", 16, "-ngl", layers),
        ("probe", base, "-ngl", layers),
        ("plan", base, "--like", "Q4_K_M", "-o", folder / "ours.yaml"),
        ("build", base, folder / "ours.yaml", "-o", built),
        ("verify", built, "--base", base, "-f", HELDOUT_TEXT, "--chunks", 24, "--against", "Q4_K_M", "-ngl", layers),
    ):
        started = time.perf_counter()
        code = cli.run([*map(str, words), "--home", str(home)])
        print(f"    quantailor {words[0]}: {time.perf_counter() - started:.1f} s", flush=True)
        if code:
            return f"quantailor {words[0]} gives exit code {code}"
    return None


def passes(name: str, type_name: str, folder: Path, vocabulary: ModelSource, layers: int, n_passes: int) -> str | None:
    """Passes per second of a made-up model: running alone, and as probes, with swap and score."""
    path = written(name, type_name, folder, vocabulary)
    print(f"    {name} {type_name}, {layers} layers on the GPU: {pass_rates(path, folder, n_passes=n_passes, n_gpu_layers=layers)}")
    return None


def main() -> int:
    """Run all checks, each part in a process of its own; the exit code is the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=99, help="layers on the GPU; 0 tries everything on the CPU")
    parser.add_argument("--shapes", default="1B", help=f"of {', '.join(SHAPES)}, separated by commas; empty for none")
    parser.add_argument("--shape-type", default="BF16", help="what their matrices are stored in")
    parser.add_argument("--passes", type=int, default=16, help="passes of each")
    parser.add_argument("--cpu-passes", type=int, default=2, help="passes of each on the CPU, for comparison; 0 for none")
    parser.add_argument("--only", help="a part: a model, commands or a shape")
    options = parser.parse_args()
    has_gpu = bool(library.load().llama.llama_supports_gpu_offload())
    if options.layers and not has_gpu:
        print("this build of llama-cpp-python has no GPU backend: `make gpu-check` builds one; --layers 0 tries the checks on the CPU")
        return 1
    if options.only:
        return _part(options)
    print(f"llama-cpp-python {library.load().version}, with a GPU backend: {'yes' if has_gpu else 'no'}", flush=True)
    n_failed = 0
    for part in (*(directory.name for directory in MODELS), "commands", *filter(None, options.shapes.split(","))):
        code = subprocess.run([sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], "--only", part], check=False).returncode
        if code < 0:
            print(f"FAILED  {part}: the process was ended by signal {-code}", flush=True)
        n_failed += 1 if code < 0 else code
    print(f"{n_failed} checks failed")
    return n_failed


def _part(options: argparse.Namespace) -> int:
    """The checks of one part; how many failed."""
    checks, layers, part = Checks(), options.layers, options.only
    directory = next((model for model in MODELS if model.name == part), MODELS[0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = Model(directory, folder, layers)
        if part == directory.name:
            checks.run(f"{part}: importance matrix", model.importances)
            checks.run(f"{part}: covariances", model.covariances)
            checks.run(f"{part}: divergences", model.divergences)
            checks.run(f"{part}: swapped and built", model.swaps)
        elif part == "commands":
            checks.run(part, lambda: commands(model.path, folder, layers))
        else:
            for where, n_passes in ((layers, options.passes), (0, options.cpu_passes)):
                if n_passes:
                    check = partial(passes, part, options.shape_type, folder, model.source, where, n_passes)
                    checks.run(f"{part}: passes, {where} layers on the GPU", check)
        model.source.close()
    return len(checks.failed)


if __name__ == "__main__":
    sys.exit(main())
