"""When harm to the validation loss ends the structure term."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

RISE = 0.01  # of the validation loss above its best, relative


class ValidationWatch:
    """Counts consecutive validations whose loss is above the best one since the term began."""

    def __init__(self) -> None:
        self.best = math.inf
        self.streak = 0
        self.step = -1  # of the newest validation

    def begin(self, valid: tuple[int, float] | None) -> None:
        """Start from the validation (step, loss) before the term began."""
        if valid is not None and math.isfinite(valid[1]):
            self.step, self.best = valid

    def update(self, valid: tuple[int, float] | None) -> bool:
        """Take in the newest validation; whether it is a new one. A loss that is NaN counts as
        above.
        """
        if valid is None or valid[0] == self.step:
            return False
        self.step, loss = valid
        self.streak = 0 if loss <= (1 + RISE) * self.best else self.streak + 1
        if math.isfinite(loss):
            self.best = min(self.best, loss)
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "streak": self.streak, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best = state["best"]
        self.streak = state["streak"]
        self.step = state["step"]
