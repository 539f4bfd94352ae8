"""The main way, a command a step. Each gathers its input, calls one service function and shows the result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from quantailor.app import Workspace, steps
from quantailor.app.choosing.rules import plan_rule
from quantailor.app.jobs import run_job
from quantailor.app.library import structure as inspection
from quantailor.app.steps import (
    AUTO,
    COMPUTE,
    DEFAULT_N_CTX,
    DEFAULT_PROBE_CHUNKS,
    NONE,
    BasisWish,
    BuildStep,
    CalibrateStep,
    ConvertStep,
    Grouping,
    ImatrixStep,
    Limits,
    MakeStep,
    MeasureStep,
    Method,
    PlanOptions,
    Target,
    VerifyStep,
    absolute,
    reference_of,
    use_imatrix,
)
from quantailor.cli import options, show
from quantailor.cli.commands import hub as hub_commands
from quantailor.cli.commands import structure
from quantailor.cli.commands.jobs import jobs_app
from quantailor.cli.progress import reading
from quantailor.cli.root import app, command
from quantailor.cli.values import covariances_choice, imatrix_choice, optional_path, optional_seconds, parse_size, split_list

app.add_typer(jobs_app, name="jobs")


def _version(value: bool) -> None:
    if value:
        typer.echo(steps.version())
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    del version


@command(epilog="Examples: quantailor inspect base.gguf --types | quantailor inspect meta-llama/Llama-3.2-1B")
def inspect(
    hub: options.Hub,
    model: options.Model,
    types: Annotated[bool, typer.Option("--types", help="List every tensor's types.")] = False,
    largest: structure.Largest = None,
    config: structure.Config = None,
    as_json: options.Json = False,
) -> None:
    """Show a model's structure: configuration, tensors, shapes, and which types each tensor can take and why not the others.

    ORG/NAME looks at a repository of the Hugging Face hub without downloading it: headers, size, licence, and the disk needed.
    """
    answer = options.Answer(as_json=as_json)
    if (types, largest is not None, config is not None).count(True) > 1:
        raise typer.BadParameter("--types, --largest and --config exclude each other")
    if repository := hub.repository(model):
        if largest is not None or config is not None:
            raise typer.BadParameter("--largest and --config are for models on this machine: download it first")
        hub_commands.peek(repository, hub.token_file, types=types, answer=answer)
        return
    if config is not None:
        structure.configuration(model, config, answer)
        return
    if largest is not None:
        structure.largest(model, largest, answer)
        return
    with reading() as listener:
        report = inspection.inspect(model, listener=listener)
    answer.tell("inspect", report, lambda: show.model(report, all_types=types))


@command(epilog="Examples: quantailor convert ./Llama-3.2-1B -o base.gguf | quantailor convert meta-llama/Llama-3.2-1B -o base.gguf")
def convert(
    hub: options.Hub,
    converting: options.Converting,
    run: options.Run,
    model: Annotated[
        Path, typer.Argument(metavar="HF_DIR", parser=options.model_path, help="A Hugging Face directory, or ORG/NAME of the hub.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The base to write.")],
    force: options.Force = False,
) -> None:
    """Write the 16-bit base GGUF of a Hugging Face directory or a repository; parts outside the text model are left out and listed.

    Models that Quantailor does not convert itself go through llama.cpp's converter, which needs torch and transformers.
    """
    repository = hub.repository(model)
    task = ConvertStep(
        model=options.place(model, repository),
        hub=repository,
        output=absolute(output),
        overwrite=force,
        conversion=converting.conversion(repository),
    )
    run.execute(task)


@command(epilog="Examples: quantailor imatrix base.gguf -f text.txt | quantailor imatrix base.gguf --import imatrix.dat")
def imatrix(
    hub: options.Hub,
    machine: options.Machine,
    run: options.Run,
    base: options.Runnable,
    text: options.Text = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", "--export", help="Also write it here, as GGUF.")] = None,
    import_file: Annotated[Path | None, typer.Option("--import", help="Take this file (GGUF or .dat) instead of computing.")] = None,
    show_only: Annotated[bool, typer.Option("--show", help="Show the one that later commands use; compute nothing.")] = False,
    chunks: options.Chunks = None,
    n_ctx: options.Context = DEFAULT_N_CTX,
    process_output: Annotated[bool, typer.Option("--process-output", help="Include output.weight, for the quantizer.")] = False,
    force: options.Force = False,
) -> None:
    """Compute, import, export or show an importance matrix; later commands use the latest of a model that saw no less than others."""
    repository = hub.repository(base)
    if import_file is not None or show_only:
        if import_file is not None and (show_only or text is not None):
            raise typer.BadParameter("--import goes with neither --show nor --file")
        here = hub_commands.here(base, repository)
        with run.workspace() as workspace:
            report = use_imatrix(workspace, here.path, import_file=import_file, export=output, overwrite=force)
        run.tell("imatrix", report, lambda: show.imatrix(report))
        return
    task = ImatrixStep(
        base=options.place(base, repository),
        hub=repository,
        text=optional_path(text),
        chunks=chunks,
        n_ctx=n_ctx,
        process_output=process_output,
        output=optional_path(output),
        overwrite=force,
        compute=machine.compute,
    )
    run.execute(task)


@command(epilog="Example: quantailor calibrate base.gguf -f text.txt")
def calibrate(
    hub: options.Hub,
    machine: options.Machine,
    run: options.Run,
    base: options.Runnable,
    text: options.Text = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the covariances here.")] = None,
    chunks: options.Chunks = None,
    n_ctx: options.Context = DEFAULT_N_CTX,
    process_output: Annotated[bool, typer.Option("--process-output", help="Include output.weight, for the quantizer.")] = False,
    memory: Annotated[
        str | None, typer.Option("--memory", help="For sums, beside the model (1.5GiB): with more, the text runs fewer times.")
    ] = None,
    force: options.Force = False,
) -> None:
    """Compute an importance matrix and input covariances, from which errors are measured and made up for while rounding.

    Later commands use those of a model that saw most text. Models whose sums do not fit the memory run through the text several times.
    """
    repository = hub.repository(base)
    task = CalibrateStep(
        base=options.place(base, repository),
        hub=repository,
        text=optional_path(text),
        chunks=chunks,
        n_ctx=n_ctx,
        process_output=process_output,
        memory_bytes=None if memory is None else parse_size(memory),
        output=optional_path(output),
        overwrite=force,
        compute=machine.compute,
    )
    run.execute(task)


@command(epilog="Example: quantailor measure base.gguf --types Q3_K,Q4_K,Q5_K,Q6_K,Q8_0")
def measure(
    hub: options.Hub,
    machine: options.Threads,
    run: options.Run,
    base: options.Model,
    types: options.Types = None,
    tensors: Annotated[str | None, typer.Option("--tensors", help="Only tensors that match these patterns, e.g. 'blk.0.*'.")] = None,
    exhaustive: Annotated[bool, typer.Option("--exhaustive", help="Every row instead of a sample with a stated error.")] = False,
    imatrix: options.AnyImatrix = AUTO,
    rounding: options.Rounding = "auto",
    covariances: options.Covariances = AUTO,
    requantize: options.Requantize = False,
) -> None:
    """Measure the error of every tensor at every type. What the store has already is not measured again."""
    repository = hub.repository(base)
    task = MeasureStep(
        base=options.place(base, repository),
        hub=repository,
        types=split_list(types),
        tensors=split_list(tensors),
        exhaustive=exhaustive,
        imatrix=imatrix_choice(imatrix, of_repository=repository is not None),
        rounding=rounding,
        covariances=covariances_choice(covariances),
        allow_requantize=requantize,
        compute=machine.compute,
    )
    run.execute(task)


Size = Annotated[
    str | None, typer.Option("--size", help="Size of the file: 4.2GiB (1024^3), 4.2GB or 4.2G (1000^3).", rich_help_panel="Target")
]
Bpw = Annotated[float | None, options.number("bits_per_weight", "--bpw", help="Bits per weight over all tensors.", panel="Target")]
Like = Annotated[str | None, typer.Option("--like", help="As large as this preset's file, e.g. Q4_K_M.", rich_help_panel="Target")]
Kld = Annotated[
    float | None,
    options.number(
        "kld_nats", "--kld", help="The smallest file whose predicted mean KL divergence (nats) is at most this.", panel="Target"
    ),
]
BasisOption = Annotated[
    BasisWish,
    typer.Option("--basis", help="auto (probes if there are any), probes, or ranking (what is expected without).", rich_help_panel="Rule"),
]
Pin = Annotated[list[str] | None, typer.Option("--pin", help="PATTERN=TYPE, e.g. 'attn_v=Q6_K'.", rich_help_panel="Constraints")]
Tie = Annotated[list[str] | None, typer.Option("--tie", help="qkv, gate_up, layer or patterns.", rich_help_panel="Constraints")]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", help="Q4_K,Q5_K overall or PATTERN=Q4_K,Q5_K.", rich_help_panel="Constraints"),
]
Minimum = Annotated[
    list[str] | None, typer.Option("--min", help="Fewest bits or smallest type: 3.5 or PATTERN=Q4_K.", rich_help_panel="Constraints")
]
Maximum = Annotated[
    list[str] | None, typer.Option("--max", help="Most bits or largest type: 6.6 or PATTERN=Q8_0.", rich_help_panel="Constraints")
]
Budget = Annotated[
    list[str] | None,
    typer.Option("--budget", help="PATTERN=SIZE: what matches fits in it, e.g. '*_exps=10GiB'.", rich_help_panel="Constraints"),
]


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """How large the file is to be."""

    size: Size = None
    bpw: Bpw = None
    like: Like = None
    kld: Kld = None

    def target(self, *, needed: bool) -> Target:
        """The part of a plan's options. Raises typer.BadParameter for two targets, none where one is needed, or what is no size."""
        values = {"--size": self.size, "--bpw": self.bpw, "--like": self.like, "--kld": self.kld}
        given = [name for name, value in values.items() if value is not None]
        if len(given) > 1:
            raise typer.BadParameter(f"{' and '.join(given)} say the same thing twice; give one")
        if needed and not given:
            raise typer.BadParameter("give a target: --size, --bpw, --like or --kld")
        size_bytes = None if self.size is None else parse_size(self.size)
        return Target(size_bytes=size_bytes, bits_per_weight=self.bpw, like=self.like, kld_nats=self.kld)


