"""Sums of what training saw since the last row of metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class LogWindow:
    """Mean loss, gradient norm and loss by noise bin; in the checkpoint, so that a resume writes the same rows."""

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self.clear()

    def clear(self) -> None:
        self.loss = 0.0
        self.grad_norm = 0.0
        self.steps = 0
        self.bin_loss = torch.zeros(self.bins, dtype=torch.float64)
        self.bin_count = torch.zeros(self.bins, dtype=torch.float64)
        self.began = time.monotonic()

    def add(self, t_B: Tensor, loss_B: Tensor, loss: float, grad_norm: float) -> None:
        """One step: t and unweighted loss of the global batch [B] on the CPU, its mean loss, its gradient norm."""
        index = (t_B.double() * self.bins).long().clamp(0, self.bins - 1)
        self.bin_loss.index_add_(0, index, loss_B.double())
        self.bin_count.index_add_(0, index, torch.ones_like(loss_B, dtype=torch.float64))
        self.loss = self.loss + loss
        self.grad_norm = self.grad_norm + grad_norm
        self.steps = self.steps + 1

    def leave_out(self, seconds: float) -> None:
        """Time spent on something other than steps, which the speed is not to show."""
        self.began += seconds

    def metrics(self, batch_size: int) -> dict[str, float]:
        elapsed = max(time.monotonic() - self.began, 1e-9)
        return {
            "train/loss": self.loss / self.steps,
            "train/grad_norm": self.grad_norm / self.steps,
            "speed/samples_per_s": self.steps * batch_size / elapsed,
            "speed/step_s": elapsed / self.steps,
        }

    def by_bin(self) -> dict[str, Any]:
        """Edges of the noise bins, number of samples in each, and their mean loss (None where there is none)."""
        pairs = zip(self.bin_loss.tolist(), self.bin_count.tolist(), strict=True)
        return {
            "edges": [i / self.bins for i in range(self.bins + 1)],
            "count": [int(n) for n in self.bin_count.tolist()],
            "loss": [total / count if count else None for total, count in pairs],
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            k: getattr(self, k) for k in ("loss", "grad_norm", "steps", "bin_loss", "bin_count")
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
