"""A verdict on several files: every two compared, each beside the presets' line, and what is said of that."""

from __future__ import annotations

import math

import pytest
from test_judging import scores

from quantailor.app.products.verdicts import headline
from quantailor.making.judging import ScoredFile, make_verdict
from quantailor.records import RowKind, Verdict
from quantailor.store.encoding import verdict_from_json, verdict_to_json

MIB = 2**20
SMALL: tuple[str, RowKind, float, float] = ("small", "rival", 20, 0.1)
PRESETS = (("Q3_K_M", 30, 0.04), ("Q4_K_M", 40, 0.01))


def verdict_on(*judged: tuple[str, RowKind, float, float], n_chunks: int = 220) -> Verdict:
    """Files by label, kind, MiB and KLD, beside two presets; the luck of chunks is common to all but the "usual" one."""
    references: list[tuple[str, RowKind, float, float]] = [(name, "reference", size, kld) for name, size, kld in PRESETS]
    files = [
        ScoredFile(label, kind, round(size * MIB), size / 8, scores(kld, n_chunks=n_chunks, seed=int(label == "usual")))
        for label, kind, size, kld in (("base", "base", 160.0, 0.0), *judged, *references)
    ]
    null = scores(1e-7, n_chunks=8)
    return make_verdict(files, null, model_fingerprint="f" * 64, corpus_name="heldout.txt", corpus_sha256="0" * 64, n_ctx=512)


def test_every_two_files_are_compared_and_ours_with_each_of_the_others() -> None:
    found = verdict_on(("mine", "ours", 35, 0.01), ("theirs", "rival", 36, 0.03))
    assert [(pair.file, pair.reference) for pair in found.pairs] == [
        *(("mine", "theirs"), ("mine", "Q3_K_M"), ("mine", "Q4_K_M")),
        *(("theirs", "Q3_K_M"), ("theirs", "Q4_K_M"), ("Q3_K_M", "Q4_K_M")),
    ]
    assert [each.reference for each in found.comparisons] == ["theirs", "Q3_K_M", "Q4_K_M"]
    mine = found.pairs[0]
    assert math.exp(mine.ln_kld_ratio) == pytest.approx(1 / 3)
    assert mine.outcome == "better"
    assert mine.size_ratio == pytest.approx(35 / 36)
    assert verdict_from_json(verdict_to_json(found)) == found


def test_one_file_is_judged_as_before() -> None:
    found = verdict_on(("mine", "ours", 35, 0.01))
    assert (found.pairs, found.standings) == ((), ())
    assert found.sentence.startswith("mine (35.00 MiB, 4.38 bits per weight) diverges from the base by ")


def test_files_stand_below_on_or_above_the_presets_line() -> None:
    size = math.sqrt(30 * 40)  # half way in logarithms, where the line has the geometric mean of both divergences
    found = verdict_on(
        ("good", "ours", size, 0.01), ("usual", "rival", size, 0.02), ("bad", "rival", size, 0.03), ("small", "rival", 20, 0.1)
    )
    outcomes = {each.file: (each.outcome, round(math.exp(each.ln_kld_ratio), 1)) for each in found.standings}
    assert outcomes == {"good": ("below", 0.5), "usual": ("on", 1.0), "bad": ("above", 1.5)}
    assert (
        "good is below the presets' line: 50 % of the divergence of the line from Q3_K_M to Q4_K_M at its size (50 % to 50 %)"
        in found.sentence
    )
    assert "small lies outside the sizes of the presets that were measured." in found.sentence
    assert "usual is on the presets' line" in found.sentence


def test_the_sentence_says_how_much_smaller_a_file_is_than_the_preset_it_equals() -> None:
    found = verdict_on(("mine", "ours", 34.8, 0.01), ("theirs", "rival", 37, 0.009))
    assert "and 13 % smaller than Q4_K_M at the same divergence." in found.sentence
    assert "and 7 % smaller than Q4_K_M at less divergence." in found.sentence
    assert "mine is worse than theirs, which is 6.3 % larger (KLD ratio 1.11, 95 % interval 1.11 to 1.11)." in found.sentence


def test_a_file_of_a_presets_size_is_held_against_that_preset() -> None:
    for size in (40.0, 40 * 0.9995):
        found = verdict_on(("mine", "ours", size, 0.005), ("theirs", "rival", 30, 0.04))
        assert found.standings[0].presets == ("Q4_K_M",)
        assert found.standings[0].ln_kld_ratio == pytest.approx(math.log(0.5))
        assert "mine is below the presets' line: 50 % of the divergence of Q4_K_M at its size" in found.sentence


def test_a_ladder_is_summed_up_where_all_its_files_stand_alike() -> None:
    found = verdict_on(("small", "ours", 32, 0.01), ("large", "ours", 38, 0.005))
    assert found.sentence.startswith("Both files are below the presets' line.")
    assert headline(found) == "Both files are below the presets' line."
    assert [each.reference for each in found.comparisons] == ["Q3_K_M", "Q4_K_M"]
    assert not verdict_on(("small", "ours", 32, 0.01), ("large", "ours", 38, 0.05)).sentence.startswith(("All", "Both"))


def test_too_few_chunks_make_no_claim_of_several_files() -> None:
    found = verdict_on(("mine", "ours", 35, 0.01), ("theirs", "rival", 36, 0.03), n_chunks=20)
    assert found.sentence.startswith("20 chunks are too few to claim anything; 200 are needed. Mean KLD so far: mine 0.00")
