"""Files at the exact sizes of llama.cpp's presets: `python -m benchmarks.presets`.

For every preset: the optimal mix at the preset's size, from probes or (`--ranking 1`) without, built as a file and verified
beside the preset (same importance matrix) on held-out text. `--swaps N` refines each mix first. `--rounding compensated` plans
on compensated cells and builds so; the presets are llama.cpp's own in any case.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.setting import Setting, parse
from quantailor.analysis.corpus import chunks, load_corpus
from quantailor.analysis.scores import fidelity
from quantailor.evidence.written import reference
from quantailor.records import ChunkScore
from quantailor.session import Workspace
from quantailor.steps.options import DEFAULT_N_CTX
from quantailor.store import ScoreKey
from quantailor.strategy.file import read

PRESETS = ("Q2_K", "IQ3_XXS", "Q3_K_M", "IQ4_XS", "Q4_K_M", "Q5_K_M", "Q6_K")


@dataclass(frozen=True)
class Row:
    """Our file beside one preset's."""

    preset: str
    size_bytes: int
    size_ratio: float
    predicted: tuple[float, float, float] | None
    """KLD and the ends of its 95 % interval, nats; None without probes."""
    ours: float
    theirs: float
    ratio: float
    interval: tuple[float, float]
    ppl_ours: float
    ppl_theirs: float


@dataclass(frozen=True)
class Built:
    """Our file at one preset's size."""

    preset: str
    strategy: Path | None
    """None where it has the preset's own types."""
    file: Path


def build(setting: Setting, base: Path, preset: str, n_swaps: int, relinearize: bool, basis: str, rounding: str) -> Built:
    """Plan, refine and build at one preset's size."""
    folder = setting.folder / f"presets {rounding}" / base.stem
    folder.mkdir(parents=True, exist_ok=True)
    strategy, file = folder / f"{preset}.yaml", folder / f"{preset}-size.gguf"
    setting.run("plan", base, "--like", preset, "--basis", basis, "--rounding", rounding, "-o", strategy, "--force")
    if n_swaps or relinearize:
        refined = folder / f"{preset}-refined.yaml"
        switch = "--relinearize" if relinearize else "--no-relinearize"
        how = ("--swaps", n_swaps, switch, "--rounding", rounding)
        setting.run("refine", base, strategy, "-o", refined, "-f", setting.text, *how, "--force")
        strategy = refined
    setting.run("build", base, strategy, "-o", file, "--force")
    return Built(preset, strategy, file)


def score(setting: Setting, base: Path, files: list[Built], n_chunks: int) -> None:
    """Score all files and presets in one go, so that `verify` finds every chunk scored and the base runs once."""
    score_files(setting, base, {f"ours at {item.preset}": item.file for item in files}, [item.preset for item in files], n_chunks)


def score_files(
    setting: Setting, base: Path, built: Mapping[str, Path], presets: Sequence[str], n_chunks: int
) -> dict[str, list[ChunkScore]]:
    """The scores of these files and presets on the first chunks of the held-out text, by label; what is there is not scored again."""
    with Workspace.open(setting.home) as workspace, workspace.model(base) as model:
        store, corpus = workspace.store, load_corpus(base, setting.heldout)
        imatrix = workspace.imatrices.default(model.fingerprint)
        candidates = {**built, **{preset: reference(workspace, model, preset, imatrix) for preset in presets}}
        files = {label: workspace.located(path) for label, path in candidates.items()}
        names = {label: file.fingerprint for label, file in files.items()}
        names |= {label: label for label in (fidelity.BASE, fidelity.NULL_CONTROL)}
        keys = {label: ScoreKey(model.fingerprint, corpus.sha256, DEFAULT_N_CTX, name) for label, name in names.items()}
        done = {label: store.scored_chunks(key) for label, key in keys.items()}
        tokens = chunks(corpus, DEFAULT_N_CTX, limit=n_chunks)
        work = fidelity.FidelityWork(workspace.located(base), files, tokens, setting.threads)
        for label, found in fidelity.score_chunks(work, done=done):
            store.record_chunk_scores(keys[label], [found])
        return {label: store.chunk_scores(keys[label])[: len(tokens)] for label in candidates}


