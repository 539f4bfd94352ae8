"""The files of a split model: their names, and what people do to them, explained."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from quantailor.errors import ModelError, ModelFormatError
from quantailor.present.words import plural
from quantailor.records import MetadataValue

SHARD_NAME = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
_PIECE = re.compile(
    r"(?P<whole>.+?\.gguf)[.-](?:part|split|piece)?[-_.]?(?:(?P<number>\d+)[-_]?of[-_]?(?P<count>\d+)|\d+|[a-z]{1,2})", re.I
)
_CUT_BY_SPLIT = re.compile(r"x[a-z]{2}")
"""What the program calls pieces by itself."""
_UNFINISHED = (".part", ".partial", ".crdownload", ".download", ".incomplete", ".opdownload", ".aria2", ".tmp")
_MAGIC = b"GGUF"
_ORDINALS = ("first", "second", "third", "fourth", "fifth")


def shard_name(stem: str, number: int, count: int) -> str:
    """What a shard is called, counted from 1."""
    return f"{stem}-{number:05d}-of-{count:05d}.gguf"


def all_files(path: Path) -> list[Path]:
    """The file itself, or every shard of the set that it belongs to. Raises ModelError for a missing shard."""
    match = SHARD_NAME.match(path.name)
    if match is None:
        return [path]
    stem, count = match["stem"], int(match["count"])
    if not 1 <= int(match["number"]) <= count:
        raise ModelFormatError(f"{path} is not one of {count} shards", remedy="Give the path of the first shard")
    files = [path.with_name(shard_name(stem, number, count)) for number in range(1, count + 1)]
    for number, file in enumerate(files, start=1):
        if file == path or os.path.lexists(file):
            continue
        ending = file.name.removeprefix(stem)
        others = sorted(other.name for other in path.parent.iterdir() if other.name.endswith(ending))
        if others:
            raise ModelError(
                f"{path} is shard {int(match['number'])} of {count}, but shard {number} beside it is called {others[0]}",
                remedy=_names_wanted(stem, count),
            )
        raise ModelError(f"the shard {file} is missing", remedy="Put all shards into one directory")
    return files


def check_shards(parts: Sequence[tuple[Path, Mapping[str, MetadataValue], bytes]], n_tensors: int) -> None:
    """Compare what shards say of themselves with their names.

    Args:
        parts: of each file its path, its metadata, and the first bytes behind its own tensors.
        n_tensors: in all of them.

    Raises:
        ModelFormatError: they do not belong together, or are not called as shards are.
    """
    if len(parts) == 1 and _number(parts[0][1], "split.count", 0) in (0, 1) and parts[0][2].startswith(_MAGIC):
        raise ModelFormatError(
            f"{parts[0][0]} is several GGUF files joined byte by byte: another one begins behind its last tensor",
            remedy="Get the files again, and give the one that is meant",
        )
    for number, (path, metadata, behind) in enumerate(parts, start=1):
        stated, count = _number(metadata, "split.no", number - 1), _number(metadata, "split.count", len(parts))
        if (stated, count) == (number - 1, len(parts)) or (count == 0 and len(parts) == 1):  # as llama-gguf-split --merge writes
            continue
        if not isinstance(stated, int) or not isinstance(count, int):
            raise ModelFormatError(
                f"{path} says {stated!r} of {count!r} where a shard's number is", remedy="Get an intact copy of the file"
            )
        if len(parts) == 1 and behind.startswith(_MAGIC):
            raise _joined(path, stated, count)
        if len(parts) == 1:
            raise ModelFormatError(
                f"{path} is shard {stated + 1} of {count}, which its name does not say", remedy=_names_wanted("NAME", count)
            )
        raise ModelFormatError(
            f"{path} says that it is shard {stated + 1} of {count}; its name says {number} of {len(parts)}",
            remedy="A shard was renamed, or lies there twice: get the shards again, with their names",
        )
    expected = _number(parts[0][1], "split.tensors.count", n_tensors)
    if len(parts) > 1 and expected != n_tensors:
        held = plural(n_tensors, "tensor")
        raise ModelFormatError(
            f"{parts[0][0]} and its shards hold {held}, not {expected}: one is damaged, or of another model or split",
            remedy="Get the shards again, all of the same model",
        )


def why_misnamed(path: Path, metadata: Mapping[str, MetadataValue], behind: bytes) -> ModelFormatError | None:
    """Why a file that is called a shard, of which others are missing, is none, or another one; None where its name is right."""
    match = SHARD_NAME.match(path.name)
    stated, count = _number(metadata, "split.no", 0), _number(metadata, "split.count", 0)
    if match is None or not isinstance(stated, int) or not isinstance(count, int):
        return None
    number, named = int(match["number"]), int(match["count"])
    if count > 1 and behind.startswith(_MAGIC):
        return _joined(path, stated, count)
    if count <= 1:
        what = f"{path} is a whole model, though its name says shard {number} of {named}"
        return ModelFormatError(what, remedy=f"Give it another name, such as {match['stem']}.gguf")
    if (stated + 1, count) != (number, named):
        what = f"{path} says that it is shard {stated + 1} of {count}; its name says {number} of {named}"
        return ModelFormatError(what, remedy=_names_wanted(match["stem"], count))
    return None


def _joined(path: Path, stated: int, count: int) -> ModelFormatError:
    return ModelFormatError(
        f"{path} is shards joined byte by byte, which gives no GGUF file (it begins with shard {stated + 1} of {count})",
        remedy="Get the shards and give the first, or merge them with `llama-gguf-split --merge FIRST_SHARD OUTPUT`",
    )


def piece_of(path: Path) -> ModelFormatError | None:
    """Why a file cannot be read that is a piece of one cut into pieces, or half a download; None where its name does not say so."""
    if path.suffix.lower() in _UNFINISHED:
        return ModelFormatError(f"{path} is a download that was not finished", remedy="Finish it, or download the file again")
    if _CUT_BY_SPLIT.fullmatch(path.name):
        cut = sorted(str(file) for file in path.parent.iterdir() if _CUT_BY_SPLIT.fullmatch(file.name))
        joined = f"{shlex.join(['cat', *cut])} > {shlex.quote(str(path.with_name('model.gguf')))}"
        return ModelFormatError(f"{path} is a piece of a file that was cut apart with split", remedy=f"Join them byte by byte: {joined}")
    match = _PIECE.fullmatch(path.name)
    if match is None:
        return None
    whole = match["whole"]
    others = [(other, file) for file in path.parent.iterdir() if (other := _PIECE.fullmatch(file.name)) and other["whole"] == whole]
    pieces = [str(file) for _, file in sorted(others, key=lambda pair: (int(pair[0]["number"] or 0), pair[1].name))]
    which, remedy = "a piece", f"Join them byte by byte: {shlex.join(['cat', *pieces])} > {shlex.quote(str(path.with_name(whole)))}"
    if match["count"]:
        number, count = int(match["number"]), int(match["count"])
        which = f"the {_ORDINALS[number - 1]} of {count} pieces" if 1 <= number <= len(_ORDINALS) else f"piece {number} of {count}"
        if len(pieces) < count:
            remedy = f"Put all {count} pieces into one directory, where {len(pieces)} lie now, and join them byte by byte with cat"
    return ModelFormatError(f"{path} is {which} of {whole}, which was cut apart", remedy=remedy)


def _names_wanted(stem: str, count: int) -> str:
    names = [shard_name(stem, number, count) for number in range(1, count + 1)]
    shown = names if count <= 3 else [*names[:2], "...", names[-1]]
    return f"Name the shards {', '.join(shown)}, all in one directory, and give the first"


def _number(metadata: Mapping[str, MetadataValue], key: str, otherwise: int) -> object:
    stored = metadata.get(key)
    if stored is None:
        return otherwise
    return stored.value if isinstance(stored.value, int) else type(stored.value).__name__
