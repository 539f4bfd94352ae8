"""How much each tensor's error matters: from scores of probes to alpha and noise (METHODS 4).

A *probe* is a mix of one tensor (or of a group) at one type. Its KLD has two parts: what rounding the weights does, in
proportion to the weighted error, and what the type's kernel does by rounding the inputs of the product, which does not
depend on the weights' bits:

    KLD_t(q) = alpha_t e_t(q) + noise_t(activation block of q)

Q2_K, Q6_K and Q8_0 tell the three unknowns apart: a large error, and next to none in either kind of kernel. Least
squares on relative errors, none of the unknowns negative. Where there is one probe alone all of it counts as alpha.
Only a probe of next to no error tells the noise (`TELLS_NOISE`): in one of a large error, what it has too much for alpha
would count as noise, and make all larger types look as bad. It is what such a probe has beyond alpha by all that is known
(`noise_findings`); where no probe tells it, what is expected beside alpha.

Standard errors are over chunks: the estimate is a linear map of the probes' KLDs, and that map is applied to every chunk.

Where a router is near a tie, any change in the model sends a token to another expert: a few chunks then have a KLD many
times that of the others, whatever the tensor and however small its error. The same ties flip under every other change
too, so this part does not add up over tensors. What a tensor is *typically* worth is therefore taken from chunks cut down to
`TYPICAL_MEDIANS` of their median; what the flips cost a whole file is told by whole mixes (see `prediction`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from quantailor import numerics
from quantailor.analysis.corpus import spread
from quantailor.analysis.pooling import Departure, Departures, Finding
from quantailor.analysis.scores.fidelity import paired_chunks, perplexity_of
from quantailor.errors import InferenceError
from quantailor.numerics import Doubles
from quantailor.present.words import plural
from quantailor.qtypes import QType
from quantailor.records import ChunkScore, Estimate, Mix, Sensitivity, SwapCell, TensorInfo, layer_of

Scores = Mapping[str, Sequence[ChunkScore]]
"""Mix id -> its scores by chunk; the base's own are those of the empty mix."""

NULL_MIX = Mix.of({})
MAX_PROBE_KLD = 0.05
"""Above this a probe is not a small perturbation; a larger type is tried."""
DROWNED_BELOW_FLOORS = 3.0
DROWNED_BELOW_ERRORS = 2.0
"""A probe below so many floors, or so many of its own standard errors, says nothing."""
TYPICAL_MEDIANS = 3.0
N_SECTIONS = 8
UNREADABLE_SHARE = 2 / 3
"""A chunk in which the base needs more than this share of ln(vocabulary) nats a token is text that it was never taught. What an
error costs there says nothing about text that it knows: other tensors matter, the embeddings of rare tokens above all."""
TELLS_NOISE = 1e-3
"""A probe of a larger error than this says nothing of what rounding the inputs costs."""
USUAL_NOISE: Mapping[int, float] = {32: 1e-4, 256: 3e-4}
"""noise / alpha by activation block where no probe tells it: the share of the inputs' energy that rounding them loses."""
NOISE_BLOCKS = tuple(USUAL_NOISE)
NOISE_SD = 0.25
"""How well the difference of a probe's KLD and alpha x error tells noise, beside the larger of both."""
LARGE_KLD = 0.05
"""Nats. From here on a probe is no small perturbation and counts less."""
ALPHA_CHUNK_SD, TYPE_CHUNK_SD = 0.25, 0.15
"""How much alpha scatters from chunk to chunk, relative, where too few chunks tell; and a type beside the tensor's others."""
_USUAL_CHUNKS = 6
"""What is usual counts like so many chunks."""
_DEPTH_BANDS = 4
_UNDETERMINED = 1e-6


@dataclass(frozen=True, slots=True)
class ProbeGroup:
    """Tensors that are probed together; a single one has its own name as the group's."""

    name: str
    tensors: tuple[str, ...]

    def mix(self, type_name: str) -> Mix:
        """All of the group at one type."""
        return Mix.of(dict.fromkeys(self.tensors, type_name))