@dataclass(frozen=True, slots=True)
class ConstraintOptions:
    """What holds in every rule."""

    pin: Pin = None
    tie: Tie = None
    allow: Allow = None
    minimum: Minimum = None
    maximum: Maximum = None
    budget: Budget = None

    @property
    def limits(self) -> Limits:
        """The part of a plan's options. Raises typer.BadParameter for a budget that is not a size."""
        sizes = ((pattern, parse_size(size)) for pattern, _, size in (text.rpartition("=") for text in self.budget or ()))
        return Limits(
            pins=tuple(self.pin or ()),
            allow=tuple(self.allow or ()),
            minimum=tuple(self.minimum or ()),
            maximum=tuple(self.maximum or ()),
            ties=tuple(self.tie or ()),
            budgets=tuple(f"{pattern}={size}" for pattern, size in sizes),
        )


@command(epilog="Examples: quantailor plan base.gguf --like Q4_K_M -o s.yaml | quantailor plan base.gguf --knee relative:300 -o s.yaml")
def plan(
    hub: options.Hub,
    target: TargetOptions,
    constraints: ConstraintOptions,
    answer: options.Answer,
    base: options.Model,
    basis: BasisOption = "auto",
    evidence: options.Evidence = None,
    knee: Annotated[
        str | None,
        typer.Option(
            "--knee", help="TEST[:THRESHOLD]; relative, absolute, statistical, second-difference or fitted.", rich_help_panel="Rule"
        ),
    ] = None,
    greedy: Annotated[
        str | None,
        typer.Option("--greedy", help="PENALTY[:START]; damage, rmse or max_error, from e.g. Q6_K down.", rich_help_panel="Rule"),
    ] = None,
    bins: Annotated[
        str | None,
        typer.Option("--bins", help="'10=Q6_K,30=Q5_K,100=Q4_K': the top 10 % by importance get at least Q6_K.", rich_help_panel="Rule"),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            help="NAME=VALUE: epsilon, error (knee); max_rmse_growth, important_percentile, important_max_error (greedy).",
            rich_help_panel="Rule",
        ),
    ] = None,
    imatrix: options.AnyImatrix = AUTO,
    rounding: options.Rounding = "auto",
    covariances: options.Covariances = AUTO,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Save it here, as YAML or JSON according to the name.")] = None,
    force: options.Force = False,
    all_tensors: Annotated[bool, typer.Option("--all", help="Show every tensor's choice and reason.")] = False,
) -> None:
    """Choose a type for every tensor from the measurements; the default rule is the optimum for a size."""
    rules: dict[Method, str] = {}
    if knee is not None:
        rules["knee"] = knee
    if greedy is not None:
        rules["greedy"] = greedy
    if bins is not None:
        rules["bins"] = bins
    if len(rules) > 1:
        raise typer.BadParameter(f"--{' and --'.join(rules)} are different rules; give one")
    if evidence is not None and basis == "ranking":
        raise typer.BadParameter("--basis ranking stands on no probes, so --evidence chooses nothing")
    optimal: tuple[Method, str | None] = ("optimal", None)
    method, rule = next(iter(rules.items()), optimal)
    plan_options = PlanOptions(
        **plan_rule(method, rule, option or ()),
        **target.target(needed=method in ("optimal", "greedy")),
        **constraints.limits,
        basis=basis,
        evidence=evidence,
    )
    here = hub_commands.here(base, hub.repository(base), imatrix)
    with answer.workspace() as workspace:
        found = steps.plan(
            workspace,
            here.path,
            plan_options,
            imatrix=here.imatrix,
            rounding=rounding,
            covariances=covariances_choice(covariances),
            output=output,
            overwrite=force,
            origin=here.origin,
        )
    answer.tell("plan", found, lambda: show.planned(found, all_tensors=all_tensors or output is None))


