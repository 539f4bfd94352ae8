"""What files are worth: scores of their chunks, and the verdict that is made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quantailor.records.evals import Eval
from quantailor.records.measurements import Estimate


@dataclass(frozen=True, slots=True)
class ChunkScore:
    """One chunk's sums over its scored tokens; verdicts are made of these, so they are what is stored.

    `kld_*` and `top_agreement` compare with the base; for the base itself they are 0 and n_tokens.
    """

    index: int
    n_tokens: int
    nll_sum: float
    """Sum of -ln p(token), nats."""
    kld_sum: float
    """Sum of KL(base || model), nats."""
    top_agreement: int
    """Tokens whose most likely successor is the same in both."""
    dp_square_sum: float
    """Sum of (p_model(token) - p_base(token))^2."""
    klds: tuple[float, ...] = ()
    """Every scored token's KLD, nats, for quantiles."""


@dataclass(frozen=True, slots=True)
class FidelityStatistics:
    """Perplexity and KL divergence of one file against the base; standard errors are over chunks."""

    n_chunks: int
    n_tokens: int
    perplexity: Estimate
    ln_ppl_ratio: Estimate
    """ln(PPL / PPL_base), paired by chunk."""
    kld_mean: Estimate
    kld_median: float
    kld_p99: float
    kld_p999: float
    kld_max: float
    top_agreement: Estimate
    rms_dp: Estimate


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours against one reference: ln(KLD_ours / KLD_reference) with a paired bootstrap interval over chunks."""

    reference: str
    ln_kld_ratio: float
    interval: tuple[float, float]
    size_ratio: float
    """Our bytes / the reference's bytes."""
    outcome: Literal["better", "no better", "worse"]
    file: str = ""
    """What is compared with the reference; "" is ours."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A file beside the presets' line: mean KLD over size, straight between neighbouring presets in the logarithms of both."""

    file: str
    presets: tuple[str, ...]
    """The two between which it lies, or the one of its size."""
    ln_kld_ratio: float
    """ln(its KLD / that of the line at its size)."""
    interval: tuple[float, float]
    """95 %, paired over chunks."""
    outcome: Literal["below", "on", "above"]


@dataclass(frozen=True, slots=True)
class Domain:
    """One text of a mix, apart from the others."""

    name: str
    n_chunks: int
    klds: tuple[Estimate, ...]
    """Mean KLD of every row of the verdict, in their order."""
    comparisons: tuple[Comparison, ...]
    """As the verdict's, over the chunks of this text."""


RowKind = Literal["base", "ours", "rival", "reference"]
"""What a file is in a verdict: the base, ours (several sizes of a ladder), somebody else's, or one that llama.cpp made for comparison."""

PLAIN_TWIN = "plain rounding"
"""The label of a reference of the very types of ours, rounded plainly; all others are llama.cpp's presets."""


@dataclass(frozen=True, slots=True)
class VerdictRow:
    """One file in a verdict."""

    label: str
    kind: RowKind
    size_bytes: int
    bits_per_weight: float
    statistics: FidelityStatistics
    content: str = ""
    """The identity of the file that was measured."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What verification found."""

    model_fingerprint: str
    corpus_name: str
    corpus_sha256: str
    n_ctx: int
    rows: tuple[VerdictRow, ...]
    comparisons: tuple[Comparison, ...]
    """Ours, the first where there are several, against every other file that is not ours."""
    floor_kld_nats: float
    """KLD of the unmodified base through the same pipeline."""
    sentence: str
    reservations: tuple[str, ...] = ()
    """What limits its worth: a text that was not held out, a base that is quantized itself. They end the sentence too."""
    pairs: tuple[Comparison, ...] = ()
    """Every two files, where more than one was judged."""
    standings: tuple[Standing, ...] = ()
    """Every file that was judged and lies between presets, where more than one was judged."""
    domains: tuple[Domain, ...] = ()
    """Each text apart, where the held-out text is a mix of several."""
    evals: tuple[Eval, ...] = ()
    """What was measured beside divergences, where it was asked for."""
