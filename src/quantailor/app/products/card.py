"""The model card of a built file: a README.md for the hub that says what was measured, what is predicted and what neither."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantailor import files
from quantailor.app.choosing.comparing import Known, file_imatrix, require_same_tensors, what_is_known
from quantailor.app.products.exporting import closest_preset
from quantailor.app.products.verdicts import list_verdicts, verdicts_on
from quantailor.errors import StrategyError
from quantailor.evidence.strategies import embedded_strategy, require_fit, rounding_of, strategy_imatrix
from quantailor.ggml import library
from quantailor.models.source import ModelSource
from quantailor.present import cards, words
from quantailor.records import PLAIN_TWIN, Grounds, MetadataValue, Strategy, TensorInfo, Verdict, VerdictRow, bits_per_weight
from quantailor.session import AUTO, CALIBRATION_TEXT, HELDOUT_TEXT, OpenedModel, Workspace
from quantailor.steps.conversion.projector import Projector, projectors_beside, projectors_section, taken
from quantailor.steps.hub.publish import is_listed_name as is_listed_name
from quantailor.store import CalibrationRecord


@dataclass(frozen=True, slots=True)
class CardResult:
    """A model card."""

    path: str | None
    text: str
    verdict: str | None
    """The sentence of the verdict that the card shows; None where the file was not measured."""
    suggested_name: str
    """A name that the hub's file list shows with its type."""
    name_is_listed: bool
    """Whether the file's own name is such a name."""


_SAFE = re.compile(r"[^\w.-]+", re.ASCII)


@dataclasses.dataclass(frozen=True)
class _Facts:
    """All that the card tells, gathered."""

    name: str
    base_file: str
    architecture: str
    metadata: Mapping[str, MetadataValue]
    file: str
    n_parts: int
    size_bytes: int
    tensors: Sequence[TensorInfo]
    made_by: str | None
    strategy: Strategy | None
    imatrix: CalibrationRecord | None
    uses_imatrix: bool
    verdict: Verdict | None
    predicted: tuple[float, tuple[float, float]] | None
    no_prediction: str | None
    grounds: Grounds | None
    repo_id: str | None
    projectors: Sequence[Projector]

    @property
    def bits_per_weight(self) -> float:
        return bits_per_weight(self.tensors)

    @property
    def is_compensated(self) -> bool:
        return self.strategy is not None and rounding_of(self.strategy) == "compensated"


def write_card(
    workspace: Workspace, base: Path, file: Path, output: Path | None = None, *, repo_id: str | None = None, overwrite: bool = False
) -> CardResult:
    """A README.md, for the hub, for a file that was made from `base`; written to `output`, if given.

    Args:
        workspace: the verdicts and probes of the model.
        base: the model that the file was made from.
        file: the GGUF file, or the first part of a split one.
        output: where it goes.
        repo_id: the original model's name on the hub ("ORG/NAME"); None takes what the base's metadata say.
        overwrite: replace an existing file.

    Raises:
        ModelError: a file cannot be read.
        StrategyMismatchError: the file is not a quantization of that base.
        OutputError: the card cannot be written.
    """
    if output is not None:
        files.refuse_existing(output, overwrite=overwrite)
    facts = _facts(workspace, base, file, repo_id)
    text = _card(facts)
    if output is not None:
        files.write_text(output, text, overwrite=overwrite)
    with workspace.model(base, allow_requantize=True) as model:
        types = {tensor.name: tensor.type_name for tensor in facts.tensors}
        name = _suggested(model, types, has_imatrix=facts.uses_imatrix)
    verdict = None if facts.verdict is None else facts.verdict.sentence
    return CardResult(None if output is None else str(output), text, verdict, name, is_listed_name(file.name))


# Names


