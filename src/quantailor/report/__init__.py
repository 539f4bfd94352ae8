"""Reports as single HTML files: one model's figures, or the sensitivity profiles of two models side by side.

    html = render_report(ReportData(model_name="books-llama", ...))
    html = render_comparison(a, b)

Pure: data in, text out. Nothing here reads a file, a database or a clock.
"""

from __future__ import annotations

from quantailor.report.compare import render_comparison
from quantailor.report.data import ImatrixFacts, LabelledStrategy, ReportData, common_type
from quantailor.report.page import render_report
from quantailor.report.profile import ProfileRow, role_profile, sensitivity_profile

__all__ = [
    "ImatrixFacts",
    "LabelledStrategy",
    "ProfileRow",
    "ReportData",
    "common_type",
    "render_comparison",
    "render_report",
    "role_profile",
    "sensitivity_profile",
]
