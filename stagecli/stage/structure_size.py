"""How strongly the structure term acts, and when its harm to the validation loss ends it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MEMORY = 0.98  # of the running mean of the gradient norm, per step
RISE = 0.01  # of the validation loss above its best, relative


class TermSize:
    """The coefficient c of the term, as a share of the whole gradient's norm.

    share, cap: as in `StructureOptions`; ramp_steps: steps over which the term comes in.
    """

    def __init__(self, *, share: float, cap: float, ramp_steps: float) -> None:
        self.share = share
        self.cap = cap
        self.ramp_steps = ramp_steps
        # Running means of the gradient norm and of 1, whose ratio is free of the start at 0.
        self.level = 0.0
        self.level_norm = 0.0
        # Norm of the bare term's gradient: newest, and as it was at the end of the ramp.
        self.unit = 0.0
        self.reference = 0.0

    def observe(self, grad_norm: float) -> None:
        """Take in the gradient norm of a step; one that fp16's scaler skipped has none."""
        if math.isfinite(grad_norm):
            self.level = MEMORY * self.level + (1 - MEMORY) * grad_norm
            self.level_norm = MEMORY * self.level_norm + (1 - MEMORY)

    def measured(self, unit: float, since: int) -> None:
        """Take in the norm of the bare term's gradient, `since` steps after the term began."""
        self.unit = unit
        if self.ramp(since) < 1 or self.reference == 0:
            self.reference = unit

    def ramp(self, since: int) -> float:
        """(1 - cos(pi x)) / 2 over the ramp, in (0, 1]; `since` steps are done since the term
        began.
        """
        x = (since + 1) / max(1.0, self.ramp_steps)
        return (1 - math.cos(math.pi * min(1.0, x))) / 2

    def coefficient(self, since: int) -> float:
        """c: `share` of the running gradient norm, by the term's gradient norm at the ramp's end.

        The cap goes by the term's newest gradient norm. 0 where that gradient vanishes.
        """
        if min(self.unit, self.reference) <= 0 or self.level_norm == 0:
            return 0.0
        level = self.level / self.level_norm
        wanted = self.ramp(since) * self.share * level / self.reference
        return min(wanted, self.cap * level / self.unit)

    def gradient_ratio(self, coefficient: float) -> float:
        """Norm of the term's gradient, as last measured, over the running gradient norm."""
        if not self.level:
            return 0.0
        return coefficient * self.unit * self.level_norm / self.level

    def state_dict(self) -> dict[str, Any]:
        return {
            "level": self.level,
            "level_norm": self.level_norm,
            "unit": self.unit,
            "reference": self.reference,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.level = state["level"]
        self.level_norm = state["level_norm"]
        self.unit = state["unit"]
        self.reference = state["reference"]


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
