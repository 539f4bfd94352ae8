"""A model loaded by llama.cpp: tokens in, logits out, and a look at what its matrices multiply.

Each call of `decode` or `logits` runs one chunk with an empty cache and in one sequence, so its result does not
depend on what ran before. A `Capture` sees the inputs of every weight matrix (see `observing`).

llama.cpp's log never reaches the terminal: its last lines are kept for error messages, all go to `logging`.
Exceptions raised inside a callback (a capture that refuses a value, Ctrl-C) stop the graph and come out of
`decode` unchanged.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from quantailor.errors import InferenceError
from quantailor.files import Closing
from quantailor.ggml import library
from quantailor.ggml.devices import PROCESSOR, Devices
from quantailor.ggml.observing import OUTPUT_MATRICES, Capture, Observer
from quantailor.ggml.remote import rpc
from quantailor.numerics import Floats, Tokens
from quantailor.processes.messages import doing

logger = logging.getLogger(__name__)


DEFAULT_N_CTX = 512
MAX_UBATCH = 512
"""Tokens per graph, llama.cpp's own default; longer chunks run in several graphs."""
NOT_LOADED = "Convert the model again; if it is newer than the llama.cpp installed here, update llama-cpp-python"
"""What to do about a model that llama.cpp refuses."""
PART_BYTES = 96 << 20
"""Logits that `logit_parts` holds at a time: llama.cpp has them twice, and 256 positions of 262,144 tokens take 268 MB.

Smaller parts are slower."""
ROOM_BYTES = 144 << 20
"""Room for logits that nobody asks for: inputs of all matrices of the last layer are only computed for tokens with outputs.

Of 262,144 tokens it holds 144 positions, so that 512 of them go in four equal parts."""
ALL_LAYERS = 999
_LOG_ERROR, _LOG_CONTINUES = 4, 5
_N_LOG_LINES = 50


class _Log:
    """llama.cpp's messages: whole lines, the latest kept."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, str]] = deque(maxlen=_N_LOG_LINES)
        self._level, self._text = 0, ""
        self.callback: object = None
        """The function llama.cpp calls; it must outlive every call into the library."""

    def add(self, level: int, text: str) -> None:
        """Take a piece of text; lines may come in parts."""
        if level != _LOG_CONTINUES:
            self._level = level
        self._text += text
        *lines, self._text = self._text.split("\n")
        for line in lines:
            if line.strip():
                self._lines.append((self._level, line.strip()))
                logger.debug("%s", line.strip())

    def lines(self) -> list[str]:
        """The last lines."""
        return [line for _, line in self._lines]

    def clear(self, n_kept: int | None = _N_LOG_LINES) -> None:
        """Forget what was said, and keep so many lines from now on; None for all."""
        self._lines = deque(maxlen=n_kept)

    def last_error(self) -> str:
        """The first error since `clear`, without the names of C functions; what follows it only repeats it."""
        errors = (line.split(": ", 1)[-1] for level, line in self._lines if level == _LOG_ERROR)
        return next(errors, "llama.cpp gives no reason").removeprefix("error loading model: ")


@functools.cache
def _log() -> _Log:
    """Take over llama.cpp's log and start its backends, once per process."""
    llama = library.load().llama
    log = _Log()
    log.callback = llama.llama_log_callback(lambda level, text, _: log.add(level, (text or b"").decode(errors="replace")))
    llama.llama_log_set(log.callback, None)
    llama.llama_backend_init()
    return log


@contextmanager
def said_by() -> Iterator[_Log]:
    """Everything that llama.cpp says inside the block."""
    take_log()
    log = _log()
    log.clear(None)
    try:
        yield log
    finally:
        log.clear()


def take_log() -> None:
    """Let llama.cpp's messages come here again."""
    library.load().llama.llama_log_set(_log().callback, None)


