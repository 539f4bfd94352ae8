"""What llama.cpp writes without importances: each try in a process of its own, for it ends the process where it cannot.

For types with few bits ggml makes tables for some seconds: here they are made once, and each process has them from the beginning.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quantailor.errors import QuantailorError
from quantailor.ggml import codec, library
from quantailor.ggml.reference import quantize_reference
from quantailor.qtypes import IMATRIX_REQUIRED
from quantailor.strategy.interchange import exact_pattern


def write_each(words: Sequence[str]) -> None:
    """Print as JSON {name: {type: whether it was written}}; the words are a base, a folder to write to, and names of tensors."""
    base, folder, *names = words
    qtypes = library.types()
    for type_name in IMATRIX_REQUIRED:
        codec.quantize(np.ones((1, 256), np.float32), qtypes[type_name], np.ones(256, np.float32))
    written = {name: {type_name: _is_written(base, folder, name, type_name) for type_name in sorted(IMATRIX_REQUIRED)} for name in names}
    print(json.dumps({"result": written}))


def _is_written(base: str, folder: str, name: str, type_name: str) -> bool:
    overrides = [(exact_pattern(name), type_name)]
    try:
        quantize_reference(Path(base), Path(folder) / "q.gguf", preset="Q8_0", overrides=overrides, n_threads=1)
    except QuantailorError:
        return False
    return True
