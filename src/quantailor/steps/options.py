"""Options that several steps share, as plain records that travel to a job and back through JSON.

Paths are absolute by then: the worker may run in another directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from quantailor.errors import OptionError
from quantailor.files import expanded
from quantailor.ggml.devices import Devices
from quantailor.records import EvalName

COMPUTE = "compute"
"""An importance matrix that is computed in any case."""
REPO = "repo"
"""The importance matrix that the model's repository ships."""
DEFAULT_N_CTX = 512
NO_EVAL, N_PROMPTS = "none", 300
Way = Literal["auto", "native", "llama.cpp"]
"""Which conversion: ours, or llama.cpp's own converter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A model on the hub, given in place of a path: the first stage of the job downloads it."""

    repo_id: str
    revision: str | None = None
    token_file: str | None = None
    """The token's file, never the token."""
    gguf_file: str | None = None
    """This GGUF file (any of its shards) instead of what would be chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """What of this machine a step may use, and which others."""

    n_threads: int | None = None
    """None for all processors."""
    n_gpu_layers: int = 0
    """Layers that llama.cpp runs on the GPU and on RPC servers."""
    cluster: str | None = None
    """Workers that do what can be spread: "local:N", or the address of Dask's scheduler; None for this machine alone."""
    cluster_paths: tuple[str, ...] = ()
    """HERE=THERE: folders that workers have elsewhere."""
    rpc: tuple[str, ...] = ()
    """HOST:PORT of llama.cpp's RPC servers that share the layers with the GPU."""

    @property
    def devices(self) -> Devices:
        """What takes layers from the processor."""
        return Devices(self.n_gpu_layers, self.rpc)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """How a Hugging Face directory becomes GGUF."""

    converter: str | None = None
    """llama.cpp's convert_hf_to_gguf.py, or the folder that holds it; None finds it."""
    way: Way = "auto"
    """"auto" takes llama.cpp's converter where our own conversion does not know the model."""
    trust_remote_code: bool = False
    """Let llama.cpp's converter run code that the directory brings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evals:
    """What files are asked beside their divergences."""

    names: tuple[EvalName, ...] = ()
    prompts: int = N_PROMPTS
    """For "greedy", at most."""
    choices: str | None = None
    """The file of questions for "choices"; None takes those that ship with Quantailor."""


def eval_names(names: Sequence[str]) -> tuple[EvalName, ...]:
    """Evaluations by name, each once; "none" stands for none, alone. Raises OptionError for one that is not known."""
    known = get_args(EvalName)
    for name in names:
        if name not in (*known, NO_EVAL):
            raise OptionError(f"{name!r} is not an evaluation", remedy=f"Give {', '.join(known)} or {NO_EVAL}")
    if NO_EVAL in names and len(set(names)) > 1:
        raise OptionError(f"--eval {NO_EVAL} goes with no other", remedy="Leave out one of them")
    return tuple(name for name in known if name in names)


def absolute(path: str | Path) -> str:
    """A path that means the same in every working directory."""
    return str(expanded(path).absolute())
