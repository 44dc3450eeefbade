"""Training and validation loss of a run as numbers, ready for JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stagecli.files import JsonRow, number
from stagecli.report.curves import series, trend

Columns = Callable[[str], tuple[list[int], list[float]]]
"""A metric's name -> the steps and values of the rows that have it."""


def training_loss(rows: Sequence[JsonRow], columns: Columns) -> JsonRow:
    """First and last loss, its trend, and the rows in which it was not finite.

    smoothed: the mean over the last 5 % of the rows.
    """
    steps, values = columns("train/loss")
    non_finite = []
    if len(values) < len(rows):
        non_finite = [
            row["step"] for row in rows if "train/loss" in row and number(row["train/loss"]) is None
        ]
    tail = values[-max(1, len(values) // 20) :]
    return {
        "first": values[0] if values else None,
        "last": values[-1] if values else None,
        "smoothed": sum(tail) / len(tail) if tail else None,
        "trend": trend(steps, values, 1 / 3),
        "non_finite_rows": len(non_finite),
        "non_finite_first": non_finite[0] if non_finite else None,
    }


def validation_loss(rows: Sequence[JsonRow], columns: Columns) -> JsonRow | None:
    """First, last and best validation loss, its last quarter, and the loss at each noise level."""
    steps, values = columns("valid/loss")
    if not values:
        return None
    best = min(range(len(values)), key=values.__getitem__)
    return {
        "first": values[0],
        "last": values[-1],
        "last_step": steps[-1],
        "best": values[best],
        "best_step": steps[best],
        "steps_since_best": steps[-1] - steps[best],
        "last_quarter": _last_quarter(steps, values),
        "by_t": _by_noise_level(rows),
    }


def _last_quarter(steps: Sequence[int], values: Sequence[float]) -> JsonRow | None:
    quarter = trend(steps, values, 0.25)
    if quarter is not None or len(values) < 4:
        return quarter
    # Too few points for a trend: compare the ends, without a direction.
    cut = steps[-1] - 0.25 * (steps[-1] - steps[0])
    start = max(i for i, step in enumerate(steps) if step <= cut)
    change = values[-1] / values[start] - 1 if values[start] else 0.0
    return {
        "from_step": steps[start],
        "to_step": steps[-1],
        "change": change,
        "direction": None,
    }


def _by_noise_level(rows: Sequence[JsonRow]) -> JsonRow:
    prefix = "valid/loss_t"
    measured = [row for row in rows if "valid/loss" in row]
    keys = sorted({key for row in measured for key in row if key.startswith(prefix)})
    by_level = {}
    for key in keys:
        values = series(measured, key)[1]
        if values:
            by_level[key.removeprefix(prefix)] = {
                "first": values[0],
                "last": values[-1],
                "best": min(values),
            }
    return by_level
