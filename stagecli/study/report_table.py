"""A table of a study's report, for the terminal, Markdown and HTML alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReportTable:
    """brief: also shown on the terminal; notes: sentences that explain it, under the table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    brief: bool = False
