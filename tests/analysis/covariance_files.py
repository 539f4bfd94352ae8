"""Files of covariances as they could be, written without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from quantailor.analysis.covariances.covariance_file import Description, Input, encoded, file_layout, metadata_of
from quantailor.analysis.covariances.sums import packed_size, panels
from quantailor.models.gguf_format import aligned, encode_header
from quantailor.models.gguf_writer import PartLayout
from quantailor.numerics import Floats
from quantailor.records import MetadataValue


def packed(matrix: Floats) -> Floats:
    """A symmetric matrix, (n_cols, n_cols), as a packed sum."""
    out = np.zeros(packed_size(len(matrix)), dtype=np.float32)
    for panel in panels(len(matrix)):
        panel.of(out, len(matrix))[:] = matrix[panel.start : panel.stop, panel.start :]
    return out


def products(n_matrices: int, n_cols: int, seed: int = 0) -> list[Floats]:
    """So many covariances of random inputs."""
    rng = np.random.default_rng(seed)
    found: list[Floats] = []
    for _ in range(n_matrices):
        x = rng.standard_normal((4 * n_cols, n_cols)) @ rng.standard_normal((n_cols, n_cols))
        found.append((x.T @ x / len(x)).astype(np.float32))
    return found


def write(
    path: Path,
    inputs: Mapping[str, Sequence[Floats]],
    *,
    model: str = "m" * 64,
    changed: Mapping[str, MetadataValue | None] | None = None,
    diagonals: Mapping[str, Floats] | None = None,
) -> Path:
    """A file of these inputs' matrices; the last of several is that of all together.

    Args:
        path: where.
        inputs: matrices by the name of the one tensor with that input.
        model: the model's fingerprint.
        changed: entries of the metadata, without their prefix, to replace or (None) to leave out.
        diagonals: mean squares to write instead, with digests that fit them.
    """
    described, counts, digests, data = [], [], [], []
    for name, matrices in inputs.items():
        described.append(Input(name, (name,), max(1, len(matrices) - 1), len(matrices[0])))
        means = [(diagonals or {}).get(name, np.diagonal(matrix).astype(np.float32)) for matrix in matrices]
        rows = [encoded(packed(matrix), mean) for matrix, mean in zip(matrices, means, strict=True)]
        counts.append(tuple(100 for _ in matrices))
        digests.append(tuple(digest for _, digest in rows))
        data += [np.stack(means).tobytes(), np.stack([row for row, _ in rows]).tobytes()]
    description = Description(model, tuple(described), tuple(counts), tuple(digests), ("text.txt",), 2, 64)
    part = file_layout(description)
    if changed:
        part = _changed(part, description, changed)
    path.write_bytes(part.header + b"".join(one + bytes(aligned(len(one), part.alignment) - len(one)) for one in data))
    return path


def _changed(part: PartLayout, description: Description, changed: Mapping[str, MetadataValue | None]) -> PartLayout:
    entries = metadata_of(description)
    for name, value in changed.items():
        key = name if "." in name else f"quantailor.covariances.{name}"
        entries.pop(key)
        if value is not None:
            entries[key] = value
    return replace(part, header=encode_header(entries, part.tensors))
