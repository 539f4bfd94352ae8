"""What config.json says of attention that llama.cpp does otherwise, or not for every architecture."""

from __future__ import annotations

from collections.abc import Sequence

from quantailor.errors import UnsupportedModelError
from quantailor.models.convert.families.config import Config
from quantailor.models.json_files import mapping


def reads_both_ways(config: Config) -> bool:
    """Whether tokens also see those after them."""
    return config.get("is_causal") is False or config.get("use_bidirectional_attention") is True


def refuse_rotated_part(config: Config, family: str) -> None:
    """Raise UnsupportedModelError where a part of each head is rotated; llama.cpp rotates heads of this family whole."""
    part = mapping(config.get("rope_parameters")).get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if part is not None and config.as_number("partial_rotary_factor", part) != 1:
        raise UnsupportedModelError(
            f"{config.place} has partial_rotary_factor = {str(part)[:40]}, and llama.cpp rotates whole heads of every {family} model",
            remedy="No GGUF file can hold this model; if whole heads were rotated in its training, correct config.json",
        )


def attention_notes(config: Config, architecture: str, window_keys: Sequence[str], n_layers: int) -> list[str]:
    """What a file cannot say, or llama.cpp does not heed: attention that is not causal, and one that is limited to a window.

    `window_keys` are those that together limit it to the last `sliding_window` tokens where llama.cpp does not; none where it does.
    """
    notes = []
    if reads_both_ways(config):
        notes.append(
            "config.json says that attention is not causal: it is kept as attention.causal, which llama.cpp heeds for few architectures, "
            "so give its programs `--attention non-causal`"
        )
    window, length, first = (config.get(key) for key in ("sliding_window", "max_position_embeddings", "max_window_layers"))
    is_limited = bool(window_keys) and all(config.get(key) for key in window_keys) and not (type(first) is int and first >= n_layers)
    if is_limited and type(window) is int and type(length) is int and window < length:
        notes.append(
            f"config.json limits attention to {window:,} tokens, which llama.cpp does not for {architecture}: in longer texts the file "
            "computes something else than the checkpoint"
        )
    return notes