def groups_of(tensors: Sequence[TensorInfo], grouping: str) -> list[ProbeGroup]:
    """The groups to probe: every "tensor", every "role", or every role in each quarter of the depth ("role-depth")."""
    n_layers = 1 + max((tensor.layer or 0 for tensor in tensors), default=0)
    members_of: dict[str, list[str]] = {}
    for tensor in tensors:
        members_of.setdefault(_group_name(tensor, grouping, n_layers), []).append(tensor.name)
    return [ProbeGroup(name, tuple(members)) for name, members in members_of.items()]


def largest_first(groups: Sequence[ProbeGroup], tensors: Sequence[TensorInfo]) -> list[ProbeGroup]:
    """What holds most weights first, for most is lost there; of equals, layers from all over the depth."""
    sizes = {tensor.name: tensor.n_elements for tensor in tensors}
    places = {layer: place for place, layer in enumerate(spread(1 + max((tensor.layer or 0 for tensor in tensors), default=0)))}
    return sorted(groups, key=lambda group: (-sum(sizes[name] for name in group.tensors), places[layer_of(group.tensors[0]) or 0]))


def _group_name(tensor: TensorInfo, grouping: str, n_layers: int) -> str:
    layer = layer_of(tensor.name)
    if grouping == "tensor" or layer is None:
        return tensor.name
    return tensor.role if grouping == "role" else f"{tensor.role}, depth {1 + _DEPTH_BANDS * layer // n_layers} of {_DEPTH_BANDS}"


def swap_cell(tensor: str, type_name: str, scores: Sequence[ChunkScore], base: Sequence[ChunkScore]) -> SwapCell:
    """KLD and perplexity of one cell over the chunks it has in common with the base.

    Raises:
        InferenceError: it has none.
    """
    pairs = paired_chunks(scores, base)
    perplexity, ln_ppl_ratio = perplexity_of(pairs)
    return SwapCell(tensor, type_name, len(pairs), mean_kld([ours for ours, _ in pairs]), perplexity, ln_ppl_ratio)


def mean_kld(scores: Sequence[ChunkScore]) -> Estimate:
    """Mean KLD over chunks, nats per token."""
    return numerics.ratio_over_chunks([score.kld_sum for score in scores], [score.n_tokens for score in scores])


def kld_over_sections(scores: Sequence[ChunkScore]) -> Estimate:
    """Mean KLD, nats per token, with the standard error over contiguous sections of the text.

    A text is often several works in a row, and what a mix costs differs from work to work, by more than single chunks show.
    """
    ordered = sorted(scores, key=lambda score: score.index)
    sections = np.array_split(np.arange(len(ordered)), min(N_SECTIONS, len(ordered)))
    sums = [sum(ordered[index].kld_sum for index in section) for section in sections]
    return numerics.ratio_over_chunks(sums, [sum(ordered[index].n_tokens for index in section) for section in sections])


def is_readable(base: ChunkScore, n_vocab: int) -> bool:
    """Whether the base knows text like this chunk, by its own score there; see `UNREADABLE_SHARE`."""
    return base.nll_sum < UNREADABLE_SHARE * math.log(max(n_vocab, 2)) * base.n_tokens


def readable(scores: Scores, base: Sequence[ChunkScore], n_vocab: int) -> Scores:
    """The scores of chunks that the base can read; those of a mix that has no such chunk stay as they are.

    Args:
        scores: of any mixes, or files.
        base: those of the empty mix.
        n_vocab: tokens in the vocabulary.
    """
    known = {score.index for score in base if is_readable(score, n_vocab)}
    return {mix: [score for score in rows if score.index in known] or rows for mix, rows in scores.items()}


def _typical(klds: Doubles, tokens: Doubles) -> Doubles:
    """KLD sums per chunk, (n_probes, n_chunks), with everything above so many of a row's medians per token cut down to that."""
    per_token = klds / tokens
    return np.minimum(per_token, TYPICAL_MEDIANS * np.median(per_token, axis=-1, keepdims=True)) * tokens


def is_drowned(kld: Estimate, floor_nats: float) -> bool:
    """Whether a probe cannot be distinguished from the floor or from its own error."""
    return kld.value < max(DROWNED_BELOW_FLOORS * floor_nats, DROWNED_BELOW_ERRORS * kld.se)


# From probes to alphas


