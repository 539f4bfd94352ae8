"""A report in a real browser: it draws without any request, in both themes, and hostile names stay text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from browser import Browser
from made_up_models import DENSE, model

from quantailor.present.charts.colours import DARK
from quantailor.present.report import render_report

pytestmark = pytest.mark.slow

IS_DRAWN = """return [...document.querySelectorAll(".chart")].map(place => {
    const canvas = place.querySelector("canvas");
    const pixels = canvas && canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return !!pixels && pixels.some(value => value > 0);
})"""
ONE_TIP = """const chart = echarts.getInstanceByDom(document.querySelector(".chart"));
chart.dispatchAction({type: "showTip", seriesIndex: 0, dataIndex: 0});
return document.querySelector(".chart").innerText"""
TEXT_COLOUR = "return echarts.getInstanceByDom(document.querySelector('.chart')).getOption().textStyle.color"
REQUESTED = """return performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:"))"""


def test_a_report_draws_everything_and_requests_nothing(chromium: Browser, tmp_path: Path) -> None:
    hostile = "<img src=http://127.0.0.1:9/x onerror=document.title='hacked'>"
    data = model("books-llama", DENSE, 4, sweep=False)
    first = data.tensors[2]
    renamed = replace(
        data,
        model_name=hostile,
        tensors=[replace(tensor, name=f"{hostile}.attn_q.weight") if tensor is first else tensor for tensor in data.tensors],
        sensitivities=[replace(one, tensor=f"{hostile}.attn_q.weight") if one.tensor == first.name else one for one in data.sensitivities],
    )
    page = tmp_path / "report.html"
    page.write_text(render_report(renamed), encoding="utf-8")
    chromium.errors()
    chromium.driver.get(page.as_uri())
    drawn = chromium.js(IS_DRAWN)
    assert len(drawn) > 8
    assert all(drawn)
    assert "alpha" in chromium.js(ONE_TIP)
    assert chromium.js(REQUESTED) == []
    assert chromium.js("return document.title") == f"{hostile}: Quantailor report"
    assert chromium.js("return document.querySelectorAll('img, iframe, object').length") == 0
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    chromium.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    chromium.until(lambda: chromium.js(TEXT_COLOUR) == DARK.text, "the figures follow the theme")
    assert not chromium.errors()
    chromium.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
