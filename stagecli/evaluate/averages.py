"""Means over clips with their intervals, and paired differences of two systems. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from stagecli.files import JsonRow
from stagecli.metrics.bootstrap import bootstrap_interval, paired_difference

ClipScores = Mapping[str, float]


def average_scores(scores: Sequence[ClipScores], seed: int) -> JsonRow:
    """{"n", "metrics": {name: {value, low, high, left_out}}}: means and bootstrap 95 % intervals.

    Values that are not finite are left out and counted.
    """
    metrics = {
        name: average([clip_scores[name] for clip_scores in scores], seed) for name in scores[0]
    }
    return {"n": len(scores), "metrics": metrics}


def average(values: Sequence[float], seed: int) -> JsonRow:
    """{value, low, high, left_out}: mean of the finite values; None where there are too few."""
    kept = [value for value in values if np.isfinite(value)]
    low, high = bootstrap_interval(kept, seed) if len(kept) > 1 else (None, None)
    return {
        "value": float(np.mean(kept)) if kept else None,
        "low": low,
        "high": high,
        "left_out": len(values) - len(kept),
    }


def score_differences(
    a: Mapping[str, ClipScores], b: Mapping[str, ClipScores], seed: int
) -> dict[str, JsonRow]:
    """b - a per metric, over the clips (by key) that both have, with paired bootstrap intervals.

    Clips where either value is not finite are left out and counted; a metric with fewer than two
    clips left is omitted.
    """
    shared = [key for key in a if key in b]
    first_clip = next(iter(a.values()), {})
    names = [name for name in first_clip if all(name in b[key] for key in shared)]
    differences: dict[str, JsonRow] = {}
    for name in names:
        pairs = [(a[key][name], b[key][name]) for key in shared]
        pairs = [pair for pair in pairs if np.isfinite(pair).all()]
        if len(pairs) < 2:
            continue
        change = paired_difference(
            [after for _, after in pairs], [before for before, _ in pairs], seed
        )
        differences[name] = {
            "value": change.mean,
            "low": change.low,
            "high": change.high,
            "n": change.n,
            "decided": change.decided,
            "left_out": len(shared) - change.n,
            "higher": change.a_higher,
            "lower": change.b_higher,
        }
    return differences
