"""Overrides of the measured regime variable: an alarm that holds it, a fail-safe that lifts it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagecli.stage.regime_settings import RegimeSettings


class Alarm:
    """Raised after `needed` consecutive probes at which Dn is rising, cleared after as many at
    which it is not.
    """

    def __init__(self, settings: RegimeSettings) -> None:
        self.settings = settings
        self.on = False
        self.rising_streak = 0
        self.calm_streak = 0

    def update(self, p_rise: float) -> bool:
        """Take in one probe; whether the alarm changed."""
        s = self.settings
        self.rising_streak = self.rising_streak + 1 if p_rise < s.alarm_p else 0
        self.calm_streak = self.calm_streak + 1 if p_rise >= s.hold_p else 0
        streak = self.calm_streak if self.on else self.rising_streak
        if streak < s.needed:
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


class Failsafe:
    """A floor under r that rises with the step, because the measurement itself may have failed."""

    def __init__(self, settings: RegimeSettings) -> None:
        self.settings = settings
        self.lifting = False  # at the last probe, r stood on the floor
        self.reported = False

    def lift(self, step: int, r: float) -> float:
        """The larger of r and the floor."""
        if self.settings.failsafe is None:
            return r
        floor = self.floor(step)
        self.lifting = floor > r or (self.lifting and floor >= r)
        return max(r, floor)

    def floor(self, step: int) -> float:
        """The floor after `step` steps, in [0, 1]."""
        assert self.settings.failsafe is not None
        begin, length = self.settings.failsafe
        steps = self.settings.steps
        return min(1.0, max(0.0, (step - begin * steps) / (length * steps)))

    def state_dict(self) -> dict[str, Any]:
        return {"lifting": self.lifting, "reported": self.reported}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.lifting = state["lifting"]
        self.reported = state["reported"]
