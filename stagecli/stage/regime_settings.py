"""Constants that the regime variable is computed with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RegimeSettings:
    """Constants of the regime variable.

    steps: budget; start: share of the budget before which the clock never starts; level: Dn below
    which it starts; window: probes that a slope is taken over; rate: largest rise of r per probe;
    margin: standard errors added to q as a safety margin; alarm_p, hold_p: one-sided p below which
    Dn counts as rising (alarm) or r waits; needed: consecutive probes that a discrete decision
    takes; failsafe: (begin, length) as shares of the budget, None: off.
    """

    steps: int
    start: float = 0.05
    level: float = 0.9
    window: int = 20
    rate: float = 0.015
    margin: float = 2.0
    alarm_p: float = 0.01
    hold_p: float = 0.1
    needed: int = 3
    failsafe: tuple[float, float] | None = (0.6, 0.3)
