"""`inspect-regime --follow`: shows runs again whenever they have something new, until none is in training."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from stagecli.files import JsonRow
from stagecli.report.curves import number
from stagecli.terminal.console import Console
from stagecli.terminal.inspect import inspect, sections
from stagecli.terminal.views_regime import probe_text

LIVE = ("running", "created")
FILES = ("run.json", "metrics.jsonl", "bins.jsonl", "events.jsonl", "probes.jsonl")
# Kept first where the terminal is too low for all of it; what is left out comes with the last report.
PRIORITY = (
    "regime",
    "reading",
    "regime curves",
    "head",
    "bins",
    "curves",
    "regime events",
    "events",
)


def follow(
    paths: Sequence[Path], read: Callable[[], list[JsonRow]], out: Console, every: float
) -> None:
    """Show `read()` (summaries) when a file of `paths` changed, looked at every `every` seconds.

    A terminal gets a screen that is drawn in place, a pipe one line per run with news, and both the whole report
    at the end; with --json each time one document on one line. Returns when no run is in training any more.
    """
    drawn = not out.as_json and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    seen: object = None
    said: dict[str, int] = {}
    summaries: list[JsonRow] = []
    while True:
        found = _stamps(paths)
        if found != seen:
            seen = found
            summaries = read()
            over = not any(s["status"] in LIVE for s in summaries)
            if out.as_json:
                out.line(summaries[0] if len(summaries) == 1 else summaries)
            elif over:
                if drawn:
                    sys.stdout.write("\x1b[H\x1b[J")
                inspect(summaries, out)
            elif drawn:
                _draw(summaries, out)
            else:
                _say(summaries, said, out)
            if over:
                return
        time.sleep(every)


def _stamps(paths: Sequence[Path]) -> list[tuple[int, int] | None]:
    found: list[tuple[int, int] | None] = []
    for path in paths:
        for name in FILES:
            try:
                stat = (path / name).stat()
                found.append((stat.st_mtime_ns, stat.st_size))
            except OSError:
                found.append(None)
    return found


def _say(summaries: Sequence[JsonRow], said: dict[str, int], out: Console) -> None:
    for s in summaries:
        if said.get(s["path"]) == s["step"]:
            continue
        said[s["path"]] = s["step"]
        loss = number(s["loss"]["last"])
        regime = s["regime"]
        parts = [s["name"], f"step {s['step']}" + (f"/{s['steps']}" if s["steps"] else "")]
        parts += [] if loss is None else [f"loss {loss:.4g}"]
        if regime:
            newest = {**regime, "step": regime["last_step_with_number"] or regime["last_step"]}
            parts += [probe_text(newest, at=s["step"]), regime["stage"] or "unknown stage"]
        out.text("  ".join(parts))


def _draw(summaries: Sequence[JsonRow], out: Console) -> None:
    try:
        width, height = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        width = 80
        height = 24
    lines = screen(summaries, out, width, height - 2)
    where = ", ".join(
        f"{s['name']}: step {s['step']:,}" + (f" of {s['steps']:,}" if s["steps"] else "")
        for s in summaries
    )
    lines.append(f"following {where}; Ctrl-C ends it"[:width])
    sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
    sys.stdout.flush()


def screen(summaries: Sequence[JsonRow], out: Console, width: int, height: int) -> list[str]:
    """The sections that fit into `height` rows of `width` characters, the most important ones, in their order."""
    parts: dict[str, list[str]] = {}
    for name, draw in sections(summaries, out):
        with out.captured() as text:
            draw()
        parts[name] = text.getvalue().split("\n")[:-1]
    kept = set()
    room = height
    for name in PRIORITY:
        if name == "reading":  # its first sentences are the most important ones
            parts[name] = _fitting(parts[name], width, room)
        rows = sum(_rows(line, width) for line in parts[name])
        if rows <= room:
            kept.add(name)
            room -= rows
    lines = [line for name, part in parts.items() if name in kept for line in part]
    return lines or [line for name in PRIORITY for line in parts[name]][:height]


def _fitting(lines: Sequence[str], width: int, room: int) -> list[str]:
    """The first lines that fit; none if that is hardly more than the title."""
    out: list[str] = []
    for line in lines:
        room -= _rows(line, width)
        if room < 0:
            break
        out.append(line)
    return out if len(out) > 2 else []


def _rows(line: str, width: int) -> int:
    return max(1, -(-len(re.sub(r"\x1b\[[0-9;]*m", "", line)) // max(1, width)))