def suggested_file_name(workspace: Workspace, base: Path, strategy: Strategy) -> str:
    """A name for a strategy's file that the hub's list shows with its type, for example "Books-Llama-4.52bpw-Q4_K_M.gguf"."""
    with workspace.model(base, allow_requantize=True) as model:
        require_fit(strategy, model)
        matrix = strategy_imatrix(workspace, model, strategy, AUTO)
        types = {tensor.name: strategy.types.get(tensor.name, tensor.type_name) for tensor in model.source.tensors}
        return _suggested(model, types, has_imatrix=matrix is not None)


def _suggested(model: OpenedModel, types: Mapping[str, str], *, has_imatrix: bool) -> str:
    qtypes = library.stored_types()
    bits = 8 * sum(qtypes[types[tensor.name]].tensor_bytes(tensor) for tensor in model.source.tensors)
    weights = sum(tensor.n_elements for tensor in model.source.tensors)
    preset = closest_preset(model, types, has_imatrix=has_imatrix)
    return f"{_SAFE.sub('-', model.source.name).strip('-')}-{bits / max(1, weights):.2f}bpw-{preset}.gguf"


# Gathering


def _facts(workspace: Workspace, base: Path, file: Path, repo_id: str | None) -> _Facts:
    strategy = embedded_strategy(workspace, file)
    with workspace.model(base, allow_requantize=True) as model:
        if strategy is not None:
            require_fit(strategy, model)
        with workspace.source(file) as source:
            require_same_tensors(source, model.source)
            matrix = file_imatrix(workspace, model, file)
            known = what_is_known(workspace, model, matrix, "plain" if strategy is None else rounding_of(strategy))
            predicted, reason = _predicted(source, model, known)
            paths, verdicts = source.files, list_verdicts(workspace, model.fingerprint)
            made_by = source.metadata.get("quantailor.version")
            size = sum(path.stat().st_size for path in paths)
            return _Facts(
                name=model.source.name,
                base_file=Path(model.source.location).name,
                architecture=model.source.architecture,
                metadata=model.source.metadata,
                file=paths[0].name,
                n_parts=len(paths),
                size_bytes=size,
                tensors=source.tensors,
                made_by=None if made_by is None else str(made_by.value),
                strategy=strategy,
                imatrix=workspace.store.imatrix(model.fingerprint, matrix) if matrix else None,
                uses_imatrix=bool(matrix) or "quantize.imatrix.file" in source.metadata,
                verdict=next((item.verdict for item in verdicts_on(workspace, file, verdicts)), None),
                predicted=predicted,
                no_prediction=reason,
                grounds=None if known.knowledge is None else known.knowledge.grounds,
                repo_id=_repo_id(model.source, repo_id),
                projectors=projectors_beside(model.source, paths[0].parent),
            )


def _predicted(source: ModelSource, model: OpenedModel, known: Known) -> tuple[tuple[float, tuple[float, float]] | None, str | None]:
    found, reason = known.kld(model.source, {tensor.name: tensor.type_name for tensor in source.tensors})
    return (None if found is None else (found.kld_nats, found.interval(0.95))), reason


def _repo_id(source: ModelSource, given: str | None) -> str | None:
    """The original model's name on the hub: as given, or as the base's metadata name it."""
    if given is not None:
        match = cards.REPO.fullmatch(given.strip())
        if match is None:
            raise StrategyError(f"{given!r} is not a name on the hub", remedy="Write ORG/NAME")
        return match["id"]
    return cards.original(source.metadata)


# Writing


def _card(facts: _Facts) -> str:
    sections = (
        cards.front_matter(facts.metadata, _tags(facts), facts.repo_id, taken(facts.projectors)),
        _head(facts),
        _making(facts),
        _measured(facts),
        _not_measured(facts),
        _types(facts),
        *projectors_section(facts.file, facts.projectors),
        _reproducing(facts),
    )
    return "\n".join(sections)


def _tags(facts: _Facts) -> list[str]:
    tags = ["gguf", "quantized", "llama.cpp", facts.architecture]
    if facts.uses_imatrix:
        tags.append("imatrix")
    if facts.made_by is not None:
        tags.append("quantailor")
    return tags


