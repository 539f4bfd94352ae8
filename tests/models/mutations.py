"""Ways to damage the files of a checkpoint: blindly, as JSON, and with values that somebody who means harm would choose."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from odd_values import (
    ARRAY_NAMES,
    BLIND_TEXTS,
    CARD_LINES,
    COUNTS,
    DTYPES,
    FILE_NAMES,
    ODD,
    PATTERN_KEYS,
    PATTERNS,
    SHAPES,
    SPECIAL_KEYS,
    TEXTS,
)

Json = dict[str, Any]
Entries = list[tuple[str, Any]]


# JSON


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """All (container, key) pairs of a JSON value."""
    found: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        item = stack.pop()
        pairs = list(item.items()) if isinstance(item, dict) else list(enumerate(item)) if isinstance(item, list) else []
        found += [(item, key) for key, _ in pairs]
        stack += [child for _, child in pairs]
    return found


def chosen_node(value: Any, rng: random.Random) -> tuple[Any, Any] | None:
    """A place in a JSON value: any, or one that is found going down, so that a long list does not draw all attention."""
    if rng.random() < 0.4:
        found = nodes(value)
        return rng.choice(found) if found else None
    place = None
    while isinstance(value, dict | list) and value and (place is None or rng.random() < 0.8):
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        place, value = (value, key), value[key]
    return place


def odd_value(key: Any, rng: random.Random) -> Any:
    """A value that does not belong there; for some keys one that nearly does."""
    if key in PATTERN_KEYS:
        return rng.choice(PATTERNS)
    if isinstance(key, str) and key in SPECIAL_KEYS and rng.random() < 0.8:
        return deepcopy(rng.choice(SPECIAL_KEYS[key]))
    return nested(rng) if rng.random() < 0.02 else deepcopy(rng.choice(ODD))


def nested(rng: random.Random) -> Any:
    """Lists or objects, one within the other, as deep as a reader may stand or deeper."""
    value: Any = 1
    for _ in range(rng.choice((10, 90, 400))):
        value = [value] if rng.random() < 0.5 else {"x": value}
    return value


def change_json(value: Any, rng: random.Random) -> None:
    """Replace, remove, rename or swap up to three values."""
    for _ in range(rng.randint(1, 3)):
        place = chosen_node(value, rng)
        if place is None:
            return
        container, key = place
        action = rng.randrange(5)
        if action == 0:
            del container[key]
        elif action == 1 and isinstance(container, dict):
            container[rng.choice(("", "x", "type", "content", "id", "\x1b[0m", f"{key}x"))] = container.pop(key)
        elif action == 2:
            other, other_key = chosen_node(value, rng) or place
            container[key] = json.loads(json.dumps(other[other_key]))
        else:
            container[key] = odd_value(key, rng)


def written(value: Any, rng: random.Random) -> bytes:
    """JSON as files have it, sometimes with a key twice."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.7 or _has_surrogates(value))
    if rng.random() < 0.05 and text.startswith("{") and len(text) > 2:
        text = "{" + text[1:-1] + ", " + text[1:]
    return text.encode()


def _has_surrogates(value: Any) -> bool:
    return "\\ud800" in json.dumps(value)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    value = json.loads(data)
    change_json(value, rng)
    return written(value, rng)


def mutate_config(data: bytes, rng: random.Random, *, keys: Sequence[str]) -> bytes:
    """Odd values of some keys, also of those that the file leaves to their defaults."""
    config = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        key = rng.choice(list(SPECIAL_KEYS)) if rng.random() < 0.3 else rng.choice(keys)
        place = config.get("text_config", config)
        place = place if isinstance(place, dict) and rng.random() < 0.8 else config
        if rng.random() < 0.15:
            place.pop(key, None)
        else:
            place[key] = rng.choice(COUNTS) if rng.random() < 0.4 else odd_value(key, rng)
    return written(config, rng)


