"""Is everything in the wheel and the sdist that the repository tracks under src? Run by `make dist`."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

DIST = Path("dist")


def main() -> int:
    """Print what is missing, if anything, and return the exit code."""
    tracked = subprocess.run(["git", "ls-files", "src"], check=True, capture_output=True, text=True).stdout.split()
    (wheel,) = DIST.glob("*.whl")
    (sdist,) = DIST.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {f"src/{name}" for name in archive.namelist()}
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    missing = {wheel.name: set(tracked) - in_wheel, sdist.name: {*tracked, "README.md", "LICENSE"} - in_sdist}
    for name, paths in missing.items():
        print(f"{name}: {len(paths)} tracked files are missing", *sorted(paths), sep="\n    ")
    return 1 if any(missing.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
