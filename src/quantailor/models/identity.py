"""Which model it is: a digest of everything that what is measured depends on.

A model's fingerprint is SHA-256 over its metadata (all of it but what `_DESCRIPTIVE` lists), its tensors' names, shapes and
types, and every byte of every row, as the source shows them. A Hugging Face directory shows what its base holds, so both have
one fingerprint. Rows are digested block by block with XXH3 (128 bits), several blocks at a time; memory stays at a few blocks.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xxhash

from quantailor.control import QUIET, Control, ProgressCounter
from quantailor.ggml import codec, library
from quantailor.models.gguf_format import encode_entry
from quantailor.models.source import ConvertedSource, ModelSource
from quantailor.numerics import Bytes
from quantailor.present import words
from quantailor.present.words import plural
from quantailor.records import TensorInfo

DEFINITION = 1
"""What is digested, and how; another number makes every model another one."""
BLOCK_BYTES = 4 << 20
"""Part of the definition: a tensor's digest is that of its blocks' digests."""
MAX_THREADS = 4
"""More are no faster than a disk."""

_DESCRIPTIVE = re.compile(
    r"general\.(name|author|version|organization|finetune|basename|description|quantized_by|size_label|tags|languages|file_type"
    r"|quantization_version|alignment|uuid|doi|url|repo_url|license|license\..+|source\..+|base_model\..+|dataset\..+|sampling\..+)"
    r"|tokenizer\.chat_template(s|\..+)?|split\..+|quantize\.imatrix\..+|quantailor\..+"
)
"""Metadata that no logit depends on."""

_INFINITY = {"F32": (np.uint32, np.int32, 0x7F800000), "F16": (np.uint16, np.int16, 0x7C00), "BF16": (np.uint16, np.int16, 0x7F80)}
"""Type -> how a weight's bits are read as a number, and infinity; whatever is as large, the sign apart, is Inf or NaN."""
_ROPE_FACTORS = re.compile(r"(blk\.\d+\.)?rope_(freqs|factors_\w+)\.weight")
"""What frequencies are divided by; Inf turns a rotation off."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which model it is, and whether it can be run."""

    fingerprint: str
    """Equal for two models only if they are equal in all that inference depends on."""
    not_finite: str = ""
    """The first tensor that holds NaN or Inf, in words; empty where none does."""
    lost: str = ""
    """Which rows the type that they are converted to does not hold, in words; empty where it holds all."""
    lost_whole: str = ""
    """The first tensor of which that type holds no row at all, in words; empty where there is none."""
    zeros: str = ""
    """Which matrices and norms are zero, all or whole blocks (`BLOCK_BYTES`) of them, in words; empty where none are."""


