"""Compare models: where the sensitivity of two models sits, side by side."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nicegui import run, ui

from quantailor.app.library.projects import ProjectReport, list_projects
from quantailor.app.measuring.profile_words import profile_findings
from quantailor.app.measuring.reporting import CompareResult, ProfileReport, compare_models
from quantailor.errors import OutputError, QuantailorError
from quantailor.gui import theme
from quantailor.gui.context import context, workspace
from quantailor.gui.elements.heat import HeatScale, heat_legend, heat_table
from quantailor.gui.frame import address, frame
from quantailor.gui.widgets import box, card, empty, error_note, named, note, quiet, table, text, told
from quantailor.present.charts import echarts
from quantailor.present.charts.describe import Axis, Chart, Point, Series
from quantailor.present.words import Z95, percent, percent_with_error, with_error
from quantailor.records import Estimate

WHOLE = "all depths"
_OUTSIDE = "outside the blocks"
_KEY_DIGITS = 16


async def compare() -> None:
    """The screen; `?a=` and `?b=` are the two models."""
    try:
        projects = await run.io_bound(list_projects, workspace()) or []
        with_probes = [project for project in projects if project.is_probed and project.base is not None]
        pair = _asked(with_probes)
    except QuantailorError as error:
        with frame("compare", "Compare models"):
            error_note(error)
        return
    with frame("compare", "Compare models", subtitle="Where in each model the damage of quantization would sit"):
        if pair is None:
            _too_few(projects, with_probes)
        else:
            with box("qt-stack"):
                _choice(with_probes, pair)
                with box("qt-stack") as place:
                    note("Reading both models' probes …")
            ui.timer(0.01, functools.partial(_fill, place, pair), once=True)


def _asked(projects: Sequence[ProjectReport]) -> tuple[ProjectReport, ProjectReport] | None:
    """The two models that the address names, or the two used last; None where fewer than two are probed."""
    if len(projects) < 2:
        return None
    wanted = ui.context.client.request.query_params
    found = [_by_fingerprint(projects, wanted.get(side)) for side in ("a", "b")]
    rest = [project for project in projects if project not in found]
    first, second = (project or rest.pop(0) for project in found)
    return first, second


def _choice(projects: Sequence[ProjectReport], pair: tuple[ProjectReport, ProjectReport]) -> None:
    options = {project.fingerprint[:_KEY_DIGITS]: project.name for project in projects}
    keys = [project.fingerprint[:_KEY_DIGITS] for project in pair]

    def go(a: str, b: str) -> None:
        ui.navigate.to(f"/compare?a={a}&b={b}")

    with card("Models"), box("qt-row"):
        first = ui.select(options, label="Model A", value=keys[0], on_change=lambda event: go(event.value, keys[1]))
        second = ui.select(options, label="Model B", value=keys[1], on_change=lambda event: go(keys[0], event.value))
        for element in (first, second):
            element.props("outlined dense options-dense").classes("qt-grow")
        quiet("Swap", lambda: go(keys[1], keys[0]), icon="swap_horiz")


async def _fill(place: ui.element, pair: tuple[ProjectReport, ProjectReport]) -> None:
    """Replace what stands in the place with the comparison, or with what went wrong."""
    try:
        result = await run.io_bound(_compared, pair)
    except QuantailorError as error:
        place.clear()
        with place:
            error_note(error)
        return
    if result is not None:
        place.clear()
        with place:
            _Comparison(pair, result).show()


def _by_fingerprint(projects: Sequence[ProjectReport], fingerprint: str | None) -> ProjectReport | None:
    if not fingerprint:
        return None
    return next((project for project in projects if project.fingerprint.startswith(fingerprint)), None)


def _compared(pair: tuple[ProjectReport, ProjectReport], outputs: Sequence[Path] = ()) -> CompareResult:
    bases = [Path(project.base) for project in pair if project.base is not None]
    return compare_models(workspace(), bases[0], bases[1], outputs)


def _too_few(projects: Sequence[ProjectReport], with_probes: Sequence[ProjectReport]) -> None:
    there = f"{with_probes[0].name} is probed; one more is needed." if with_probes else "None has been probed yet."
    advice = f"This screen sets the sensitivity profiles of two probed models side by side. {there}"
    gone = next((project for project in projects if project.is_probed and project.base is None), None)
    unprobed = next((project for project in projects if not project.is_probed), None)
    if gone is not None:
        where = f"{gone.name} is probed, but its base is gone: open it again from where it is now."
        empty("Two models to compare", f"{advice} {where}", action="Open a model", target="/open")
    elif unprobed is None:
        empty("Two models to compare", f"{advice} Open another model and measure it.", action="Open a model", target="/open")
    else:
        goal = address(unprobed, "measure")
        empty("Two models to compare", f"{advice} Measure {unprobed.name} at Balanced.", action=f"Measure {unprobed.name}", target=goal)


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two models, and how to read its half of a row."""

    name: str
    shares: Callable[[ProfileReport], tuple[Estimate | None, float | None]]

    def measured(self, row: ProfileReport) -> tuple[Estimate, float] | None:
        """The row's share of the sensitivity and of the weights; None where it is not in the model, or not measured there."""
        share, weights = self.shares(row)
        return None if share is None or not weights else (share, weights)

    def share(self, row: ProfileReport) -> Estimate:
        """Its share of the sensitivity; nothing where there is none."""
        found = self.measured(row)
        return Estimate(0.0) if found is None else found[0]


