"""Compile what every process of a fresh checkout would compile for itself: `python -m tools.compile_ahead`.

Numba keeps the loops of compensated rounding on disk, and pytest the tests, in whose assertions it writes what to say when they fail.
Beside the loops is noted which codes they gave the process that compiled them: a test compares them with those of one that finds them.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numba
import numpy as np
from numba.core.registry import cpu_target
from threadpoolctl import threadpool_limits

from quantailor.analysis import rounding
from quantailor.analysis.covariances.covariances import InputCovariance
from quantailor.analysis.rounding.compensation import round_rows
from quantailor.analysis.rounding.metric import Metric
from quantailor.ggml import library

TYPES = ("Q4_K", "Q5_K", "Q5_1", "Q4_0", "IQ2_XXS")
"""Codes for single weights, with offsets and without, and one for several: others call the same loops with the same kinds of arrays."""
N_SEEDS, N_ROWS, N_COLS = 6, 128, 256
ROUNDING = Path(next(iter(rounding.__path__)))
NOTE = ROUNDING / "__pycache__" / "codes.json"


def digest_of_codes() -> str:
    """SHA-256 of made-up rows rounded to these types, which takes all loops."""
    digest = hashlib.sha256()
    for seed in range(N_SEEDS):
        numbers = np.random.default_rng(seed)
        inputs = (numbers.normal(0, 1, (2 * N_COLS, N_COLS)) * numbers.lognormal(0, 1, N_COLS)).astype(np.float32)
        with threadpool_limits(1, user_api="blas"):
            metric = Metric(InputCovariance("made up", inputs.T @ inputs / np.float32(len(inputs)), len(inputs)))
            weights = (numbers.normal(0, 1, (N_ROWS, N_COLS)) / 20).astype(np.float32)
            for name in TYPES:
                digest.update(round_rows(weights, library.types()[name], metric).tobytes())
    return digest.hexdigest()


def _loops() -> list[Path]:
    """The files whose functions are compiled, and what compiles them."""
    return [path for path in sorted(ROUNDING.rglob("*.py")) if "@compiled" in path.read_text(encoding="utf-8") or path.stem == "compiling"]


def _kept() -> list[Path]:
    return [path for kind in ("*.nbi", "*.nbc") for path in ROUNDING.rglob(f"__pycache__/{kind}")]


def _key() -> str:
    """What machine code depends on: the loops, when they were written, numba and the processor."""
    loops = [(path.name, path.stat().st_mtime_ns, path.read_text(encoding="utf-8")) for path in _loops()]
    processor = cpu_target.target_context.codegen().magic_tuple()
    return hashlib.sha256(repr((loops, TYPES, numba.__version__, sys.version, processor)).encode()).hexdigest()


def noted_digest() -> str | None:
    """The codes of the process that compiled the loops that are kept; None where no process did that here."""
    try:
        note = json.loads(NOTE.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(note["digest"]) if note.get("key") == _key() and _kept() else None


def compile_loops() -> None:
    """Compile all of them in this process, unless one has done so, and note its codes where numba keeps them beside their source."""
    if noted_digest() is not None:
        return
    for path in _kept():
        path.unlink(missing_ok=True)
    digest = digest_of_codes()
    if _kept():
        NOTE.write_text(json.dumps({"key": _key(), "digest": digest}), encoding="utf-8")


def compile_tests() -> None:
    """Collect all tests. Raises SystemExit with what pytest says where one cannot be."""
    collected = subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "0", "--collect-only"], capture_output=True, text=True)
    if collected.returncode != 0:
        sys.exit(collected.stdout + collected.stderr)


def main(words: Sequence[str]) -> None:
    """Both; or with the word `codes` print what the codes are."""
    if list(words) == ["codes"]:
        print(digest_of_codes())
    else:
        compile_tests()
        compile_loops()


if __name__ == "__main__":
    main(sys.argv[1:])