@command(
    epilog="Examples: quantailor build base.gguf strategy.yaml -o model-4.5bpw.gguf | "
    "quantailor build ORG/NAME strategy.yaml -o out.gguf | quantailor build base.gguf Q4_K_M --rounding compensated -o out.gguf"
)
def build(
    hub: options.Hub,
    machine: options.Threads,
    run: options.Run,
    base: options.Model,
    strategy: Annotated[
        Path,
        typer.Argument(
            metavar="STRATEGY",
            help="A strategy file (YAML, JSON), any GGUF file of this model, for its types, llama-quantize's tensor types, or a preset "
            "such as Q4_K_M.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The GGUF file to write.")],
    imatrix: options.AnyImatrix = AUTO,
    rounding: options.Rounding = "auto",
    covariances: options.Covariances = AUTO,
    split_max_size: Annotated[str | None, typer.Option("--split-max-size", help="Write shards of at most this size.")] = None,
    requantize: options.Requantize = False,
    force: options.Force = False,
) -> None:
    """Write the file that a strategy describes; it appears under its name only when it is whole and checked."""
    repository = hub.repository(base)
    task = BuildStep(
        base=options.place(base, repository),
        hub=repository,
        strategy=reference_of(str(strategy)),
        output=absolute(output),
        imatrix=imatrix_choice(imatrix, of_repository=repository is not None),
        rounding=rounding,
        covariances=covariances_choice(covariances),
        split_max_bytes=None if split_max_size is None else parse_size(split_max_size),
        overwrite=force,
        allow_requantize=requantize,
        compute=machine.compute,
    )
    run.execute(task)