def identify(source: ModelSource, *, control: Control = QUIET) -> Identity:
    """Read a whole model and say which it is; independent of the order of tensors and metadata, and of shards.

    Args:
        source: the model.
        control: told the bytes that are read, asked between blocks whether to go on.

    Raises:
        ModelError: the model cannot be read.
        Paused, Cancelled: from `control`.
    """
    digest = hashlib.sha256(f"identity {DEFINITION}\n".encode())
    for key in sorted(source.metadata):
        if not _DESCRIPTIVE.fullmatch(key):
            digest.update(encode_entry(key, source.metadata[key]))
    tensors = sorted(source.tensors, key=lambda info: info.name)
    progress = ProgressCounter(control, sum(tensor.size_bytes for tensor in tensors))
    not_finite, lost, lost_whole, zeros = "", list[str](), "", list[str]()
    pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="identify")
    try:
        for tensor in tensors:
            rows, n_bad, n_lost, n_filled, n_zero = xxhash.xxh3_128(), 0, 0, 0, 0
            step = max(1, BLOCK_BYTES * tensor.n_rows // max(1, tensor.size_bytes))
            read = functools.partial(_block, source, tensor, step)
            for block, n_bytes, found in pool.map(read, range(0, tensor.n_rows, step)):
                control.check()
                rows.update(block)
                n_bad += found.n_not_finite
                n_lost += found.n_lost
                n_filled += found.n_filled
                n_zero += found.n_zero
                progress.add(n_bytes, tensor.name)
            digest.update(f"{json.dumps([tensor.name, tensor.shape, tensor.type_name])} {rows.hexdigest()}\n".encode())
            if n_bad and not not_finite:
                kind = (
                    words.not_finite(n_bad) if tensor.type_name in _INFINITY else f"{plural(n_bad, 'row')} with weights that are NaN or Inf"
                )
                not_finite = f"{tensor.name} has {kind}"
            if n_lost and n_lost == n_filled and not lost_whole:
                lost_whole = f"all weights of {tensor.name} are too small for {tensor.type_name}"
            if n_lost:
                lost.append(
                    f"{tensor.name} has {n_lost} of {plural(tensor.n_rows, 'row')} whose weights are too small for {tensor.type_name}"
                )
            if n_zero and (len(tensor.shape) > 1 or tensor.name.endswith("norm.weight")):
                part = "all weights" if n_zero == tensor.n_rows else f"{n_zero:,} of {plural(tensor.n_rows, 'row')}"
                zeros.append(f"{part} of {tensor.name} are zero")
    finally:
        pool.shutdown(cancel_futures=True)
    return Identity(digest.hexdigest(), not_finite, _first(lost), lost_whole, _first(zeros))


def _first(found: Sequence[str]) -> str:
    """What is said of the first tensor, and how many more it could be said of."""
    n_more = len(found) - 1
    more = f" ({plural(n_more, 'more tensor')} {'is' if n_more == 1 else 'are'} like it)" if n_more > 0 else ""
    return f"{found[0]}{more}" if found else ""


def fingerprint(source: ModelSource) -> str:
    """The fingerprint alone; see `identify`."""
    return identify(source).fingerprint


def description(source: ModelSource, fingerprint: str) -> str:
    """What a file that is made from a model takes over from it: its identity, all other metadata, and the order of both.

    Two models of one fingerprint may differ here, by their names or chat templates for example. Costs no reading of weights.
    """
    digest = hashlib.sha256(f"description {DEFINITION} {fingerprint}\n".encode())
    for key, value in source.metadata.items():
        if not key.startswith("split."):
            digest.update(encode_entry(key, value) if _DESCRIPTIVE.fullmatch(key) else f"{key}\n".encode("utf-8", "surrogateescape"))
    digest.update(json.dumps([tensor.name for tensor in source.tensors]).encode())
    return digest.hexdigest()


class _Found(NamedTuple):
    """What a block holds that is to be told."""

    n_not_finite: int
    """Weights that are NaN or Inf; of quantized types rows with such."""
    n_lost: int
    """As `ConvertedSource.lost_rows`."""
    n_filled: int
    """As `ConvertedSource.lost_rows`."""
    n_zero: int
    """Its rows, where all of it is zero, else 0."""


def _block(source: ModelSource, tensor: TensorInfo, step: int, start: int) -> tuple[bytes, int, _Found]:
    """A block's digest, its bytes, and what it holds."""
    stop = min(start + step, tensor.n_rows)
    data = np.ascontiguousarray(source.raw_rows(tensor.name, start, stop))
    lost = source.lost_rows(tensor.name, start, stop) if isinstance(source, ConvertedSource) else (0, 0)
    is_zero = not (data[0].any() or data.any())  # the first row mostly says it
    return xxhash.xxh3_128_digest(data.data), data.nbytes, _Found(_n_not_finite(data, tensor), *lost, n_zero=len(data) if is_zero else 0)


def _n_not_finite(data: Bytes, tensor: TensorInfo) -> int:
    """Of rows, (n_rows, row_bytes)."""
    type_name = tensor.type_name
    if type_name in _INFINITY:
        unsigned, signed, infinity = _INFINITY[type_name]
        infinity += _ROPE_FACTORS.fullmatch(tensor.name) is not None  # of these NaN alone counts
        bits = data.reshape(-1).view(unsigned)
        sign = 1 << (8 * bits.itemsize - 1)
        # Of signed numbers positive weights are the largest, of unsigned ones negative weights are.
        if bits.view(signed).max() < infinity and bits.max() < sign + infinity:
            return 0
        return int(np.count_nonzero((bits & unsigned(sign - 1)) >= infinity))
    qtype = library.types().get(type_name)
    if qtype is None or codec.is_valid(data, qtype):
        return 0
    return sum(not codec.is_valid(row, qtype) for row in data)
