"""How sure a mean over clips is, how sure a difference of two systems is, and intervals of set metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_VALUES_PER_BLOCK = 2**22
Values = Sequence[float] | npt.NDArray[Any]


def _checked(values: Values, name: str = "the values") -> npt.NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size < 2:
        raise ValueError(
            f"a bootstrap interval needs at least two values in a list, got shape {sample.shape}"
        )
    if not np.isfinite(sample).all():
        raise ValueError(f"{name} contain NaN or infinity; leave them out and say how many")
    return sample


def bootstrap_interval(
    values: Values, seed: int, level: float = 0.95, draws: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the mean of `values` [n] (Efron, 1979).

    Clips are resampled with replacement `draws` times; the same seed gives the same interval. It speaks of
    other clips from the same source, not of other seeds or trainings. For n below about 10 it is too narrow.
    Raises ValueError: fewer than two values (nothing to resample), NaN or infinity, level outside (0, 1).
    """
    sample = _checked(values)
    if not 0 < level < 1 or draws < 1:
        raise ValueError(f"level must lie in (0, 1) and draws be positive, got {level} and {draws}")
    rng = np.random.default_rng(seed)
    block = max(1, _VALUES_PER_BLOCK // sample.size)
    means = np.concatenate(
        [
            sample[rng.integers(sample.size, size=(min(block, draws - first), sample.size))].mean(
                axis=1
            )
            for first in range(0, draws, block)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedDifference:
    """mean: of a - b over the clips, with its interval low..high; n clips; a_higher, b_higher, ties: clips.

    decided: the interval leaves out 0.
    """

    mean: float
    low: float
    high: float
    n: int
    a_higher: int
    b_higher: int
    ties: int

    @property
    def decided(self) -> bool:
        return self.low > 0 or self.high < 0


def paired_difference(
    a: Values, b: Values, seed: int, level: float = 0.95, draws: int = 2000
) -> PairedDifference:
    """Difference a - b of two systems on the same clips, values [n] in the same order, with its interval.

    Differences per clip are resampled, so what both systems find hard cancels: the interval is narrower than
    that of two separate means wherever the systems agree on which clips are hard. Its sign is that of the
    metric's own scale: whether more is better is the registry's. Not corrected for many comparisons.
    Raises ValueError: different lengths, and as `bootstrap_interval` (drop a clip from both lists, and say so).
    """
    first = _checked(a, "the values of a")
    second = _checked(b, "the values of b")
    if first.shape != second.shape:
        raise ValueError(
            f"a pair of systems needs the same clips: {first.size} and {second.size} values"
        )
    difference = first - second
    low, high = bootstrap_interval(difference, seed, level, draws)
    higher = int((difference > 0).sum())
    lower = int((difference < 0).sum())
    n = difference.size
    return PairedDifference(
        float(difference.mean()), low, high, n, higher, lower, n - higher - lower
    )


@dataclass(frozen=True)
class Interval:
    """value: of the metric itself; low, high: its interval; bias: mean of the replicates minus the value; draws."""

    value: float
    low: float
    high: float
    bias: float
    draws: int


def shifted_interval(
    value: float, replicates: Values, level: float = 0.95, lowest: float = -np.inf
) -> Interval:
    """Percentile interval of `replicates`, moved so that their mean falls on `value`.

    For metrics of sets, where a resample repeats clips and is biased for that alone: the plain percentiles may
    leave the value itself out. lowest: what the metric cannot go below.
    Raises ValueError: fewer than two replicates, NaN or infinity, level outside (0, 1).
    """
    sample = _checked(replicates, "the replicates")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    bias = float(sample.mean()) - value
    low, high = (
        float(max(q - bias, lowest))
        for q in np.quantile(sample, [(1 - level) / 2, (1 + level) / 2])
    )
    return Interval(value, low, high, bias, sample.size)
