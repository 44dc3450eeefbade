"""How many columns a stream has."""

from __future__ import annotations

import os
from typing import TextIO

__all__ = ["columns_of"]

PLAIN_WIDTH = 100  # columns of a stream that is no terminal
FALLBACK_WIDTH = 80  # columns where COLUMNS is no number that anything fits in
USABLE = range(20, 10_000)


def columns_of(stream: TextIO) -> int | None:
    """Columns to print to; None: ask the terminal. With COLUMNS=0 Rich would print nothing."""
    columns = os.environ.get("COLUMNS", "")
    if not columns:
        return None if stream.isatty() else PLAIN_WIDTH
    if columns.isascii() and columns.isdigit() and len(columns) < 6 and int(columns) in USABLE:
        return int(columns)
    return FALLBACK_WIDTH
