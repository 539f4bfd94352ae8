"""A vision tower through llama.cpp's real converter: the same bytes as it writes by itself, and libmtmd takes both files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Command
from upstream import llama_cpp_sources
from vision_models import write_vision

pytestmark = pytest.mark.oracle

FEW = ("--types", "Q4_0,Q8_0", "--imatrix", "none", "--basis", "ranking", "--no-verify", "--threads", 1)
LOADS = """
import sys
import llama_cpp
from llama_cpp import mtmd_cpp

llama_cpp.llama_backend_init()
settings = llama_cpp.llama_model_default_params()
settings.n_gpu_layers = 0
model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), settings)
if not model:
    sys.exit(2)
chosen = mtmd_cpp.mtmd_context_params_default()
chosen.use_gpu, chosen.n_threads, chosen.warmup = False, 1, True
context = mtmd_cpp.mtmd_init_from_file(sys.argv[2].encode(), model, chosen)
sys.exit(0 if context and mtmd_cpp.mtmd_support_vision(context) else 3)
"""


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights."""
    return write_vision(tmp_path_factory.mktemp("models") / "seeing")


def by_hand(model: Path, output: Path, type_name: str) -> bytes:
    """What llama.cpp's converter writes by itself."""
    script = llama_cpp_sources() / "convert_hf_to_gguf.py"
    command = [sys.executable, str(script), str(model), "--mmproj", "--outfile", str(output), "--outtype", type_name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-4000:]
    return output.read_bytes()


def takes_images(model: Path, projector: Path) -> bool:
    """Whether libmtmd loads both and runs the tower once, on an empty picture; in a process of its own, as it may end that."""
    done = subprocess.run([sys.executable, "-c", LOADS, str(model), str(projector)], capture_output=True, text=True, check=False)
    return done.returncode == 0


@pytest.mark.parametrize("type_name", ["f16", "bf16", "q8_0"])
def test_make_leaves_both_files_as_llama_cpp_takes_them(type_name: str, seeing: Path, quantailor: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = quantailor("make", seeing, "--bpw", 7, "-o", out, *FEW, "--mmproj", type_name, "--home", tmp_path / "home", "--json")
    assert outcome.code == 0, outcome.err
    projector = Path(outcome.result["mmproj"]["path"])
    assert projector.read_bytes() == by_hand(seeing, tmp_path / f"mmproj-{type_name}.gguf", type_name)
    assert outcome.result["mmproj"]["type_name"] == type_name.upper()
    text_model = Path(outcome.result["build"]["paths"][0])
    assert takes_images(text_model, projector)
    assert not takes_images(projector, projector)
    assert not takes_images(text_model, text_model)
