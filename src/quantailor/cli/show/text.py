"""What the tables and sentences share: text from elsewhere, long lists of names."""

from __future__ import annotations

from collections.abc import Sequence


def plain(text: str) -> str:
    """Text from elsewhere without markup."""
    return text.replace("[", r"\[")


def several(names: Sequence[str]) -> str:
    """Names, the first six of many."""
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:6])} and {len(names) - 6} more"
