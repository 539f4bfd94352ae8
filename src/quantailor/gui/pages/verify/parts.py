"""Parts of the Verify screen: the form, the verdict with its graph and tables, and the model card."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nicegui import run, ui

from quantailor.app.jobs import JobReport
from quantailor.app.library.projects import ProjectReport
from quantailor.app.products.builds import BuiltFile, RoundingReport, rounding_report
from quantailor.app.products.card import CardResult, write_card
from quantailor.app.products.verdicts import (
    EQUAL_SIZE,
    MIN_CHUNKS,
    StoredVerdict,
    VerdictFormat,
    VerifyCost,
    counts_against,
    headline,
    preset_names,
    render_verdict,
    size_difference,
    verify_cost,
)
from quantailor.app.steps import DEFAULT_N_CTX, Evals, VerifyStep, eval_names
from quantailor.errors import QuantailorError
from quantailor.gui.context import context, workspace
from quantailor.gui.jobs import start as start_job
from quantailor.gui.page_words import on_page
from quantailor.gui.picker import path_input
from quantailor.gui.theme import palette
from quantailor.gui.widgets import box, card, named, primary, quiet, segment, table, text, told
from quantailor.present.charts import echarts
from quantailor.present.charts.verdict import Measure, point_words, verdict_chart, verdict_points
from quantailor.present.evals import eval_tables
from quantailor.present.words import around, figure, kld, percent_with_error, size, span, with_error
from quantailor.records import PLAIN_TWIN, Comparison, Estimate, Verdict, VerdictRow

OTHER = "other"
MEDIA: dict[VerdictFormat, str] = {"png": "image/png", "svg": "image/svg+xml", "csv": "text/csv"}
_MEASURES: dict[Measure, str] = {"kld": "KL divergence", "ppl": "Perplexity"}
_COST_SECONDS = 0.4
_EVALS = {"greedy": "For how many tokens it writes what the base writes", "choices": "Multiple-choice questions, by log-probability"}
_PLAIN = "And its own types with plain rounding"
_PLAIN_MEANING = "What compensated rounding alone gains. The second file is built in Quantailor's home."
_PLAIN_ALREADY = "This file's rounding is plain, so there is nothing to compare."


class VerifyForm:
    """What to measure, beside what, on which text, and how long that takes; `on_start` hears of the job."""

    def __init__(
        self, project: ProjectReport, base: Path, builds: Sequence[BuiltFile], built: str, *, on_start: Callable[[JobReport], Any]
    ) -> None:
        self._project, self._base, self._on_start = project, base, on_start
        self._is_compensated = {item.path: item.is_compensated for item in builds}
        self._n_text_chunks: int | None = None
        self._references: list[str] = []
        self._is_chosen = False
        """Whether the visitor chose the references; until then they are those around the file's size."""
        self._wanted = self._shown = 0
        with card("Measure a file", "qt-verify-form") as self._element:
            self._files(builds, built)
            self._beside()
            self._twin()
            self._text()
            self._evals()
            with box("qt-row qt-spread"):
                self._cost = text("Counting what is to be done…", "qt-muted").props('aria-live="polite"')
                self._go = primary("Verify", told(self._start), icon="balance")
                self._go.set_enabled(False)
        self._timer = ui.timer(_COST_SECONDS, self._refresh)

    @property
    def is_shown(self) -> bool:
        """Whether the form is open."""
        return bool(self._element.visible)

    def show(self, is_shown: bool) -> None:
        """Open or close the form."""
        self._element.set_visibility(is_shown)
        self._timer.active = is_shown
        self._changed()

    def _changed(self, *_: object) -> None:
        self._wanted += 1

    def _files(self, builds: Sequence[BuiltFile], built: str) -> None:
        options = {item.path: f"{Path(item.path).name} ({size(item.size_bytes)})" for item in builds} | {OTHER: "another GGUF file…"}
        chosen = built if built in options else next(iter(options))
        with box("qt-grid qt-form-2"):
            self._file = ui.select(options, label="File", value=chosen, on_change=self._changed).props("outlined dense")
            with box("qt-row") as self._other_box:
                self._other = path_input("GGUF file", ("gguf",), title="The file to measure")
                self._other.on_value_change(self._changed)
            self._other_box.bind_visibility_from(self._file, "value", backward=lambda value: value == OTHER)

    def _beside(self) -> None:
        with box("qt-row qt-wrap"):
            text("Beside llama.cpp's", "qt-muted")
            self._chips = ui.element("div").classes("qt-row qt-wrap qt-chips")
            self._add = ui.select([], label="Add a preset", on_change=self._added).props("outlined dense").classes("qt-add-preset")
        self._show_chips()

    def _twin(self) -> None:
        with box("qt-rounding qt-tick"):
            self._plain = named(ui.checkbox(_PLAIN, on_change=self._changed).props("dense"), _PLAIN)
            self._plain_words = text("", "qt-small qt-muted").props('aria-live="polite"')
        self._file.on_value_change(self._show_twin)
        self._show_twin()

    def _show_twin(self) -> None:
        """Whether the file has a twin to be compared with."""
        is_plain = not self._is_compensated.get(str(self._file.value), True)
        self._plain.set_enabled(not is_plain)
        self._plain_words.set_text(_PLAIN_ALREADY if is_plain else _PLAIN_MEANING)

    def _show_chips(self) -> None:
        """What will be compared, and what can be added."""
        self._chips.clear()
        with self._chips:
            for name in self._references:
                self._chip(name)
        self._add.set_options([name for name in preset_names() if name not in self._references], value=None)

    def _chip(self, name: str) -> None:
        others = [each for each in self._references if each != name]
        button = ui.button(name, icon="close", on_click=lambda: self._choose(others), color=None)
        button.props(f'unelevated no-caps dense size="sm" aria-label="Leave {name} out"').classes("qt-quiet qt-ref-chip")

    def _added(self, event: Any) -> None:
        if event.value and event.value not in self._references:
            order = preset_names()
            self._choose(sorted([*self._references, str(event.value)], key=order.index))

    def _choose(self, references: list[str]) -> None:
        self._references, self._is_chosen = references, True
        self._show_chips()
        self._changed()

    def _text(self) -> None:
        with box("qt-grid qt-form-2"):
            self._kind = ui.select({"": "the held-out text that ships", OTHER: "a text of yours…"}, label="Text", value="")
            self._kind.props("outlined dense").on_value_change(self._changed)
            self._chunks = ui.number(f"Chunks of {DEFAULT_N_CTX} tokens", min=1, precision=0, placeholder="all of the text")
            self._chunks.props("outlined dense clearable").on_value_change(self._changed)
            with box("qt-row") as own:
                self._own = path_input("Text file", ("text",), title="The text to measure on")
                self._own.on_value_change(self._changed)
            own.bind_visibility_from(self._kind, "value", backward=lambda value: value == OTHER)

    def _evals(self) -> None:
        """What else the files are to be asked."""
        self._asked: dict[str, ui.checkbox] = {}
        with box("qt-row qt-wrap qt-tick"):
            for name, words in _EVALS.items():
                self._asked[name] = named(ui.checkbox(words, on_change=self._changed).props("dense"), words)

    def _task(self) -> VerifyStep:
        path = self._other.value if self._file.value == OTHER else self._file.value
        file = context().allowed(str(path or "")) if self._file.value == OTHER else Path(str(path))
        own = str(context().allowed(str(self._own.value or ""))) if self._kind.value == OTHER else None
        return VerifyStep(
            file=str(file),
            base=str(self._base),
            against=tuple(self._references) if self._is_chosen else None,
            beside="plain" if self._plain.value and self._plain.enabled else None,
            text=own,
            chunks=int(self._chunks.value) if self._chunks.value else None,
            evals=Evals(names=eval_names([name for name, each in self._asked.items() if each.value])),
        )

    async def _refresh(self) -> None:
        if self._shown == self._wanted:
            return
        self._shown = self._wanted
        if (self._file.value == OTHER and not self._other.value) or (self._kind.value == OTHER and not self._own.value):
            self._tell("Choose the file and the text.", is_ready=False)
            return
        try:
            cost = await run.io_bound(verify_cost, workspace(), self._task())
        except QuantailorError as error:
            self._tell(on_page(str(error)), is_ready=False)
            return
        if cost is not None:
            if not self._is_chosen and list(cost.references) != self._references:
                self._references = list(cost.references)
                self._show_chips()
            self._tell(_cost_words(cost), is_ready=cost.n_chunks > 0)

    def _tell(self, words: str, *, is_ready: bool) -> None:
        self._cost.set_text(words)
        self._go.set_enabled(is_ready)

    async def _start(self) -> None:
        job = await run.io_bound(start_job, self._task())
        if job is not None:
            self._on_start(job)


