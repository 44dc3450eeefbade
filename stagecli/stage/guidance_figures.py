"""What guidance records of its steps: the weight, and mean figures by guided block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class PlannedStep:
    """The step being trained.

    number: steps done before it; weight: lambda; r: regime variable; gate_mean: mean of h over all
    its samples; sums_K: figure -> its sum by block over the samples of the micro-batches so far,
    weighted by h; gate_sum: the sum of h over these.
    """

    number: int = 0
    weight: float = 0.0
    r: float = 0.0
    gate_mean: float = 1.0
    sums_K: dict[str, Tensor] = field(default_factory=dict)
    gate_sum: Tensor | None = None

    def add(self, figures_KB: Mapping[str, Tensor], h_B: Tensor) -> None:
        """Take in one micro-batch: each figure by block and sample, and h of each sample."""
        for name, figure_KB in figures_KB.items():
            sum_K = (h_B * figure_KB).sum(1)
            self.sums_K[name] = self.sums_K[name] + sum_K if name in self.sums_K else sum_K
        gate_sum = h_B.sum()
        self.gate_sum = gate_sum if self.gate_sum is None else self.gate_sum + gate_sum


@dataclass
class BlockMeans:
    """Figures of steps by guided block, summed since the last row of metrics.

    sums_K stay on the device and are converted only when a row is written, to avoid a sync per
    step.
    """

    sums_K: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    def add(self, planned: PlannedStep) -> None:
        """Take in a step that is done, if it was guided."""
        if planned.gate_sum is None:
            return
        for name, sum_K in planned.sums_K.items():
            mean_K = sum_K / planned.gate_sum.clamp_min(1e-6)
            self.sums_K[name] = self.sums_K[name] + mean_K if name in self.sums_K else mean_K
        self.count += 1

    def means(self) -> dict[str, list[float]]:
        """Figure -> mean by block; empty if nothing was added."""
        return {
            name: [total / self.count for total in sum_K.tolist()]
            for name, sum_K in self.sums_K.items()
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "sums": dict(self.sums_K),
            "count": self.count,
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        self.sums_K = {name: sum_K.clone().to(device) for name, sum_K in state["sums"].items()}
        self.count = state["count"]
