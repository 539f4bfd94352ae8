"""References from llama.cpp and the verdict on our file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from quantailor.analysis.importance.imatrix import Imatrix, ImatrixEntry
from quantailor.control import NullControl
from quantailor.errors import Cancelled, ImatrixError, TypeUnavailableError
from quantailor.ggml import library
from quantailor.making.judging import ScoredFile, ensure_reference, file_size, make_verdict
from quantailor.models.identity import description, fingerprint
from quantailor.models.opening import open_model
from quantailor.records import ChunkScore, Verdict


def scores(kld: float, *, n_chunks: int = 220, seed: int = 0) -> list[ChunkScore]:
    """Chunks whose KLD per token is `kld`, a common share of luck apart; the same seed draws the same luck."""
    luck = np.random.default_rng(seed).lognormal(0, 0.3, n_chunks)
    return [
        ChunkScore(index, 256, 256 * (2.5 + kld * luck[index]), 256 * kld * luck[index], 250, 0.01, (kld * luck[index],) * 256)
        for index in range(n_chunks)
    ]


def verdict_on(
    ours: Sequence[ChunkScore], reference: Sequence[ChunkScore], *, ours_bytes: int = 1_000_000, reference_bytes: int = 1_000_500
) -> Verdict:
    files = [
        ScoredFile("base", "base", 4_000_000, 16.0, scores(0.0, n_chunks=len(ours))),
        ScoredFile("mine.gguf", "ours", ours_bytes, 4.5, ours),
        ScoredFile("Q4_K_M", "reference", reference_bytes, 4.5, reference),
    ]
    null = scores(1e-7, n_chunks=len(ours))
    return make_verdict(files, null, model_fingerprint="f" * 64, corpus_name="heldout.txt", corpus_sha256="0" * 64, n_ctx=512)


Outcome = Literal["better", "no better", "worse"]


@pytest.mark.parametrize(("kld", "outcome"), [(0.010, "better"), (0.0125, "no better"), (0.020, "worse")])
def test_the_outcome_follows_the_interval(kld: float, outcome: Outcome) -> None:
    plain = scores(kld)
    noise = np.random.default_rng(1).lognormal(0, 0.2, len(plain))
    noise /= np.average(noise, weights=[score.kld_sum for score in plain])
    ours = [replace(score, kld_sum=score.kld_sum * factor) for score, factor in zip(plain, noise, strict=True)]
    verdict = verdict_on(ours, scores(0.0125))
    assert verdict.comparisons[0].outcome == outcome
    assert f"It is {outcome} than Q4_K_M at equal size" in verdict.sentence


def test_the_verdict_holds_every_file_and_the_floor() -> None:
    verdict = verdict_on(scores(0.01), scores(0.0125))
    assert [row.label for row in verdict.rows] == ["base", "mine.gguf", "Q4_K_M"]
    assert verdict.rows[1].statistics.kld_mean.value == pytest.approx(0.01, rel=0.1)
    assert verdict.comparisons[0].size_ratio == pytest.approx(1_000_000 / 1_000_500)
    assert verdict.floor_kld_nats == pytest.approx(1e-7, rel=0.1)


def test_too_few_chunks_make_no_claim() -> None:
    assert "too few to claim anything" in verdict_on(scores(0.01, n_chunks=40), scores(0.0125, n_chunks=40)).sentence


def test_only_chunks_that_every_file_has_count() -> None:
    verdict = verdict_on(scores(0.01), scores(0.0125, n_chunks=210))
    assert {row.statistics.n_chunks for row in verdict.rows} == {210}


def test_a_short_null_control_takes_no_chunks_from_the_verdict() -> None:
    files = [
        ScoredFile("base", "base", 4_000_000, 16.0, scores(0.0)),
        ScoredFile("mine.gguf", "ours", 1_000_000, 4.5, scores(0.01)),
        ScoredFile("Q4_K_M", "reference", 1_000_500, 4.5, scores(0.0125)),
    ]
    null = scores(1e-7, n_chunks=8)
    verdict = make_verdict(files, null, model_fingerprint="f" * 64, corpus_name="heldout.txt", corpus_sha256="0" * 64, n_ctx=512)
    assert {row.statistics.n_chunks for row in verdict.rows} == {220}
    assert "too few" not in verdict.sentence


def test_a_larger_file_is_not_at_equal_size() -> None:
    sentence = verdict_on(scores(0.01), scores(0.0125), ours_bytes=1_050_525).sentence
    assert "Q4_K_M, which is 4.8 % smaller (" in sentence
    assert "No reference has its size." in sentence


def test_a_reference_is_built_once_and_named_by_what_it_is_made_of(books_llama_base: Path, tmp_path: Path) -> None:
    path = ensure_reference(books_llama_base, "q4_k_m", imatrix=None, folder=tmp_path)
    source = open_model(books_llama_base)
    assert path.name == f"{description(source, fingerprint(source))[:16]}-none-{library.engine().replace(' ', '-')}-Q4_K_M.gguf"
    source.close()
    before = path.stat().st_mtime_ns
    assert ensure_reference(books_llama_base, "Q4_K_M", imatrix=None, folder=tmp_path) == path
    assert path.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_reference_with_an_imatrix_is_another_file(books_llama_base: Path, tmp_path: Path) -> None:
    source = open_model(books_llama_base)
    entries = {
        tensor.name: ImatrixEntry(np.full((1, tensor.n_cols), 30, np.float32), np.full(1, 10), None)
        for tensor in source.tensors
        if tensor.layer is not None and len(tensor.shape) > 1
    }
    source.close()
    imatrix = Imatrix(entries, {}, None, ("text.txt",), 3, 512)
    path = ensure_reference(books_llama_base, "IQ4_XS", imatrix=imatrix, folder=tmp_path)
    assert path.name.split("-")[1] == imatrix.fingerprint[:16]
    written = open_model(path)
    assert written.metadata["quantize.imatrix.entries_count"].value == len(entries)
    assert written.metadata["quantize.imatrix.dataset"].value == "text.txt"
    written.close()


def test_a_broken_reference_is_built_again(books_llama_base: Path, tmp_path: Path) -> None:
    path = ensure_reference(books_llama_base, "Q8_0", imatrix=None, folder=tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert ensure_reference(books_llama_base, "Q8_0", imatrix=None, folder=tmp_path).read_bytes() == whole


def test_presets_that_cannot_be_built_say_why(books_llama_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ImatrixError, match="IQ2_XS"):
        ensure_reference(books_llama_base, "IQ2_XS", imatrix=None, folder=tmp_path)
    with pytest.raises(TypeUnavailableError, match="Q9_K"):
        ensure_reference(books_llama_base, "Q9_K", imatrix=None, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


class Cancelling(NullControl):
    def check(self) -> None:
        raise Cancelled("enough")


@pytest.mark.slow
def test_a_cancelled_reference_leaves_nothing(books_llama_base: Path, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        ensure_reference(books_llama_base, "Q8_0", imatrix=None, folder=tmp_path, control=Cancelling())
    assert list(tmp_path.iterdir()) == []


def test_a_files_size_counts_its_bytes_and_bits(books_llama_base: Path) -> None:
    size_bytes, bits_per_weight = file_size(books_llama_base)
    assert size_bytes == books_llama_base.stat().st_size
    assert bits_per_weight == pytest.approx(16, abs=0.05)
