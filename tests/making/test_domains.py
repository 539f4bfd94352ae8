"""A verdict on a mix of texts: each apart, and where the file suffers."""

from __future__ import annotations

import dataclasses
import math

import pytest
from test_judging import scores

from quantailor.making.judging import ScoredFile, make_verdict
from quantailor.records import ChunkScore, Verdict
from quantailor.store.encoding import verdict_from_json, verdict_to_json

N_CHUNKS = 260
CODE = range(0, N_CHUNKS, 4)
DOMAINS = {"prose": [index for index in range(N_CHUNKS) if index not in CODE], "code": list(CODE)}


def verdict_on(kld_of_code: float, *, n_chunks: int = N_CHUNKS) -> Verdict:
    """Ours has half of Q4_K_M's divergence on prose, and such a one on code, where Q4_K_M has 0.02 as everywhere."""

    def ours() -> list[ChunkScore]:
        there = zip(scores(0.01, n_chunks=n_chunks), scores(kld_of_code, n_chunks=n_chunks), strict=True)
        return [code if prose.index in CODE else prose for prose, code in there]

    files = [
        ScoredFile("base", "base", 16_000_000, 16.0, scores(0.0, n_chunks=n_chunks)),
        ScoredFile("mine", "ours", 5_000_000, 5.0, ours()),
        ScoredFile("Q4_K_M", "reference", 5_100_000, 5.1, scores(0.02, n_chunks=n_chunks)),
        ScoredFile("Q8_0", "reference", 9_000_000, 9.0, scores(0.0004, n_chunks=n_chunks)),
    ]
    floor = scores(1e-7, n_chunks=8)
    return make_verdict(
        files, floor, model_fingerprint="f" * 64, corpus_name="mix.yaml", corpus_sha256="0" * 64, n_ctx=512, domains=DOMAINS
    )


def test_each_text_has_figures_of_its_own() -> None:
    found = verdict_on(0.01)
    prose, code = found.domains
    assert [(each.name, each.n_chunks) for each in found.domains] == [("prose", 195), ("code", 65)]
    assert prose.klds[1].value == pytest.approx(code.klds[1].value, rel=0.1)
    assert [each.reference for each in code.comparisons] == ["Q4_K_M", "Q8_0"]
    assert math.exp(code.comparisons[0].ln_kld_ratio) == pytest.approx(0.5)
    assert "suffers" not in found.sentence
    assert verdict_from_json(verdict_to_json(found)) == found


def test_a_text_on_which_the_file_suffers_is_told_beside_the_file_of_its_size() -> None:
    found = verdict_on(0.03)
    assert len(found.reservations) == 1
    assert found.reservations[0].startswith("On code it suffers: KLD ratio 1.5, 95 % interval 1.5 to 1.5 against Q4_K_M, but 0.")
    assert found.sentence.endswith(found.reservations[0])


def test_too_few_chunks_claim_nothing_of_a_text() -> None:
    assert verdict_on(0.03, n_chunks=100).reservations == ()
    few = dataclasses.replace(verdict_on(0.03), domains=())
    assert verdict_from_json(verdict_to_json(few)).domains == ()
