"""`inspect-regime --follow`: shows runs again whenever they have news, until none is training."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from stagecli.errors import printable
from stagecli.files import JsonRow, number
from stagecli.report.formats import significant, step_of
from stagecli.terminal.console import Console
from stagecli.terminal.inspect import inspect, sections
from stagecli.terminal.regime_board import probe_text

__all__ = ["fitting_sections", "follow"]

LIVE = ("running", "created")
FILES = ("run.json", "metrics.jsonl", "bins.jsonl", "events.jsonl", "probes.jsonl")
PRIORITY = (
    "regime",
    "reading",
    "regime levels",
    "regime curves",
    "head",
    "bins",
    "curves",
    "regime events",
    "events",
    "regime words",
)
"""Sections kept first where the terminal is too low; the report at the end has all of them."""

STYLE_CODES = re.compile(r"\x1b\[[0-9;]*m")
SHORTEST_READING = 3  # lines: hardly more than the title is not worth its place


def follow(
    paths: Sequence[Path],
    summarize: Callable[[], list[JsonRow]],
    out: Console,
    every: float,
) -> None:
    """Show `summarize()` whenever a file of `paths` has changed, checked every `every` seconds.

    A terminal is redrawn in place, a pipe gets one line per run with news, and both get the whole
    report at the end; with --json each change gives one document on one line. Returns when no run
    is training any more.
    """
    seen: object = None
    printed: dict[str, int] = {}  # run -> the step of its last line
    while True:
        stamps = _stamps(paths)
        if stamps != seen:
            seen = stamps
            summaries = summarize()
            over = not any(summary["status"] in LIVE for summary in summaries)
            if out.as_json:
                out.line(summaries[0] if len(summaries) == 1 else summaries)
            elif over:
                if out.can_redraw:
                    out.redraw([])
                inspect(summaries, out)
            elif out.can_redraw:
                _draw(summaries, out)
            else:
                _print_news(summaries, printed, out)
            if over:
                return
        time.sleep(every)


def _stamps(paths: Sequence[Path]) -> list[tuple[int, int] | None]:
    """Time and size of every file that may change; None for one that is missing."""
    stamps: list[tuple[int, int] | None] = []
    for path in paths:
        for name in FILES:
            try:
                status = (path / name).stat()
                stamps.append((status.st_mtime_ns, status.st_size))
            except OSError:
                stamps.append(None)
    return stamps


def _print_news(summaries: Sequence[JsonRow], printed: dict[str, int], out: Console) -> None:
    """A line for each run that has a new step."""
    for summary in summaries:
        if printed.get(summary["path"]) == summary["step"]:
            continue
        printed[summary["path"]] = summary["step"]
        words = [summary["name"], f"step {step_of(summary['step'], summary['steps'])}"]
        loss = number(summary["loss"]["last"])
        if loss is not None:
            words.append(f"loss {significant(loss)}")
        regime = summary["regime"]
        if regime:
            measured = regime["last_step_with_number"] or regime["last_step"]
            words.append(probe_text({**regime, "step": measured}, summary["step"]))
            words.append(regime["stage"] or "unknown stage")
        out.text("  ".join(words))


def _draw(summaries: Sequence[JsonRow], out: Console) -> None:
    """The sections that fit on the screen, and a last line that says how to stop."""
    width, height = out.screen_size
    lines = fitting_sections(summaries, out, width, height - 2)
    runs = ", ".join(
        f"{summary['name']}: step {step_of(summary['step'], summary['steps'])}"
        for summary in summaries
    )
    lines.append(printable(f"following {runs}; press Ctrl-C to stop")[:width])
    out.redraw(lines)


def fitting_sections(
    summaries: Sequence[JsonRow], out: Console, width: int, height: int
) -> list[str]:
    """The most important sections that fit into `height` lines of `width` columns, in order."""
    printed: dict[str, list[str]] = {}
    for name, draw in sections(summaries, out):
        with out.captured() as text:
            draw()
        printed[name] = text.getvalue().split("\n")[:-1]
    kept = set()
    room = height
    for name in PRIORITY:
        if name == "reading":  # its first sentences are the most important ones
            printed[name] = _fitting_lines(printed[name], width, room)
        rows = sum(_rows(line, width) for line in printed[name])
        if rows <= room:
            kept.add(name)
            room -= rows
    lines = [line for name, section in printed.items() if name in kept for line in section]
    return lines or [line for name in PRIORITY for line in printed[name]][:height]


def _fitting_lines(lines: Sequence[str], width: int, room: int) -> list[str]:
    """The first lines that fit; none if there is room for hardly more than the title."""
    fitting: list[str] = []
    for line in lines:
        room -= _rows(line, width)
        if room < 0:
            break
        fitting.append(line)
    return fitting if len(fitting) >= SHORTEST_READING else []


def _rows(line: str, width: int) -> int:
    """Rows of the terminal that a line takes."""
    return max(1, -(-len(STYLE_CODES.sub("", line)) // max(1, width)))
