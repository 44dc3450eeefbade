"""The weight of guidance over a run, and the decision to end it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

ScheduleKind = Literal["regime", "constant", "linear", "cosine", "exponential", "stop", "conflict"]

NEEDED = 3  # consecutive probes, or measurements of the conflict, that the end takes
DECAYS = 5.0  # the exponential schedule ends where it has fallen to exp(-5), 0.7 %
BY_STEP = ("linear", "cosine", "exponential", "stop")


class GuidanceSchedule:
    """lambda by r or by the step, and the reason to end.

    kind, weight, end, threshold: as in `GuidanceOptions`; steps: budget.
    """

    def __init__(
        self, *, kind: ScheduleKind, weight: float, end: float, threshold: float, steps: int
    ) -> None:
        self.kind = kind
        self.weight = weight
        self.end = end
        self.threshold = threshold
        self.steps = steps
        self.streak = 0  # consecutive probes or measurements that speak for the end

    def strength(self, step: int, r: float) -> float:
        """lambda at a step; exactly 0 from the end of a schedule on."""
        if self.kind in ("constant", "conflict"):
            return self.weight
        share = step / (self.end * self.steps)
        if self.kind == "regime":
            share = r / self.end
        return self.weight * self._remaining(share) if share < 1 else 0.0

    def _remaining(self, share: float) -> float:
        """Part of the weight that is left after a share, below 1, of the schedule."""
        if self.kind == "linear":
            return 1 - share
        if self.kind == "exponential":
            return math.exp(-DECAYS * share)
        if self.kind == "stop":
            return 1.0
        return (1 + math.cos(math.pi * share)) / 2

    def reason_to_end(
        self, *, step: int, r: float, probed: bool, gradient_cosine: float | None
    ) -> str | None:
        """Take in a step and return the reason to end guidance after it, or None.

        step: steps done; r: of the step's plan; probed: whether a probe was made after the step;
        gradient_cosine: cosine of the two losses' gradients, where the step measured it.
        """
        if self.kind == "regime" and probed:
            self.streak = self.streak + 1 if r >= self.end else 0
            if self.streak >= NEEDED:
                return f"r is at least {self.end:g} for {NEEDED} probes in a row"
        elif self.kind == "conflict" and gradient_cosine is not None:
            self.streak = self.streak + 1 if gradient_cosine < self.threshold else 0
            if self.streak >= NEEDED:
                return (
                    f"its gradient has a cosine below {self.threshold:g} with the diffusion "
                    f"gradient, {NEEDED} times in a row"
                )
        elif self.kind in BY_STEP and step / self.steps >= self.end:
            return f"{100 * self.end:g} % of the steps are done"
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"streak": self.streak}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.streak = state["streak"]