def sensitivity(
    group: ProbeGroup,
    errors: Mapping[str, Mapping[str, float]],
    scores: Scores,
    qtypes: Mapping[str, QType],
    probe_types: Collection[str],
    *,
    floor_nats: float = 0.0,
) -> tuple[Sensitivity, ...]:
    """alpha and noise of every tensor of a group, from the group's probes.

    Within a group every tensor gets the group's alpha, and noise in proportion to the number of tensors.

    Args:
        group: the tensors that were probed together.
        errors: tensor -> type -> `WeightError.error`.
        scores: of all probes, and of the empty mix.
        qtypes: ggml's types.
        probe_types: the types to look for among the scores.
        floor_nats: what a change without loss would show.
    """
    probes = [name for name in probe_types if group.mix(name).id in scores and all(name in errors.get(t, {}) for t in group.tensors)]
    own_name = "" if group.tensors == (group.name,) else group.name
    if not probes:
        return tuple(Sensitivity(name, "not probed", Estimate(0.0), group=own_name) for name in group.tensors)
    summed = [sum(errors[tensor][name] for tensor in group.tensors) for name in probes]
    klds, tokens = _by_chunk([scores[group.mix(name).id] for name in probes], summed, len(group.tensors))  # (n_probes, n_chunks)
    kept = [number for number, row in enumerate(klds) if np.isfinite(row).all()]
    klds, probes, summed = klds[kept], [probes[number] for number in kept], [summed[number] for number in kept]
    blocks = [qtypes[name].activation_block for name in probes]
    alpha, noise = _solve(np.asarray(summed), blocks, klds, tokens, len(group.tensors))
    largest = max((numerics.ratio_over_chunks(row, tokens) for row in klds), key=lambda kld: kld.value)
    status: Literal["measured", "drowned"] = "measured"
    if is_drowned(largest, floor_nats):
        status, alpha = "drowned", Estimate(alpha.value + DROWNED_BELOW_ERRORS * alpha.se, alpha.se)
    return tuple(
        Sensitivity(
            tensor=name,
            status=status,
            alpha=alpha,
            noise={block: value / len(group.tensors) for block, value in noise.items()},
            group=own_name,
            probes=tuple(probes),
        )
        for name in group.tensors
    )


def _by_chunk(scores: Sequence[Sequence[ChunkScore]], errors: Sequence[float], n: int) -> tuple[Doubles, Doubles]:
    """Typical KLD sums of a group's probes over the chunks of the one that tells most of alpha, and those chunks' tokens.

    A probe that lacks some of these chunks is taken to cost there what it costs beside that one elsewhere; with no chunk in
    common it is left as NaN.
    """
    telling = [row for row, error in zip(scores, errors, strict=True) if error > n * TELLS_NOISE] or scores
    chunks = sorted({score.index: float(score.n_tokens) for score in max(telling, key=len)}.items())
    tokens = np.array([count for _, count in chunks])
    klds = np.full((len(scores), len(chunks)), np.nan)
    for row, found in zip(klds, scores, strict=True):
        sums = {score.index: score.kld_sum for score in found}
        there = np.array([index in sums for index, _ in chunks])
        if there.any():
            row[there] = _typical(np.array([[sums[index] for index, _ in chunks if index in sums]]), tokens[there])[0]
    whole = next(row for row in klds if np.isfinite(row).all())
    for row in klds:
        there = np.isfinite(row)
        if there.any() and whole[there].sum() > 0:
            row[~there] = whole[~there] * row[there].sum() / whole[there].sum()
    return klds, tokens


def _solve(errors: Doubles, blocks: Sequence[int], klds: Doubles, tokens: Doubles, n: int) -> tuple[Estimate, dict[int, float]]:
    """alpha with its error, and the noise per activation block, from probes with these errors and blocks.

    Args:
        errors: the weighted errors of the probes, (n_probes,).
        blocks: the activation blocks of their types.
        klds: sums per chunk, (n_probes, n_chunks).
        tokens: scored tokens per chunk, (n_chunks,).
        n: tensors that were probed together.
    """
    # scipy takes long to import, and much memory; who fits nothing does without.
    from scipy.optimize import nnls

    means = klds.sum(axis=1) / tokens.sum()
    unknown_blocks = sorted({block for block, error in zip(blocks, errors, strict=True) if error <= n * TELLS_NOISE} - {1})
    if len(set(blocks)) == len(blocks):  # one probe per kernel: the one with the larger error gives alpha alone
        unknown_blocks = [block for block in unknown_blocks if block != blocks[int(np.argmax(errors))]]
    design = np.stack([errors, *(np.equal(blocks, block).astype(np.float64) for block in unknown_blocks)], axis=1)
    usable = means > 0
    if not usable.any() or not errors[usable].any():
        return Estimate(0.0), dict.fromkeys(unknown_blocks, 0.0)
    weights = np.where(usable, 1 / np.where(usable, means * np.hypot(1, means / LARGE_KLD), 1.0), 0.0)
    solution, _ = nnls(design * weights[:, None], means * weights)
    active = solution > 0
    to_alpha: Doubles = np.zeros(len(means))
    if active[0]:
        to_alpha = (np.linalg.pinv(design[:, active] * weights[:, None]) * weights[None, :])[0]
    spread = numerics.ratio_over_chunks(to_alpha @ klds, tokens)
    return Estimate(float(solution[0]), spread.se), {block: float(value) for block, value in zip(unknown_blocks, solution[1:], strict=True)}


