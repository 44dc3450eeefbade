"""Rows of probes.jsonl, put in order: rising steps, and numbers that are numbers."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from stagecli.files import JsonRow, number
from stagecli.report.formats import counted

LEVEL = re.compile(r"Dn?_t(\d+(?:\.\d+)?)")  # D or Dn at one noise level, such as Dn_t0.30
NUMBERS = (
    "D",
    "Dn",
    "d_ceiling",
    "d_ref",
    "tau",
    "slope",
    "slope_se",
    "q",
    "q_se",
    "target",
    "r",
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
    matches = {match[1] for row in rows for key in row if (match := LEVEL.fullmatch(key))}
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
    for key in ("frozen", "failsafe"):
        clean[key] = row.get(key) is True
    clock = row.get("clock_step")
    clean["clock_step"] = clock if type(clock) is int else None
    return clean
