"""The card of a directory of several files: a README.md for the hub, with what was measured apart from what is predicted."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantailor.making.judging import first_sentence
from quantailor.models.abilities import trained_context
from quantailor.models.source import ModelSource
from quantailor.present import cards, words
from quantailor.records import Prediction, Verdict, VerdictRow
from quantailor.steps.conversion.projector import Projector, projectors_section, taken

CARD = "README.md"
_SEAL = re.compile(r"<!-- quantailor card ([0-9a-f]{16}) -->\n\Z")


@dataclass(frozen=True, slots=True)
class Shown:
    """One file of the directory."""

    size: str
    """As it was asked for."""
    file: str
    size_bytes: int
    prediction: Prediction


MOST_N_CTX = 8192
"""Tokens of context in the commands that a card shows."""


def ladder_card(
    source: ModelSource,
    files: Sequence[Shown],
    verdict: Verdict | None,
    *,
    graph: str,
    rounding: str,
    uses_imatrix: bool,
    repo_id: str | None = None,
    projectors: Sequence[Projector] = (),
) -> str:
    """The text of the card.

    Args:
        source: the model that the files were made from.
        files: the smallest first.
        verdict: on all of them; None where they were not measured.
        graph: the name of its picture.
        rounding: "plain" or "compensated".
        uses_imatrix: whether they were made with an importance matrix.
        repo_id: the original's name on the hub; None takes what the model says.
        projectors: vision towers and audio encoders beside them.
    """
    repo_id = repo_id or cards.original(source.metadata)
    origin = f"[{repo_id}](https://huggingface.co/{repo_id})" if repo_id else source.name
    tags = ["gguf", "quantized", "llama.cpp", source.architecture, *(["imatrix"] if uses_imatrix else []), "quantailor"]
    text = "\n".join(
        (
            cards.front_matter(source.metadata, tags, repo_id, taken(projectors)),
            f"# {source.name}, GGUF, {words.counted(len(files), 'file')}\n",
            f"Quantizations of {origin}. Quantailor measured what each type costs in every tensor and chose a type for each.\n",
            _licence(source),
            _table(files, verdict),
            _measured(verdict, graph),
            _predicted(files),
            _running(files, source),
            *projectors_section(files[len(files) // 2].file, projectors),
            _making(rounding),
        )
    )
    return f"{text}\n<!-- quantailor card {_digest(text)} -->\n"


def is_as_written(place: Path) -> bool:
    """Whether a card is one of ours that nobody changed."""
    try:
        text = place.read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        return False
    seal = _SEAL.search(text)
    return seal is not None and seal[1] == _digest(text[: seal.start()].removesuffix("\n"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _licence(source: ModelSource) -> str:
    licence = ", ".join(cards.stated(source.metadata, "general.license"))
    return f"Licence, as the original states it: {licence}.\n" if licence else "The original's files state no licence: look it up there.\n"


def _table(files: Sequence[Shown], verdict: Verdict | None) -> str:
    rows = {} if verdict is None else {row.label: row for row in verdict.rows if row.kind == "ours"}
    standings = {} if verdict is None else {each.file: each for each in verdict.standings}
    found = []
    for each in files:
        row, standing = rows.get(Path(each.file).stem), standings.get(Path(each.file).stem)
        beside = "" if standing is None else words.percent(math.exp(standing.ln_kld_ratio), 0)
        found.append(
            (f"[{each.file}]({each.file})", words.size(each.size_bytes), f"{each.prediction.bits_per_weight:.2f}", *_figures(row), beside)
        )
    columns = (
        "file",
        "size",
        "bits per weight",
        "perplexity",
        "mean KL divergence (nats)",
        "same most likely token",
        "of the presets' divergence",
    )
    return cards.table(columns, found)


def _figures(row: VerdictRow | None) -> tuple[str, str, str]:
    if row is None:
        return ("not measured",) * 3
    found = row.statistics
    same = words.percent(found.top_agreement.value, 2)
    return cards.with_error(found.perplexity, 4), "0" if row.kind == "base" else cards.with_error(found.kld_mean, 5), same


def _measured(verdict: Verdict | None, graph: str) -> str:
    if verdict is None:
        return "## Measured\n\nSizes and types. **Perplexity and KL divergence of these files were not measured.**\n"
    base = next(row for row in verdict.rows if row.kind == "base").statistics
    where = (
        f"On {Path(verdict.corpus_name).name}, {words.plural(base.n_chunks, 'chunk')} of {verdict.n_ctx} tokens, against the unquantized "
        "model through the same pipeline; ± is one standard error over chunks. The last column compares a file's divergence with that of "
        "llama.cpp's presets at its size, on a straight line between neighbouring presets in the logarithms of size and divergence."
    )
    names = {"base": "the unquantized model", "reference": "llama.cpp "}
    others = [row for row in verdict.rows if row.kind in names]
    rows = [
        (
            names[row.kind] + (row.label if row.kind == "reference" else ""),
            words.size(row.size_bytes),
            f"{row.bits_per_weight:.2f}",
            *_figures(row),
        )
        for row in others
    ]
    columns = ("beside them", "size", "bits per weight", "perplexity", "mean KL divergence (nats)", "same most likely token")
    missing = "\n".join(f"- {item}" for item in cards.NOT_MEASURED)
    return (
        f"## Measured\n\n![Size against divergence]({graph})\n\n{where}\n\n{cards.table(columns, rows)}{cards.evaluations(verdict)}\n"
        f"**{_claim(verdict)}**\n\n"
        f"{cards.floor(verdict)}\n\nNot measured:\n\n{missing}\n"
    )


def _claim(verdict: Verdict) -> str:
    """What is said of all files, where one thing can be said of them, without what the table tells of each; else the whole sentence."""
    if not (verdict.pairs and verdict.sentence.startswith(("All ", "Both "))):
        return verdict.sentence
    return " ".join((first_sentence(verdict), *verdict.reservations))


def _predicted(files: Sequence[Shown]) -> str:
    rows = []
    for each in files:
        found = each.prediction
        said = words.kld(found.kld_nats, found.kld_interval_nats, found.no_prediction or "no probes")
        rows.append((each.file, said))
    return f"## Predicted before the files were built\n\n{cards.table(('file', 'mean KL divergence (nats), 95 %'), rows)}"


def _running(files: Sequence[Shown], source: ModelSource) -> str:
    first = files[len(files) // 2].file
    n_ctx = min(MOST_N_CTX, trained_context(source) or MOST_N_CTX)
    return (
        "## To run\n\nUse the largest file that fits in memory together with its context.\n\n"
        f"```\nllama-cli -m {first} -c {n_ctx}\nllama-server -m {first} -c {n_ctx}\n```\n\n"
        "Every program that reads GGUF files of this architecture runs them.\n"
    )


def _making(rounding: str) -> str:
    how = (
        "Rounding is compensated: the covariances of inputs were used to let the errors within a row cancel. llama.cpp reads the files "
        "like any other; llama-quantize cannot make them."
        if rounding == "compensated"
        else "Rounding is ggml's own."
    )
    return (
        f"## How they were made\n\n{how} Each file carries its whole strategy in its metadata, under `quantailor.strategy`, and the "
        "directory `strategies/` has the same as text. `recipe.yaml` holds every option of the run, and makes them again:\n\n"
        "```\npip install quantailor\nquantailor make -r recipe.yaml -o out\n```\n"
    )
