"""Slope of a noisy curve with a standard error that allows for AR(1) noise. Plain arithmetic."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from stagecli.metrics.theil_sen import theil_sen

ROBUST_SD = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
CUT = 3  # robust standard deviations at which residuals are cut


@dataclass(frozen=True)
class SlopeFit:
    """A fitted line.

    slope: per unit of x; se: its standard error for AR(1) noise of lag-1 correlation phi; p_rise:
    one-sided p of "not rising"; noise: standard deviation of y around the line.
    """

    slope: float
    se: float
    p_rise: float
    noise: float
    phi: float


def fit_line(x: Sequence[float], y: Sequence[float], least_phi: float = 0.0) -> SlopeFit:
    """Theil-Sen line through at least 6 points, x ascending, with an error that AR(1) noise widens.

    Residuals are cut at 3 robust standard deviations. Their lag-1 correlation, which a fit of n
    points biases by -(2 + 4 phi) / n, is corrected for that; it inflates the variance by (1 + phi)
    / (1 - phi) and shrinks the degrees of freedom alike. least_phi: lower bound of phi, from other
    windows.
    """
    n = len(x)
    slope = theil_sen(x, y)
    residuals = _residuals(x, y, slope)
    squares = math.fsum(v * v for v in residuals)
    x_mean = math.fsum(x) / n
    spread = math.fsum((v - x_mean) ** 2 for v in x)
    if spread == 0:  # the optimiser stood still, so a slope against its time cannot be estimated
        return SlopeFit(0.0, math.inf, 0.5, math.sqrt(squares / n), 0.0)

    # Lag-1 correlation of the noise, and what it does to the error.
    phi = 0.0
    if squares > 0:
        phi = math.fsum(a * b for a, b in zip(residuals[1:], residuals, strict=False)) / squares
    phi = min(0.9, max(0.0, (n * phi + 2) / (n - 4)))
    inflation = (1 + max(phi, least_phi)) / (1 - max(phi, least_phi))
    se = math.sqrt(squares / (n - 2) / spread * inflation)
    # Rounding leaves residuals of 1e-16 on an exact line; they are no evidence of noise.
    se = max(se, 1e-9 / math.sqrt(spread))

    p_rise = _upper_tail(slope / se, max(2.0, n / inflation - 2))
    return SlopeFit(slope, se, p_rise, math.sqrt(squares / (n - 2)), phi)


def _residuals(x: Sequence[float], y: Sequence[float], slope: float) -> list[float]:
    """Deviations from the line, cut at 3 robust standard deviations, with mean 0."""
    raw = [b - slope * a for a, b in zip(x, y, strict=True)]
    middle = statistics.median(raw)
    raw = [v - middle for v in raw]
    limit = CUT * ROBUST_SD * statistics.median(map(abs, raw))
    cut = [min(limit, max(-limit, v)) for v in raw]
    mean = math.fsum(cut) / len(cut)
    return [v - mean for v in cut]


def _upper_tail(t: float, freedom: float) -> float:
    """P(T > t) of Student's distribution."""
    from scipy.special import stdtr  # imported here so that reading a run's rows loads no SciPy

    return float(stdtr(freedom, -t))
