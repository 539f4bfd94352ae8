"""Reports as single HTML files: one model's figures, or the sensitivity profiles of two models side by side.

    html = render_report(ReportData(model_name="books-llama", ...))
    html = render_comparison(a, b)

Pure: data in, text out. Nothing here reads a store or a clock; a page needs no file and no network.
"""

from __future__ import annotations

from quantailor.present.report.compare import render_comparison
from quantailor.present.report.data import ImatrixFacts, LabelledStrategy, ReportData, common_type
from quantailor.present.report.one_model import render_report
from quantailor.present.report.profile import ALL_DEPTHS, left_out, places, role_profile, sensitivity_profile
