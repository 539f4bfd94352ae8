"""What a text can be: plain, conversations (.jsonl), or a mix of several (.yaml) by share, whose names are the domains of a verdict.

    texts:
      - {file: prose.txt, share: 0.6}
      - {file: conversations.jsonl, share: 0.3, name: chat}
      - {file: code.txt, share: 0.1}

Files are looked for beside the mix. Without shares all count alike.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from quantailor.analysis import chats
from quantailor.errors import CorpusError
from quantailor.files import read_bytes

MIX_SUFFIXES = (".yaml", ".yml")
_KEYS = frozenset(("file", "share", "name"))
_REMEDY = "Write `texts:` and a list of {file: FILE, share: NUMBER, name: NAME}; share and name may be left out"


@dataclass(frozen=True, slots=True)
class Part:
    """A text, alone or in a mix."""

    name: str
    """Its file's name, or its domain's."""
    path: Path
    share: float
    """Of the chunks, 0 to 1."""

    def read(self) -> tuple[str, str]:
        """Its text without the last newline, and the SHA-256 of its bytes. Raises CorpusError, for lines that are no conversations too."""
        content, sha256 = read_text(self.path)
        if is_chat(self.path):
            chats.read_conversations(content, self.path.name)
        return content, sha256


def is_chat(path: Path) -> bool:
    """Whether a file holds conversations."""
    return path.suffix.lower() == chats.SUFFIX


def is_mix(path: Path) -> bool:
    """Whether a file names several texts."""
    return path.suffix.lower() in MIX_SUFFIXES


def parts_of(path: Path) -> tuple[Part, ...]:
    """The texts that a file is or names. Raises CorpusError where it is a mix that cannot be read."""
    if not is_mix(path):
        return (Part(path.name, path, 1.0),)
    try:
        content = yaml.safe_load(read_text(path)[0])
    except yaml.YAMLError as error:
        raise CorpusError(f"{path} is not YAML: {' '.join(str(error).split())}", remedy=_REMEDY) from None
    listed = content.get("texts") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not listed or set(content) != {"texts"}:
        raise CorpusError(f"{path} names no texts", remedy=_REMEDY)
    return _with_shares(path, listed)


def _with_shares(path: Path, listed: Sequence[object]) -> tuple[Part, ...]:
    found = []
    for number, each in enumerate(listed, 1):
        entry = {"file": each} if isinstance(each, str) else each
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str) or not set(entry) <= _KEYS:
            raise CorpusError(f"text {number} of {path} cannot be read: {each}", remedy=_REMEDY)
        if "\0" in entry["file"] or not _is_text(entry["file"]):
            raise CorpusError(f"text {number} of {path} has a name that no file has: {entry['file']!r}", remedy="Correct it")
        share, place = entry.get("share", 1.0), path.parent / entry["file"]
        if isinstance(share, bool) or not isinstance(share, int | float) or not (0 < share < math.inf):
            raise CorpusError(f"the share of {entry['file']} in {path} is {share}", remedy="Give a number above 0")
        if is_mix(place):
            raise CorpusError(f"{entry['file']} in {path} is a mix itself", remedy="Name its texts here")
        found.append(Part(str(entry.get("name", place.stem)), place, float(share)))
    for what, values in (("file", [str(each.path.resolve()) for each in found]), ("name", [each.name for each in found])):
        if again := [value for value in values if values.count(value) > 1]:
            raise CorpusError(f"{path} has the {what} {again[0]} twice", remedy=f"Give every text a {what} of its own")
    total = sum(part.share for part in found)
    return tuple(Part(part.name, part.path, part.share / total) for part in found)


def _is_text(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def files_of(path: Path) -> tuple[Path, ...]:
    """All files that a text is made of: a mix and what it names. Raises CorpusError as `parts_of` does."""
    return tuple(dict.fromkeys((path, *(part.path for part in parts_of(path)))))


def check_text(path: Path) -> None:
    """Raise CorpusError where a text, or one that it names, cannot be read."""
    for part in parts_of(path):
        part.read()


def digest(path: Path) -> str:
    """SHA-256 of a text's bytes, or of what a mix takes how much of. Raises CorpusError where it cannot be read."""
    if not is_mix(path):
        return read_text(path)[1]
    return mixed_digest([(part.share, part.read()[1]) for part in parts_of(path)])


def n_bytes(path: Path) -> int:
    """Of all texts that a file is or names. Raises CorpusError where one cannot be read."""
    return sum(len(part.read()[0].encode()) for part in parts_of(path))


def mixed_digest(parts: Sequence[tuple[float, str]]) -> str:
    """Of (share, SHA-256) of each text."""
    return hashlib.sha256("\n".join(["mix-1", *(f"{share:.6f} {sha256}" for share, sha256 in parts)]).encode()).hexdigest()


def read_text(path: Path) -> tuple[str, str]:
    """The text without its last newline, and the SHA-256 of its bytes. Raises CorpusError: it cannot be read, is empty or not UTF-8."""
    try:
        data = read_bytes(path)
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 (byte {error.start})", remedy="Save it as UTF-8 text") from error
    if not text.strip():
        empty = "holds nothing but white space" if data else "is empty"
        raise CorpusError(f"{path} {empty}", remedy="Give a text of some hundred kilobytes")
    return text.removesuffix("\n"), hashlib.sha256(data).hexdigest()