def _cost_words(cost: VerifyCost) -> str:
    parts = [f"{cost.n_chunks} of {cost.n_text_chunks} chunks"]
    if cost.n_chunks < MIN_CHUNKS:
        parts.append(f"too few for a claim, which needs {MIN_CHUNKS}")
    parts.append(f"about {span(*cost.seconds)}" if cost.n_runs else "all measured before: at once")
    if cost.new_references:
        parts.append(f"llama.cpp builds {', '.join(cost.new_references)} first")
    if cost.builds_twin:
        parts.append("its types are rounded plainly first")
    return "; ".join(parts) + "."


def ratio_words(comparison: Comparison) -> str:
    """ "better than Q4_K_M", "worse than Q5_K_M (larger)"."""
    difference = size_difference(comparison)
    beside = f" ({'larger' if difference > 0 else 'smaller'})" if difference else ""
    return f"{comparison.outcome} than {comparison.reference}{beside}"


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
                _figures(stored.verdict)

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
            text(f"Measured: {with_error(stored.ours.statistics.kld_mean)} nats per token. {_predicted(stored, builds)}")
            text(verdict.sentence, "qt-small qt-muted")


def _predicted(stored: StoredVerdict, builds: Sequence[BuiltFile]) -> str:
    found = next((item for item in builds if stored.fingerprint in item.verdicts), None)
    if found is None or found.predicted_kld_nats is None:
        return "Nothing was predicted."
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
        table({"Ours is" if enough else "Ours": False, "Its size": True, "KLD ratio (95 %)": True}, rows, caption="Comparisons")


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
    words = ratio_words(comparison) if enough else f"against {comparison.reference}"
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
        ("Chunks", f"{figures.n_chunks:,} of {verdict.n_ctx} tokens"),
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
            text(f"Measure it again with “{_PLAIN}”: then its gain stands here.", "qt-small qt-muted qt-below")


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