def judge(setting: Setting, base: Path, item: Built, n_chunks: int) -> Row:
    """The verdict of one file beside its preset."""
    verdict = item.file.with_name(f"{item.preset}-verdict")
    words = ("--against", item.preset, "-f", setting.heldout, "--chunks", n_chunks)
    setting.run("verify", item.file, "--base", base, *words, "-o", verdict)
    return _row(item.preset, item.strategy, verdict.with_name(f"{verdict.name}.json"))


def _row(preset: str, strategy: Path | None, verdict: Path) -> Row:
    found = json.loads(verdict.read_text(encoding="utf-8"))
    files = {row["kind"]: row for row in found["rows"]}
    comparison = found["comparisons"][0]
    prediction = None if strategy is None else read(strategy).prediction
    kld, ends = (None, None) if prediction is None else (prediction.kld_nats, prediction.kld_interval_nats)
    low, high = (math.exp(end) for end in comparison["interval"])
    return Row(
        preset=preset,
        size_bytes=files["ours"]["size_bytes"],
        size_ratio=comparison["size_ratio"],
        predicted=None if kld is None or ends is None else (kld, *ends),
        ours=files["ours"]["statistics"]["kld_mean"]["value"],
        theirs=files["reference"]["statistics"]["kld_mean"]["value"],
        ratio=math.exp(comparison["ln_kld_ratio"]),
        interval=(low, high),
        ppl_ours=files["ours"]["statistics"]["perplexity"]["value"],
        ppl_theirs=files["reference"]["statistics"]["perplexity"]["value"],
    )


def table(name: str, rows: list[Row], n_chunks: int, text: Path) -> str:
    """Markdown."""
    lines = [
        f"## {name}",
        "",
        f"{n_chunks} held-out chunks of `{text.name}`; KLD in nats; ratio ours / preset with its 95 % interval.",
        "",
        "| preset | size | our size / its | predicted KLD (95 %) | ours, KLD | preset, KLD | ratio | ours, PPL | preset, PPL |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        predicted = "-" if row.predicted is None else "{:.5f} ({:.5f} to {:.5f})".format(*row.predicted)
        lines.append(
            f"| {row.preset} | {row.size_bytes / 2**20:.2f} MiB | {row.size_ratio:.5f} | {predicted} "
            f"| {row.ours:.5f} | {row.theirs:.5f} | {row.ratio:.3f} ({row.interval[0]:.3f} to {row.interval[1]:.3f}) "
            f"| {row.ppl_ours:.2f} | {row.ppl_theirs:.2f} |"
        )
    mean = math.exp(sum(math.log(row.ratio) for row in rows) / len(rows))
    return "\n".join([*lines, "", f"Geometric mean of the ratios: **{mean:.3f}**.", ""])


def main() -> None:
    """Write the tables of every model."""
    setting, options = parse(
        __doc__,
        ("--chunks", int, 200, "held-out chunks"),
        ("--swaps", int, 0, "exchanges to try on each mix"),
        ("--relinearize", int, 0, "1 probes again around each mix"),
        ("--ranking", int, 0, "1 plans without probes"),
        ("--rounding", str, "plain", "plain or compensated"),
    )
    basis = "ranking" if options.ranking else "probes"
    for model in setting.models:
        base = setting.base(model)
        setting.prepare(base, probes=basis == "probes", rounding=options.rounding)
        how = (options.swaps, bool(options.relinearize), basis, options.rounding)
        files = [build(setting, base, preset, *how) for preset in PRESETS]
        score(setting, base, files, options.chunks)
        rows = [judge(setting, base, item, options.chunks) for item in files]
        text = table(model.name, rows, options.chunks, setting.heldout)
        print(text, flush=True)
        (setting.folder / f"presets-{basis}-{options.rounding}-{model.name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
