"""What a GGUF file holds, as plain data to compare; read with the gguf package, not with our own reader."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType

LONGEST_SHOWN = 16


def describe(path: Path) -> dict[str, Any]:
    """Metadata and tensors in file order; long values and tensors as SHA-256."""
    reader = GGUFReader(path)
    metadata = [
        [name, [GGUFValueType(kind).name for kind in field.types[:2]], _shown(field.contents())]
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    ]
    tensors = [
        [tensor.name, tensor.tensor_type.name, [int(size) for size in reversed(tensor.shape)], _sha256(tensor.data.tobytes())]
        for tensor in reader.tensors
    ]
    return {"file": _sha256(path.read_bytes()), "metadata": metadata, "tensors": tensors}


def _shown(value: Any) -> Any:
    if isinstance(value, list | str) and len(value) > LONGEST_SHOWN:
        return f"{len(value)} long, {_sha256(json.dumps(value).encode())}"
    return value


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
