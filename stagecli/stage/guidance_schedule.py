"""The weight of guidance over a run, and the decision to end it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

ScheduleKind = Literal[
    "regime", "constant", "linear", "cosine", "exponential", "stop", "conflict", "paying"
]

NEEDED = 3  # consecutive probes, or measurements of the conflict, that the end takes
DECAYS = 5.0  # the exponential schedule ends where it has fallen to exp(-5), 0.7 %
BY_STEP = ("linear", "cosine", "exponential", "stop")


@dataclass(frozen=True, kw_only=True)
class StepEvidence:
    """What a step showed that may end guidance.

    step: steps done; r: of the step's plan; probed: whether a probe was made after the step;
    gradient_cosine, gain_bound: of the newest measurement of the two gradients, None where the step
    did not measure them (see `guidance_conflict`).
    """

    step: int
    r: float
    probed: bool
    gradient_cosine: float | None = None
    gain_bound: float | None = None


class GuidanceSchedule:
    """lambda by r or by the step, and the reason to end.

    kind, weight, fade, end, threshold: as in `GuidanceOptions`; steps: budget.
    """

    def __init__(
        self,
        *,
        kind: ScheduleKind,
        weight: float,
        fade: float,
        end: float,
        threshold: float,
        steps: int,
    ) -> None:
        self.kind = kind
        self.weight = weight
        self.fade = fade
        self.end = end
        self.threshold = threshold
        self.steps = steps
        self.streak = 0  # consecutive probes or measurements that speak for the end

    def strength(self, step: int, r: float) -> float:
        """lambda at a step; exactly 0 from the end of a schedule on."""
        if self.kind in ("constant", "conflict", "paying"):
            return self.weight
        share = step / (self.end * self.steps)
        if self.kind == "regime":
            share = max(0.0, r - self.fade) / (self.end - self.fade)
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

    def reason_to_end(self, evidence: StepEvidence) -> str | None:
        """Take in a step and return the reason to end guidance after it, or None."""
        if self.kind == "regime" and evidence.probed:
            self.streak = self.streak + 1 if evidence.r >= self.end else 0
            if self.streak >= NEEDED:
                return f"r is at least {self.end:g} for {NEEDED} probes in a row"
        elif self.kind == "conflict" and evidence.gradient_cosine is not None:
            self.streak = self.streak + 1 if evidence.gradient_cosine < self.threshold else 0
            if self.streak >= NEEDED:
                return (
                    f"its gradient has a cosine below {self.threshold:g} with the diffusion "
                    f"gradient, {NEEDED} times in a row"
                )
        elif self.kind == "paying" and evidence.gain_bound is not None:
            if evidence.gain_bound <= 0:
                return (
                    "its gradient no longer lowers the diffusion loss at t >= 0.5: "
                    f"the mean gain is at most {evidence.gain_bound:.2g} (one-sided 95 %)"
                )
        elif self.kind in BY_STEP and evidence.step / self.steps >= self.end:
            return f"{100 * self.end:g} % of the steps are done"
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"streak": self.streak}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.streak = state["streak"]
