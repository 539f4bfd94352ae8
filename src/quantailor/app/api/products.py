"""Files: built, judged, made in one go, checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from quantailor.app.api.opening import Model, matrix_choice, optional_path, run_on
from quantailor.app.products.checking import BuildCheck, check_build
from quantailor.app.products.fitting import FitReport
from quantailor.app.products.fitting import fit as fit_files
from quantailor.evidence.strategies import store_strategy
from quantailor.pipeline import LadderResult, LadderStep, MakeResult, MakeStep
from quantailor.records import RoundingWish, Strategy, Verdict
from quantailor.session import AUTO
from quantailor.steps.build import BuildReport, BuildStep
from quantailor.steps.options import N_PROMPTS, Evals, absolute, eval_names
from quantailor.steps.plan import PlanOptions
from quantailor.steps.verify import VerifyStep


def build(
    model: Model,
    strategy: Strategy,
    output: str | Path,
    *,
    overwrite: bool = False,
    split_max_bytes: int | None = None,
    imatrix: str | Path = AUTO,
    rounding: RoundingWish = "auto",
) -> BuildReport:
    """Write the GGUF file that a strategy describes; it appears under its name only when it is whole.

    Args:
        model: what the strategy was made for; a Hugging Face directory will do.
        strategy: from `plan`, `read_strategy` or `refine`.
        output: the file.
        overwrite: replace it where it exists.
        split_max_bytes: write shards of at most this size.
        imatrix: "auto" is the one that the strategy was made with.
        rounding: "auto" as the strategy records.

    Raises StrategyError, OutputError, TypeUnavailableError.
    """
    step = BuildStep(
        base=str(model.path),
        strategy=store_strategy(model.workspace, strategy),
        output=absolute(output),
        overwrite=overwrite,
        split_max_bytes=split_max_bytes,
        imatrix=matrix_choice(imatrix),
        rounding=rounding,
        compute=model.compute,
    )
    return run_on(model, step)


def verify(
    model: Model,
    file: str | Path,
    *others: str | Path,
    against: Sequence[str] | None = None,
    text: str | Path | None = None,
    chunks: int | None = None,
    output: str | Path | None = None,
    beside: Literal["plain"] | None = None,
    evals: Sequence[str] = (),
    prompts: int = N_PROMPTS,
    choices: str | Path | None = None,
) -> Verdict:
    """Perplexity and KL divergence of a file beside llama.cpp's presets, with paired intervals, and a sentence that judges it.

    Args:
        model: the model that the file was made from.
        file: the GGUF file.
        others: more files of the model, with which it is compared, too, and they with each other.
        against: presets to compare with, which llama.cpp builds where they are missing; None takes those whose sizes lie around the
            file's, and the one that it was planned like.
        text: held-out text; None is the one that ships.
        chunks: at most so many chunks; fewer than 200 carry no claim.
        output: stem of the .json, .csv, .png and .svg files; by default beside the file.
        beside: "plain" compares a file whose rounding is compensated with its own types rounded plainly, too.
        evals: "greedy" counts for how long files write what the base writes, "choices" puts multiple-choice questions to them.
        prompts: at most so many for "greedy".
        choices: a file of questions; None is the one that ships.

    Raises ModelError, CorpusError, OptionError, TypeUnavailableError.
    """
    step = VerifyStep(
        file=absolute(file),
        others=tuple(map(absolute, others)),
        base=str(model.base),
        against=None if against is None else tuple(against),
        beside=beside,
        text=optional_path(text),
        chunks=chunks,
        evals=Evals(names=eval_names(evals), prompts=prompts, choices=optional_path(choices)),
        output=optional_path(output),
        compute=model.compute,
    )
    return run_on(model, step).verdict


def make(model: Model, output: str | Path, plan: PlanOptions, **options: object) -> MakeResult:
    """All of it in one directory: importance matrix, measurement, probes, plan, file and verdict.

    Args:
        model: a Hugging Face directory or a GGUF file.
        output: the directory; run it again to go on where it stopped.
        plan: the target and its constraints, for example `PlanOptions(like="Q4_K_M")`.
        options: other fields of `quantailor.pipeline.MakeStep`, for example `verify=False`.

    Raises what its steps raise.
    """
    step = MakeStep(model=str(model.path), output=absolute(output), plan=plan, compute=model.compute, **options)  # type: ignore[arg-type]
    return run_on(model, step)


def ladder(model: Model, output: str | Path, sizes: Sequence[str], **options: object) -> LadderResult:
    """Several sizes in one directory from one measurement, with one verdict and one card.

    Args:
        model: a Hugging Face directory or a GGUF file.
        output: the directory; run it again to go on where it stopped.
        sizes: names of presets, bits such as "4.0bpw", bytes such as "6.5GiB".
        options: other fields of `quantailor.pipeline.LadderStep`, for example `name="{model}-{bits}"`.

    Raises OptionError for what is no size, OutputError where something else is in the way, and what its steps raise.
    """
    step = LadderStep(model=str(model.path), output=absolute(output), sizes=tuple(sizes), compute=model.compute, **options)  # type: ignore[arg-type]
    return run_on(model, step)


def fit(
    model: Model,
    memory_bytes: int,
    *,
    n_ctx: int,
    kv_type: str = "f16",
    gpu_memory_bytes: int | None = None,
    mmproj: str | Path = "auto",
    mmproj_offload: bool = True,
) -> FitReport:
    """Which files of a model run in so much memory with a context, by llama.cpp's own accounting; the best, and how to run it.

    Args:
        model: a Hugging Face directory or a GGUF file.
        memory_bytes: what there is.
        n_ctx: tokens of the context.
        kv_type: of keys and values, as llama.cpp's `-ctk` takes it.
        gpu_memory_bytes: splits files: so much on a GPU, the rest in `memory_bytes`.
        mmproj: the vision tower's or audio encoder's file, which counts, too; "auto" takes the one beside the model or its built files,
            "none" none.
        mmproj_offload: False leaves it to the processor.

    Raises OptionError where the context alone takes more, or that file is none, InferenceError where llama.cpp cannot run the model or the
    file; with a split NativeLibraryError where llama.cpp has neither a GPU here nor the RPC backend.
    """
    return fit_files(
        model.workspace,
        model.path,
        memory_bytes,
        n_ctx=n_ctx,
        kv_type=kv_type,
        gpu_memory_bytes=gpu_memory_bytes,
        mmproj=mmproj,
        mmproj_offload=mmproj_offload,
    )


def check(model: Model, strategy: Strategy, file: str | Path) -> BuildCheck:
    """Whether a file is what its strategy says, with the SHA-256 of every part. Raises ModelError, StrategyError."""
    return check_build(model.workspace, model.path, strategy, Path(file))
