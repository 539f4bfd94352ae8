"""What a plan chooses from, what it chose, and what it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from quantailor.records.tensors import layer_of, role_of

Basis = Literal["ranking only", "probes"]
"""What a damage figure rests on: what is expected of weight errors (it ranks mixes), or measured probes (nats)."""

RoundingWish = Literal["auto", "plain", "compensated"]
"""How weights are to become codes: as ggml rounds them, with errors of one block made up for by the next, or as what is there says."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One type that a tensor may take, as the strategy room sees it."""

    type_name: str
    size_bytes: int
    bits_per_weight: float
    damage: float
    """What the objective adds up; without probes what is expected of the weight error, see METHODS 4."""
    relative_mse: float = 0.0
    weighted_mse: float = 0.0
    rmse: float = 0.0
    max_abs_error: float = 0.0
    output_mse: float | None = None

    @property
    def error(self) -> float:
        """What damages are reckoned from: `output_mse` where there is one, else `weighted_mse`."""
        return self.weighted_mse if self.output_mse is None else self.output_mse

    def with_damage(self, damage: float) -> Cell:
        """The same with another damage; written out, because `dataclasses.replace` takes five times as long."""
        return Cell(
            self.type_name,
            self.size_bytes,
            self.bits_per_weight,
            damage,
            self.relative_mse,
            self.weighted_mse,
            self.rmse,
            self.max_abs_error,
            self.output_mse,
        )


@dataclass(frozen=True, slots=True)
class TensorCells:
    """A tensor with every type it may take; `cells` are in no particular order and never empty."""

    name: str
    n_elements: int
    cells: tuple[Cell, ...]
    importance: float = 0.0
    """Share of the model's damage that this tensor would do at one common type, 0 to 1; see METHODS 5."""

    @property
    def role(self) -> str:
        return role_of(self.name)

    @property
    def layer(self) -> int | None:
        return layer_of(self.name)

    def cell(self, type_name: str) -> Cell:
        """The cell of a type. Raises KeyError where the tensor has none."""
        for cell in self.cells:
            if cell.type_name == type_name:
                return cell
        raise KeyError(f"{self.name} has no cell for {type_name}")


@dataclass(frozen=True, slots=True)
class TensorChoice:
    """The type one tensor gets, and why."""

    name: str
    type_name: str
    reason: str
    damage: float = 0.0
    pinned: bool = False
    knee: str | None = None
    """This tensor's own knee, as a diagnostic."""
    price_range: tuple[float, float] | None = None
    """Prices (damage per byte) between which the optimum keeps this choice; the upper end may be infinite."""


@dataclass(frozen=True, slots=True)
class Grounds:
    """The evidence that a plan or a prediction stands on: probes and whole mixes of one model on one text (METHODS 4)."""

    name: str
    """What `--evidence` calls it."""
    text: str
    """The text's name."""
    n_ctx: int
    imatrix: str | None
    """Fingerprint of the importance matrix that the swapped weights were quantized with."""
    carried: bool
    """Whether alphas are carried over to another importance matrix or rounding than that."""
    n_probed: int
    """Tensors that were probed, by themselves or in a group."""
    n_tensors: int
    """Tensors that can be probed: all whose type is a choice, without those known to be outside the graph."""
    weight_share: float
    """Part of these tensors' weights that was probed, 0 to 1."""
    n_chunks: int
    """Of a probe; the median where they differ."""
    n_mixes: int
    """Whole mixes measured in memory."""
    n_files: int
    """Whole mixes built as files."""
    command: str
    """What would make it cover more, or predict more closely."""
    rounding: str = ""
    """How the swapped weights were rounded, "plain" or "compensated", where a plan's are rounded otherwise."""
    rest: str = ""
    """The type of few bits that the base rested in; "" where it was as fine as stored."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a strategy will give, before it is built."""

    file_size_bytes: int
    tensor_bytes: int
    bits_per_weight: float
    """8 x tensor bytes / weights, over all tensors of the file."""
    damage: float
    basis: Basis = "ranking only"
    kld_nats: float | None = None
    kld_interval_nats: tuple[float, float] | None = None
    no_prediction: str | None = None
    """Why probes predict no KLD; None where they do, and without probes."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """Which type each quantizable tensor gets, and everything needed to know where that came from."""

    model_fingerprint: str
    model_name: str
    architecture: str
    method: str
    """"optimal", "knee", "greedy", "bins", "preset" or "manual"."""
    tensors: tuple[TensorChoice, ...]
    target: Mapping[str, str | int | float] = field(default_factory=dict)
    """What was asked for, e.g. {"size_bytes": 4500000000} or {"bits_per_weight": 4.5} or {"like": "Q4_K_M"}."""
    parameters: Mapping[str, object] = field(default_factory=dict)
    """The method's own options and the constraints, as plain data."""
    inputs: Mapping[str, str | int | float | None] = field(default_factory=dict)
    """Where the figures came from: imatrix fingerprint, measurement mode, program version."""
    basis: Basis = "ranking only"
    prediction: Prediction | None = None

    @property
    def types(self) -> dict[str, str]:
        """Tensor name -> type name."""
        return {choice.name: choice.type_name for choice in self.tensors}
