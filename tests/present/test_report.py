"""Reports and comparisons: what stands in the pages, and that they need nothing but themselves."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from made_up_models import (
    BARE,
    DENSE,
    MOE,
    TYPES,
    cells_of,
    model,
    sensitivities_of,
    sensitivity,
    simple,
    strategy_of,
    tensors_of,
    weight_errors_of,
)

from quantailor.present.report import ImatrixFacts, LabelledStrategy, ReportData, render_comparison, render_report, role_profile
from quantailor.present.report.compare import ratio
from quantailor.present.report.profile import DEPTHS
from quantailor.present.words import figure, with_error
from quantailor.records import Estimate, Strategy, SwapCell, TensorChoice, TensorInfo


class Document(HTMLParser):
    """A page as a reader's program sees it: refuses tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        """The innermost tag and its text."""
        self.html = html
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every element of this name."""
        return [attributes for name, attributes in self.tags if name == tag]

    def text_in(self, tag: str) -> list[str]:
        """What stands directly in elements of this name."""
        return [text.replace("\u00a0", " ") for name, text in self.texts if name == tag]

    @property
    def figures(self) -> list[dict[str, Any]]:
        """The options of the page's figures, as the browser reads them."""
        (content,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', self.html, re.S)
        found = json.loads(content)
        assert isinstance(found, list)
        return found

    @property
    def tips(self) -> list[str]:
        """What places in figures say when pointed at."""
        series = [series for figure in self.figures for series in figure["series"]]
        return [unescape(datum["tip"]) for one in series for datum in one["data"] if isinstance(datum, dict) and "tip" in datum]

    @property
    def names(self) -> list[str]:
        """What stands in cells of maps and beside points."""
        series = [series for figure in self.figures for series in figure["series"]]
        return [datum["name"] for one in series for datum in one["data"] if isinstance(datum, dict) and "name" in datum]

    @property
    def text(self) -> str:
        """Everything that is read, with plain spaces."""
        return "".join(text for name, text in self.texts if name not in {"style", "script"}).replace("\u00a0", " ")


@pytest.fixture(scope="module")
def dense() -> ReportData:
    return model("books-llama", DENSE, 8)


@pytest.fixture(scope="module")
def moe() -> ReportData:
    return model("books-moe", MOE, 6, seed=2)


@pytest.fixture(scope="module")
def report(dense: ReportData) -> Document:
    return Document(render_report(dense))


@pytest.fixture(scope="module")
def comparison(dense: ReportData, moe: ReportData) -> Document:
    return Document(render_comparison(dense, moe))


def library(html: str) -> str:
    """The inlined ECharts."""
    return html.split("<script>")[1].split("</script>")[0]


# --- the pages


@pytest.mark.parametrize("page", ["report", "comparison"])
def test_a_page_needs_nothing_but_itself(page: str, request: pytest.FixtureRequest) -> None:
    document: Document = request.getfixturevalue(page)
    for _, attributes in document.tags:
        for name in ("href", "src", "xlink:href", "action", "data", "srcset", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,"))
    assert not re.search(r"https?://|@import|url\(", document.html.replace(library(document.html), ""))


@pytest.mark.parametrize("page", ["report", "comparison"])
def test_a_page_can_be_read_aloud(page: str, request: pytest.FixtureRequest) -> None:
    document: Document = request.getfixturevalue(page)
    assert document.all("html")[0]["lang"] == "en"
    assert len(document.all("h1")) == 1
    assert all(head["scope"] in {"col", "row"} for head in document.all("th"))
    pictures = [place for place in document.all("div") if place.get("class") == "chart"]
    assert len(pictures) == len(document.figures) > 0
    assert all(picture["role"] == "img" and picture["aria-label"] for picture in pictures)
    ids = [str(attributes["id"]) for _, attributes in document.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [str(link["href"])[1:] for link in document.all("a")]
    assert links
    assert set(links) <= set(ids)


def test_only_the_pages_own_scripts_may_run() -> None:
    html = render_report(BARE)
    scripts = [part.split("</script>")[0] for part in html.split("<script>")[1:]]
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    policy = next(str(meta["content"]) for meta in Document(html).all("meta") if "http-equiv" in meta)
    assert policy.split("script-src ")[1].split() == [f"'sha256-{digest}'" for digest in digests]
    assert len(digests) == 2
    assert "default-src 'none'" in policy


def test_every_tensor_stands_in_the_table_with_its_alpha(dense: ReportData, report: Document) -> None:
    for found in dense.sensitivities:
        assert found.tensor in report.text_in("span")
        if found.status == "measured":
            assert with_error(found.alpha) in report.text_in("td")
    assert "≤ 8.00e-4" in report.text_in("td")


def test_a_tensor_that_was_not_probed_is_said_to_be_so(dense: ReportData) -> None:
    document = Document(render_report(replace(dense, sensitivities=dense.sensitivities[:-1], cells=())))
    assert f"{dense.tensors[-1].name}: not probed" in document.tips
    assert document.text_in("td").count("not probed") == 1
    assert "one tensor is not probed." in document.text


def test_cells_of_the_map_name_value_error_and_status(dense: ReportData, report: Document) -> None:
    titles = report.tips
    for found in dense.sensitivities:
        words = {"measured": f": alpha {with_error(found.alpha)} nats", "drowned": ": drowned, alpha ≤ 8.0e-4 nats"}
        assert f"{found.tensor}{words.get(found.status, ': not in the graph')}" in titles
    legend = report.text_in("li")
    assert "drowned: not distinguishable from the floor, alpha is an upper bound" in legend
    assert "not in the graph: there is nothing to measure" in legend


def data_of(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [datum for figure in figures for series in figure["series"] for datum in series["data"] if isinstance(datum, dict)]


def test_a_hostile_name_is_only_text(dense: ReportData) -> None:
    clean = render_report(dense)
    name = "<script>alert(1)</script>"
    tensor = TensorInfo(name, (64, 64), "BF16", 8192)
    rng = np.random.default_rng(0)
    tensors = (*dense.tensors[:9], tensor)
    errors, found = weight_errors_of(tensors, rng), [sensitivity(one, 0.3, 0.01, group=name) for one in tensors]
    swept, strategies = cells_of(errors, found, rng), (strategy_of(tensors, rng),)
    named = replace(dense, model_name=name, calibration_name=name, versions={name: name}, imatrix=ImatrixFacts(name, (name,), 1))
    data = replace(named, tensors=tensors, weight_errors=errors, sensitivities=found, cells=swept, strategies=strategies)
    for html in (render_report(data), render_comparison(data, data)):
        document = Document(html)
        assert html.count("<script") == len(document.all("script")) == clean.count("<script") == 3
        assert name in document.text
        assert any(name in tip for tip in document.tips)
        assert all("<" not in datum["tip"].replace("<br>", "") for datum in data_of(document.figures) if "tip" in datum)


def test_an_empty_report_says_what_to_run() -> None:
    text = Document(render_report(BARE)).text
    for sentence in (
        *("No sensitivities yet: run quantailor probe BASE.", "No weight errors yet: run quantailor measure BASE."),
        *("No sweep yet: run quantailor sweep BASE.", "No measured mixes yet: run quantailor probe BASE."),
        *("No verdict yet: run quantailor verify FILE", "No strategy yet: run quantailor plan BASE"),
    ):
        assert sentence in text


def test_without_probes_curves_are_labelled_as_a_ranking(dense: ReportData) -> None:
    data = replace(dense, sensitivities=(), cells=(), curve=None, strategies=(), verdicts=())
    text = Document(render_report(data)).text
    assert "relative error × weights: it ranks, and is no KL divergence" in text
    assert "Basis: ranking only" in text


def test_the_summary_names_the_five_most_sensitive_tensors(dense: ReportData, report: Document) -> None:
    top = sorted((found for found in dense.sensitivities if found.status == "measured"), key=lambda found: -found.alpha.value)[:5]
    assert "".join(f"{found.tensor}: {with_error(found.alpha)}" for found in top).replace("\u00a0", " ") in report.text
    assert "One tensor cannot be told from the floor and has an upper bound only; one tensor takes no part" in report.text
    assert "probes on 24 chunks of 512 tokens of calibration.txt" in report.text


def test_the_sweep_is_drawn_with_errors_and_marks_what_drowns() -> None:
    data = replace(
        simple({"blk.0.attn_q.weight": (1.0, 0.1)}),
        floor_kld_nats=1e-5,
        cells=(
            SwapCell("blk.0.attn_q.weight", "Q4_K", 8, Estimate(0.0123, 0.0004), Estimate(9.0), Estimate(0.01)),
            SwapCell("blk.0.attn_q.weight", "Q8_0", 8, Estimate(1.2e-5, 2e-6), Estimate(9.0), Estimate(0.0)),
        ),
    )
    document = Document(render_report(data))
    assert "blk.0.attn_q.weight at Q4_K: KLD 0.01230 ± 0.00040 nats" in document.tips
    assert "not told from the floor: within 95 % of its error" in document.text
    clear = replace(data, cells=data.cells[:1])
    assert "within 95 % of its error" not in Document(render_report(clear)).text


def test_a_large_sweep_is_drawn_by_role(monkeypatch: pytest.MonkeyPatch, dense: ReportData) -> None:
    monkeypatch.setattr("quantailor.present.report.figures.MOST_CELLS", 100)
    document = Document(render_report(dense))
    assert "each shade is the median over the tensors of a role" in document.text
    values = [cell.kld.value for cell in dense.cells if cell.type_name == "Q4_K" and ".ffn_up." in cell.tensor]
    title = f"ffn_up at Q4_K: median KLD {figure(float(np.median(values)))} nats, "
    assert any(text.startswith(title) for text in document.tips)


def test_predictions_are_told_apart_and_told_in_words(report: Document) -> None:
    legend = next(figure["legend"]["data"] for figure in report.figures if "legend" in figure)
    assert {"mix set in memory (24)", "built file, with its bits per weight (6)"} <= set(legend)
    assert "4.60 bpw" in report.names
    for words in ("gamma = 0.940", "kappa = 0.480", "c0 = 4.00e-4 nats", "± 8.3 % (one sd of the logarithm)", "27 degrees of freedom"):
        assert words in report.text


def test_a_verdict_shows_ratio_interval_and_outcome(report: Document) -> None:
    assert "0.651 (0.589 to 0.733)" in report.text_in("td")
    assert {"▲ better", "▼ worse"} <= set(report.text_in("span"))
    assert "= no better" in report.text_in("td")
    assert "ours.gguf diverges from the base by 0.01250 ± 0.00038 nats" in report.text


def test_a_strategys_shares_are_of_weights(dense: ReportData) -> None:
    tensors = (TensorInfo("a.weight", (30, 32), "F16", 1920), TensorInfo("b.weight", (10, 32), "F16", 640))
    choices = (TensorChoice("a.weight", "Q4_K", ""), TensorChoice("b.weight", "Q8_0", ""))
    strategy = Strategy("f", "m", "llama", "optimal", choices, {"size_bytes": 2**20})
    document = Document(render_report(replace(BARE, tensors=tensors, strategies=[LabelledStrategy("mine", strategy)])))
    assert "Shares of the weights: Q8_0 25.0 %, Q4_K 75.0 %" in [
        str(part.get("aria-label")).replace("\u00a0", " ") for part in document.all("div")
    ]
    assert "Rule: optimal, a file of at most 1.00 MiB (1,048,576 bytes); 2 tensors; basis: ranking only." in document.text


def test_headings_sort_the_table(report: Document) -> None:
    heads = [head for head in report.all("th") if head["scope"] == "col"]
    assert [head["class"] for head in heads if head.get("aria-sort") == "descending"] == ["n"]
    keys = [float(cell["data-v"] or "nan") for cell in report.all("td") if cell.get("class") == "n"]
    assert sum(map(math.isfinite, keys)) > 100


def test_the_same_data_gives_the_same_page(dense: ReportData, moe: ReportData) -> None:
    assert render_comparison(dense, moe) == render_comparison(dense, moe)
    assert render_comparison(dense, moe) != render_comparison(moe, dense)


def test_a_large_model_gives_a_small_page() -> None:
    rng = np.random.default_rng(4)
    tensors = tensors_of({f"role_{index}": (8, 64) for index in range(8)} | DENSE, 40)
    data = replace(
        BARE, tensors=tensors, weight_errors=weight_errors_of(tensors, rng, TYPES[::3]), sensitivities=sensitivities_of(tensors, rng)
    )
    page = render_report(data)
    assert (len(page.encode()) - len(library(page))) / len(tensors) < 6_000_000 / 5000


# --- comparing two models

EXPERTS_OR_NOT = ("ffn_gate", "ffn_up", "ffn_down", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
"""Roles that only one of the two models has: two maps each say so at every depth."""


def test_a_comparison_says_what_one_model_lacks(comparison: Document) -> None:
    titles = comparison.tips
    assert "ffn_gate_exps: not in this model" in titles
    assert "ffn_gate: not in this model" in titles
    assert "attn_q: not in this model" not in titles
    assert {"not in A", "not in B"} <= set(comparison.text_in("td"))
    assert "not in this model" in comparison.text_in("td")
    missing = [tip.partition(":")[0] for tip in titles if tip.endswith("not in this model")]
    assert {role: missing.count(role) for role in missing} == dict.fromkeys(EXPERTS_OR_NOT, 2 * len(DEPTHS))


def test_a_comparison_shows_both_shares_and_their_ratio(dense: ReportData, moe: ReportData, comparison: Document) -> None:
    a, b = ({row.role: row for row in role_profile(data)}["attn_v"].share for data in (dense, moe))
    expected = ratio(a, b)
    assert expected is not None
    cells = comparison.text_in("td")
    for estimate in (Estimate(100 * a.value, 100 * a.se), Estimate(100 * b.value, 100 * b.se)):
        assert f"{with_error(estimate)} %" in cells
    assert with_error(expected) in cells


def test_a_comparison_without_probes_says_what_to_run(dense: ReportData) -> None:
    text = Document(render_comparison(dense, BARE)).text
    assert "No sensitivities and weight errors of B: bare yet: run quantailor probe BASE." in text


def test_a_comparison_warns_of_different_texts(dense: ReportData, moe: ReportData, comparison: Document) -> None:
    other = Document(render_comparison(dense, replace(moe, calibration_name="other.txt")))
    assert "probed on different texts" in other.text
    assert "probed on different texts" not in comparison.text


def test_a_ratio_has_the_error_of_both() -> None:
    found = ratio(Estimate(0.4, 0.04), Estimate(0.2, 0.01))
    assert found is not None
    assert found.value == pytest.approx(2.0)
    assert found.se == pytest.approx(2.0 * math.hypot(0.1, 0.05))
    assert ratio(Estimate(0.4), Estimate(0.0)) is None
