"""The controls of the regime variable: r from the step, or from the probes of another run."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stagecli.errors import StageError


def linear(steps: int) -> Callable[[int], float]:
    """r = share of the budget of `steps` that is done: the control that measures nothing."""
    return lambda step: min(1.0, max(0.0, step / steps))


def replay(
    rows: Sequence[Mapping[str, Any]], *, steps: int, source_steps: int | None = None
) -> Callable[[int], float]:
    """r of another run, linear between its probes; 0 before the first, held after the last.

    Interpolated in the step, not in optimiser time: a plan belongs to a step, so two runs with the
    same probe steps get the same r at every step whatever their learning rates.

    rows: the other run's probes, with "step" and "r"; source_steps: its budget, if it differs from
    `steps`; r is then replayed at the same share of the budget. Raises StageError if no row has
    both numbers.
    """
    known = sorted({int(row["step"]): float(row["r"]) for row in rows if _has_r(row)}.items())
    if not known:
        raise StageError(
            "the run to replay has no probe with an r",
            hint='name a run that was trained with [stage.regime], or choose source = "linear"',
        )
    scale = (source_steps or steps) / steps
    probe_steps = [step for step, _ in known]
    highest = 0.0
    values = [highest := max(highest, min(1.0, r)) for _, r in known]

    def schedule(step: int) -> float:
        position = step * scale
        i = bisect_right(probe_steps, position)
        if i == 0:
            return 0.0
        if i == len(probe_steps):
            return values[-1]
        share = (position - probe_steps[i - 1]) / (probe_steps[i] - probe_steps[i - 1])
        return values[i - 1] + share * (values[i] - values[i - 1])

    return schedule


def _has_r(row: Mapping[str, Any]) -> bool:
    return all(type(row.get(k)) in (int, float) and math.isfinite(row[k]) for k in ("step", "r"))
