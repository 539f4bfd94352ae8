"""Writes a source as one unquantized GGUF file."""

from __future__ import annotations

from pathlib import Path

from quantailor.control import QUIET, Control
from quantailor.models.gguf_writer import GGUFWriter, layout
from quantailor.models.source import ModelSource

BLOCK_BYTES = 16 << 20


def write_base(source: ModelSource, output: Path, *, control: Control = QUIET, overwrite: bool = False) -> Path:
    """Write metadata and tensors as the source shows them; for a Hugging Face directory that is llama.cpp's conversion.

    Args:
        source: the model.
        output: the GGUF file; it appears under this name only when it is whole.
        control: progress in bytes, and stopping between blocks.
        overwrite: replace a file of that name.

    Returns:
        `output`.

    Raises:
        ModelError: the source cannot be read.
        OutputError: the file cannot be written or exists.
    """
    output = Path(output)
    tensors = source.tensors
    total = sum(tensor.size_bytes for tensor in tensors)
    done = 0
    with GGUFWriter(output, layout(source.metadata, tensors), overwrite=overwrite) as writer:
        for tensor in tensors:
            step = max(1, BLOCK_BYTES * tensor.n_rows // max(1, tensor.size_bytes))
            for start in range(0, tensor.n_rows, step):
                control.check()
                block = source.raw_rows(tensor.name, start, min(start + step, tensor.n_rows))
                writer.write(block)
                done += block.nbytes
                control.advance(done, total, tensor.name)
    return output