@command(epilog="Example: quantailor verify out.gguf --base base.gguf --against Q6_K,Q4_K_M -f heldout.txt")
def verify(
    hub: options.Hub,
    machine: options.Machine,
    run: options.Run,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The quantized GGUF file.")],
    base: Annotated[Path, typer.Option("--base", help="The 16-bit base it was made from: a file, or ORG/NAME of one on the hub.")],
    against: options.Against = None,
    beside: options.Beside = None,
    text: options.Text = None,
    chunks: options.Chunks = None,
    n_ctx: options.Context = DEFAULT_N_CTX,
    imatrix: options.AnyImatrix = AUTO,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Stem of the .json, .csv, .png and .svg files.")] = None,
    force: options.Force = False,
) -> None:
    """Perplexity and KL divergence of a file against its base, beside llama.cpp's presets; ends with a verdict and a graph."""
    repository = hub.repository(base)
    task = VerifyStep(
        file=absolute(file),
        base=options.place(base, repository),
        hub=repository,
        against=None if against is None else split_list(against),
        beside=beside,
        text=optional_path(text),
        chunks=chunks,
        n_ctx=n_ctx,
        imatrix=imatrix_choice(imatrix, of_repository=repository is not None),
        output=optional_path(output),
        overwrite=force,
        compute=machine.compute,
    )
    run.execute(task)


