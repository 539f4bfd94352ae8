"""Where llama.cpp keeps and runs a model's layers: on the processor, on GPUs of this machine, on servers of its RPC backend."""

from __future__ import annotations

from dataclasses import dataclass

from quantailor.ggml import library


@dataclass(frozen=True, slots=True)
class Devices:
    """Who takes layers from the processor, and how many."""

    n_gpu_layers: int = 0
    """Layers on GPUs and servers, -1 for all."""
    rpc: tuple[str, ...] = ()
    """HOST:PORT of the RPC servers, which share these layers with the GPUs here."""

    @property
    def is_used(self) -> bool:
        """Whether any layer is taken from the processor."""
        return self.n_gpu_layers != 0

    @property
    def has_kernels_of_processors(self) -> bool:
        """Whether F16 weights are multiplied as on a processor: here, and on RPC servers as `ggml.remote.rpc.serve` sets them up."""
        return not self.is_used or bool(self.rpc)

    @property
    def engine(self) -> str:
        """See `library.engine`."""
        return library.engine(on_gpu=self.is_used and not self.rpc, over_rpc=self.is_used and bool(self.rpc))


PROCESSOR = Devices()
