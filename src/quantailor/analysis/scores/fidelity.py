"""Fidelity of a model against its base: perplexity, KL divergence, agreement, with the protocol of llama-perplexity.

Of every chunk of n_ctx tokens the second half is scored: the predictions at positions n_ctx // 2 to n_ctx - 2. KL
divergence is of the whole distribution, KL(base || model) in nats. (llama-perplexity keeps the base's
log-probabilities in 16 bits over a range of 16 nats and skips what is below; ours are exact to float32.)

The base's log-probabilities are kept for a block of chunks at a time, large ones in files whose pages give way, and the
candidates are loaded one after the other for every block, so memory is one model and one block whatever their number.

Standard errors are over chunks, because the tokens of one chunk are not independent. The null control is the base
loaded again and sent down the same way: its divergence is the floor of all figures.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, cast

import numpy as np

from quantailor import numerics, paged
from quantailor.control import QUIET, Control, ProgressCounter
from quantailor.errors import InferenceError
from quantailor.ggml.devices import PROCESSOR, Devices
from quantailor.ggml.runtime import LoadedModel
from quantailor.numerics import Doubles, Floats, Tokens
from quantailor.processes.crews import HERE, Bench, Executor, ModelFiles, Work
from quantailor.processes.messages import doing
from quantailor.records import ChunkScore, Comparison, Estimate, FidelityStatistics, Standing

BASE = "base"
NULL_CONTROL = "null control"
NULL_CHUNKS = 8
"""Enough to see whether the same model gives the same figures twice; more would cost as much as another file."""
BLOCK_BYTES = 512 * 2**20
IN_MEMORY_BYTES = 64 * 2**20
"""The base's log-probabilities on a chunk that take more are held in a file without a name."""
_TOGETHER = 4
"""Chunks that one worker scores all files on."""
MIN_KLD_NATS = 1e-12
"""Divergences below this count as this in comparisons, so that a file equal to the base can be compared."""
EQUAL_SIZE = 0.001
"""Sizes that differ by no more than this share count as equal."""
_QUANTILES = (0.5, 0.99, 0.999)


def first_scored(n_ctx: int) -> int:
    """The first position whose prediction is scored, as llama-perplexity takes it."""
    return n_ctx // 2


def wanted_chunks(label: str, n_chunks: int) -> set[int]:
    """The chunks that a file is scored on, of so many."""
    return set(range(min(n_chunks, NULL_CHUNKS) if label == NULL_CONTROL else n_chunks))


def in_place(parts: Iterable[Floats], n_scored: int) -> Iterator[tuple[slice, Floats]]:
    """Logits of some positions after the other, (n_rows, n_vocab) each, with the rows of the scored positions that they are of.

    The last position has no target: what comes after the scored ones is left out.
    """
    start = 0
    for part in parts:
        wanted = part[: n_scored - start]
        if len(wanted):
            yield slice(start, start + len(wanted)), wanted
        start += len(wanted)


ScoreTask = tuple[str, int]
"""A file's label and a chunk."""
LabelledScore = tuple[str, ChunkScore]


