"""Throughput of a run, the time it has taken, and the time it still needs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import datetime

from stagecli.files import JsonRow, number
from stagecli.report.curves import series
from stagecli.report.losses import Columns
from stagecli.report.run_report import RunReport, attempts_of

RECENT_ROWS = 50  # rows over which the present pace is taken


def speed(rows: Sequence[JsonRow], columns: Columns) -> JsonRow:
    """Median samples per second and seconds per step, and the samples seen so far."""
    rates = columns("speed/samples_per_s")[1]
    durations = columns("speed/step_s")[1]
    counts = (number(row.get("samples")) for row in reversed(rows))
    return {
        "samples_per_s": statistics.median(rates) if rates else None,
        "step_s": statistics.median(durations) if durations else None,
        "samples": next((count for count in counts if count is not None), None),
    }


def seconds_spent(report: RunReport) -> float | None:
    """Seconds of training over all attempts; one that never ended counts up to its last row."""
    total = 0.0
    known = False
    for entry in attempts_of(report.info):
        start = _unix(entry.get("started"))
        end = _unix(entry.get("ended")) or report.last_seen.get(entry.get("attempt", -1))
        if start is not None and end is not None:
            total += max(0.0, end - start)
            known = True
    if known:
        return total
    times = series(report.metrics, "time")[1] if report.last_seen else []
    return max(times) - min(times) if times else None


def seconds_left(rows: Sequence[JsonRow], step: int, steps: int | None) -> float | None:
    """Seconds left at the wall-clock pace of the last rows, with validation and saving."""
    if steps is None or not rows:
        return None
    attempt = rows[-1]["attempt"]
    recent = [
        row for row in rows[-RECENT_ROWS:] if row["attempt"] == attempt and number(row.get("time"))
    ]
    if len(recent) > 1 and recent[-1]["step"] > recent[0]["step"]:
        pace = (recent[-1]["time"] - recent[0]["time"]) / (recent[-1]["step"] - recent[0]["step"])
    else:
        pace = number(rows[-1].get("speed/step_s")) or 0.0
    return max(0, steps - step) * pace if pace > 0 else None


def _unix(stamp: object) -> float | None:
    """Unix time of an ISO 8601 string; None for anything else."""
    if not isinstance(stamp, str):
        return None
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        return None
