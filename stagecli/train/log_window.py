"""Sums over the training steps since the last row of metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class LogWindow:
    """Mean loss, gradient norm, speed and loss per noise bin since the last row of metrics.

    The sums are part of a checkpoint, so that a resumed run writes the same rows.
    """

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self.clear()

    def clear(self) -> None:
        """Start an empty window."""
        self.loss = 0.0
        self.grad_norm = 0.0
        self.steps = 0
        self.bin_loss = torch.zeros(self.bins, dtype=torch.float64)
        self.bin_count = torch.zeros(self.bins, dtype=torch.float64)
        self.untimed = 0  # steps that a checkpoint without their duration carried
        self.carried = 0.0  # seconds of the steps before a resume
        self.restart_clock()

    def restart_clock(self) -> None:
        """Go on measuring the speed from now on."""
        self.began = time.monotonic() - self.carried

    def add(self, t_B: Tensor, loss_B: Tensor, loss: float, grad_norm: float) -> None:
        """Add one step.

        t_B, loss_B: t and unweighted loss of the global batch [B], on the CPU; loss: mean training
        loss of the step; grad_norm: norm of its gradient before clipping.
        """
        index = (t_B.double() * self.bins).long().clamp(0, self.bins - 1)
        self.bin_loss.index_add_(0, index, loss_B.double())
        self.bin_count.index_add_(0, index, torch.ones_like(loss_B, dtype=torch.float64))
        self.loss = self.loss + loss
        self.grad_norm = self.grad_norm + grad_norm
        self.steps = self.steps + 1

    def leave_out(self, seconds: float) -> None:
        """Exclude time not spent on training steps from the speed."""
        self.began += seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent inside the block from the speed."""
        began = time.monotonic()
        yield
        self.leave_out(time.monotonic() - began)

    def metrics(self, batch_size: int) -> dict[str, float]:
        """Numbers for a row of metrics. Needs at least one step.

        The speed is missing where no step was timed.
        """
        row = {
            "train/loss": self.loss / self.steps,
            "train/grad_norm": self.grad_norm / self.steps,
        }
        timed = self.steps - self.untimed
        if timed:
            elapsed = max(self.elapsed, 1e-9)
            row["speed/samples_per_s"] = timed * batch_size / elapsed
            row["speed/step_s"] = elapsed / timed
        return row

    @property
    def elapsed(self) -> float:
        """Seconds spent on the steps of the window, those before a resume included."""
        return time.monotonic() - self.began

    def by_bin(self) -> dict[str, Any]:
        """Edges of the noise bins, examples in each, and their mean loss (None if empty)."""
        pairs = zip(self.bin_loss.tolist(), self.bin_count.tolist(), strict=True)
        return {
            "edges": [i / self.bins for i in range(self.bins + 1)],
            "count": [int(n) for n in self.bin_count.tolist()],
            "loss": [total / count if count else None for total, count in pairs],
        }

    def state_dict(self) -> dict[str, Any]:
        """The sums and the time they took, for a checkpoint."""
        return {
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "steps": self.steps,
            "elapsed": self.elapsed,
            "bin_loss": self.bin_loss,
            "bin_count": self.bin_count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the window that a checkpoint interrupted."""
        self.loss = state["loss"]
        self.grad_norm = state["grad_norm"]
        self.steps = state["steps"]
        self.bin_loss = state["bin_loss"]
        self.bin_count = state["bin_count"]
        elapsed = state.get("elapsed")  # None: of an earlier version
        self.carried = float(elapsed or 0.0)
        self.untimed = self.steps if elapsed is None else 0
        self.restart_clock()
