"""Bootstrap intervals: of a mean over clips, of a paired difference, of a metric of sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_VALUES_PER_BLOCK = 2**22
Values = Sequence[float] | npt.NDArray[Any]


def _checked(values: Values, name: str = "the values") -> npt.NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size < 2:
        raise ValueError(f"an interval needs at least two values, got {array.size}")
    if not np.isfinite(array).all():
        raise ValueError(f"no interval: {name} are not all finite numbers")
    return array


def bootstrap_interval(
    values: Values, seed: int, level: float = 0.95, draws: int = 2000, *, median: bool = False
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the mean of `values` [n] (Efron, 1979).

    median: of the median instead. Clips are resampled with replacement `draws` times; the same seed
    gives the same interval. It covers other clips from the same source, not other seeds or
    trainings. Below about 10 values it is too narrow.
    Raises ValueError: fewer than two values, NaN or infinity, level outside (0, 1).
    """
    array = _checked(values)
    if not 0 < level < 1 or draws < 1:
        raise ValueError(f"level must lie in (0, 1) and draws be positive, got {level} and {draws}")
    rng = np.random.default_rng(seed)
    block = max(1, _VALUES_PER_BLOCK // array.size)
    centre = np.median if median else np.mean
    centres = []
    for first in range(0, draws, block):
        shape = (min(block, draws - first), array.size)
        centres.append(centre(array[rng.integers(array.size, size=shape)], axis=1))
    low, high = np.quantile(np.concatenate(centres), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """mean: of a - b over n clips, with its interval low..high; a_higher, b_higher, ties: numbers
    of clips."""

    mean: float
    low: float
    high: float
    n: int
    a_higher: int
    b_higher: int
    ties: int

    @property
    def decided(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def paired_difference(
    a: Values, b: Values, seed: int, level: float = 0.95, draws: int = 2000
) -> PairedDifference:
    """Difference a - b of two systems on the same clips, values [n] in the same order.

    Differences per clip are resampled, so clips that are hard for both systems cancel: the interval
    is narrower than those of two separate means wherever the systems agree on what is hard. The
    sign is that of the metric's scale; the registry defines which direction is better. There is no
    correction for multiple comparisons.
    Raises ValueError: different lengths, and as `bootstrap_interval`.
    """
    first = _checked(a, "the values of a")
    second = _checked(b, "the values of b")
    if first.shape != second.shape:
        raise ValueError(
            f"a pair of systems needs the same clips: {first.size} and {second.size} values"
        )
    difference = first - second
    low, high = bootstrap_interval(difference, seed, level, draws)
    a_higher = int((difference > 0).sum())
    b_higher = int((difference < 0).sum())
    n = difference.size
    return PairedDifference(
        mean=float(difference.mean()),
        low=low,
        high=high,
        n=n,
        a_higher=a_higher,
        b_higher=b_higher,
        ties=n - a_higher - b_higher,
    )


@dataclass(frozen=True)
class Interval:
    """value: of the metric itself; low, high: its interval; bias: mean of the replicates minus the
    value; draws: number of replicates."""

    value: float
    low: float
    high: float
    bias: float
    draws: int


def shifted_interval(value: float, replicates: Values, level: float = 0.95) -> Interval:
    """Percentile interval of `replicates`, shifted so that their mean falls on `value`.

    For metrics of sets, where a resample repeats clips and is biased for that reason alone: the
    plain percentiles may exclude the value itself.
    Raises ValueError: fewer than two replicates, NaN or infinity, level outside (0, 1).
    """
    array = _checked(replicates, "the values of random subsets of the clips")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    bias = float(array.mean()) - value
    low, high = np.quantile(array, [(1 - level) / 2, (1 + level) / 2]) - bias
    return Interval(value, float(low), float(high), bias, array.size)