@command(
    epilog="Examples: quantailor make ./Llama-3.2-1B --size 700MiB -o out | "
    "quantailor make ORG/NAME --imatrix imatrix.gguf --basis ranking --no-verify --like Q4_K_M -o out"
)
def make(
    target: TargetOptions,
    constraints: ConstraintOptions,
    hub: options.Hub,
    converting: options.Converting,
    machine: options.Machine,
    run: options.Run,
    model: options.Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for everything that is made.")],
    basis: BasisOption = "auto",
    types: options.UsualTypes = None,
    exhaustive: Annotated[bool, typer.Option("--exhaustive", help="Measure every row.")] = False,
    text: Annotated[
        Path | None, typer.Option("--file", "-f", help="Calibration text instead of the one that ships with Quantailor.")
    ] = None,
    probe_chunks: options.ProbeChunks = DEFAULT_PROBE_CHUNKS,
    time: options.Time = None,
    group: Annotated[
        Grouping | None,
        typer.Option("--group", help="Probe every tensor, or roles by depth; by default tensors of small models and on GPUs."),
    ] = None,
    imatrix: options.MakeImatrix = COMPUTE,
    rounding: options.MakeRounding = "auto",
    covariances: options.MakeCovariances = AUTO,
    imatrix_chunks: Annotated[
        int | None, options.number("imatrix_chunks", "--imatrix-chunks", help="Use at most this many chunks of the calibration text.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Measure the file against its base; without, no base may be needed.")
    ] = True,
    verify_text: Annotated[
        Path | None, typer.Option("--verify-text", help="Held-out text instead of the one that ships with Quantailor.")
    ] = None,
    chunks: options.Chunks = None,
    against: options.Against = None,
    beside: options.Beside = None,
    requantize: options.Requantize = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the result of another make.", rich_help_panel="Common")] = False,
) -> None:
    """All of it in one go: convert, calibrate, measure, probe, plan, build, verify. Run it again to resume.

    A base is written if a step runs the model, and rounding is then compensated unless --rounding plain. With --imatrix FILE,
    --basis ranking and --no-verify none does: the file is built from the checkpoint itself, rounded as ggml does.
    """
    plan_options = PlanOptions(**target.target(needed=True), **constraints.limits, basis=basis)
    repository = hub.repository(model)
    task = MakeStep(
        model=options.place(model, repository),
        hub=repository,
        output=absolute(output),
        plan=plan_options,
        types=split_list(types),
        exhaustive=exhaustive,
        text=optional_path(text),
        probe_chunks=probe_chunks,
        seconds=optional_seconds(time),
        group=group,
        imatrix=imatrix_choice(imatrix, of_repository=repository is not None, words=(AUTO, COMPUTE, NONE)),
        rounding=rounding,
        covariances=covariances_choice(covariances),
        imatrix_chunks=imatrix_chunks,
        verify=verify,
        verify_text=optional_path(verify_text),
        chunks=chunks,
        against=None if against is None else split_list(against),
        beside=beside,
        allow_requantize=requantize,
        overwrite=force,
        compute=machine.compute,
        conversion=converting.conversion(repository),
    )
    run.execute(task)


@app.command(hidden=True)
def worker(job: int, home: options.Home = None, now: Annotated[bool, typer.Option("--now")] = False) -> None:
    """Run a queued job; what --detach starts."""
    with Workspace.open(home) as workspace:
        run_job(workspace, job, now=now)