def mutate_splits(data: bytes, rng: random.Random) -> bytes:
    """A tokenizer.json that splits texts in another way."""
    tokenizer = json.loads(data)
    steps: list[Json] = [
        rng.choice(
            (
                {
                    "type": "Split",
                    "pattern": {"Regex": rng.choice(PATTERNS)},
                    "behavior": rng.choice(("Isolated", "Removed")),
                    "invert": True,
                },
                {"type": "Split", "pattern": {"String": rng.choice(TEXTS)}, "behavior": "Isolated"},
                {"type": "Digits", "individual_digits": rng.choice(ODD)},
                {"type": "Punctuation", "behavior": rng.choice(("Isolated", "Contiguous", "Removed", None, []))},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": rng.choice((True, False, None))},
            )
        )
        for _ in range(rng.choice((1, 2, 3, 30)))
    ]
    tokenizer["pre_tokenizer"] = rng.choice(({"type": "Sequence", "pretokenizers": steps}, steps[0]))
    tokenizer["normalizer"] = rng.choice(
        (None, {"type": "NFC"}, {"type": "NFKD"}, {"type": "Sequence", "normalizers": []}, {"type": []}, *SHAPES)
    )
    return written(tokenizer, rng)


# Bytes


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, insert, remove, repeat or cut up to four times."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randrange(len(out) + 1), rng.randint(1, 12)
        action = rng.randrange(7)
        if action == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            out[at:at] = rng.randbytes(size)
        elif action == 2:
            del out[at : at + size]
        elif action == 3:
            out[at:at] = rng.choice(BLIND_TEXTS).encode()
        elif action == 4:
            out[at : at + size] = rng.choice((b"\xff", b"\x00", b"\x80")) * size
        elif action == 5:
            out[at:at] = out[: rng.randrange(64)]
        elif rng.random() < 0.3:
            del out[at:]
    return bytes(out)


# safetensors


def split_header(data: bytes) -> tuple[Json, bytes]:
    """The header of a safetensors file, and its data."""
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def mutate_header(data: bytes, rng: random.Random) -> bytes:
    """Change a header: as JSON, or so that it stays nearly right; sometimes with a wrong length."""
    header, body = split_header(data)
    if rng.random() < 0.4:
        change_json(header, rng)
    else:
        for _ in range(rng.randint(1, 2)):
            _change_entry(header, rng, len(body))
    text = written(header, rng)
    told = (
        len(text) if rng.random() < 0.95 else rng.choice((0, 1, 7, len(text) - 1, len(text) + 1, len(data), 2**32, 2**60, 2**63, 2**64 - 1))
    )
    return struct.pack("<Q", told) + text + body


def _change_entry(header: Json, rng: random.Random, n_bytes: int) -> None:
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    action = rng.randrange(9)
    if action == 0:
        entry["dtype"] = rng.choice(DTYPES)
    elif action == 1:
        entry["data_offsets"] = [
            rng.choice((0, 1, -1, n_bytes, n_bytes + 1, 2**62, 2**64, 9**4000)) for _ in range(rng.choice((1, 2, 2, 2, 3)))
        ]
    elif action == 2:
        other = rng.choice([other for key, other in header.items() if key != "__metadata__"])
        header[name] = json.loads(json.dumps(other))
    elif action == 3:
        header[rng.choice(ARRAY_NAMES)] = header.pop(name)
    elif action == 4:
        header[f"{name}{rng.choice(('_scale_inv', '_scales', '_blocks', '_bias', 'x', '.weight', '.input_scale', chr(27) + '[0m'))}"] = (
            header.pop(name)
        )
    elif action == 5:
        _reshape(entry, rng)
    elif action == 6:
        _retype(entry)
    elif action == 7:
        del header[name]
    else:
        number = rng.choice(("0", "1", "2", "999999", "00000000001", "-1", "١"))
        header[name.replace(".0.", f".{number}.", 1)] = header.pop(name)


def _reshape(entry: Json, rng: random.Random) -> None:
    """Another shape of as many numbers, or of another number of them."""
    shape = entry["shape"] if isinstance(entry.get("shape"), list) else []
    choice = rng.randrange(5)
    if choice == 0:
        entry["shape"] = [1, *shape]
    elif choice == 1:
        entry["shape"] = [*shape, 1]
    elif choice == 2:
        entry["shape"] = shape[::-1]
    elif choice == 3:
        entry.update(shape=[0, *shape[1:]], data_offsets=[0, 0])
    else:
        entry["shape"] = [2**40, *shape]


