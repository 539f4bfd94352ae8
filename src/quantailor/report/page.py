"""One model's report as one HTML document that needs nothing else: no request, no script but its own."""

from __future__ import annotations

from quantailor.present.words import listed
from quantailor.report import html
from quantailor.report.alphas import alphas_section
from quantailor.report.curves import curves_section
from quantailor.report.data import ReportData
from quantailor.report.fit import fit_section
from quantailor.report.maps import alpha_section, sweep_section
from quantailor.report.markup import Markup, element
from quantailor.report.mixes import strategies_section, verdicts_section
from quantailor.report.summary import head, summary

_SECTIONS = (
    *(("summary", "Summary"), ("map", "Layers and roles"), ("curves", "Damage curves"), ("sweep", "Sweep")),
    *(("alphas", "Sensitivities"), ("fit", "Predictions"), ("verdicts", "Verdicts"), ("strategies", "Strategies")),
)


def render_report(data: ReportData) -> str:
    """The document as text, to be written as UTF-8."""
    return html.page(
        f"{data.model_name}: Quantailor report",
        summary(data),
        alpha_section(data),
        curves_section(data),
        sweep_section(data),
        alphas_section(data),
        fit_section(data),
        verdicts_section(data),
        strategies_section(data),
        footer(data),
        sections=_SECTIONS,
        head=head(data, data.model_name),
    )


def footer(*models: ReportData) -> Markup:
    """How the figures were made, and with which versions."""
    made = (
        "Weight errors: ggml's own quantizers against the base's weights. Sensitivities: single tensors replaced in the loaded model, "
        "KL divergence of the output from the unmodified model's. Standard errors are over chunks of text; intervals are 95 %."
    )
    versions = dict(pair for data in models for pair in data.versions.items())
    with_ = f" Made with {listed([f'{name} {version}' for name, version in versions.items()])}." if versions else ""
    return element("footer", element("p", made + with_))
