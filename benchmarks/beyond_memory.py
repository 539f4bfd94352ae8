"""A model twice as large as memory: `python -m benchmarks.beyond_memory`, on Linux, by whoever may make control groups of memory.

A made-up Llama (`benchmarks.llama_shapes`) whose file has twice the bytes of a limit. `quantailor imatrix` and `quantailor calibrate` run
without a limit, and in a control group that enforces it, each in a home of its own. Prints how long that took, the most memory of the
group, what was read from disk, and whether both runs ended in the same bytes; 1 where they did not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.llama_shapes import Shape, write_shape
from benchmarks.setting import MODELS, OUT
from quantailor.models.convert.base import write_base
from quantailor.models.opening import open_model

MIB = 1 << 20
GROUPS = Path("/sys/fs/cgroup")
N_HIDDEN, N_INNER, N_VOCAB = 1024, 2048, 4096
LAYER_BYTES = 2 * (3 * N_HIDDEN * N_INNER + 5 * N_HIDDEN * N_HIDDEN // 2)


@dataclass(frozen=True, slots=True)
class Group:
    """A control group with a limit of memory."""

    folder: Path
    is_version_2: bool

    @property
    def peak_bytes(self) -> int:
        """The most memory that was taken at any time, pages of files included; 0 where the kernel does not tell."""
        place = self.folder / ("memory.peak" if self.is_version_2 else "memory.max_usage_in_bytes")
        return int(place.read_text()) if place.exists() else 0

    def join(self) -> None:
        """Called in a new process: it and what it starts belong to the group."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))


@contextmanager
def group(limit_bytes: int) -> Iterator[Group]:
    """One for as long as the block lasts. Raises OSError where that is not allowed."""
    is_version_2 = (GROUPS / "cgroup.controllers").exists()
    folder = (GROUPS if is_version_2 else GROUPS / "memory") / f"quantailor-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / ("memory.max" if is_version_2 else "memory.limit_in_bytes")).write_text(str(limit_bytes))
        yield Group(folder, is_version_2)
    finally:
        folder.rmdir()


def command(where: Group | None, *words: object) -> tuple[float, float]:
    """Run a command of Quantailor; seconds, and bytes read from disk by all its processes. Raises CalledProcessError where it fails."""
    before, started = _read_bytes(), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "quantailor", *map(str, words), "--now"],
        check=True,
        stdout=subprocess.DEVNULL,
        preexec_fn=None if where is None else where.join,
    )
    return time.perf_counter() - started, _read_bytes() - before


def _read_bytes() -> int:
    """Bytes that the machine's disks have read."""
    rows = (line.split() for line in Path("/proc/diskstats").read_text(encoding="ascii").splitlines())
    return sum(512 * int(row[5]) for row in rows if (Path("/sys/block") / row[2]).exists())


def forget(path: Path) -> None:
    """Let no page of a file be in memory: one that is there counts for whoever brought it in."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def written(path: Path, limit_bytes: int) -> Path:
    """The model, unless it is there."""
    if path.exists():
        return path
    n_layers = -(-2 * limit_bytes // LAYER_BYTES)
    with tempfile.TemporaryDirectory() as name:
        with closing(open_model(MODELS[0])) as directory:
            write_base(directory, Path(name) / "base.gguf")
        with closing(open_model(Path(name) / "base.gguf")) as vocabulary:
            shape = Shape(n_layers, N_HIDDEN, N_INNER, 8, 2, N_VOCAB)
            return write_shape(path, "beyond memory", "F16", vocabulary, shape=shape)


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=512, help="MiB")
    parser.add_argument("--chunks", type=int, default=8, help="of --n-ctx tokens")
    parser.add_argument("--n-ctx", type=int, default=128)
    parser.add_argument("--sums", default="64MiB", help="memory for covariances")
    parser.add_argument("--out", type=Path, default=OUT / "beyond_memory")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    limit_bytes = options.limit * MIB
    path = written(options.out / f"{2 * options.limit}MiB.gguf", limit_bytes)
    print(f"the file has {path.stat().st_size / MIB:.0f} MiB, the limit is {options.limit} MiB", flush=True)
    is_missed = False
    with tempfile.TemporaryDirectory(dir=options.out) as name:
        for step, more in (("imatrix", ()), ("calibrate", ("--memory", options.sums))):
            results = []
            for where in ("unlimited", "limited"):
                result = Path(name) / f"{step}-{where}.gguf"
                words = (step, path, "--chunks", options.chunks, "--n-ctx", options.n_ctx, *more)
                words = (*words, "-o", result, "--home", Path(name) / f"{step}-{where}")
                forget(path)
                if where == "limited":
                    with group(limit_bytes) as limited:
                        seconds, n_read = command(limited, *words)
                        peak = f", the group's most {limited.peak_bytes / MIB:.0f} MiB"
                else:
                    (seconds, n_read), peak = command(None, *words), ""
                print(f"{step}, {where}: {seconds:.1f} s, {n_read / MIB:.0f} MiB read from disk{peak}", flush=True)
                results.append(result.read_bytes())
            is_equal = results[0] == results[1]
            print(f"{step}: {len(results[0])} bytes, {'equal' if is_equal else 'different'}", flush=True)
            is_missed |= not is_equal
    return int(is_missed)


if __name__ == "__main__":
    sys.exit(main())
