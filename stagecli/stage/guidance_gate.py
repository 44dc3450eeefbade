"""h(t): how much a sample counts in guidance, by its noise level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

STEEPNESS = 20.0  # of the smooth gate
CENTRE = 0.75  # its t where h = 1/2


@dataclass(frozen=True)
class Gate:
    """kind: 1 inside `window` and 0 elsewhere, or sigmoid(20 (0.75 - t)), `smooth`."""

    kind: Literal["window", "smooth"]
    window: tuple[float, float]

    def __call__(self, t_B: Tensor) -> Tensor:
        """h of each sample, [B], fp32."""
        if self.kind == "smooth":
            return torch.sigmoid(STEEPNESS * (CENTRE - t_B.float()))
        low, high = self.window
        return ((t_B >= low) & (t_B <= high)).float()

    def mean(self, t_B: Tensor) -> float:
        """Mean of h over samples on the CPU; 1 where no sample counts, so that it can divide."""
        return float(self(t_B).double().mean()) or 1.0
