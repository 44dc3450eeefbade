"""Semantic progress at the noise levels of the probes: how much is made, how much is to come.

Its inputs are Dn at each noise level (1: as far from the target as another clip; 0: as good as the
codec allows) and optimiser time tau, the sum of lr / lr_max, whose value at the end of the budget
is known. The formulas are this project's own; `docs/regime.md` has the measurements behind them.
Plain arithmetic.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from stagecli.metrics.theil_sen import theil_sen
from stagecli.stage.base import LEAST_PROGRESS, NoiseLevel

SPOKEN = 5  # probes before progress is measured
MIDDLE = 3  # probes whose median counts as one value of Dn
SHORTEST = 5  # probes that a slope is taken over, at least; else a third of all
KEPT = 0.5  # of the moving average of a level's scope, at each probe


@dataclass
class ProbeHistory:
    """The probes with finite values so far: step, optimiser time, and Dn by noise level t."""

    steps: list[int] = field(default_factory=list)
    taus: list[float] = field(default_factory=list)
    Dn_t: dict[float, list[float]] = field(default_factory=dict)

    def add(self, step: int, tau: float, Dn_t: Mapping[float, float]) -> None:
        self.steps.append(step)
        self.taus.append(tau)
        for t, Dn in Dn_t.items():
            self.Dn_t.setdefault(t, []).append(Dn)

    @property
    def means(self) -> list[float]:
        """Dn of every probe, as the mean over the noise levels."""
        rows = zip(*self.Dn_t.values(), strict=True)
        return [math.fsum(row) / len(row) for row in rows]

    @property
    def last(self) -> tuple[NoiseLevel, ...]:
        """The noise levels of the last probe, without progress; empty where there was none."""
        return tuple(NoiseLevel.unmeasured(t, values[-1]) for t, values in self.Dn_t.items())

    @property
    def window(self) -> slice:
        """The probes that a slope is taken over."""
        return slice(-max(SHORTEST, len(self.steps) // 3), None)


def measure_levels(
    history: ProbeHistory, tau_end: float, before: Sequence[NoiseLevel] = ()
) -> tuple[NoiseLevel, ...]:
    """Progress at every noise level after the newest probe; empty before the fifth.

    tau_end: optimiser time at the end of the budget; before: the result of the previous probe.
    """
    if len(history.steps) < SPOKEN:
        return ()
    levels = tuple(_measure(history, t, tau_end) for t in history.Dn_t)
    return blend(before, levels)


def _measure(history: ProbeHistory, t: float, tau_end: float) -> NoiseLevel:
    values = [min(1.0, Dn) for Dn in history.Dn_t[t]]
    middles = [statistics.median(values[i : i + MIDDLE]) for i in range(len(values) - MIDDLE + 1)]
    now = middles[-1]
    made = max(0.0, max(middles[:-1]) - now)
    slope = theil_sen(history.taus[history.window], values[history.window])
    left = max(0.0, tau_end - history.taus[-1])
    to_come = min(max(0.0, now), max(0.0, -slope) * left)
    return NoiseLevel(t=t, Dn=history.Dn_t[t][-1], made=made, to_come=to_come, scope=made + to_come)


def blend(before: Sequence[NoiseLevel], levels: Sequence[NoiseLevel]) -> tuple[NoiseLevel, ...]:
    """`levels` with their scope averaged with that of the probe before."""
    if not before:
        return tuple(levels)
    return tuple(
        replace(new, scope=KEPT * old.scope + (1 - KEPT) * new.scope)
        for old, new in zip(before, levels, strict=True)
    )


def share_made(levels: Sequence[NoiseLevel]) -> float:
    """The share of the semantic progress within the budget that has been made, in [0, 1)."""
    made = math.fsum(level.made for level in levels)
    to_come = math.fsum(level.to_come for level in levels)
    return made / (made + to_come + LEAST_PROGRESS)
