"""What a model can be asked for, as its header says: how long its chunks may be, and whether it predicts the next token."""

from __future__ import annotations

from quantailor.errors import UnsupportedModelError
from quantailor.models.source import ModelSource

_POSITIONS = "position_embd.weight"
_CLASSIFIER = "cls."
_POOLING = {1: "mean", 2: "first token", 3: "last token", 4: "ranking"}
"""`pooling_type` of models that give one vector or one score for a text; 0 and negative numbers mean that there is none."""
_ENCODER_DECODERS = ("t5",)
BY_WEIGHT_ERRORS = "Use weight errors: `study --level quick`, `plan --basis ranking`, `make --basis ranking --no-verify`"
"""What can be done with a model that is not scored."""


def n_positions(source: ModelSource) -> int | None:
    """How many positions the model has learned; None where it computes them, so that chunks of any length run."""
    return next((tensor.n_rows for tensor in source.tensors if tensor.name == _POSITIONS), None)


def require_positions(source: ModelSource, n_tokens: int) -> None:
    """Raise UnsupportedModelError where a model has learned fewer positions than a run to time it takes."""
    positions = n_positions(source)
    if positions is not None and positions < n_tokens:
        what = f"{source.name} has {positions} positions, too few to time it: a run has {n_tokens} tokens"
        raise UnsupportedModelError(what, remedy="Plan without a speed")


def trained_context(source: ModelSource) -> int | None:
    """Tokens that the model was made for, where it says so."""
    stated = source.metadata.get(f"{source.architecture}.context_length")
    return stated.value if stated is not None and isinstance(stated.value, int) else None


def why_no_predictions(source: ModelSource) -> str | None:
    """Why the model does not predict the next token of a text, in words; None where it does."""
    architecture = source.architecture
    causal, pooling = (source.metadata.get(f"{architecture}.{key}") for key in ("attention.causal", "pooling_type"))
    if causal is not None and causal.value is False:
        return "its attention is not causal: it reads whole texts"
    if pooling is not None and isinstance(pooling.value, int) and pooling.value in _POOLING:
        return f"it is made for embeddings or rankings, pooling type {_POOLING[pooling.value]}"
    if any(tensor.name.startswith(_CLASSIFIER) for tensor in source.tensors):
        return "it has the head of a classifier"
    if architecture in _ENCODER_DECODERS:
        return "its decoder answers to the text that its encoder reads"
    return None


def require_predictions(source: ModelSource) -> None:
    """Raise UnsupportedModelError where a model does not predict the next token, on which perplexity and KL divergence rest."""
    if why := why_no_predictions(source):
        raise UnsupportedModelError(
            f"{source.name} does not predict next tokens ({why}), so it can be neither probed nor verified",
            remedy=BY_WEIGHT_ERRORS,
        )