class _Comparison:
    def __init__(self, pair: tuple[ProjectReport, ProjectReport], result: CompareResult) -> None:
        self._pair, self._result = pair, result
        self._sides = (
            _Side(f"A: {result.models[0]}", lambda row: (row.share_a, row.parameter_share_a)),
            _Side(f"B: {result.models[1]}", lambda row: (row.share_b, row.parameter_share_b)),
        )
        self._whole = [row for row in result.profiles if row.depth == WHOLE]

    def show(self) -> None:
        """Build the screen's parts in the current place."""
        findings = profile_findings(self._result)
        if not findings:
            note("One of these models has no profile yet: measure and probe it, then come back.", "warn")
            return
        with card("In words"), ui.element("ul").classes("qt-findings"):
            for sentence in findings:
                text(sentence, tag="li")
        self._maps()
        with box("qt-grid qt-halves"):
            for side in self._sides:
                self._bars(side)
        self._table()
        self._export()

    def _maps(self) -> None:
        rows = [row for row in self._result.profiles if row.depth != WHOLE]
        scale = HeatScale(max((side.share(row).value for side in self._sides for row in rows), default=1.0))
        depths = sorted({row.depth for row in rows}, key=lambda depth: (depth == _OUTSIDE, depth))
        with card("Share of the sensitivity by role and depth, %"):
            with box("qt-grid qt-halves"):
                for side in self._sides:
                    with box("qt-heat-side"):
                        text(side.name, "qt-ellipsis")
                        self._map(side, rows, depths, scale)
            heat_legend(scale, "Both maps have one scale:", percent)

    def _map(self, side: _Side, rows: Sequence[ProfileReport], depths: Sequence[str], scale: HeatScale) -> None:
        shares = {(row.role, row.depth): side.share(row).value for row in rows if side.measured(row)}
        filled = {row.role: [shares.get((row.role, depth)) for depth in depths] for row in self._whole}
        unmeasured = {row.role for row in self._whole if side.shares(row)[1] is None}
        caption = f"Share of the sensitivity of {side.name} by role and depth, per cent"
        columns = ["outside" if depth == _OUTSIDE else depth for depth in depths]
        heat_table(
            columns, filled, scale=scale, caption=caption, write=lambda value: f"{100 * value:.2f}", corner="Role", unmeasured=unmeasured
        )

    def _bars(self, side: _Side) -> None:
        roles = [row for row in self._whole if side.measured(row)]
        found = [pair for s in self._sides for row in self._whole if (pair := s.measured(row))]
        ends = [max(share.value + Z95 * share.se, weights) for share, weights in found]
        top = max(roles, key=lambda row: side.share(row).value)
        with card(f"{side.name}: sensitivity against weights"):
            options = echarts.options(_share_chart(side, roles, 100 * max(ends)), theme.palette(), is_small=True)
            chart = ui.echart(options).classes("qt-bars").style("height: 360px").props("role=img")
            named(
                chart, f"Shares by role of {side.name}; {top.role} holds most: {percent(side.share(top).value)}. The table has the figures."
            )

    def _table(self) -> None:
        columns = {"Role": False, **{f"{letter}, {what}": True for letter in "AB" for what in ("sensitivity", "weights", "per weight")}}
        rows = [[row.role, *(cell for side in self._sides for cell in _cells(side, row))] for row in self._whole]
        with card("Figures by role"):
            table(columns, rows, caption="Shares of sensitivity and of weights by role")
            text(
                "± is one standard error. Per weight: share of the sensitivity over share of the weights; 1 is the model's average."
                " –: not in this model, or not measured there.",
                "qt-small qt-muted",
            )

    def _export(self) -> None:
        with card("Export"), box("qt-row"):
            folder = (
                ui.input("Folder", value=str(Path(self._pair[0].base or ".").parent)).props("outlined dense").classes("qt-grow qt-mono")
            )
            for ending, label in ((".html", "Save as HTML"), (".csv", "Save as CSV")):
                quiet(label, told(functools.partial(self._save, folder, ending)), icon="download")

    async def _save(self, folder: ui.input, ending: str) -> None:
        place = context().allowed(folder.value or "")
        if not place.is_dir():
            raise OutputError(f"{place} is not a folder", remedy="Name one that exists")
        names = [re.sub(r"\W+", "-", name).strip("-").lower() for name in self._result.models]
        output = place / f"compare-{names[0]}-{names[1]}{ending}"
        await run.io_bound(_compared, self._pair, [output])
        ui.notify(f"Saved {output}", type="positive", position="top")


def _cells(side: _Side, row: ProfileReport) -> tuple[str, str, str]:
    found = side.measured(row)
    if found is None:
        return "–", "–" if side.shares(row)[1] == 0 else "not measured", "–"
    share, weights = found
    return percent_with_error(share), percent(weights, 1), with_error(Estimate(share.value / weights, share.se / weights))


def _share_chart(side: _Side, roles: Sequence[ProfileReport], highest: float) -> Chart:
    """Each role's share of the sensitivity with its 95 % interval, and its share of the weights."""
    pairs = [pair for row in roles if (pair := side.measured(row))]
    sensitivity = tuple(
        Point(
            index,
            100 * share.value,
            tip=f"{row.role}\nsensitivity {percent_with_error(share)}\nweights {percent(of_weights, 1)}",
            low=100 * max(0.0, share.value - Z95 * share.se),
            high=100 * (share.value + Z95 * share.se),
        )
        for index, (row, (share, of_weights)) in enumerate(zip(roles, pairs, strict=True))
    )
    weights = tuple(Point(index, 100 * of_weights) for index, (_, of_weights) in enumerate(pairs))
    return Chart(
        f"{side.name}: sensitivity against weights",
        Axis(names=tuple(row.role for row in roles)),
        Axis("share", 0, 5 * math.ceil(highest / 5), unit="%"),
        (
            Series("weights", weights, "muted", "hollow", size=12, in_legend=True),
            Series("sensitivity", sensitivity, "accent", size=10, in_legend=True, is_strong=True),
        ),
    )
