"""Figures as people read them, the same in every room."""

from __future__ import annotations


def format_size(n_bytes: float) -> str:
    """Bytes in the largest unit that keeps the figure above one: "4.20 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n_bytes) < 1024:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.2f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.2f} TiB"
