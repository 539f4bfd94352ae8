"""A verdict on the Verify screen: its sentence, graph, comparisons, tables and settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nicegui import run, ui

from quantailor.app.library.projects import ProjectReport
from quantailor.app.products.builds import BuiltFile, RoundingReport, rounding_report
from quantailor.app.products.verdicts import (
    EQUAL_SIZE,
    MIN_CHUNKS,
    StoredVerdict,
    VerdictFormat,
    counts_against,
    headline,
    render_verdict,
    verdict_speeds,
)
from quantailor.gui import meanings
from quantailor.gui.context import workspace
from quantailor.gui.pages.verify.form import PLAIN
from quantailor.gui.theme import palette
from quantailor.gui.widgets import box, card, explained, named, quiet, segment, table, text, told
from quantailor.present.charts import echarts
from quantailor.present.charts.verdict import Measure, point_words, verdict_chart, verdict_points
from quantailor.present.evals import eval_tables
from quantailor.present.words import around, figure, kld, percent_with_error, size, with_error
from quantailor.records import PLAIN_TWIN, Comparison, Estimate, PredictedSpeed, Verdict, VerdictRow

MEDIA: dict[VerdictFormat, str] = {"png": "image/png", "svg": "image/svg+xml", "csv": "text/csv"}
_MEASURES: dict[Measure, str] = {"kld": "KL divergence", "ppl": "Perplexity"}


class VerdictCards:
    """One verdict: its sentence, graph, comparisons, table and settings."""

    def __init__(self, project: ProjectReport) -> None:
        self._project = project
        self._measure: Measure = "kld"
        self._stored: StoredVerdict | None = None
        self._chart: ui.echart | None = None
        self._element = ui.element("div").classes("qt-stack")

    def show(self, stored: StoredVerdict | None, builds: Sequence[BuiltFile]) -> None:
        """Show this verdict, or nothing; `builds` are the files that there are, perhaps the judged one among them."""
        self._stored = stored
        self._element.clear()
        if stored is None:
            return
        with self._element:
            with ui.element("section").classes("qt-card qt-sentence").props('aria-label="Verdict"'):
                _sentence(stored, builds)
            with box("qt-grid qt-verdict-grid"):
                self._graph(stored.verdict)
                with box("qt-stack"):
                    rounding = rounding_report(workspace(), self._project.fingerprint, stored, builds)
                    _comparisons(stored.verdict, rounding)
                    _settings(stored.verdict, rounding)
            _domains(stored.verdict)
            _evals(stored.verdict)
            with card("All figures"):
                _figures(stored.verdict, verdict_speeds(workspace(), self._project.base, stored.verdict) if self._project.base else {})

    def _graph(self, verdict: Verdict) -> None:
        with card("Size against what it costs"):
            with box("qt-row qt-spread"):
                segment(_MEASURES, self._measure, "What the graph shows", self._changed)
                with box("qt-row qt-tight"):
                    for name in MEDIA:
                        quiet(name.upper(), told(partial(self._export, name))).props(f'dense aria-label="Export as {name.upper()}"')
            self._chart = ui.echart(echarts.options(verdict_chart(verdict, self._measure), palette())).classes("qt-verdict-chart")
            self._describe(verdict)
            self._remark = text(_remark(self._measure), "qt-small qt-muted")

    def _describe(self, verdict: Verdict) -> None:
        points = verdict_points(verdict, self._measure)
        words = "; ".join(point_words(point, self._measure) for point in points)
        if self._chart is not None:
            named(self._chart.props('role="img"'), f"Size against {_MEASURES[self._measure]}: {words}")

    def _changed(self, event: Any) -> None:
        self._measure = "ppl" if event.value == "ppl" else "kld"
        if self._stored is not None and self._chart is not None:
            self._chart.options.clear()
            self._chart.options.update(echarts.options(verdict_chart(self._stored.verdict, self._measure), palette()))
            self._chart.update()
            self._describe(self._stored.verdict)
            self._remark.set_text(_remark(self._measure))

    async def _export(self, wanted: VerdictFormat) -> None:
        if self._stored is None:
            return
        render = partial(render_verdict, measure=self._measure)
        content = await run.io_bound(render, self._stored.verdict, wanted)
        if content is not None:
            ui.download.content(content, f"{self._stored.ours.label}-{self._measure}.{wanted}", MEDIA[wanted])


def _remark(measure: Measure) -> str:
    if measure == "kld":
        return "Bars: 95 % intervals over chunks. Lower and further left is better."
    return (
        "Bars: 95 % intervals over chunks. Most of it is the text's own spread, which all files share; the table has the paired difference."
    )


def _sentence(stored: StoredVerdict, builds: Sequence[BuiltFile]) -> None:
    """The outcome in one plain line, what was predicted beside what was measured, and the figures after it."""
    verdict = stored.verdict
    is_good = any(each.outcome == "better" for each in verdict.comparisons) and not any(map(counts_against, verdict.comparisons))
    n_chunks = verdict.rows[0].statistics.n_chunks
    claim = n_chunks >= MIN_CHUNKS and bool(verdict.comparisons)
    icon, tone = ("help", "qt-muted") if not claim else ("verified", "qt-good") if is_good else ("balance", "qt-warn")
    with box("qt-row qt-sentence-row"):
        ui.icon(icon).classes(f"qt-sentence-icon {tone}").props('aria-hidden="true"')
        with box("qt-stack qt-m-tight"):
            text(headline(verdict), "qt-sentence-text")
            measured = f"Measured: {with_error(stored.ours.statistics.kld_mean)} nats per token. {_predicted(stored, builds)}"
            explained(text(measured, "qt-hinted"), meanings.MEASURED)
            text(verdict.sentence, "qt-small qt-muted")


def _predicted(stored: StoredVerdict, builds: Sequence[BuiltFile]) -> str:
    found = next((item for item in builds if stored.fingerprint in item.verdicts), None)
    if found is None or found.predicted_kld_nats is None:
        return "No divergence was predicted for it."
    return f"Predicted: {kld(found.predicted_kld_nats, found.predicted_interval_nats)}, on the text that was probed."


def _comparisons(verdict: Verdict, rounding: RoundingReport | None) -> None:
    gain = rounding.gain if rounding is not None and not _has_twin(verdict) else None
    comparisons = (*verdict.comparisons, *(() if gain is None else (gain,)))
    with card("Ours against each"):
        if not comparisons:
            text("It was compared with no preset.", "qt-muted")
            return
        enough = verdict.rows[0].statistics.n_chunks >= MIN_CHUNKS
        rows = [_comparison(comparison, enough) for comparison in comparisons]
        table({"Ours is" if enough else "Ours": False, "Size of ours": True, "KLD ratio (95 %)": True}, rows, caption="Comparisons")
        text("KLD ratio: the divergence of ours over the other's. Below 1, ours is the closer one to the base.", "qt-small qt-muted")


def _domains(verdict: Verdict) -> None:
    """Mean KLD of each file on each text of a mix."""
    if verdict.domains:
        shown = [number for number, row in enumerate(verdict.rows) if row.kind != "base"]
        rows = [(each.name, str(each.n_chunks), *(with_error(each.klds[number]) for number in shown)) for each in verdict.domains]
        with card("Each text apart"):
            columns = {"Text": False, "Chunks": True} | {verdict.rows[number].label: True for number in shown}
            table(columns, rows, caption="Mean KL divergence by text, nats per token")


def _evals(verdict: Verdict) -> None:
    """What files did beside diverging, where they were asked."""
    found = eval_tables(verdict)
    if found:
        with card("What the files do"):
            for each in found:
                text(each.title, "qt-muted")
                with box("qt-wide"):
                    table({name: number > 0 for number, name in enumerate(each.columns)}, each.rows, caption=each.title)


def _comparison(comparison: Comparison, enough: bool) -> tuple[str, ...]:
    low, high = (math.exp(end) for end in comparison.interval)
    words = f"{comparison.outcome} than {comparison.reference}" if enough else f"against {comparison.reference}"
    return (words, _size_words(comparison.size_ratio), around(math.exp(comparison.ln_kld_ratio), (low, high)))


def _size_words(ratio: float) -> str:
    """ "equal", "3.2 % larger"."""
    change = 100 * (ratio - 1)
    if abs(ratio - 1) <= EQUAL_SIZE:
        return "equal"
    places = 0 if abs(change) >= 10 else 1
    return f"{abs(change):.{places}f} % {'larger' if change > 0 else 'smaller'}"


def _settings(verdict: Verdict, rounding: RoundingReport | None) -> None:
    figures = verdict.rows[0].statistics
    rows = [
        ("Text", Path(verdict.corpus_name).name),
        ("Chunks", f"{figures.n_chunks:,}, of {verdict.n_ctx} tokens each"),
        ("Tokens scored", f"{figures.n_tokens:,}"),
        ("Floor", f"{verdict.floor_kld_nats:.2g} nats, the base against itself"),
    ]
    if rounding is not None:
        rows.append(("Rounding", "compensated" if rounding.is_compensated else "plain"))
    with card("Settings"):
        with ui.element("dl").classes("qt-facts"):
            for name, value in rows:
                text(name, "qt-muted", tag="dt")
                text(value, tag="dd")
        if rounding is not None and rounding.is_compensated and rounding.gain is None and not _has_twin(verdict):
            text(f"Measure it again with “{PLAIN}”: its gain is then shown here.", "qt-small qt-muted qt-below")


def _has_twin(verdict: Verdict) -> bool:
    """Whether the same types rounded plainly are among its files."""
    return any(row.label == PLAIN_TWIN for row in verdict.rows)


_COLUMNS = {
    "File": False,
    "Size": True,
    "bpw": True,
    "Perplexity": True,
    "PPL to base": True,
    "Mean KLD": True,
    "Median": True,
    "99 %": True,
    "Same top": True,
}


def _figures(verdict: Verdict, speeds: Mapping[str, PredictedSpeed]) -> None:
    columns, shown = _COLUMNS, sorted(verdict.rows, key=lambda row: -row.size_bytes)
    rows = [_row(row) for row in shown]
    if speeds:
        columns = {**columns, "Tok/s": True}
        found = [speeds.get(row.label) for row in shown]
        rows = [
            (*cells, "" if each is None else figure(each.generation_tokens_per_second)) for cells, each in zip(rows, found, strict=True)
        ]
    with box("qt-wide"):
        table(columns, rows, caption="All figures; ± is one standard error over chunks")
    text(
        "± is one standard error over chunks; differences to the base's perplexity are paired by chunk. KLD is in nats, its median "
        "and 99 % are over tokens; same top: tokens whose most likely successor is the base's; bpw: bits per weight."
        + (" Tok/s: tokens per second of generation, as predicted for this machine." if speeds else ""),
        "qt-small qt-muted qt-below",
    )


def _row(row: VerdictRow) -> tuple[str, ...]:
    found = row.statistics
    whose = row.label if row.label == PLAIN_TWIN else f"llama.cpp {row.label}"
    name = {"base": "the unquantized base", "ours": f"★ {row.label}", "rival": row.label, "reference": whose}[row.kind]
    head = (name, size(row.size_bytes), f"{row.bits_per_weight:.2f}", with_error(found.perplexity))
    if row.kind == "base":
        return (*head, "", "", "", "", "")
    tail = (figure(found.kld_median), figure(found.kld_p99), percent_with_error(found.top_agreement))
    return (*head, _change(found.ln_ppl_ratio), with_error(found.kld_mean), *tail)


def _change(ln_ratio: Estimate) -> str:
    """A ratio's logarithm as a change in percent: "+0.17 ± 0.03 %"."""
    factor = math.exp(ln_ratio.value)
    change = percent_with_error(Estimate(factor - 1, factor * ln_ratio.se))
    return f"+{change}" if factor >= 1 else change.replace("-", "−")
