"""Statistics over the seeds of a study: intervals, tests, corrections, smallest effects. No torch.

A study has 3 to 5 seeds, so the intervals and tests that count are those by Student's t.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stagecli.metrics.bootstrap import bootstrap_interval

LEVEL = 0.95  # of every interval
ALPHA = 1 - LEVEL
POWER = 0.8  # of the smallest effect
DRAWS = 10_000
SIGNS_IN_FULL = 16  # differences up to which every choice of signs is tried
BISECTIONS = 60
LARGEST_SHIFT = 1000.0  # standard errors; the smallest effect of two seeds is below 20
NODES = (np.arange(4000) + 0.5) / 4000  # quantiles over which the power is averaged

Floats = npt.NDArray[np.float64]
Bounds = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Differences of one arm and another over the seeds that both have.

    mean, sd: of the n differences. bootstrap: percentile interval of the mean over seeds; t: the
    interval by Student's t. p_t: of the paired t test; p_flip: of all choices of signs, which
    cannot be below p_flip_least = 2 / 2^n. smallest_effect: the mean difference that n seeds with
    this sd show with `POWER`. With one seed all but the mean are None.
    """

    n: int
    mean: float
    sd: float | None = None
    bootstrap: Bounds | None = None
    t: Bounds | None = None
    p_t: float | None = None
    p_flip: float | None = None
    p_flip_least: float | None = None
    smallest_effect: float | None = None


def paired_test(differences: Sequence[float], seed: int = 0) -> PairedTest:
    """Everything a study reports of paired differences [n].

    seed: of the bootstrap. Where all differences are equal, t is not defined, and its p is that of
    the signs. Raises ValueError: no difference, NaN or infinity.
    """
    array = _finite(differences)
    n = array.size
    mean = float(array.mean())
    if n < 2:
        return PairedTest(n=n, mean=mean)
    sd = float(array.std(ddof=1))
    p_flip = sign_flip_p(differences)
    return PairedTest(
        n=n,
        mean=mean,
        sd=sd,
        bootstrap=bootstrap_interval(array, seed, LEVEL, DRAWS),
        t=t_interval(differences),
        p_t=p_flip if sd == 0 else _two_sided_p(mean / (sd / math.sqrt(n)), n - 1),
        p_flip=p_flip,
        p_flip_least=2.0 ** (1 - n),
        smallest_effect=smallest_paired_effect(sd, n),
    )


def t_interval(values: Sequence[float]) -> Bounds:
    """Interval of the mean of `values` [n] by Student's t. Raises ValueError: under two values, NaN
    or infinity.
    """
    array = _finite(values)
    if array.size < 2:
        raise ValueError("an interval needs at least two values")
    half = t_quantile(1 - ALPHA / 2, array.size - 1) * array.std(ddof=1) / math.sqrt(array.size)
    return float(array.mean() - half), float(array.mean() + half)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of the mean of `differences` [n] when their signs are random (Fisher, 1935).

    Exact up to `SIGNS_IN_FULL` differences, by random signs beyond.
    """
    array = _finite(differences)
    n = array.size
    if n <= SIGNS_IN_FULL:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    else:
        signs = np.random.default_rng(0).choice((1.0, -1.0), size=(2**SIGNS_IN_FULL, n))
        signs[0] = 1.0
    sums = np.abs(signs @ array)
    return float((sums >= abs(array.sum()) * (1 - 1e-12)).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of a family, corrected for their number (Holm, 1979), in the same order."""
    count = len(p_values)
    corrected = [0.0] * count
    highest = 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda k: p_values[k])):
        highest = max(highest, min(1.0, (count - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def smallest_paired_effect(sd: float, n: int) -> float:
    """The mean of n paired differences with standard deviation `sd` that a two-sided t test at 5 %
    detects with `POWER`.
    """
    return _detected_shift(n - 1) * sd / math.sqrt(n)


def smallest_group_effect(sd: float, n: int) -> float:
    """The same for the difference of two unpaired groups of n seeds, each with `sd`."""
    return _detected_shift(2 * n - 2) * sd * math.sqrt(2 / n)


def t_quantile(share: float, df: int) -> float:
    """Quantile of Student's t."""
    from scipy import special

    return float(special.stdtrit(df, share))


def _two_sided_p(t: float, df: int) -> float:
    from scipy import special

    return float(2 * special.stdtr(df, -abs(t)))


def _detected_shift(df: int) -> float:
    """Mean of the test statistic, in standard errors, at which the t test has `POWER`."""
    from scipy import special

    # The variance of the estimate, as a share of its expectation: chi squared over df.
    spread = np.sqrt(special.chdtri(df, 1 - NODES) / df)
    critical = t_quantile(1 - ALPHA / 2, df)

    def power(shift: float) -> float:
        above = special.ndtr(shift - critical * spread)
        below = special.ndtr(-shift - critical * spread)
        return float((above + below).mean())

    low = 0.0
    high = LARGEST_SHIFT
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if power(middle) < POWER:
            low = middle
        else:
            high = middle
    return high


def _finite(values: Sequence[float]) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size < 1:
        raise ValueError("there are no values")
    if not np.isfinite(array).all():
        raise ValueError("the values are not all finite numbers")
    return array


# -- steps to a score ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arrival:
    """The step at which a curve first reaches a score; by_first: it had by the first point already,
    so `step` is the latest that it can have been.
    """

    step: float
    by_first: bool = False


def arrival(
    steps: Sequence[int], values: Sequence[float], target: float, *, lower: bool, log: bool
) -> Arrival | None:
    """When the best value so far reaches `target`; None if it never does.

    steps: ascending, as long as `values`. lower: lower is better. Between points the best value
    moves linearly in the step, its logarithm with `log` (all values and the target positive).
    """
    sign = 1.0 if lower else -1.0
    goal = sign * (math.log(target) if log else target)
    best = math.inf
    before = 0
    for index, (step, value) in enumerate(zip(steps, values, strict=True)):
        height = sign * (math.log(value) if log else value)
        if height <= goal:
            if index == 0:
                return Arrival(float(step), by_first=True)
            share = (best - goal) / (best - height)
            return Arrival(before + share * (step - before))
        best = min(best, height)
        before = step
    return None