def _retype(entry: Json) -> None:
    """A type of as many bytes, so that all else still fits."""
    twins = {"BF16": "F16", "F16": "BF16", "F32": "I32", "U8": "F8_E4M3", "F8_E4M3": "F8_E5M2", "F8_E5M2": "I8", "I32": "F32", "I8": "U8"}
    if isinstance(entry.get("dtype"), str):
        entry["dtype"] = twins.get(entry["dtype"], "I64")


def mutate_weights(data: bytes, rng: random.Random) -> bytes:
    """Numbers of every kind, NaN and infinite ones included, in place of the data."""
    length = 8 + struct.unpack("<Q", data[:8])[0]
    fill = rng.choice((b"\xff", b"\x7f\x80", b"\x00\x7f", b"\x01\x7c", b"\x00", b"\xa0\xff", rng.randbytes(4096)))
    at = rng.randrange(length, len(data))
    size = min(rng.choice((16, 4096, 1 << 20)), len(data) - at)
    return data[:at] + (fill * (size // len(fill) + 1))[:size] + data[at + size :]


def mutate_index(data: bytes, rng: random.Random) -> bytes:
    """Names that lead elsewhere, arrays that are in another file, and what can be done to any JSON."""
    index = json.loads(data)
    if rng.random() < 0.25:
        return mutate_json(data, rng)
    names = index["weight_map"]
    for _ in range(rng.choice((1, 1, 2, len(names)))):
        name = rng.choice(list(names))
        if rng.random() < 0.2:
            del names[name]
            names[rng.choice(ARRAY_NAMES)] = "model-00001-of-00002.safetensors"
        else:
            names[name] = rng.choice(FILE_NAMES)
    return written(index, rng)


# SentencePiece


def varint(value: int) -> bytes:
    """A number of a protocol buffer."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def piece(text: bytes, score: float = 0.0, kind: int = 1) -> bytes:
    """One piece of a SentencePiece model."""
    inner = b"\x0a" + varint(len(text)) + text + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kind)
    return b"\x0a" + varint(len(inner)) + inner


def mutate_pieces(data: bytes, rng: random.Random) -> bytes:
    """Pieces that are odd in themselves among those of `data`, in whole messages."""
    odd = (
        *(piece(b"\xff"), piece(b""), piece(b"a\x00b"), piece(b"x" * 70000), piece(b"\x1b[2J"), piece(b"<s>"), piece(b"a", float("nan"))),
        *(piece(b"b", float("inf")), piece(b"c", kind=0), piece(b"c", kind=7), piece(b"d", kind=2**63), piece(b"\xf0\x9f\x9a\x80")),
        *(
            b"\x0a\x00",
            b"\x0a\xff\xff\xff\xff\x0f",
            b"\x0b",
            b"\x12\x02\x08\x01",
            b"\x80" * 11,
            b"\x0d\x00\x00\x00\x00",
            b"\x09" + bytes(8),
            b"\x08\x01",
        ),
        *(b"\x0a\x04\x0a\x02\x0a\x00", b"\x0a\x05\x15\x00\x00\x00\x00", b"\x0a\x06\x19" + bytes(5), b"\x0a\x03\x0d\x00\x00"),
    )
    return b"".join((rng.choice(odd), data)) if rng.random() < 0.4 else data + b"".join(rng.choice(odd) for _ in range(rng.randint(1, 3)))


# Texts


def mutate_card(data: bytes, rng: random.Random) -> bytes:
    """A model card with odd lines in its head."""
    lines = data.decode().splitlines()
    for _ in range(rng.randint(1, 4)):
        lines.insert(rng.randrange(1, max(2, lines.index("---", 1) + 1) if "---" in lines[1:] else 2), rng.choice(CARD_LINES))
    return "\n".join(lines).encode()


def mutate_name(name: str, rng: random.Random) -> str:
    """A file name that is not what it seems."""
    parts = list(name)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(parts) + 1)
        parts[at:at] = rng.choice(
            (
                "../",
                "/",
                "\\",
                "..",
                ":",
                "C:",
                "\x00",
                "\n",
                "\u202e",
                "\ud800",
                " ",
                ".",
                "🚀",
                "~",
                "x" * 500,
                "-00001-of-00002",
                "-99999-of-99999",
                "f16",
                "%2e%2e/",
            )
        )
        if rng.random() < 0.3:
            del parts[rng.randrange(len(parts)) :]
    return "".join(parts)
