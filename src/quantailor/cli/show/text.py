"""What the tables and sentences share: text from elsewhere, long lists of names."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape


def plain(text: str) -> str:
    """Text from elsewhere, whose brackets are no markup."""
    return escape(text)


def several(names: Sequence[str]) -> str:
    """Names, the first six of many."""
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:6])} and {len(names) - 6} more"
