"""Does everything that runs a model do so on an NVIDIA GPU? `make gpu-check` builds llama-cpp-python with CUDA and finds out.

    python -m tools.gpu_check pack FOLDER    on a machine with a network: the sources and wheels that a machine without needs
    make gpu-check                           on the machine with the GPU, which has a network
    make gpu-check CARRIED=FOLDER            on one without

The build takes some minutes on 16 cores, because only the architecture of the machine's own GPU is compiled and fused
attention is left out; everything lands in .gpu-check.
"""

from __future__ import annotations

import argparse
import ctypes.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
SITE = ROOT / ".gpu-check"
BUILD = (
    "-DGGML_CUDA=ON",
    "-DGGML_CUDA_FA=OFF",
    "-DGGML_CUDA_NO_VMM=ON",
    "-DGGML_NATIVE=ON",
    "-DLLAVA_BUILD=OFF",
    f"-DCMAKE_CUDA_ARCHITECTURES={os.environ.get('CUDA_ARCHITECTURES', 'native')}",
)
NOT_BUILT = ("docs", "models", "tests", "benches", "examples", "scripts", "conversion", "gguf-py", "media", "pocs", "app", "tools", "ci")
"""Folders of llama.cpp that the libraries are not made from."""
NOT_PACKED = (".git", "docs", "docker", "examples", "tests")
"""Folders of llama-cpp-python's sdist."""


def llama_cpp_python() -> str:
    """The pinned requirement."""
    pins = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8")
    found = re.search(r"^llama[_-]cpp[_-]python==\S+", pins, re.MULTILINE)
    if not found:
        raise SystemExit("requirements/dev.txt does not pin llama-cpp-python")
    return found[0]


def requirements(without: frozenset[str]) -> list[str]:
    """What Quantailor needs at run time, as pinned, and what those need, less some names."""
    pins = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8").split()
    pinned = {_plain(pin.partition("==")[0]): pin for pin in pins if "==" in pin}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {_plain(re.split(r"[<>=\[ ]", text)[0]) for text in project["dependencies"]} - {"llama-cpp-python"}
    below = {"annotated-types", "annotated-doc", "typing-inspection", "diskcache", "shellingham"}
    return [pinned[name] for name in sorted((names | below) - without) if name in pinned]


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def pack(folder: Path, python: str, without: frozenset[str]) -> None:
    """Put the sources of llama-cpp-python, less what is not built, and wheels for Linux into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    with tempfile.TemporaryDirectory() as name:
        subprocess.run([*pip, "--no-binary", ":all:", "--dest", name, llama_cpp_python()], check=True)
        (sdist,) = Path(name).glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            archive.extractall(Path(name) / "unpacked", filter="data")
        (unpacked,) = (Path(name) / "unpacked").iterdir()
        for part in (*NOT_PACKED, *(f"vendor/llama.cpp/{part}" for part in NOT_BUILT)):
            shutil.rmtree(unpacked / part, ignore_errors=True)
        with tarfile.open(folder / sdist.name, "w:gz") as archive:
            archive.add(unpacked, unpacked.name)
    platforms = [word for tag in ("2_28", "2_17", "2014", "1") for word in ("--platform", _platform(tag))]
    subprocess.run(
        [*pip, "--only-binary", ":all:", "--python-version", python, *platforms, "--dest", str(folder), *requirements(without)], check=True
    )
    print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.1f} MB")


def _platform(tag: str) -> str:
    return f"manylinux_{tag}_x86_64" if "_" in tag else f"manylinux{tag}_x86_64"


def cublas() -> tuple[list[str], dict[str, str]]:
    """Where the toolkit has no cuBLAS but Python's packages do: what CMake and the compilers must be told."""
    for place in map(Path, sys.path):
        for home in place.glob("nvidia/cu*"):
            found = sorted((home / "lib").glob("libcublas.so*"))
            if found and (home / "include" / "cublas_v2.h").exists():
                lt = sorted((home / "lib").glob("libcublasLt.so*"))
                options = [f"-DCUDA_cublas_LIBRARY={found[0]}", f"-DCUDA_cublasLt_LIBRARY={lt[0]}"]
                paths = {"CPATH": str(home / "include"), "LD_LIBRARY_PATH": str(home / "lib")}
                return options, {key: os.pathsep.join(filter(None, (value, os.environ.get(key)))) for key, value in paths.items()}
    return [], {}


def own_libstdcxx() -> dict[str, str]:
    """Where a compiler links libstdc++ statically, libggml-cuda gives its copy to libllama, and what is printed while a model loads
    ends the process; the shared library, loaded before, serves both.
    """
    shared = ctypes.util.find_library("stdc++")
    before = os.environ.get("LD_PRELOAD")
    return {"LD_PRELOAD": ":".join(filter(None, (shared, before)))} if shared and sys.platform == "linux" else {}


def check(carried: Path | None, options: list[str]) -> int:
    """Build, install and run `benchmarks.gpu` with these options; its exit code."""
    toolkits = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")), *sorted(Path("/usr/local").glob("cuda-*"))]
    more, paths = ([], {}) if any((toolkit / "include" / "cublas_v2.h").exists() for toolkit in toolkits) else cublas()
    environment = {**os.environ, **paths, "CMAKE_ARGS": " ".join((*BUILD, *more))}
    if not (SITE / "llama_cpp").exists():
        print(f"== llama-cpp-python with CUDA: {environment['CMAKE_ARGS']}", flush=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", "--target", str(SITE)]
        if carried:
            files = sorted(str(path) for pattern in ("*.whl", "*.tar.gz") for path in carried.glob(pattern))
            subprocess.run([*pip, "--no-index", "--no-deps", "--no-build-isolation", *files], check=True, env=environment)
        else:
            wanted = [llama_cpp_python(), *requirements(frozenset())]
            subprocess.run([*pip, "--no-binary", "llama-cpp-python", *wanted], check=True, env=environment)
    environment |= own_libstdcxx()
    environment["PYTHONPATH"] = os.pathsep.join((str(SITE), str(ROOT / "src"), str(ROOT)))
    return subprocess.run([sys.executable, "-m", "benchmarks.gpu", *options], env=environment, cwd=ROOT, check=False).returncode


def main() -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("folder", type=Path)
    packing.add_argument("--python", default="3.12", help="of the machine with the GPU")
    packing.add_argument("--without", default="", help="what that Python has already: names, separated by commas")
    checking = commands.add_parser("check")
    checking.add_argument("--carried", type=Path, help="what `pack` made")
    options, rest = parser.parse_known_args()
    if options.command == "pack":
        pack(options.folder, options.python, frozenset(map(_plain, options.without.split(","))))
        return 0
    return check(options.carried, rest)


if __name__ == "__main__":
    sys.exit(main())