def finding(
    group: ProbeGroup, found: Sensitivity, errors: Mapping[str, Mapping[str, float]], scores: Scores, usual_variance: float
) -> Finding | None:
    """What a group's own probes say of its tensors' alpha, for `pooling`; None where they say nothing, or of noise alone.

    `usual_variance` is that of one chunk, relative: the scatter over a few chunks is itself a matter of luck.
    """
    if all(sum(errors[tensor][name] for tensor in group.tensors) <= len(group.tensors) * TELLS_NOISE for name in found.probes):
        return None
    alpha = found.alpha.value - (DROWNED_BELOW_ERRORS * found.alpha.se if found.status == "drowned" else 0.0)
    if found.status == "not in the graph" or alpha <= 0:
        return None
    n_chunks = max(len(scores[group.mix(name).id]) for name in found.probes)
    variance = chunk_variance(Estimate(alpha, found.alpha.se), n_chunks)
    shared = (_USUAL_CHUNKS * usual_variance + (n_chunks - 1) * variance) / (_USUAL_CHUNKS + n_chunks - 1)
    return Finding(group.tensors, math.log(alpha), shared / n_chunks)


def noise_findings(
    group: ProbeGroup,
    found: Sensitivity,
    errors: Mapping[str, Mapping[str, float]],
    scores: Scores,
    qtypes: Mapping[str, QType],
    alphas: Mapping[str, Estimate],
    usual_variance: float,
) -> list[tuple[int, Finding]]:
    """What a group's own probes of next to no error say of noise / alpha of its tensors, by activation block, for `pooling`.

    `usual_variance` as of `finding`.
    """
    names, n = list(found.probes), len(group.tensors)
    summed = [sum(errors[tensor][name] for tensor in group.tensors) for name in names]
    if found.status != "measured" or min(summed, default=1.0) > n * TELLS_NOISE:
        return []
    klds, tokens = _by_chunk([scores[group.mix(name).id] for name in names], summed, n)
    per_token = klds / tokens
    profile = per_token[int(np.argmax(summed))]
    alpha = sum(alphas[tensor].value for tensor in group.tensors)
    told = []
    for name, whole, row in zip(names, summed, per_token, strict=True):
        block, kld = qtypes[name].activation_block, _without_flips(row, profile)
        if whole <= n * TELLS_NOISE and block in USUAL_NOISE and math.isfinite(kld) and kld > 0:
            rounding = sum(alphas[tensor].value * errors[tensor][name] for tensor in group.tensors)
            sampling = kld * math.sqrt(usual_variance / len(scores[group.mix(name).id]))
            error = math.hypot(NOISE_SD * max(kld, rounding), sampling)
            noise = max(kld - rounding, error / 2)
            told.append((block, Finding(group.tensors, math.log(noise / alpha), (error / noise) ** 2)))
    return told


