"""Presets with better codes in the same types: `python -m benchmarks.better_codes`.

For every preset: a file of the preset's own types, compensated, verified beside the preset as llama.cpp writes it, with the same
importance matrix. Covariances come from `--text`, the verdict from `--heldout`: another kind of text shows whether codes fit their text
alone. `--calibration-chunks N` computes the matrix and the covariances from so few chunks.
"""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks.presets import PRESETS, Built, judge, score
from benchmarks.setting import Setting, parse


def build(setting: Setting, base: Path, preset: str) -> Built:
    """The preset's types, compensated."""
    folder = setting.folder / "better codes" / base.stem
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{preset}-compensated.gguf"
    setting.run("build", base, preset, "--rounding", "compensated", "-o", file, "--force")
    return Built(preset, None, file)


def main() -> None:
    """Write the tables of every model."""
    setting, options = parse(
        __doc__,
        ("--chunks", int, 200, "held-out chunks"),
        ("--calibration-chunks", int, 0, "chunks for covariances; 0 for the whole text"),
        ("--presets", str, ",".join(PRESETS[:-1]), "presets, with commas"),
    )
    for model in setting.models:
        base = setting.base(model)
        limit = ("--chunks", options.calibration_chunks) if options.calibration_chunks else ()
        setting.run("calibrate", base, "-f", setting.text, *limit)
        files = [build(setting, base, preset) for preset in options.presets.split(",")]
        score(setting, base, files, options.chunks)
        print(f"## {base.stem}\n\n{options.chunks} chunks of `{setting.heldout.name}`; covariances from `{setting.text.name}`.\n")
        print("| preset | compensated, KLD | preset, KLD | ratio (95 %) |\n|---|---|---|---|")
        logs = []
        for item in files:
            found = judge(setting, base, item, options.chunks)
            logs.append(math.log(found.ratio))
            low, high = found.interval
            print(f"| {item.preset} | {found.ours:.5f} | {found.theirs:.5f} | {found.ratio:.3f} ({low:.3f} to {high:.3f}) |", flush=True)
        print(f"\nGeometric mean of the ratios: **{math.exp(sum(logs) / len(logs)):.3f}**.\n")


if __name__ == "__main__":
    main()
