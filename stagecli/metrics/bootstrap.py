"""How sure a mean over clips is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_VALUES_PER_BLOCK = 2**22


def bootstrap_interval(
    values: Sequence[float] | npt.NDArray[Any], seed: int, level: float = 0.95, draws: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the mean of `values` [n] (Efron, 1979).

    Clips are resampled with replacement `draws` times; the same seed gives the same interval. It speaks of
    other clips from the same source, not of other seeds or trainings. For n below about 10 it is too narrow.
    Raises ValueError: fewer than two values (nothing to resample), NaN or infinity, level outside (0, 1).
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size < 2:
        raise ValueError(f"a bootstrap interval needs at least two values in a list, got shape {sample.shape}")
    if not np.isfinite(sample).all():
        raise ValueError("the values contain NaN or infinity; leave them out and say how many")
    if not 0 < level < 1 or draws < 1:
        raise ValueError(f"level must lie in (0, 1) and draws be positive, got {level} and {draws}")
    rng = np.random.default_rng(seed)
    block = max(1, _VALUES_PER_BLOCK // sample.size)
    means = np.concatenate(
        [
            sample[rng.integers(sample.size, size=(min(block, draws - first), sample.size))].mean(axis=1)
            for first in range(0, draws, block)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