def _head(facts: _Facts) -> str:
    origin = f"[{facts.repo_id}](https://huggingface.co/{facts.repo_id})" if facts.repo_id else facts.name
    parts = f" in {facts.n_parts} parts, the first of which is named here" if facts.n_parts > 1 else ""
    rows = [
        ("file", f"`{facts.file}`{parts}"),
        ("size", words.exact_size(facts.size_bytes)),
        ("bits per weight", f"{facts.bits_per_weight:.3f}, all tensors counted"),
        ("weights", f"{sum(tensor.n_elements for tensor in facts.tensors):,}"),
        ("made from", f"{origin} (`{facts.base_file}`)"),
    ]
    return f"# {facts.name}, GGUF, {facts.bits_per_weight:.2f} bits per weight\n\n" + cards.table(("", ""), rows)


def _making(facts: _Facts) -> str:
    lines = ["## How it was made", ""]
    if facts.strategy is None:
        lines.append("A program other than Quantailor wrote this file; it carries no record of how its types were chosen.")
    else:
        lines.append(_choosing(facts, facts.strategy))
    lines.append(_imatrix_sentence(facts))
    if facts.is_compensated:
        lines.append(
            "Its rounding is compensated: the covariances of inputs on that text were used to let the errors within a row cancel. Types, "
            "sizes and kernels are the usual ones, and llama.cpp runs the file as it is; llama-quantize cannot make it."
        )
    return "\n".join(lines) + "\n"


def _choosing(facts: _Facts, strategy: Strategy) -> str:
    basis = {
        "probes": "The choice rests on probes: the effect of each tensor's error on the model's output was measured.",
        "ranking only": "The choice rests on estimates; the effect of each tensor's error on the model's output was not measured.",
    }[strategy.basis]
    asked = words.target(strategy.target)
    sought = f" The target was {asked}." if asked else ""
    return (
        f'Quantailor {facts.made_by} chose a type for each tensor by the rule "{strategy.method}".{sought} {basis} '
        f"The whole strategy is in the file's metadata, under `quantailor.strategy`."
    )


def _imatrix_sentence(facts: _Facts) -> str:
    if facts.imatrix is not None:
        texts = ", ".join(Path(name).name for name in facts.imatrix.datasets) or "an unnamed text"
        seen = f"{words.plural(facts.imatrix.chunk_count, 'chunk')} of {facts.imatrix.chunk_size} tokens"
        return f"Its importance matrix was computed on {texts}, {seen}, and is `{facts.imatrix.fingerprint[:12]}`."
    return "It was made with an importance matrix." if facts.uses_imatrix else "It was made without an importance matrix."


def _measured(facts: _Facts) -> str:
    if facts.verdict is None:
        return "## Measured\n\nSize and types, by reading the file. **Perplexity and KL divergence of this file were not measured.**\n"
    verdict = facts.verdict
    base = next(row for row in verdict.rows if row.kind == "base").statistics
    seen = f"{words.plural(base.n_chunks, 'chunk')} of {verdict.n_ctx} tokens"
    text = (
        f"On {Path(verdict.corpus_name).name}, {seen}, compared with the unquantized base through the same pipeline; "
        "± is one standard error over chunks."
    )
    columns = ("file", "size", "bits per weight", "perplexity", "mean KL divergence (nats)", "same most likely token")
    rows = [_verdict_row(row, facts.file) for row in verdict.rows]
    end = f"\n**{verdict.sentence}**\n\n{cards.floor(verdict)}\n"
    return f"## Measured\n\n{text}\n\n{cards.table(columns, rows)}{cards.evaluations(verdict)}{end}"


def _verdict_row(row: VerdictRow, file: str) -> tuple[str, ...]:
    found = row.statistics
    names = {
        "base": "the unquantized base",
        "ours": f"**{file}**",
        "rival": row.label,
        "reference": row.label if row.label == PLAIN_TWIN else f"llama.cpp {row.label}",
    }
    name = names[row.kind]
    head = (name, words.size(row.size_bytes), f"{row.bits_per_weight:.2f}", cards.with_error(found.perplexity, 4))
    if row.kind == "base":
        return (*head, "0", "100 %")
    return (*head, cards.with_error(found.kld_mean, 5), words.percent(found.top_agreement.value, 2))


