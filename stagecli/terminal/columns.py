"""How many columns a stream has, whatever the environment says."""

from __future__ import annotations

import os
from typing import TextIO

__all__ = ["columns_of", "usable_environment"]

PLAIN_WIDTH = 100  # columns of a stream that is no terminal
FALLBACK_WIDTH = 80  # columns where COLUMNS is no number that anything fits in
USABLE = range(20, 10_000)  # columns, and lines


def columns_of(stream: TextIO) -> int | None:
    """Columns to print to; None: ask the terminal. With COLUMNS=0 Rich would print nothing."""
    columns = os.environ.get("COLUMNS", "")
    if not columns:
        return None if stream.isatty() else PLAIN_WIDTH
    return int(columns) if _is_usable(columns) else FALLBACK_WIDTH


def usable_environment() -> dict[str, str]:
    """The environment without sizes of the terminal that Rich could not use."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("COLUMNS", "LINES") or _is_usable(value)
    }


def _is_usable(size: str) -> bool:
    return size.isascii() and size.isdigit() and len(size) < 6 and int(size) in USABLE
