"""What the rows of a run's files are to a tracker: numbers by name, texts, and what was sent."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from stagecli.files import JsonRow, number
from stagecli.recipe.signature import flatten
from stagecli.report.regime_text import change_text
from stagecli.report.rows import read_rows
from stagecli.schema import Recipe
from stagecli.stage import registry

STREAMS = ("metrics", "bins", "events", "probes")
IN_EVERY_ROW = ("step", "time", "attempt")
SAMPLES = "samples"  # the folder of the run, and the key of a set of samples


def numbers_of(stream: str, row: JsonRow) -> dict[str, float]:
    """The values of a row by name, as docs/tracking.md lists them.

    What has no value is left out.
    """
    values: Mapping[str, Any] = {k: v for k, v in row.items() if k not in IN_EVERY_ROW}
    if stream == "bins":
        edges = row["edges"]
        values = {
            f"bins/t_{low:.2f}-{high:.2f}": loss
            for low, high, loss in zip(edges, edges[1:], row["loss"], strict=False)
        }
    elif stream == "probes":
        values = {f"{registry.REGIME}/{name}": value for name, value in values.items()}
    known = {name: number(value) for name, value in values.items()}
    return {name: value for name, value in known.items() if value is not None}


def event_text(row: JsonRow) -> str:
    """An event in a line."""
    reason = row.get("reason")
    return f"{change_text(row)}: {reason}" if reason else change_text(row)


def row_key(stream: str, row: JsonRow) -> str:
    """What tells a row from the others of its step: its first column, or an event's text."""
    if stream == "events":
        return f"events/{row.get('mechanism')}: {event_text(row)}"
    return f"{stream}/{next((name for name in row if name not in IN_EVERY_ROW), '')}"


def already_sent(run_dir: Path, attempts: Collection[int], start: int) -> set[tuple[int, str]]:
    """(step, key) of everything from step `start` on that these attempts sent to a tracker.

    By the run's own files, which get each row at the same time. Raises OSError.
    """
    if not attempts:
        return set()
    sent = set()
    for stream in STREAMS:
        for row in read_rows(run_dir / f"{stream}.jsonl", [], expected=False):
            if row["step"] >= start and row["attempt"] in attempts:
                sent.add((row["step"], row_key(stream, row)))
    for listing in (run_dir / SAMPLES).glob("step_*/samples.jsonl"):
        digits = listing.parent.name.removeprefix("step_")
        if digits.isdecimal() and int(digits) >= start:
            sent.add((int(digits), SAMPLES))
    return sent


def plain_config(recipe: Recipe) -> dict[str, str | int | float | bool]:
    """The recipe as `train.lr` -> value; lists as text, for trackers that know no lists."""
    return {
        key: value if isinstance(value, (str, int, float, bool)) else json.dumps(value)
        for key, value in flatten(recipe).items()
    }
