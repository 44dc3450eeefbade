"""Small numerics of training curves: numbers out of rows, thinning, robust trends."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from stagecli.files import LARGEST, JsonRow
from stagecli.metrics.theil_sen import kendall_z, theil_sen

HISTORY = 512  # points kept per growing curve; older ones are merged in pairs
LEVEL_CHANGE_POINTS = (
    60  # a curve is thinned to so many before it is searched for a change of level
)
LEVEL_CHANGE_ENDS = 5  # points that each side of a change needs at least
SEPARATED = 0.75  # share of the points that must lie on their own side of a change


def series(rows: Iterable[JsonRow], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the rows in which `key` is a finite number."""
    pairs = [(row["step"], row[key]) for row in rows if key in row]
    pairs = [(step, v) for step, v in pairs if type(v) in (float, int) and -LARGEST < v < LARGEST]
    return [step for step, _ in pairs], [float(v) for _, v in pairs]


class Point(NamedTuple):
    """A thinned stretch of a curve: the mean of its steps, and the mean and range of its values."""

    step: float
    mean: float
    low: float
    high: float


def thin(steps: Sequence[int], values: Sequence[float], points: int) -> list[Point]:
    """At most `points` points, each over an equal share of the values."""
    count = len(values)
    size = min(points, count)
    cuts = [round(i * count / size) for i in range(size + 1)] if size else []
    thinned = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        stretch = values[start:end]
        length = end - start
        thinned.append(
            Point(sum(steps[start:end]) / length, sum(stretch) / length, min(stretch), max(stretch))
        )
    return thinned


def curve_summary(steps: Sequence[int], values: Sequence[float], points: int) -> JsonRow:
    """A curve for JSON: "first", "lowest", "highest", "last", and thinned "step" and "value"."""
    thinned = thin(steps, values, points)
    return {
        "first": values[0],
        "lowest": min(values),
        "highest": max(values),
        "last": values[-1],
        "step": [round(point.step) for point in thinned],
        "value": [point.mean for point in thinned],
    }


@dataclass
class GrowingCurve:
    """A curve that grows by one value at a time, in bounded memory."""

    values: list[float] = field(default_factory=list)
    _every: int = 1
    _pending: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        """Append a value; neighbours are averaged once there are more than `HISTORY`."""
        self._pending.append(value)
        if len(self._pending) < self._every:
            return
        self.values.append(sum(self._pending) / len(self._pending))
        self._pending = []
        if len(self.values) > HISTORY:
            pairs = zip(self.values[::2], self.values[1::2], strict=False)
            self.values = [(a + b) / 2 for a, b in pairs]
            self._every = 2 * self._every


def trend(steps: Sequence[int], values: Sequence[float], share: float) -> JsonRow | None:
    """How a positive curve moved over its last `share` of steps; None with under 8 points there.

    change: relative, over the whole span, from the Theil-Sen slope of the logarithm; direction:
    falling or rising only if Kendall's |z| > 2, else flat.
    """
    if not steps:
        return None
    start = steps[-1] - share * (steps[-1] - steps[0])
    tail = [(s, v) for s, v in zip(steps, values, strict=True) if s >= start and v > 0]
    if len(tail) < 8:
        return None
    points = thin([s for s, _ in tail], [math.log(v) for _, v in tail], 120)
    logs = [p.mean for p in points]
    slope = theil_sen([p.step for p in points], logs)
    z = kendall_z(logs)
    if abs(z) <= 2:
        direction = "flat"
    else:
        direction = "falling" if slope < 0 else "rising"
    span = tail[-1][0] - tail[0][0]
    return {
        "from_step": tail[0][0],
        "to_step": tail[-1][0],
        "ln_slope_per_1000_steps": 1000 * slope,
        "change": math.expm1(slope * span),
        "z": z,
        "direction": direction,
    }


def level_change(
    steps: Sequence[int], values: Sequence[float], ratio: float = 0.75
) -> JsonRow | None:
    """Where a positive curve changed level for good: {"step", "before", "after", "held"}.

    before, after: medians of the two sides; held: the share of points on their own side of the
    middle between the medians. None unless the level fell below `ratio` of what it was (or rose as
    much) and `held` is at least `SEPARATED`.
    """
    points = [p for p in thin(steps, values, LEVEL_CHANGE_POINTS) if p.mean > 0]
    best: JsonRow | None = None
    for cut in range(LEVEL_CHANGE_ENDS, len(points) - LEVEL_CHANGE_ENDS + 1):
        before = [p.mean for p in points[:cut]]
        after = [p.mean for p in points[cut:]]
        left = statistics.median(before)
        right = statistics.median(after)
        if ratio < right / left < 1 / ratio:
            continue
        middle = (left + right) / 2
        sign = 1 if right > left else -1
        held = min(
            sum(sign * (middle - v) > 0 for v in before) / len(before),
            sum(sign * (v - middle) > 0 for v in after) / len(after),
        )
        if held >= SEPARATED and (best is None or held > best["held"]):
            best = {"step": round(points[cut].step), "before": left, "after": right, "held": held}
    return best
