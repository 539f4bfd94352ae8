"""Which files of a repository are needed: the weights in one form, and what belongs to them.

A repository of safetensors is taken as its index (or the names `model*.safetensors`) says, with configuration and
tokenizer. A repository of GGUF files gives the 16-bit one: names tell the type, BF16 before F16 before F32, because
most models are trained in BF16, F16 clips its range, and F32 is twice as large for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Literal

from quantailor.errors import RepoFileNotFoundError, UnsupportedModelError
from quantailor.models.convert.description.pooling import MODULES
from quantailor.models.gguf_shards import SHARD_NAME
from quantailor.models.huggingface import CONFIG_NAMES, INDEX_NAME

Kind = Literal["safetensors", "gguf", "imatrix"]

COMPANIONS = (
    *CONFIG_NAMES,
    "README.md",
    "vocab.json",
    "merges.txt",
    "tekken.json",
    "preprocessor_config.json",
    "processor_config.json",
    MODULES,
)
"""Beside the weights: configuration, tokenizer, and the model card with name and licence."""
_POOLING = re.compile(r"\d+_Pooling/config\.json")
_TOKENIZERS = re.compile(r"[^/]+\.(?:model|tiktoken)|[^/]*vocab[^/]*\.(?:json|jsonl|txt)|tokenizer\.jsonl")
"""Tokenizer files under other names, which llama.cpp's converter reads for families that we do not know."""
_TYPES = (("bf16",), ("f16", "fp16"), ("f32", "fp32"))
_TYPE = re.compile(r"(?<![a-z0-9])(bf16|f16|fp16|f32|fp32)(?![a-z0-9])")
_PART = re.compile(r"-\d{5}-of-(\d{5})\.safetensors$")
_QUANTIZED = re.compile(r"(?<![a-z0-9])(?:i?q\d|tq\d|mxfp\d|nvfp\d)")
_NO_MODEL = ("mmproj", "ggml-vocab")
_MAX_NAME, _MAX_PART = 400, 255
"""Letters of a whole name; bytes of a file's or folder's."""
_MAX_SHOWN = 200
_N_SHOWN = 8


@dataclass(frozen=True, slots=True)
class RepoFile:
    """A file as the hub lists it."""

    name: str
    """Its path within the repository, with forward slashes."""
    size_bytes: int
    blob_id: str
    """Git's hash."""
    sha256: str | None = None
    """Of files in large file storage."""

    @property
    def etag(self) -> str:
        """What huggingface_hub calls its copy."""
        return self.sha256 or self.blob_id

    @property
    def base_name(self) -> str:
        return PurePosixPath(self.name).name


@dataclass(frozen=True, slots=True)
class Choice:
    """What to take from a repository."""

    kind: Kind
    weights: tuple[RepoFile, ...]
    companions: tuple[RepoFile, ...] = ()
    imatrices: tuple[RepoFile, ...] = ()
    by_name: bool = True
    """Whether the name says that the weights have 16 bits; the header must tell otherwise."""

    @property
    def files(self) -> tuple[RepoFile, ...]:
        """All of them, the small ones first."""
        return (*self.companions, *self.imatrices, *self.weights)


def is_plain(name: str) -> bool:
    """Whether a repository's file name stays within any folder on any system."""
    parts = name.split("/")
    if not name.isprintable() or len(name) > _MAX_NAME or ":" in name or "\\" in name:
        return False
    whole = all(part not in ("", ".", "..") and not part.endswith((" ", ".")) and len(part.encode()) <= _MAX_PART for part in parts)
    return whole and PureWindowsPath(name).parts == PurePosixPath(name).parts


def is_imatrix(name: str) -> bool:
    """Whether a file is an importance matrix by its name."""
    lower = PurePosixPath(name).name.lower()
    return lower.endswith(".imatrix") or ("imatrix" in lower and lower.endswith((".gguf", ".dat")))


def choose(
    files: Sequence[RepoFile],
    *,
    repo_id: str,
    weight_names: Collection[str] | None = None,
    gguf_file: str | None = None,
    imatrix_only: bool = False,
) -> Choice:
    """What to download.

    Args:
        files: all files of the repository; names that are not plain paths are ignored.
        repo_id: for messages.
        weight_names: the files that the safetensors index names, where there is one.
        gguf_file: the GGUF file to take, any of its shards, instead of the 16-bit one.
        imatrix_only: take importance matrices and nothing else.

    Raises:
        RepoFileNotFoundError: no such file, no weights, or several that could be meant.
        UnsupportedModelError: weights in pickle files.
    """
    plain = {file.name: file for file in files if is_plain(file.name)}
    imatrices = tuple(file for file in plain.values() if is_imatrix(file.name))
    if imatrix_only:
        if not imatrices:
            raise RepoFileNotFoundError(f"{repo_id} has no importance matrix", remedy="Compute one with `quantailor imatrix BASE`")
        return Choice("imatrix", (), imatrices=imatrices)
    ggufs = _gguf_sets(plain.values())
    if gguf_file is not None:
        return Choice("gguf", _named(ggufs, gguf_file, repo_id), imatrices=imatrices)
    weights = _safetensors(plain, weight_names, repo_id)
    if weights:
        companions = tuple(plain[name] for name in COMPANIONS if name in plain)
        companions += tuple(file for name, file in plain.items() if _is_companion(name))
        return Choice("safetensors", weights, companions, imatrices)
    if ggufs:
        chosen, by_name = _sixteen_bit(ggufs, repo_id, has_imatrix=bool(imatrices))
        return Choice("gguf", chosen, imatrices=imatrices, by_name=by_name)
    raise _no_weights(plain, repo_id)


