"""What a verdict says and shows: the sentence, the table and the figure."""

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path
from typing import Literal

import matplotlib.image
import numpy as np
import pytest

from quantailor.errors import OutputError
from quantailor.making.judging import CSV_COLUMNS, sentence, write_csv
from quantailor.present.charts.drawing import picture, save
from quantailor.present.charts.verdict import verdict_chart
from quantailor.records import Comparison, Estimate, FidelityStatistics, Verdict, VerdictRow

NOTHING = Estimate(0.0)


def row(
    label: str, kind: Literal["base", "ours", "reference"], size: int, kld: float, *, se: float = 0.0005, n_chunks: int = 220
) -> VerdictRow:
    figures = FidelityStatistics(
        n_chunks, 56320, Estimate(12.5, 0.3), NOTHING, Estimate(kld, se), kld / 2, kld * 5, kld * 9, kld * 30, NOTHING, NOTHING
    )
    return VerdictRow(label, kind, size, 4.5, figures)


def comparison(reference: str, ratio: float, outcome: Literal["better", "no better", "worse"], size_ratio: float = 1.0) -> Comparison:
    middle = math.log(ratio)
    return Comparison(reference, middle, (middle - 0.1, middle + 0.1), size_ratio, outcome)


OURS = row("ours.gguf", "ours", 5_300_000, 0.0125)
VERDICT = Verdict(
    "f" * 64,
    "heldout.txt",
    "0" * 64,
    512,
    (
        *(row("base", "base", 16_900_000, 0.0), OURS, row("Q4_K_M", "reference", 5_302_000, 0.0148)),
        *(row("Q5_K_M", "reference", 6_200_000, 0.0046), row("Q8_0", "reference", 8_900_000, 0.0002, se=0.001)),
    ),
    (comparison("Q4_K_M", 0.84, "better", 5_300_000 / 5_302_000), comparison("Q8_0", 60.0, "worse", 0.595)),
    1.2e-6,
    "It is what it is.",
)


def test_better_at_equal_size_is_said_so() -> None:
    text = sentence(OURS, [comparison("Q4_K_M", 0.84, "better", 0.9995)], floor_kld_nats=1e-6)
    assert "diverges from the base by 0.01250 ± 0.00050 nats" in text
    assert "better than Q4_K_M at equal size (KLD ratio 0.84, 95 % interval 0.76 to 0.928)" in text


def test_a_gain_bought_with_bytes_names_the_bytes() -> None:
    text = sentence(OURS, [comparison("Q4_K_M", 0.5, "better", 1.031)], floor_kld_nats=1e-6)
    assert "better than Q4_K_M, which is 3.0 % smaller" in text
    assert "equal size" not in text


def test_worse_and_no_better_are_said_as_plainly() -> None:
    text = sentence(OURS, [comparison("Q4_K_M", 1.02, "no better"), comparison("Q8_0", 60, "worse", 0.6)], floor_kld_nats=1e-6)
    assert "no better than Q4_K_M at equal size" in text
    assert "worse than Q8_0, which is 66.7 % larger" in text


def test_few_chunks_claim_nothing() -> None:
    text = sentence(row("ours.gguf", "ours", 5_300_000, 0.0125, n_chunks=20), [comparison("Q4_K_M", 0.5, "better")], floor_kld_nats=1e-6)
    assert "too few to claim anything; 200 chunks are needed" in text
    assert "better" not in text


def test_no_reference_is_no_verdict() -> None:
    assert "compared with no reference" in sentence(OURS, [], floor_kld_nats=0.0)


def test_the_table_has_a_row_per_file(tmp_path: Path) -> None:
    with write_csv(VERDICT, tmp_path / "verdict.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [entry["label"] for entry in rows] == ["base", "ours.gguf", "Q4_K_M", "Q5_K_M", "Q8_0"]
    assert float(rows[1]["kld_mean_nats"]) == 0.0125
    assert rows[2]["outcome"] == "better"
    assert float(rows[2]["kld_ratio"]) == pytest.approx(0.84)
    assert rows[0]["outcome"] == rows[1]["outcome"] == rows[3]["outcome"] == ""
    assert tuple(rows[0]) == CSV_COLUMNS


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save(verdict_chart(VERDICT), tmp_path_factory.mktemp("drawn") / "verdict-4.5")


def test_the_figure_is_drawn_as_png_and_svg(drawn: tuple[Path, Path]) -> None:
    png, svg = drawn
    pixels = matplotlib.image.imread(png)
    assert pixels.shape[0] > 700
    assert np.all(pixels[0, 0, :3] == 1), "white background"
    assert (png.name, svg.name) == ("verdict-4.5.png", "verdict-4.5.svg")
    assert "<svg" in svg.read_text(encoding="utf-8")
    assert sorted(path.name for path in png.parent.iterdir()) == ["verdict-4.5.png", "verdict-4.5.svg"]


def test_the_same_verdict_gives_the_same_figures(drawn: tuple[Path, Path], tmp_path: Path) -> None:
    again = save(verdict_chart(VERDICT), tmp_path / "verdict")
    assert [path.read_bytes() for path in drawn] == [path.read_bytes() for path in again]


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([row("ours.gguf", "ours", 5_000_000, 0.01)], id="ours alone"),
        pytest.param([row("ours.gguf", "ours", 5_000_000, 0.0), row("Q8_0", "reference", 5_000_000, 0.0, se=0.0)], id="no divergence"),
        pytest.param(
            [row("x" * 90, "ours", 5 * 2**30, 0.01, se=0.02), row("Q4_K_M", "reference", 5 * 2**30, 0.01, se=0.02)], id="long name"
        ),
    ],
)
def test_odd_verdicts_are_drawn_too(tmp_path: Path, rows: list[VerdictRow]) -> None:
    verdict = Verdict("f", "text.txt", "0", 512, tuple(rows), (), 1e-3, "")
    assert all(path.stat().st_size > 5000 for path in save(verdict_chart(verdict), tmp_path / "verdict"))


@pytest.mark.parametrize("write", [write_csv, lambda verdict, stem: save(verdict_chart(verdict), stem)], ids=["table", "figure"])
def test_an_unwritable_place_is_one_clear_error(tmp_path: Path, write: object) -> None:
    assert callable(write)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        write(VERDICT, tmp_path / "file" / "verdict")


@pytest.mark.parametrize("ours", [4_450_000, 5_000_000, 9_030_000])
def test_no_name_lies_on_the_line_through_the_presets(ours: int) -> None:
    presets = ((4_452_000, 0.0201), (5_340_000, 0.0048), (6_990_000, 0.00107), (9_030_000, 0.0002))
    rows = [row(f"Q{number}_K", "reference", *place, se=1e-5) for number, place in enumerate(presets)]
    mine = row("a-model-of-4.13bpw.gguf", "ours", ours, 0.0093)
    verdict = Verdict("f", "text.txt", "0", 512, (mine, *rows), (), 1e-9, "")
    axes = picture(verdict_chart(verdict)).axes[0]
    legend = axes.get_legend()
    assert legend is not None
    assert any(text.get_text().startswith("a-model-of-4.13bpw.gguf, 4.50 bpw") for text in legend.get_texts())
    corners = axes.transData.transform([(size / 2**20, kld) for size, kld in presets])
    line = np.concatenate([start + np.linspace(0, 1, 200)[:, None] * (end - start) for start, end in itertools.pairwise(corners)])
    for text in (*axes.texts, *legend.get_texts()):
        box = text.get_window_extent()
        assert not any(box.contains(x, y) for x, y in line), text.get_text()