def _not_measured(facts: _Facts) -> str:
    if facts.predicted is not None:
        kld, (low, high) = facts.predicted
        measured = " What was measured is above." if facts.verdict else ""
        prediction = (
            f"Predicted, not measured: a mean KL divergence of {kld:.4g} nats from the base, between {low:.4g} and {high:.4g} with a "
            f"probability of 95 % ({words.grounds(facts.grounds)}).{measured}"
        )
    else:
        more = "" if facts.grounds is None else f" What it takes: `{_without_places(facts.grounds.command)}`."
        prediction = f"No KL divergence is predicted: {facts.no_prediction}.{more}"
    items = list(cards.NOT_MEASURED)
    if facts.verdict is None:
        items.insert(0, "perplexity, and KL divergence from the base")
    missing = "\n".join(f"- {item}" for item in items)
    return f"## Predicted\n\n{prediction}\n\n## Not measured\n\n{missing}\n"


def _without_places(command: str) -> str:
    """A command for readers elsewhere: files by their names, and nothing of this machine's home."""
    arguments = shlex.split(command)
    if "--home" in arguments:
        at = arguments.index("--home")
        del arguments[at : at + 2]
    return shlex.join(Path(argument).name if "/" in argument else argument for argument in arguments)


def _types(facts: _Facts) -> str:
    qtypes, total = library.stored_types(), sum(tensor.n_elements for tensor in facts.tensors)
    counts = Counter(tensor.type_name for tensor in facts.tensors)
    order = sorted(counts, key=lambda name: -qtypes[name].bits_per_weight)
    rows = []
    for name in order:
        members = [tensor for tensor in facts.tensors if tensor.type_name == name]
        share = sum(tensor.n_elements for tensor in members) / max(1, total)
        roles = ", ".join(f"{role} ({count})" for role, count in Counter(tensor.role for tensor in members).most_common(6))
        rows.append((name, f"{qtypes[name].bits_per_weight:.4g}", str(len(members)), words.percent(share, 1), roles))
    return "## Types\n\n" + cards.table(("type", "bits", "tensors", "share of the weights", "mostly"), rows)


def _reproducing(facts: _Facts) -> str:
    lines = [f"quantailor {word}" for word in _commands(facts)]
    code = "\n".join(["pip install quantailor", *lines])
    return f"## To reproduce\n\n```\n{code}\n```\n"


def _commands(facts: _Facts) -> list[str]:
    base, file = facts.base_file, facts.file
    found = []
    if facts.imatrix is not None:
        text = facts.imatrix.datasets[0] if facts.imatrix.datasets else "TEXT"
        length = f"--chunks {facts.imatrix.chunk_count} --n-ctx {facts.imatrix.chunk_size}"
        found.append(f"{'calibrate' if facts.is_compensated else 'imatrix'} {base}{_text_option(text, CALIBRATION_TEXT)} {length}")
    if facts.strategy is not None:
        found.append(f"export {file} --base {base} --format yaml -o strategy.yaml")
        found.append(f"build {base} strategy.yaml -o again.gguf")
        found.append(f"check {file} strategy.yaml --base {base}")
    references = [row.label for row in facts.verdict.rows if row.kind == "reference"] if facts.verdict else []
    against = ",".join(label for label in references if label != PLAIN_TWIN)
    beside = " --beside plain" if PLAIN_TWIN in references else ""
    corpus = _text_option(facts.verdict.corpus_name, HELDOUT_TEXT) if facts.verdict else ""
    found.append(f"verify {file} --base {base}{corpus}{f' --against {against}' if against else ''}{beside}")
    return found


def _text_option(text: str, shipped: Path) -> str:
    """The option for a text; nothing for the one that ships."""
    name = Path(text).name
    return "" if name == shipped.name else f" -f {name}"
