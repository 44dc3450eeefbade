"""Robust trend of a curve: the Theil-Sen slope and Kendall's test. Pure functions on sequences,
no torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def theil_sen(x: Sequence[float], y: Sequence[float]) -> float:
    """Median slope over all pairs of points with different x (Theil 1950, Sen 1968); 0 if there is
    no such pair.

    x ascends and is as long as y.
    """
    slopes = []
    for i, (x0, y0) in enumerate(zip(x, y, strict=True), 1):
        slopes += [(y1 - y0) / (x1 - x0) for x1, y1 in zip(x[i:], y[i:], strict=True) if x1 > x0]
    return statistics.median(slopes) if slopes else 0.0


def kendall_z(values: Sequence[float]) -> float:
    """How far a trend stands out of the noise, in standard deviations of Kendall's score; above 0
    where it rises.

    Variance n (n - 1) (2 n + 5) / 18 of the score, without a correction for ties; 0 for fewer than
    two values.
    """
    count = len(values)
    if count < 2:
        return 0.0
    score = 0
    for i, earlier in enumerate(values, 1):
        score += sum((later > earlier) - (later < earlier) for later in values[i:])
    return score / math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