class Tokenizer(Closing):
    """The vocabulary of a model file. Use as a context manager, or call `close`.

    Raises:
        InferenceError: llama.cpp cannot read the file.
    """

    def __init__(self, path: Path, *, vocab_only: bool, devices: Devices = PROCESSOR, writable: bool = False, copies: bool = True) -> None:
        self.path = path
        self._llama = library.load().llama
        self._log = _log()
        self._log.clear()
        self._model: object = None
        parameters = self._llama.llama_model_default_params()
        parameters.vocab_only = vocab_only
        parameters.n_gpu_layers = ALL_LAYERS if devices.n_gpu_layers < 0 else devices.n_gpu_layers
        pointers = rpc.connected(devices)
        parameters.devices = None if pointers is None else ctypes.addressof(pointers)
        if writable:
            # Mapped pages are read-only, and repacked weights cannot be read back.
            parameters.load_mode = self._llama.LLAMA_LOAD_MODE_NONE
        parameters.use_extra_bufts = copies and not writable
        doing(f"loading {path}")
        self._model = self._llama.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self._model:
            raise InferenceError(
                f"llama.cpp cannot load {path}: {self._log.last_error()}",
                remedy=NOT_LOADED,
            )
        self._vocab = self._llama.llama_model_get_vocab(self._model)

    def close(self) -> None:
        """Release the model; further calls raise InferenceError."""
        if self._model:
            self._llama.llama_model_free(self._model)
        self._model = self._vocab = None

    @property
    def n_vocab(self) -> int:
        """Tokens in the vocabulary."""
        return int(self._llama.llama_vocab_n_tokens(self._open_vocab()))

    @property
    def adds_bos(self) -> bool:
        """Whether the model wants a BOS token first."""
        return bool(self._llama.llama_vocab_get_add_bos(self._open_vocab()))

    @property
    def bos_token(self) -> int | None:
        """The BOS token, or None where the vocabulary has none."""
        token = int(self._llama.llama_vocab_bos(self._open_vocab()))
        return token if token >= 0 else None

    def tokenize(self, text: str, *, add_special: bool = True, special: bool = False) -> Tokens:
        """Text to tokens.

        Args:
            text: any length.
            add_special: put BOS (and what else the model wants) around it.
            special: read the names of special tokens in the text as these tokens, not as plain text.

        Returns:
            (n_tokens,) int32.

        Raises:
            InferenceError: the file has no vocabulary, or the text cannot be tokenized.
        """
        vocab, data = self._open_vocab(), text.encode()
        if not self._llama.llama_vocab_type(vocab):
            raise InferenceError(f"{self.path} has no vocabulary", remedy="Convert the model again, with its tokenizer files")
        room = len(data) + 16
        for _ in range(2):
            tokens = np.empty(room, dtype=np.int32)
            pointer = tokens.ctypes.data_as(self._llama.llama_token_p)
            count = int(self._llama.llama_tokenize(vocab, data, len(data), pointer, room, add_special, special))
            if 0 <= count <= room:
                return tokens[:count].copy()
            room = abs(count)
        raise InferenceError(f"{self.path} cannot tokenize a text of {len(data)} bytes")

    def _open_vocab(self) -> object:
        if not self._model:
            raise InferenceError(f"{self.path} is closed")
        return self._vocab


def tokenizer(path: Path) -> Tokenizer:
    """Open only the vocabulary of a model file. Raises InferenceError where llama.cpp cannot read it."""
    return Tokenizer(path, vocab_only=True)


