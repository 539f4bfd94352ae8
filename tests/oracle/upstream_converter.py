"""Runs llama.cpp's convert_hf_to_gguf.py on several models: `upstream_converter.py LLAMA_CPP JOBS_AS_JSON`."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(llama_cpp: Path, jobs: list[dict[str, str]]) -> None:
    script = llama_cpp / "convert_hf_to_gguf.py"
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    text_model = importlib.import_module("conversion.base").TextModel
    by_hash = text_model.get_vocab_base_pre
    for job in jobs:
        # A made-up vocabulary is in no list of hashes.
        text_model.get_vocab_base_pre = _always(job["pre"]) if job["pre"] else by_hash
        sys.argv = [str(script), job["model"], "--outfile", job["output"], "--outtype", "auto"]
        runpy.run_path(str(script), run_name="__main__")


def _always(name: str) -> Callable[[Any, Any], str]:
    return lambda model, tokenizer: name


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
