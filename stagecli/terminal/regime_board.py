"""The regime while a run trains: its part of the live board, and its words in a plain line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stagecli.files import JsonRow, number
from stagecli.report.curves import GrowingCurve
from stagecli.report.formats import ascii_text, bar, significant, sparkline
from stagecli.report.probe_rows import is_old, noise_levels, progress_by_level
from stagecli.report.regime import dn_rate, reference_name, slope_unit
from stagecli.report.regime_sentences import RECENT, share_of_progress
from stagecli.report.regime_text import (
    change_text,
    cost_text,
    legend_in_short,
    rate_text,
    stage_text,
    state_flags,
)
from stagecli.terminal.console import StyledLine

__all__ = ["RegimeBoard", "probe_text", "regime_key"]

COLUMN = 7  # characters per noise level in the table of Dn
LABEL = 9
HEADING = "regime"
WORD_RANKS = (5, 8, 9)  # of the lines of `regime_key`, among those of `RegimeBoard.lines`
LONGEST_BAR = 40
SHORTEST_BAR = 8
SOURCES = {"replay": "r is replayed", "linear": "r is linear in the step"}


@dataclass
class RegimeBoard:
    """State of the regime as a view receives it; another thread may call `lines` at any time."""

    last: JsonRow | None = None  # None until the first probe: nothing is shown
    recent: list[JsonRow] = field(default_factory=list)  # the last probes with a value
    event: JsonRow | None = None
    curve: GrowingCurve = field(default_factory=GrowingCurve)  # Dn

    def add(self, row: JsonRow) -> None:
        """A row of probes.jsonl."""
        value = number(row.get("Dn"))
        if value is not None:
            self.curve.add(value)
            self.recent = [*self.recent, row][-RECENT:]
        self.last = row

    def lines(
        self, width: int, room: int, plain: bool, info: Mapping[str, Any] | None = None
    ) -> list[StyledLine]:
        """The regime in `width` columns and at most `room` lines, the most important kept.

        plain: ASCII only; info: of the run, for its task and its steps.
        """
        row = self.last
        if row is None or room < 1:
            return []
        info = info or {}
        heading, distances, to_come = self._table(width, plain)
        # (rank, line): where room is short, the lines of highest rank are left out.
        ranked = [
            (0, _state_line(row, width, plain)),
            (3, heading),
            (1, distances),
            (4, to_come),
            (2, self._progress_line(row, info.get("steps"))),
            (7, _cost_line(row)),
        ]
        if self.event:
            ranked.append((6, _event_line(self.event)))
        words = zip(WORD_RANKS, regime_key(info.get("task")), strict=True)
        ranked += [(rank, [(text, "dim")]) for rank, text in words if len(text) <= width]
        kept = sorted(rank for rank, _ in ranked)[:room]
        return [
            [(ascii_text(text, plain), style) for text, style in line]
            for rank, line in ranked
            if rank in kept
        ]

    def _table(self, width: int, plain: bool) -> list[StyledLine]:
        """Heading, Dn and what is still to come of it: the mean and each noise level, of the newest
        probe with a value.
        """
        newest = self.recent[-1] if self.recent else self.last or {}
        levels = noise_levels([newest])[: max(0, (width - LABEL) // COLUMN - 1)]
        names = ("mean", *(f"t {float(t):.2g}" for t in levels))
        heading = "".join(f"{name:<{COLUMN}}" for name in names)

        # The curve of Dn, where there is room for one beside the columns.
        room = width - LABEL - len(heading)
        curve = ""
        if room >= SHORTEST_BAR:
            size = min(LONGEST_BAR, room)
            curve = sparkline(self.curve.values, size, ascii_only=plain, log=True)
        if curve and room >= 12:
            heading += "Dn over time"

        progress = {level.t: level for level in progress_by_level(newest)}
        left = [progress[t].to_come if t in progress else None for t in levels]
        known = [value for value in left if value is not None]
        distances = [number(newest.get(key)) for key in ("Dn", *(f"Dn_t{t}" for t in levels))]
        lines: list[StyledLine] = [
            [(" " * LABEL + heading, "dim")],
            _numbers("Dn", distances),
            _numbers("to come", [sum(known) / len(known) if known else None, *left]),
        ]
        if curve:
            lines[1].append((curve, "cyan"))
        return lines

    def _progress_line(self, row: JsonRow, steps: int | None) -> StyledLine:
        newest = self.recent[-1] if self.recent else row
        levels = progress_by_level(newest)
        rate = dn_rate(self.recent, slope_unit(steps, row["step"]))
        if is_old(newest):
            text = "by the rule of an earlier version"
        elif not levels or rate is None:
            text = "too few probes yet"
        else:
            text = f"{100 * share_of_progress(levels):.0f} % made, Dn by {rate_text(rate)}"
        return [(f"{'progress':<{LABEL}}", "dim"), (text, "")]


def _numbers(name: str, values: list[float | None]) -> StyledLine:
    """A row of the table: the mean in bold, then the noise levels."""
    text = "".join(f"{'-' if v is None else f'{v:.3f}':<{COLUMN}}" for v in values)
    return [(f"{name:<{LABEL}}", "dim"), (text[:COLUMN], "bold"), (text[COLUMN:], "")]


def _state_line(row: JsonRow, width: int, plain: bool) -> StyledLine:
    """The stage, what is unusual about r, and r with a bar."""
    words = [stage_text(row), *state_flags(row)]
    source = row.get("source")
    if source not in (None, "measured"):
        words.append(SOURCES.get(str(source), f"r is {source}"))
    state = ", ".join(words)
    r = number(row.get("r"))
    value = "unknown" if r is None else f"{r:<6.3f}"
    line = [(f"{HEADING}  ", "dim"), (state, "bold"), ("   r ", "dim"), (value, "bold")]
    room = min(LONGEST_BAR, width - sum(len(text) for text, _ in line))
    if r is not None and room >= SHORTEST_BAR:
        line.append((bar(r, room, plain), "cyan"))
    return line


def _cost_line(row: JsonRow) -> StyledLine:
    text = f"step {row['step']:,}"
    if number(row.get("Dn")) is None:
        text += " gave no value"
    seconds = number(row.get("seconds"))
    total = number(row.get("seconds_total"))
    if seconds is not None:
        text += f", {significant(seconds, 2)} s"
    if total is not None:
        text += f"; all probes {cost_text(total, number(row.get('share')))}"
    return [(f"{'probe':<{LABEL}}", "dim"), (text, "")]


def _event_line(event: JsonRow) -> StyledLine:
    text = f"step {event['step']:,}  {change_text(event)}"
    if event.get("reason"):
        text += f": {event['reason']}"
    return [(f"{'event':<{LABEL}}", "dim"), (text, "")]


def regime_key(task: Any) -> tuple[str, ...]:
    """What the words of the regime mean, in short lines."""
    return legend_in_short(reference_name(task))


def probe_text(row: JsonRow, step: int) -> str:
    """`Dn 0.412  r 0.120`, in the line of `step`; the probe's step is named if it is another."""
    value = number(row.get("Dn"))
    text = "Dn without a value" if value is None else f"Dn {value:.4g}"
    if row["step"] != step:
        text += f" (step {row['step']})"
    r = number(row.get("r"))
    return text if r is None else f"{text}  r {r:.3f}"
