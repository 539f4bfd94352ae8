"""Files that were written, and verdicts on them."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp
from pathlib import Path
from typing import Any

from rich.text import Text

from quantailor.app.products.verdicts import MIN_CHUNKS
from quantailor.app.steps import BuildReport, ConvertResult, LadderResult, MakeResult, Projector, VerifyResult
from quantailor.cli.output import console, table
from quantailor.cli.show.choosing import planned
from quantailor.cli.show.text import plain
from quantailor.present import words
from quantailor.present.evals import eval_tables
from quantailor.present.words import plural
from quantailor.records import PredictedSpeed, Verdict, VerdictRow


def converted(result: ConvertResult) -> None:
    console().print(f"{result.path}: {plural(result.n_tensors, 'tensor')}, {words.size(result.size_bytes)}", markup=False)
    console().print(result.why, markup=False, soft_wrap=True)
    for line in result.left_out_why:
        console().print(f"left out: {line}", markup=False, soft_wrap=True)
    _projector(result.mmproj)


def _projector(found: Projector | None) -> None:
    """The vision tower or audio encoder, and how to run it."""
    if found is not None:
        out = console()
        out.print(f"{found.path}: {' and '.join(found.takes)}, {found.type_name}, {words.size(found.size_bytes)}", markup=False)
        for line in found.run:
            out.print(f"run with  {line}", markup=False, soft_wrap=True)


def built(report: BuildReport) -> None:
    """The file that was written."""
    out = console()
    out.print(f"{', '.join(report.paths)}: {words.exact_size(report.size_bytes)}, {report.bits_per_weight:.3f} bpw", markup=False)
    if report.size_bytes != report.predicted_size_bytes:
        out.print(f"[red]the prediction was {report.predicted_size_bytes:,} bytes[/red]")


def verified(result: VerifyResult) -> None:
    """The verdict table and its sentence."""
    out = console()
    out.print(_verdict_table(result.verdict, result.speeds))
    if any(row.kind == "rival" for row in result.verdict.rows):
        out.print(_pair_table(result.verdict))
    if result.verdict.standings:
        out.print(_standing_table(result.verdict))
    if result.verdict.domains:
        out.print(_domain_table(result.verdict))
    for each in eval_tables(result.verdict):
        columns = {name: "right" if number else "left" for number, name in enumerate(each.columns)}
        out.print(table(each.title, columns, each.rows))
    out.print(f"floor (base through the same pipeline): {words.figure(result.verdict.floor_kld_nats, 2)} nats")
    out.print(f"[bold]{plain(result.verdict.sentence)}[/bold]")
    for path in result.files:
        out.print(f"wrote     {path}", markup=False)


def made(result: MakeResult) -> None:
    """The end of the whole way."""
    planned(result.plan)
    built(result.build)
    _projector(result.mmproj)
    if result.verify is not None:
        verified(result.verify)


def laddered(result: LadderResult) -> None:
    """The files of a ladder, their predictions, and the verdict on all of them."""
    out = console()
    rows = [
        (
            rung.size,
            Path(rung.file).name,
            words.size(rung.build.size_bytes),
            f"{rung.build.bits_per_weight:.3f}",
            words.kld(rung.plan.prediction.kld_nats, rung.plan.prediction.kld_interval_nats, rung.plan.prediction.no_prediction),
        )
        for rung in result.rungs
    ]
    columns = {"asked": "left", "file": "left", "size": "right", "bpw": "right", "predicted KLD (95 %)": "left"}
    out.print(table(f"{plural(len(rows), 'file')}, rounding {result.rounding}", columns, rows))
    if result.verify is not None:
        verified(result.verify)
    _projector(result.mmproj)
    out.print(f"wrote     {result.card}", markup=False)


def _verdict_table(verdict: Verdict, speeds: Mapping[str, PredictedSpeed]) -> Any:
    columns = {"file": "left", "size": "right", "bpw": "right", "PPL": "right", "ln PPL ratio": "right", "mean KLD": "right"}
    columns |= {"median": "right", "p99": "right", "p99.9": "right", "same top-1": "right", "KLD ours / its": "right"}
    is_ladder = sum(row.kind == "ours" for row in verdict.rows) > 1  # whose files each stand beside the presets' line, below
    ratios = {} if is_ladder else {item.reference: item for item in verdict.comparisons}
    rows = [_verdict_row(row, ratios) for row in verdict.rows]
    if speeds:
        columns |= {words.PREDICTED_SPEED: "right"}
        rows = [(*cells, words.generation_speed(speeds.get(row.label))) for cells, row in zip(rows, verdict.rows, strict=True)]
    return table(f"{verdict.corpus_name}, {plural(verdict.rows[0].statistics.n_chunks, 'chunk')} of {verdict.n_ctx}", columns, rows)


def _pair_table(verdict: Verdict) -> Any:
    """KLD of each judged file, on top, over that of each other file."""
    judged = [row.label for row in verdict.rows if row.kind in ("ours", "rival")]
    others = [row.label for row in verdict.rows if row.kind != "base"][1:]
    ratios = {(pair.file, pair.reference): _ratio(pair) for pair in verdict.pairs}
    rows = [(other, *(ratios.get((file, other), "") for file in judged)) for other in others]
    columns = {"": "left"} | dict.fromkeys(judged, "right")
    return table("KLD of the file on top / of the other (95 % interval, paired)", columns, rows)


def _standing_table(verdict: Verdict) -> Any:
    rows = []
    for each in verdict.standings:
        low, high = (exp(value) for value in each.interval)
        ratio = f"{exp(each.ln_kld_ratio):.3f} [{low:.3f}, {high:.3f}]"
        rows.append((each.file, " to ".join(each.presets), ratio, each.outcome))
    columns = {"file": "left", "presets": "left", "its KLD / the line's": "right", "it is": "left"}
    few = "" if verdict.rows[0].statistics.n_chunks >= MIN_CHUNKS else f"; a claim needs {MIN_CHUNKS} chunks"
    return table(f"Compared with the presets' line at its size{few}", columns, rows)


def _domain_table(verdict: Verdict) -> Any:
    """Mean KLD of each file on each text of the mix."""
    shown = [(number, row) for number, row in enumerate(verdict.rows) if row.kind != "base"]
    rows = [
        (domain.name, str(domain.n_chunks), *(words.with_error(domain.klds[number]) for number, _ in shown)) for domain in verdict.domains
    ]
    columns = {"text": "left", "chunks": "right"} | {row.label: "right" for _, row in shown}
    return table("Mean KLD by text", columns, rows)


def _verdict_row(row: VerdictRow, ratios: Mapping[str, Any]) -> tuple[str | Text, ...]:
    s = row.statistics
    head = (Text(row.label, style="bold" if row.kind == "ours" else ""), words.size(row.size_bytes), f"{row.bits_per_weight:.2f}")
    ppl = f"{s.perplexity.value:.4f} ± {s.perplexity.se:.3f}"
    if row.kind == "base":
        return (*head, ppl, "", "", "", "", "", "", "")
    return (
        *head,
        ppl,
        f"{s.ln_ppl_ratio.value:+.5f} ± {s.ln_ppl_ratio.se:.5f}",
        f"{s.kld_mean.value:.5f} ± {s.kld_mean.se:.5f}",
        f"{s.kld_median:.5f}",
        f"{s.kld_p99:.4f}",
        f"{s.kld_p999:.4f}",
        words.percent(s.top_agreement.value, 2),
        _ratio(ratios.get(row.label)),
    )


def _ratio(comparison: Any) -> str:
    if comparison is None:
        return ""
    low, high = (exp(value) for value in comparison.interval)
    return f"{exp(comparison.ln_kld_ratio):.3f} [{low:.3f}, {high:.3f}] {comparison.outcome}"
