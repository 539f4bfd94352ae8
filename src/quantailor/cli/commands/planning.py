"""The command that chooses types, and the options of a plan that `make` has, too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypedDict

import typer

from quantailor.app import steps
from quantailor.app.choosing.rules import plan_rule
from quantailor.app.steps import (
    AUTO,
    BasisWish,
    Limits,
    Method,
    PlanOptions,
    Target,
)
from quantailor.cli import options, show
from quantailor.cli.commands import hub as hub_commands
from quantailor.cli.root import command
from quantailor.cli.values import parse_size

Size = Annotated[
    str | None, typer.Option("--size", help="Size of the file: 4.2GiB (1024^3), 4.2GB or 4.2G (1000^3).", rich_help_panel="Target")
]
Bpw = Annotated[float | None, options.number("bits_per_weight", "--bpw", help="Bits per weight over all tensors.", panel="Target")]
Like = Annotated[
    str | None, typer.Option("--like", help="As large as this preset's file, e.g. Q4_K_M, or as a GGUF file.", rich_help_panel="Target")
]
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


class SpeedFields(TypedDict):
    """The part of a plan's options that says how fast."""

    speed: str | None
    speed_of: steps.SpeedOf


@dataclass(frozen=True, slots=True)
class SpeedOptions:
    """How fast the file is to be."""

    speed: Annotated[
        str | None,
        typer.Option(
            "--speed",
            help="At least this part of the speed of the preset of that size (0.95), or so many tokens per second (40tok/s), on this "
            "machine, whose types `quantailor speed` times.",
            rich_help_panel="Target",
        ),
    ] = None
    speed_of: Annotated[
        steps.SpeedOf, typer.Option("--speed-of", help="What --speed is about: generation, or prompts.", rich_help_panel="Target")
    ] = "generation"

    def fields(self) -> SpeedFields:
        """The part of a plan's options. Raises OptionError for what is no speed, typer.BadParameter where nothing is to be fast."""
        if self.speed is not None:
            steps.speed_asked(self.speed)
        elif self.speed_of != "generation":
            raise typer.BadParameter("--speed-of says what --speed is about; give --speed")
        return {"speed": self.speed, "speed_of": self.speed_of}


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
        if self.like is not None:
            return steps.like_target(self.like)
        size_bytes = None if self.size is None else parse_size(self.size)
        return Target(size_bytes=size_bytes, bits_per_weight=self.bpw, like=None, kld_nats=self.kld)


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


@command(epilog="Examples: quantailor plan base.gguf --like Q4_K_M -o s.yaml | quantailor plan base.gguf --types-of theirs.gguf")
def plan(
    model: options.Weights,
    rounded: options.Rounded,
    target: TargetOptions,
    fast: SpeedOptions,
    constraints: ConstraintOptions,
    answer: options.Answer,
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
    types_of: Annotated[
        str | None,
        typer.Option(
            "--types-of",
            help="Choose nothing: take exactly the types of a GGUF file, a file for llama-quantize's --tensor-type-file, or a preset.",
            rich_help_panel="Rule",
        ),
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
        raise typer.BadParameter("--basis ranking uses no probes, so --evidence has no effect")
    here = hub_commands.here(model.base, model.of_hub, imatrix)
    wanted: PlanOptions | str
    if types_of is not None:
        if rules or target != TargetOptions() or fast != SpeedOptions() or constraints != ConstraintOptions():
            raise typer.BadParameter("--types-of takes the types as they are; leave out targets, speed, rules and constraints")
        wanted = steps.reference_of(types_of)
    else:
        optimal: tuple[Method, str | None] = ("optimal", None)
        method, rule = next(iter(rules.items()), optimal)
        wanted = PlanOptions(
            **plan_rule(method, rule, option or ()),
            **target.target(needed=method in ("optimal", "greedy")),
            **fast.fields(),
            **constraints.limits,
            basis=basis,
            evidence=evidence,
        )
    with answer.workspace() as workspace:
        found = steps.plan(
            workspace,
            here.path,
            wanted,
            imatrix=here.imatrix,
            **rounded.rounded(),
            output=output,
            overwrite=force,
            origin=here.origin,
        )
    answer.tell("plan", found, lambda: show.planned(found, all_tensors=all_tensors or output is None))
