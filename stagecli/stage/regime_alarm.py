"""The alarm of the regime: the discrepancy is rising, so training moves away from the targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NEEDED = 3  # consecutive probes that a discrete decision takes
RISING = 0.01  # one-sided p of "not rising" below which a probe speaks for the alarm
CALM = 0.1  # p from which a probe speaks for its end


class Alarm:
    """Raised after `NEEDED` consecutive probes at which D is rising, cleared after as many at which
    it is not.
    """

    def __init__(self) -> None:
        self.on = False
        self.rising_streak = 0
        self.calm_streak = 0

    def update(self, p_rise: float) -> bool:
        """Take in one probe; whether the alarm changed."""
        self.rising_streak = self.rising_streak + 1 if p_rise < RISING else 0
        self.calm_streak = self.calm_streak + 1 if p_rise >= CALM else 0
        streak = self.calm_streak if self.on else self.rising_streak
        if streak < NEEDED:
            return False
        self.on = not self.on
        return True

    def state_dict(self) -> dict[str, Any]:
        return {
            "on": self.on,
            "rising_streak": self.rising_streak,
            "calm_streak": self.calm_streak,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.on = state["on"]
        self.rising_streak = state["rising_streak"]
        self.calm_streak = state["calm_streak"]