def _without_flips(row: Doubles, profile: Doubles) -> float:
    """The mean KLD, nats per token, of a probe of next to no error, by the lower median of its ratios to `profile`; both (n_chunks,).

    Where a router flips, such a probe has many times what it has elsewhere, and of four chunks two may have flips.
    """
    ratios = np.sort(row / np.where(profile > 0, profile, 1.0))
    return float(ratios[(len(ratios) - 1) // 2] * (profile.mean() if profile.any() else 1.0))


def kernel_noise(found: Sensitivity, qtype: QType) -> float:
    """What the kernel of a type costs this tensor by rounding its inputs, nats: as probes tell, else what is usual beside alpha."""
    block = qtype.activation_block
    return found.noise.get(block, found.alpha.value * USUAL_NOISE.get(block, 0.0))


def chunk_variance(mean: Estimate, n_chunks: int) -> float:
    """The variance from chunk to chunk, relative, of what has this mean over so many."""
    return n_chunks * mean.relative_se**2


def departures(
    tensor: str, found: Sensitivity, errors: Mapping[str, float], scores: Scores, qtypes: Mapping[str, QType], floor_nats: float
) -> Departures:
    """How far the measured cells of a tensor lie from its own alpha x error + noise, each on the chunks it has."""
    group = ProbeGroup(tensor, (tensor,))
    names = [name for name in found.probes if errors.get(name, 0.0) > 0]
    if found.group or found.status != "measured" or found.alpha.value <= 0 or not names:
        return Departures()
    klds, tokens = _by_chunk([scores[group.mix(name).id] for name in names], [errors[name] for name in names], 1)
    kept = [number for number, row in enumerate(klds) if np.isfinite(row).all()]
    klds, names = klds[kept], [names[number] for number in kept]
    means = klds.sum(axis=1) / tokens.sum()
    modelled = [found.alpha.value * errors[name] + kernel_noise(found, qtypes[name]) for name in names]
    profile = klds / np.where(means > 0, means, 1.0)[:, None] / tokens
    apart = np.square(profile - profile.mean(axis=0)) * (tokens / tokens.mean())
    measured = []
    for name, mean, expected, row in zip(names, means, modelled, apart, strict=True):
        n_chunks = len(scores[group.mix(name).id])
        if mean > DROWNED_BELOW_FLOORS * floor_nats and expected > 0:
            variance = (_USUAL_CHUNKS * TYPE_CHUNK_SD**2 + float(row.sum())) / (_USUAL_CHUNKS + n_chunks - 1) / n_chunks
            measured.append(Departure(name, math.log(errors[name]), math.log(mean / expected), variance))
    return Departures(measured)


# Probes that drown alone, weighed together


def weighing_mixes(tensors: Sequence[str], type_name: str, n_mixes: int, *, seed: int) -> list[Mix]:
    """Random halves of the tensors at one type; every second mix is the complement of the one before it."""
    generator = np.random.default_rng(seed)
    mixes: list[Mix] = []
    for _ in range(-(-n_mixes // 2)):
        chosen = generator.permutation(len(tensors))
        half = {int(index) for index in chosen[: len(tensors) // 2]}
        mixes += [Mix.of({name: type_name for index, name in enumerate(tensors) if (index in half) is side}) for side in (True, False)]
    return mixes[:n_mixes]


def weigh(mixes: Sequence[Mix], tensors: Sequence[str], klds: Sequence[Estimate]) -> dict[str, Estimate]:
    """Each tensor's KLD from those of mixes: least squares, none negative (Hotelling's weighing design).

    Args:
        mixes: more than there are tensors, from `weighing_mixes`; complements give only the sum, so it takes about twice as many.
        tensors: the tensors the mixes are made of.
        klds: the mixes' mean KLDs, nats.

    Returns:
        Tensor -> KLD of the tensor alone; the error is that of least squares, from the residuals, and infinite where the
        mixes do not determine it.

    Raises:
        InferenceError: no more mixes than tensors.
    """
    if len(mixes) <= len(tensors):
        raise InferenceError(
            f"{len(mixes)} halves cannot weigh {plural(len(tensors), 'tensor')}", remedy=f"Ask for at least {len(tensors) + 1}"
        )
    design = np.array([[float(name in mix.types) for name in tensors] for mix in mixes])
    values = np.array([kld.value for kld in klds])
    from scipy.optimize import nnls

    solution, _ = nnls(design, values)
    residual = float(np.square(values - design @ solution).sum()) / (len(mixes) - len(tensors))
    determined = np.diag(np.linalg.pinv(design) @ design) > 1 - _UNDETERMINED
    errors = np.where(determined, np.sqrt(residual * np.diag(np.linalg.pinv(design.T @ design))), np.inf)
    return {name: Estimate(float(value), float(error)) for name, value, error in zip(tensors, solution, errors, strict=True)}
