"""Rows of probes.jsonl, put in order: rising steps, and numbers that are numbers."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagecli.errors import counted
from stagecli.files import JsonRow, number

LEVEL = re.compile(r"(Dn?|[GRr])_t(\d+(?:\.\d+)?)")  # a value at one noise level, as in Dn_t0.30
NUMBERS = (
    "D",
    "Dn",
    "d_ceiling",
    "d_ref",
    "tau",
    "tau_end",
    "slope",
    "slope_se",
    "r",
    "r_now",
    "p_rise",
    "seconds",
    "seconds_total",
    "share",
)
TEXTS = ("stage", "source", "monitor")


def in_order(rows: Sequence[JsonRow], damage: list[str]) -> list[JsonRow]:
    """Probe rows with rising steps and clean values.

    Where attempts overlap, the later one counts. Within an attempt, rows outside the longest rising
    sequence of steps are dropped and counted in `damage`.
    """
    attempts: dict[int, list[JsonRow]] = {}
    for row in rows:
        attempts.setdefault(row["attempt"], []).append(row)
    ordered: list[JsonRow] = []
    dropped = 0
    for attempt in sorted(attempts):
        rising = _longest_rising(attempts[attempt])
        dropped += len(attempts[attempt]) - len(rising)
        while ordered and ordered[-1]["step"] >= rising[0]["step"]:
            ordered.pop()
        ordered += rising
    if dropped:
        damage.append(
            f"probes.jsonl: dropped {counted(dropped, 'row')} out of order"
            " (the step goes backwards within an attempt)"
        )
    return [_clean(row) for row in ordered]


def noise_levels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The noise levels t of the probes as the rows spell them, lowest first."""
    matches = {match[2] for row in rows for key in row if (match := LEVEL.fullmatch(key))}
    return sorted(matches, key=float)


def _longest_rising(rows: Sequence[JsonRow]) -> list[JsonRow]:
    """The longest subsequence of strictly rising steps (patience sorting)."""
    last_steps: list[int] = []  # of the best sequence of each length: the smallest last step ...
    last_rows: list[int] = []  # ... and the index of its row
    previous: list[int | None] = []
    for index, row in enumerate(rows):
        length = bisect_left(last_steps, row["step"])
        previous.append(last_rows[length - 1] if length else None)
        last_steps[length:] = [row["step"], *last_steps[length + 1 :]]
        last_rows[length:] = [index, *last_rows[length + 1 :]]
    rising: list[JsonRow] = []
    current = last_rows[-1] if last_rows else None
    while current is not None:
        rising.append(rows[current])
        current = previous[current]
    return rising[::-1]


def _clean(row: JsonRow) -> JsonRow:
    clean = dict(row)
    for key in row:
        if key in NUMBERS or LEVEL.fullmatch(key):
            clean[key] = number(row[key])
        elif key in TEXTS and not isinstance(row[key], str):
            del clean[key]
    clean["frozen"] = row.get("frozen") is True
    return clean


def is_old(row: Mapping[str, Any]) -> bool:
    """Whether a row is of an earlier version, whose slopes and r were computed by another rule."""
    return "r" in row and "r_now" not in row


@dataclass(frozen=True)
class LevelProgress:
    """Progress at one noise level, spelt as in the row: made and to come, in units of Dn."""

    t: str
    made: float
    to_come: float

    @property
    def total(self) -> float:
        return self.made + self.to_come


def progress_by_level(row: Mapping[str, Any]) -> list[LevelProgress]:
    """Progress at the noise levels of a row that have both numbers, lowest first."""
    levels = []
    for t in noise_levels([row]):
        made = number(row.get(f"G_t{t}"))
        to_come = number(row.get(f"R_t{t}"))
        if made is not None and to_come is not None:
            levels.append(LevelProgress(t, max(0.0, made), max(0.0, to_come)))
    return levels