class LoadedModel(Tokenizer):
    """A model ready to run chunks of up to `n_ctx` tokens.

    Args:
        path: a GGUF file, or the first part of a split one.
        n_ctx: the longest chunk, tokens.
        n_threads: None takes all processors.
        devices: what takes layers from the processor.
        capture: called with the input of every weight matrix while a chunk runs.
        ends_before_output: nobody asks for logits, so that a graph on the processor ends where the output matrix's input is known.
        writable: keep the weights where and as they are in the file, so that `ggml.swapping` can write them.
        n_branches: sequences at most that one chunk may end in, see `branches`.
        n_together: chunks at most that run side by side, see `decode_together`. With more than one, weights stay in the mapped file, and no
            copies are made that processors multiply faster.

    Raises:
        InferenceError: llama.cpp cannot load the model or has no memory for the context.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int = DEFAULT_N_CTX,
        n_threads: int | None = None,
        devices: Devices = PROCESSOR,
        capture: Capture | None = None,
        ends_before_output: bool = False,
        writable: bool = False,
        n_branches: int = 1,
        n_together: int = 1,
    ) -> None:
        self._context: object = None
        self._batch: ctypes.Structure | None = None
        super().__init__(path, vocab_only=False, devices=devices, writable=writable, copies=n_together == 1)
        self.n_ctx, self._n_branches, self._n_together = n_ctx, n_branches, n_together
        self._observer, self._ends_before_output = None if capture is None else Observer(capture), ends_before_output
        self.n_threads = n_threads or os.cpu_count() or 1
        # A writable model computes where its weights lie: what the graph shows must be a weight, not its copy on a GPU.
        self._offload_kqv, self._offload_products = devices.is_used, devices.is_used and not writable
        try:
            self._open_context(self._observer.callback if self._observer else None)
            if self._observer and ends_before_output and not devices.is_used:
                with self._observer.looking():
                    self.decode(np.zeros(1, dtype=np.int32))
        except BaseException:
            self.close()
            raise

    def _open_context(self, callback: object) -> None:
        if self._llama.llama_model_has_encoder(self._model) or not self._llama.llama_model_has_decoder(self._model):
            raise InferenceError(f"{self.path} is not a plain decoder; only such models can be run")
        parameters = self._llama.llama_context_default_params()
        n_tokens = self.n_ctx * self._n_together
        parameters.n_ctx = parameters.n_batch = n_tokens
        parameters.n_ubatch = min(self.n_ctx, MAX_UBATCH) if self._n_together == 1 else n_tokens
        parameters.n_seq_max, parameters.kv_unified = max(self._n_branches, self._n_together), self._n_branches > 1
        parameters.n_threads = parameters.n_threads_batch = self.n_threads
        parameters.offload_kqv, parameters.op_offload = self._offload_kqv, self._offload_products
        if callback is not None:
            parameters.cb_eval = callback
        self._context = self._llama.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise InferenceError(f"llama.cpp cannot run {self.path} with {self.n_ctx} tokens: {self._log.last_error()}")
        self._batch = self._llama.llama_batch_init(n_tokens, 0, self._n_branches)
        self._follow_alone(n_tokens)

    def _follow_alone(self, n_tokens: int) -> None:
        """So many tokens of the next chunk are one sequence."""
        if self._batch is not None:
            for index in range(n_tokens):
                self._batch.n_seq_id[index] = 1
                self._batch.seq_id[index][0] = 0

    def close(self) -> None:
        """Release model and context."""
        self._close_context()
        super().close()

    def _close_context(self) -> None:
        if self._batch is not None:
            self._llama.llama_batch_free(self._batch)
        if self._context:
            self._llama.llama_free(self._context)
        self._batch = self._context = None

    def decode(self, tokens: Tokens, *, first: int = 0) -> None:
        """Run one chunk, (n_tokens,), with an empty cache; outputs are computed from position `first` on.

        Raises:
            InferenceError: llama.cpp failed, the chunk is longer than `n_ctx` or a token is not in the vocabulary.
        """
        self._fill(tokens, first)
        self._run()

    def decode_together(self, chunks: Tokens) -> None:
        """Run chunks, (n_chunks, n_tokens), side by side in one graph, each as if it ran alone.

        Every layer's weights are then looked at once for all of them: a file that is larger than memory is read from disk so much less
        often. A capture is given the inputs of one chunk after the other.

        Raises:
            InferenceError: as of `decode`, or there are more chunks than `n_together`.
        """
        n_chunks, n_tokens = chunks.shape
        batch = self._batch
        if batch is None or n_chunks > self._n_together:
            raise InferenceError(f"{self.path} was not opened for {n_chunks} chunks at once")
        if n_chunks == 1:
            self._decode_for_capture(chunks[0])
            return
        for number, tokens in enumerate(chunks):
            self._fill(tokens, 0, at=number * n_tokens)
        of = np.repeat(np.arange(n_chunks), n_tokens)
        for index, number in enumerate(of.tolist()):
            batch.seq_id[index][0] = number
        try:
            if self._observer:
                self._observer.n_sequences, self._observer.n_tokens = n_chunks, n_chunks * n_tokens
            self._run()
        finally:
            self._follow_alone(n_chunks * n_tokens)
            if self._observer:
                self._observer.n_sequences = 1

    def _decode_for_capture(self, tokens: Tokens) -> None:
        """Run one chunk; where nobody asks for logits, with outputs of a limited number of tokens at a time.

        llama.cpp makes room for their logits all the same.
        """
        most = len(tokens) if self._offload_kqv or not self._ends_before_output else max(1, ROOM_BYTES // (4 * self.n_vocab))
        n_tokens = _evenly(len(tokens), most)
        for begin in range(0, len(tokens), n_tokens):
            self._fill(tokens[begin : begin + n_tokens], 0, begin=begin)
            self._run(goes_on=begin > 0)

    def _run(self, *, goes_on: bool = False) -> None:
        """Run the batch; one that `goes_on` follows what was run before."""
        self._log.clear()
        if not goes_on:
            self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
        status = self._llama.llama_decode(self._context, self._batch)
        if self._observer:
            self._observer.reraise()
        if status:
            raise InferenceError(f"llama.cpp cannot run {self.path} (status {status}): {self._log.last_error()}")

    def _fill(self, tokens: Tokens, first: int, *, at: int = 0, begin: int = 0) -> None:
        """Tokens of one chunk from position `begin` on, in the batch from some place on, where it ends; outputs as of `decode`."""
        n_tokens, batch = len(tokens), self._batch
        if batch is None:
            raise InferenceError(f"{self.path} is closed")
        if not 0 < n_tokens <= self.n_ctx:
            raise InferenceError(f"a chunk of {n_tokens} tokens does not fit a context of {self.n_ctx}")
        if not (int(tokens.min()) >= 0 and int(tokens.max()) < self.n_vocab):
            raise InferenceError(f"the chunk has tokens that {self.path} does not have", remedy="Tokenize with the same model")
        batch.n_tokens = end = at + n_tokens
        np.ctypeslib.as_array(batch.token, (end,))[at:] = tokens
        np.ctypeslib.as_array(batch.pos, (end,))[at:] = positions = np.arange(begin, begin + n_tokens)
        np.ctypeslib.as_array(batch.logits, (end,))[at:] = positions >= first

    def logits(self, tokens: Tokens, *, first: int = 0, view: bool = False) -> Floats:
        """Run one chunk and return the logits from position `first` on: (n_tokens - first, n_vocab) float32.

        A copy, or a `view` of llama.cpp's memory, which the next chunk overwrites.
        Raises InferenceError as `decode` does, and where a logit is NaN or Inf or all are equal.
        """
        self.decode(tokens, first=first)
        values = self._outputs(len(tokens) - first)
        return values if view else values.copy()

    def logit_parts(self, tokens: Tokens, *, first: int = 0) -> Iterator[Floats]:
        """The same logits, some positions after the other, (n_rows, n_vocab) each: views of llama.cpp's memory, as small as `PART_BYTES`.

        A GPU computes all at once, as it is slow at few tokens. Raises InferenceError as `logits` does.
        """
        most, n_outputs = max(1, PART_BYTES // (4 * self.n_vocab)), len(tokens) - first
        n_rows = n_outputs if self._offload_kqv else _evenly(n_outputs, most)
        begin = 0
        for start in range(first, len(tokens), n_rows):
            stop = min(start + n_rows, len(tokens))
            self._fill(tokens[begin:stop], start, begin=begin)
            self._run(goes_on=begin > 0)
            yield self._outputs(stop - start)
            begin = stop

    def branches(self, beginning: Tokens, ends: Sequence[Tokens]) -> list[Floats]:
        """Run a beginning, (n_tokens,), that is followed by several ends, (n_end,) each, as if each followed it alone.

        Returns:
            Of each end the logits, (n_end, n_vocab), that predict its tokens; llama.cpp's memory or copies of it.

        Raises:
            InferenceError: as of `logits`, or there are more ends than `n_branches`.
        """
        tails = [end[:-1] for end in ends]
        self._fill(np.concatenate([beginning, *tails]), len(beginning) - 1)
        batch = self._batch
        if batch is None or len(ends) > self._n_branches:
            raise InferenceError(f"{self.path} was not opened for {len(ends)} sequences")
        for index in range(len(beginning)):
            batch.n_seq_id[index] = len(ends)
            for branch in range(len(ends)):
                batch.seq_id[index][branch] = branch
        at = len(beginning)
        for branch, tail in enumerate(tails):
            for offset in range(len(tail)):
                batch.n_seq_id[at], batch.seq_id[at][0], batch.pos[at] = 1, branch, len(beginning) + offset
                at += 1
        try:
            self._run()
        finally:
            self._follow_alone(at)
        values = self._outputs(at - len(beginning) + 1)
        offsets = np.cumsum([1, *map(len, tails)])
        return [np.concatenate([values[:1], values[begin : begin + len(tail)]]) for begin, tail in zip(offsets, tails, strict=False)]

    def _outputs(self, n_rows: int) -> Floats:
        """The logits of the last graph, (n_rows, n_vocab), in llama.cpp's memory."""
        pointer = self._llama.llama_get_logits(self._context)
        if not pointer:
            raise InferenceError(f"{self.path} gives no logits")
        values = np.ctypeslib.as_array(pointer, (n_rows, self.n_vocab))
        if values.size > 1 and (values[0] == values[0, 0]).all():
            raise InferenceError(f"{self.path} gives no predictions of next tokens: all logits are {values[0, 0]:g}")
        if not (np.isfinite(values.max()) and np.isfinite(values.min())):
            raise InferenceError(f"{self.path} gives logits that are NaN or Inf", remedy="Check the file; its weights may be damaged")
        return values

    def logit_parts_and_inputs(self, tokens: Tokens, *, first: int = 0) -> Iterator[tuple[Floats, Floats | None]]:
        """The logits in parts, and what the output matrix was multiplied with to give them: (n_rows, n_vocab) and (n_rows, n_cols).

        The second is None where the graph does not show it. Takes a context of its own, which costs some milliseconds.
        Raises InferenceError as `logits` does.
        """
        seen: list[Floats] = []
        watching = Observer(lambda activation: seen.append(activation.x[:, 0].copy()), OUTPUT_MATRICES)
        before, self._observer = self._observer, watching
        try:
            self._close_context()
            self._open_context(watching.callback)
            for logits in self.logit_parts(tokens, first=first):
                inputs = np.concatenate(seen) if len({part.shape[1] for part in seen}) == 1 else None
                seen.clear()
                yield logits, inputs if inputs is not None and len(inputs) == len(logits) else None
        finally:
            self._observer = before
            self._close_context()
            self._open_context(before.callback if before else None)


def _evenly(n: int, most: int) -> int:
    """How many at a time, `most` at most, so that parts are as few and as equal as they can be."""
    return -(-n // -(-n // most))