def _safetensors(plain: dict[str, RepoFile], weight_names: Collection[str] | None, repo_id: str) -> tuple[RepoFile, ...]:
    if weight_names is None:
        names = sorted(name for name in plain if re.fullmatch(r"model[^/]*\.safetensors", name))
        counts = {int(match[1]) for name in names if (match := _PART.search(name))}
        if counts and (len(counts) > 1 or len(names) != min(counts)):
            raise RepoFileNotFoundError(f"{repo_id} has {len(names)} of {max(counts)} parts of its weights")
        return tuple(plain[name] for name in names)
    for name in sorted(weight_names):
        if "/" in name or name not in plain or not name.endswith(".safetensors"):
            raise RepoFileNotFoundError(f"{INDEX_NAME} of {repo_id} names {name[:120]!r}, which the repository does not have")
    return tuple(plain[name] for name in sorted(weight_names))


def _is_companion(name: str) -> bool:
    """Whether a file goes with the weights under a name that is not always the same."""
    return name not in COMPANIONS and bool(_TOKENIZERS.fullmatch(name) or _POOLING.fullmatch(name))


def _gguf_sets(files: Iterable[RepoFile]) -> dict[str, list[RepoFile]]:
    """GGUF models by the name of their first file; the shards of one in order."""
    sets: dict[str, list[RepoFile]] = {}
    for file in sorted(files, key=lambda file: file.name):
        base = file.base_name.lower()
        if base.endswith(".gguf") and not is_imatrix(file.name) and not base.startswith(_NO_MODEL):
            match = SHARD_NAME.match(file.name)
            first = file.name if match is None else f"{match['stem']}-00001-of-{match['count']}.gguf"
            sets.setdefault(first, []).append(file)
    return sets


def _named(ggufs: dict[str, list[RepoFile]], wanted: str, repo_id: str) -> tuple[RepoFile, ...]:
    matching = [first for first, files in ggufs.items() if any(wanted in (file.name, file.base_name) for file in files)]
    if len(matching) != 1:
        what = f"{len(matching)} files called" if matching else "no GGUF file"
        raise RepoFileNotFoundError(f"{repo_id} has {what} {wanted[:120]!r}", remedy=f"It has {_listed(ggufs)}")
    return _whole(matching[0], ggufs[matching[0]], repo_id)


def _whole(first: str, files: Sequence[RepoFile], repo_id: str) -> tuple[RepoFile, ...]:
    match = SHARD_NAME.match(first)
    count = int(match["count"]) if match else 1
    if len(files) != count:
        raise RepoFileNotFoundError(f"{repo_id} has {len(files)} of {count} shards of {first}", remedy="Choose another with --gguf-file")
    return tuple(files)


def _sixteen_bit(ggufs: dict[str, list[RepoFile]], repo_id: str, *, has_imatrix: bool) -> tuple[tuple[RepoFile, ...], bool]:
    """The 16-bit model, and whether its name says so."""
    plain = [first for first in ggufs if not _QUANTIZED.search(first.lower())]
    for names in _TYPES:
        matching = [first for first in plain if set(_TYPE.findall(first.lower())) & set(names)]
        if len(matching) > 1:
            raise RepoFileNotFoundError(f"{repo_id} has several 16-bit files: {_listed(matching)}", remedy="Choose one with --gguf-file")
        if matching:
            return _whole(matching[0], ggufs[matching[0]], repo_id), True
    if len(plain) == 1:
        return _whole(plain[0], ggufs[plain[0]], repo_id), False
    matrix = ", or take its importance matrix with --imatrix-only" if has_imatrix else ""
    raise RepoFileNotFoundError(f"{repo_id} has no 16-bit GGUF file, only {_listed(ggufs)}", remedy=f"Choose one with --gguf-file{matrix}")


def _listed(names: Collection[str]) -> str:
    shown: list[str] = []
    for name in sorted(names)[:_N_SHOWN]:
        if shown and sum(map(len, shown)) + len(name) > _MAX_SHOWN:
            break
        shown.append(name[:_MAX_SHOWN])
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return (", ".join(shown) or "none") + more


def _no_weights(plain: Collection[str], repo_id: str) -> Exception:
    if any(re.fullmatch(r"pytorch_model[^/]*\.bin|consolidated[^/]*\.pth", name) for name in plain):
        return UnsupportedModelError(f"{repo_id} stores its weights in pickle files", remedy="Look for the model as safetensors")
    return RepoFileNotFoundError(f"{repo_id} has neither model*.safetensors nor GGUF files", remedy="Give a language model's repository")