def _figures(verdict: Verdict) -> None:
    rows = [_row(row) for row in sorted(verdict.rows, key=lambda row: -row.size_bytes)]
    with box("qt-wide"):
        table(_COLUMNS, rows, caption="All figures; ± is one standard error over chunks")
    text(
        "± is one standard error over chunks; differences to the base's perplexity are paired by chunk. KLD is in nats, its median "
        "and 99 % are over tokens; same top: tokens whose most likely successor is the base's; bpw: bits per weight.",
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
    return f"{'+' if factor >= 1 else ''}{percent_with_error(Estimate(factor - 1, factor * ln_ratio.se))}"


class CardCard:
    """The model card of the judged file: rendered, as text, and saved."""

    def __init__(self, base: Path, builds: Sequence[BuiltFile]) -> None:
        self._base, self.builds = base, list(builds)
        self._file = ""
        with card("Model card", "qt-card-part") as self._element:
            with box("qt-row"):
                self._of = text("", "qt-muted qt-small qt-grow qt-ellipsis")
                self._tabs = segment({"preview": "Preview", "text": "Text"}, "preview", "How to show the model card", self._switch)
                quiet("Copy", self._copy, icon="content_copy")
            with box("qt-row"):
                self._repo = ui.input("Original on the hub", placeholder="ORG/NAME, as its metadata say").props(
                    'outlined dense debounce="600"'
                )
                self._repo.classes("qt-grow").on("update:model-value", told(self._write))
                self._path = path_input("Save as", ("text",), title="Where the model card goes")
                self._overwrite = ui.checkbox("Replace")
                quiet("Save", told(self._save), icon="save")
            self._front = text("", "qt-code qt-front", tag="pre")
            self._rendered = ui.markdown("", extras=["fenced-code-blocks", "tables", "code-friendly"]).classes("qt-markdown")
            self._rendered.props('tabindex="0" role="region" aria-label="The rendered model card"')
            self._raw = text("", "qt-code qt-raw", tag="pre")
        self._text = ""
        self._element.set_visibility(False)

    async def show(self, stored: StoredVerdict | None) -> None:
        """Write the card of the file that a verdict judges; where it is gone, of the latest built file."""
        judged = [item for item in self.builds if stored is not None and stored.fingerprint in item.verdicts]
        chosen = next(iter(judged), None)
        self._element.set_visibility(chosen is not None)
        if chosen is None:
            return
        self._file = chosen.path
        self._of.set_text(f"of {chosen.path}")
        self._path.set_value(str(Path(chosen.path).with_name("README.md")))
        await self._write()

    async def _write(self) -> None:
        if self._file:
            found = await run.io_bound(self._card, None, False)
            if found is not None:
                self._fill(found.text)

    def _card(self, output: Path | None, overwrite: bool) -> CardResult:
        repo_id = str(self._repo.value or "").strip() or None
        return write_card(workspace(), self._base, Path(self._file), output, repo_id=repo_id, overwrite=overwrite)

    def _fill(self, content: str) -> None:
        self._text = content
        _, front, body = content.split("---\n", 2)
        self._front.set_text(f"---\n{front}---")
        self._rendered.set_content(harmless(body))
        self._raw.set_text(content)
        self._switch()

    def _switch(self) -> None:
        is_preview = self._tabs.value == "preview"
        self._front.set_visibility(is_preview)
        self._rendered.set_visibility(is_preview)
        self._raw.set_visibility(not is_preview)

    def _copy(self) -> None:
        ui.clipboard.write(self._text)
        ui.notify("Copied")

    async def _save(self) -> None:
        path = context().allowed(str(self._path.value or "README.md"))
        found = await run.io_bound(self._card, path, bool(self._overwrite.value))
        if found is not None:
            ui.notify(f"Saved {found.path}")


def harmless(markdown: str) -> str:
    """Markdown for a place under a card's heading: its own are one level lower, its HTML is shown as text, and pictures are not fetched.

    Names in a model's metadata are anybody's.
    """
    return re.sub(r"(?m)^#", "##", markdown.replace("<", "&lt;").replace("![", "!&#91;"))
