"""Stands in for llama.cpp's convert_hf_to_gguf.py: takes its arguments, talks like it, and does what config.json asks for.

`fake` in config.json may hold: `fails`, the lines to end with; `slow`, seconds between blocks; `pid` and `environment`, files
to write these to; `runs`, a file that gets a line for each run. What it writes is the directory's `ready.data`, with `--mmproj` its
`projector.data`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

BLOCKS = 20


def main() -> None:
    """Convert."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--outfile")
    parser.add_argument("--outtype")
    parser.add_argument("--mmproj", action="store_true")
    asked = parser.parse_args()
    assert asked.outtype in (("f16", "bf16", "q8_0") if asked.mmproj else ("auto",))
    wanted = json.loads((asked.model / "config.json").read_text(encoding="utf-8")).get("fake", {})
    tell(wanted)
    sys.stderr.write(f"INFO:hf-to-gguf:Loading model: {asked.model.name}\n")
    if "fails" in wanted:
        sys.stderr.write("\n".join(wanted["fails"]) + "\n")
        sys.exit(1)
    data = (asked.model / ("projector.data" if asked.mmproj else "ready.data")).read_bytes()
    # llama.cpp fills in the type where the name has braces; versions before 2026 put "mmproj-" before a projector's.
    place = Path(asked.outfile.format(ftype="bf16"))
    if asked.mmproj and "mmproj" not in place.name:
        place = place.with_name(f"mmproj-{place.name}")
    with place.open("wb") as output:
        for number in range(BLOCKS):
            output.write(data[len(data) * number // BLOCKS : len(data) * (number + 1) // BLOCKS])
            output.flush()
            share = (number + 1) / BLOCKS
            sys.stderr.write(f"\rWriting: {100 * share:3.0f}%|##   | {200 * share:.1f}M/200M [00:01<00:02, 98.7Mbyte/s]")
            sys.stderr.flush()
            time.sleep(wanted.get("slow", 0))
    sys.stderr.write("\nINFO:hf-to-gguf:Model successfully exported\n")


def tell(wanted: dict[str, str]) -> None:
    """Write what a test wants to know of this process."""
    if "pid" in wanted:
        Path(wanted["pid"]).write_text(str(os.getpid()), encoding="utf-8")
    if "environment" in wanted:
        Path(wanted["environment"]).write_text(json.dumps(dict(os.environ)), encoding="utf-8")
    if "runs" in wanted:
        with Path(wanted["runs"]).open("a", encoding="utf-8") as runs:
            runs.write(" ".join(sys.argv[4:]) + "\n")


if __name__ == "__main__":
    main()