@dataclass(frozen=True, eq=False)
class FidelityWork(Work[ScoreTask, LabelledScore]):
    """Files to score against their base on the chunks of a text."""

    model: ModelFiles
    """The base."""
    candidates: Mapping[str, ModelFiles]
    """By label. The labels "base" and "null control" are the base's own."""
    chunks: Tokens
    """(n_chunks, n_ctx) from `corpus.chunks`."""
    n_threads: int | None = None
    """None takes all processors."""
    devices: Devices = PROCESSOR
    """What takes layers from the processor."""
    block_bytes: int = BLOCK_BYTES
    """For the base's log-probabilities; at least one chunk's are held."""
    is_apart: ClassVar[bool] = True

    @property
    def files(self) -> tuple[ModelFiles, ...]:
        """The base and what is compared with it."""
        return (self.model, *self.candidates.values())

    def bench(self) -> _FidelityBench:
        """Load the base. Raises InferenceError where llama.cpp cannot."""
        return _FidelityBench(self)

    def on_threads(self, n_threads: int) -> FidelityWork:
        """The same with so many threads, unless it says how many."""
        return replace(self, n_threads=self.n_threads or n_threads)

    def key(self, task: ScoreTask) -> ScoreTask:
        """The task is its own key."""
        return task

    def key_of(self, item: LabelledScore) -> ScoreTask:
        """The label and the chunk of a score."""
        return item[0], item[1].index

    def group(self, task: ScoreTask) -> int:
        """All files are scored on some chunks where the base's log-probabilities on these are held."""
        return task[1] // _TOGETHER

    def weight(self, task: ScoreTask) -> float:
        """Chunks of one text take the same time."""
        del task
        return 1.0

    def label(self, task: ScoreTask) -> str:
        """The file and the chunk."""
        return f"{task[0]}, chunk {task[1] + 1}"

    def n_held(self, n_vocab: int) -> int:
        """Chunks whose log-probabilities of the base are held at a time, twice as many where these lie in files."""
        n_ctx: int = self.chunks.shape[1]
        n_bytes = 4 * n_vocab * (n_ctx - 1 - first_scored(n_ctx))
        return max(1, self.block_bytes * (2 if n_bytes > IN_MEMORY_BYTES else 1) // n_bytes)


def score_chunks(
    work: FidelityWork, *, done: Mapping[str, Collection[int]] | None = None, control: Control = QUIET, executor: Executor = HERE
) -> Iterator[LabelledScore]:
    """Score every candidate and the base on every chunk that is not done yet, the null control on the first `NULL_CHUNKS`.

    Args:
        work: the files and the chunks.
        done: label -> indexes of chunks that are stored already.
        control: asked before every chunk whether to go on; progress counts chunks of all files.
        executor: who does it; a chunk's score depends neither on that nor on what else is scored.

    Yields:
        (label, score), each as soon as it is known.

    Raises:
        InferenceError: llama.cpp cannot load or run a file, or a file has another vocabulary than the base.
    """
    if taken := {BASE, NULL_CONTROL} & set(work.candidates):
        raise InferenceError(f"no file can be called {min(taken)!r} in a comparison", remedy="Rename it")
    labels = (BASE, NULL_CONTROL, *work.candidates)
    missing = {label: wanted_chunks(label, len(work.chunks)).difference((done or {}).get(label, ())) for label in labels}
    wanted = sorted(set().union(*missing.values()))
    if wanted:
        control.check()
        with executor.on(work) as crew:
            n_held = work.n_held(cast(int, crew.facts))
            blocks = [wanted[start : start + n_held] for start in range(0, len(wanted), n_held)]
            tasks = [(label, index) for block in blocks for label in labels for index in block if index in missing[label]]
            yield from crew.do(tasks, control=control)


class _FidelityBench(Bench[ScoreTask, LabelledScore]):
    """One loaded model at a time, and the base's log-probabilities on some chunks."""

    def __init__(self, work: FidelityWork) -> None:
        self._work = work
        self._targets = work.chunks[:, first_scored(work.chunks.shape[1]) + 1 :]  # (n_chunks, n_scored)
        self._held: dict[int, Floats] = {}
        self._model: tuple[str, LoadedModel] | None = None
        self._n_vocab = 0
        self._n_vocab = self._loaded(BASE).n_vocab
        self._n_held = work.n_held(self._n_vocab)

    def facts(self) -> int:
        return self._n_vocab

    def do(self, tasks: Sequence[ScoreTask], *, control: Control) -> Iterator[LabelledScore]:
        progress = ProgressCounter(control, len(tasks))
        for place, (label, index) in enumerate(tasks):
            control.check()
            if index not in self._held:
                self._hold([index] if label == BASE else self._next_chunks(tasks[place:]), control)
            targets = self._targets[index]
            if label == BASE:
                observed = self._held[index][np.arange(len(targets)), targets]
                paged.let_go(self._held[index])
                yield BASE, chunk_score(index, observed, observed, np.zeros(len(observed)), len(observed))
            else:
                model, parts = self._run(label, index)
                yield label, score(index, self._held[index], parts, targets, n_threads=model.n_threads)
            progress.add(1, self._work.label((label, index)))

    def _next_chunks(self, tasks: Sequence[ScoreTask]) -> list[int]:
        """Of the tasks that come next, as many as are held."""
        return list(dict.fromkeys(index for _, index in tasks))[: self._n_held]

    def _hold(self, indexes: Sequence[int], control: Control) -> None:
        for index in indexes:
            if index not in self._held:
                control.check()
                while len(self._held) >= self._n_held:
                    del self._held[next((each for each in self._held if each not in indexes), next(iter(self._held)))]
                model, parts = self._run(BASE, index)
                logp = np.empty((len(self._targets[index]), model.n_vocab), dtype=np.float32)
                for rows, logits in in_place(parts, len(logp)):
                    logp[rows] = numerics.log_softmax(logits, n_threads=model.n_threads)
                self._held[index] = self._aside(logp)

    def _aside(self, logp: Floats) -> Floats:
        if logp.nbytes > IN_MEMORY_BYTES:
            with contextlib.suppress(OSError):  # no room for temporary files
                return paged.in_file(logp)
        return logp

    def _run(self, label: str, index: int) -> tuple[LoadedModel, Iterator[Floats]]:
        model, chunk = self._loaded(label), self._work.chunks[index]
        doing(f"running chunk {index + 1} through {self._path(label)}")
        return model, model.logit_parts(chunk, first=first_scored(len(chunk)))

    def _loaded(self, label: str) -> LoadedModel:
        """The model of a label; the null control is the base loaded again."""
        if self._model is None or self._model[0] != label:
            self.close()
            work, path = self._work, self._path(label)
            model = LoadedModel(path, n_ctx=work.chunks.shape[1], n_threads=work.n_threads, devices=work.devices)
            self._model = label, model
            if self._n_vocab not in (0, model.n_vocab):
                said = f"{path} has {model.n_vocab} tokens, the base has {self._n_vocab}"
                raise InferenceError(said, remedy="Compare files of the same model")
        return self._model[1]

    def _path(self, label: str) -> Path:
        work = self._work
        return (work.model if label in (BASE, NULL_CONTROL) else work.candidates[label]).path

    def close(self) -> None:
        if self._model is not None:
            self._model[1].close()
            self._model = None


def chunk_score(index: int, observed: Floats | Doubles, base_observed: Floats, klds: Doubles, n_same_top: int) -> ChunkScore:
    """One chunk's sums, without the divergences of single tokens.

    Args:
        index: the chunk's number.
        observed: the model's ln p of the tokens that followed, (n_scored,).
        base_observed: the base's, (n_scored,).
        klds: KL(base || model) of every token, nats, (n_scored,).
        n_same_top: tokens whose most likely successor is the same in both.
    """
    logp, base_logp = observed.astype(np.float64), base_observed.astype(np.float64)
    dp_square_sum = float(np.square(np.exp(logp) - np.exp(base_logp)).sum())
    return ChunkScore(index, len(logp), float(-logp.sum()), float(klds.sum()), n_same_top, dp_square_sum)


def score(index: int, base_logp: Floats, parts: Iterable[Floats], targets: Tokens, *, n_threads: int = 1) -> ChunkScore:
    """One chunk's sums, and the divergence of every token.

    Args:
        index: the chunk's number.
        base_logp: the base's log-probabilities, (n_scored, n_vocab).
        parts: the model's logits of the same positions, some after the other, (n_rows, n_vocab) each; what is more is ignored.
        targets: the tokens that followed, (n_scored,).
        n_threads: that share the positions.
    """
    n_scored = len(targets)
    observed, base_observed = np.empty((2, n_scored), dtype=np.float32)
    klds, same_top = np.empty(n_scored), np.empty(n_scored, dtype=np.bool_)
    for place, logits in in_place(parts, n_scored):

        def work(rows: slice, logits: Floats = logits, start: int = place.start) -> None:
            logp = numerics.log_softmax(logits[rows])
            of = slice(start + rows.start, start + rows.start + len(logp))
            observed[of], base_observed[of] = (each[np.arange(len(logp)), targets[of]] for each in (logp, base_logp[of]))
            klds[of] = numerics.kl_divergence(base_logp[of], logp)
            same_top[of] = base_logp[of].argmax(axis=1) == logp.argmax(axis=1)

        numerics.over_rows(logits.shape, work, n_threads)
        paged.let_go(base_logp)
    sums = chunk_score(index, observed, base_observed, klds, int(np.count_nonzero(same_top)))
    return replace(sums, klds=tuple(klds.tolist()))


# Statistics


def paired_chunks(scores: Sequence[ChunkScore], base: Sequence[ChunkScore]) -> list[tuple[ChunkScore, ChunkScore]]:
    """What two files scored on the chunks that both have, in the text's order.

    Raises:
        InferenceError: they have none in common.
    """
    by_index = {chunk.index: chunk for chunk in base}
    pairs = [(chunk, by_index[chunk.index]) for chunk in sorted(scores, key=lambda chunk: chunk.index) if chunk.index in by_index]
    if not pairs:
        message = "there are no scored chunks to compare: the two have no chunk in common"
        raise InferenceError(message, remedy="Score both on the same text")
    return pairs


def perplexity_of(pairs: Sequence[tuple[ChunkScore, ChunkScore]]) -> tuple[Estimate, Estimate]:
    """The perplexity of the first of each pair, and ln(PPL / PPL_base) paired by chunk."""
    tokens = [ours.n_tokens for ours, _ in pairs]
    nll = numerics.ratio_over_chunks([ours.nll_sum for ours, _ in pairs], tokens)
    perplexity = math.exp(nll.value)
    return Estimate(perplexity, perplexity * nll.se), numerics.ratio_over_chunks(
        [ours.nll_sum - theirs.nll_sum for ours, theirs in pairs], tokens
    )


def statistics_of(scores: Sequence[ChunkScore], base: Sequence[ChunkScore]) -> FidelityStatistics:
    """Figures over the chunks that both a file and the base have; standard errors are over chunks.

    Raises:
        InferenceError: they have no chunk in common.
    """
    pairs = paired_chunks(scores, base)
    tokens = [ours.n_tokens for ours, _ in pairs]
    perplexity, ln_ppl_ratio = perplexity_of(pairs)
    rms = _root(numerics.ratio_over_chunks([ours.dp_square_sum for ours, _ in pairs], tokens))
    klds = np.concatenate([np.asarray(ours.klds or (0.0,) * ours.n_tokens) for ours, _ in pairs])
    median, p99, p999 = (float(value) for value in np.quantile(klds, _QUANTILES))
    return FidelityStatistics(
        n_chunks=len(pairs),
        n_tokens=sum(tokens),
        perplexity=perplexity,
        ln_ppl_ratio=ln_ppl_ratio,
        kld_mean=numerics.ratio_over_chunks([ours.kld_sum for ours, _ in pairs], tokens),
        kld_median=median,
        kld_p99=p99,
        kld_p999=p999,
        kld_max=float(klds.max()),
        top_agreement=numerics.ratio_over_chunks([ours.top_agreement for ours, _ in pairs], tokens),
        rms_dp=rms,
    )


def _root(square: Estimate) -> Estimate:
    """The square root of an estimate: se(sqrt(v)) = se(v) / (2 sqrt(v))."""
    root = float(np.sqrt(square.value))
    return Estimate(root, square.se / (2 * root) if root else 0.0)


def compare(
    ours: Sequence[ChunkScore],
    theirs: Sequence[ChunkScore],
    *,
    reference: str,
    size_ratio: float,
    file: str = "",
) -> Comparison:
    """ln(KLD_ours / KLD_theirs) over the chunks both have, with a paired bootstrap (METHODS 3).

    Better or worse where the 95 % interval leaves out 0, else no better. How many chunks a claim
    needs is decided where it is made.

    Raises:
        InferenceError: they have no chunk in common.
    """
    pairs = paired_chunks(ours, theirs)
    least = MIN_KLD_NATS * sum(chunk.n_tokens for chunk, _ in pairs)
    columns = [(chunk.kld_sum, other.kld_sum) for chunk, other in pairs]
    ratio, (low, high) = numerics.bootstrap_ln_product(columns, (1.0, -1.0), floor=least)
    outcome: Literal["better", "no better", "worse"] = "better" if high < 0 else "worse" if low > 0 else "no better"
    return Comparison(reference, ratio, (low, high), size_ratio, outcome, file)


def stand(
    file: str, scores: Sequence[ChunkScore], size_bytes: int, presets: Sequence[tuple[str, int, Sequence[ChunkScore]]]
) -> Standing | None:
    """How a file stands to the presets' line, by the same bootstrap; None outside its ends.

    Args:
        file: its name.
        scores: its chunks, the same as every preset has.
        size_bytes: its size.
        presets: name, size and chunks of each.
    """
    equal = min(presets, key=lambda each: abs(each[1] - size_bytes), default=None)
    if equal is not None and abs(equal[1] / size_bytes - 1) <= EQUAL_SIZE:
        presets, size_bytes = [equal], equal[1]
    below = max((each for each in presets if each[1] <= size_bytes), key=lambda each: each[1], default=None)
    above = min((each for each in presets if each[1] >= size_bytes), key=lambda each: each[1], default=None)
    if below is None or above is None:
        return None
    span = math.log(above[1] / below[1])
    share = math.log(size_bytes / below[1]) / span if span else 0.0
    columns = [[score.kld_sum for score in each] for each in (scores, below[2], above[2])]
    least = MIN_KLD_NATS * sum(score.n_tokens for score in scores)
    ratio, (low, high) = numerics.bootstrap_ln_product(np.transpose(columns), (1.0, share - 1.0, -share), floor=least)
    outcome: Literal["below", "on", "above"] = "below" if high < 0 else "above" if low > 0 else "on"
    return Standing(file, tuple(dict.fromkeys((below[0], above[0]))), ratio, (low, high), outcome)
