"""Small numerics of training curves: thinning, robust trends, sparklines, bars, durations. No dependencies."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from stagecli.files import LARGEST, JsonRow, number
from stagecli.metrics.theil_sen import kendall_z, theil_sen

HISTORY = 512  # points kept per growing curve; older ones are merged in pairs


def series(rows: Iterable[JsonRow], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the rows in which `key` is a finite number."""
    pairs = [(row["step"], row[key]) for row in rows if key in row]
    pairs = [(step, v) for step, v in pairs if type(v) in (float, int) and -LARGEST < v < LARGEST]
    return [step for step, _ in pairs], [float(v) for _, v in pairs]


def thin(
    steps: Sequence[int], values: Sequence[float], points: int
) -> list[tuple[float, float, float, float]]:
    """At most `points` of (step, mean, lowest, highest), each over an equal share of the rows."""
    count = len(values)
    size = min(points, len(values))
    cuts = [round(i * count / size) for i in range(size + 1)] if size else []
    out = []
    for a, b in zip(cuts, cuts[1:], strict=False):
        part = values[a:b]
        out.append((sum(steps[a:b]) / (b - a), sum(part) / (b - a), min(part), max(part)))
    return out


def sparkline(
    values: Sequence[float | None],
    width: int,
    *,
    ascii_only: bool = False,
    log: bool = False,
    bounds: tuple[float, float] | None = None,
) -> str:
    """`values` as one line of at most `width` characters, higher is taller; a gap is a space.

    log: draw the logarithm (losses fall steeply at first); ignored if any value is not above 0.
    bounds: values of the lowest and the highest character instead of the smallest and the largest of the means.
    """
    levels = "_.-~=+*#" if ascii_only else "▁▂▃▄▅▆▇█"
    clean = [number(v) for v in values]
    known = [v for v in clean if v is not None]
    if not known or width < 1:
        return ""
    if log and min(known) > 0:
        clean = [None if v is None else math.log(v) for v in clean]
    size = min(width, len(clean))
    cuts = [round(i * len(clean) / size) for i in range(size + 1)]
    parts = [[v for v in clean[a:b] if v is not None] for a, b in zip(cuts, cuts[1:], strict=False)]
    means = [sum(part) / len(part) if part else None for part in parts]
    known = [v for v in means if v is not None]
    low, span = (
        (bounds[0], bounds[1] - bounds[0]) if bounds else (min(known), max(known) - min(known))
    )
    if span <= 1e-9 * max(abs(low), 1e-300):
        return "".join(" " if v is None else levels[3] for v in means)
    return "".join(
        " " if v is None else levels[max(0, min(7, int(8 * (v - low) / span)))] for v in means
    )


def bar(share: float, width: int, ascii_only: bool, track: bool = True) -> str:
    """A bar filled to `share` (0 to 1) of `width` characters; track: show the unfilled rest."""
    share = min(1.0, max(0.0, share))
    if ascii_only:
        return ("#" * round(share * width)).ljust(width, "." if track else " ")
    eighths = round(share * width * 8)
    part = " ▏▎▍▌▋▊▉"[eighths % 8]
    filled = "█" * (eighths // 8) + (part if eighths % 8 and not track else "")
    return filled.ljust(width, "░" if track else " ")


@dataclass
class Curve:
    """A growing curve in bounded memory."""

    values: list[float] = field(default_factory=list)
    _every: int = 1
    _pending: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
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
    """How a positive curve moved over its last `share` of steps; None with fewer than 8 points there.

    change: relative, over the whole span, from the Theil-Sen slope of the logarithm; direction: falling
    or rising only if Kendall's |z| > 2, else flat.
    """
    if not steps:
        return None
    start = steps[-1] - share * (steps[-1] - steps[0])
    part = [(s, v) for s, v in zip(steps, values, strict=True) if s >= start and v > 0]
    if len(part) < 8:
        return None
    points = thin([s for s, _ in part], [math.log(v) for _, v in part], 120)
    logs = [p[1] for p in points]
    slope = theil_sen([p[0] for p in points], logs)
    z = kendall_z(logs)
    direction = "flat" if abs(z) <= 2 else ("falling" if slope < 0 else "rising")
    span = part[-1][0] - part[0][0]
    return {
        "from_step": part[0][0],
        "to_step": part[-1][0],
        "ln_slope_per_1000_steps": 1000 * slope,
        "change": math.expm1(slope * span),
        "z": z,
        "direction": direction,
    }


def duration(seconds: float | None) -> str:
    """Seconds as people say them: `41s`, `3m 20s`, `2h 05m`, `4d 03h`; `-` for None."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def level_change(
    steps: Sequence[int], values: Sequence[float], ratio: float = 0.75
) -> JsonRow | None:
    """Where a positive curve changed level for good: {"step", "before", "after"}, medians of each side.

    None unless the level fell below `ratio` of what it was (or rose as much) and the two sides hardly
    overlap: 3 in 4 of the points after lie beyond the middle of the two medians, and likewise before.
    """
    points = [p for p in thin(steps, values, 60) if p[1] > 0]
    best: JsonRow | None = None
    for cut in range(5, len(points) - 4):
        before = [p[1] for p in points[:cut]]
        after = [p[1] for p in points[cut:]]
        left = statistics.median(before)
        right = statistics.median(after)
        if ratio < right / left < 1 / ratio:
            continue
        middle = (left + right) / 2
        sign = 1 if right > left else -1
        held = sum(sign * (middle - v) > 0 for v in before) / len(before)
        held = min(held, sum(sign * (v - middle) > 0 for v in after) / len(after))
        if held >= 0.75 and (best is None or held > best["held"]):
            best = {"step": round(points[cut][0]), "before": left, "after": right, "held": held}
    return best
