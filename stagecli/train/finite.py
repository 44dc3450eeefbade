"""Stops training at the first step whose loss or gradient is not finite.

A GPU works through a queue of steps, and reading a number of the newest one would wait for all of
them. So the numbers of a step stay on the device, and are read together when something is due: a
row, a probe, an event, a checkpoint. A step that is not finite is noticed late, and nothing is lost
by it: from that step on, `skip` keeps the device from changing weights, optimiser and averages, and
`Before` is what this process knew before the step. Where reading waits for nothing (a CPU), or a
mechanism needs the losses of every step, numbers are read in the step itself, before its update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stagecli.schema import Recipe
from stagecli.stage.controller import Stages
from stagecli.train.state import TrainingState

MOST = 100  # steps that may wait to be read


@dataclass(frozen=True, kw_only=True)
class StepNumbers:
    """What one step showed, over all processes.

    loss: mean training loss, a scalar; grad_norm: norm of the gradient before clipping, a scalar;
    t_B, loss_B: t, on the CPU, and unweighted loss of the global batch.
    """

    loss: Tensor
    grad_norm: Tensor
    t_B: Tensor
    loss_B: Tensor


@dataclass(frozen=True, kw_only=True)
class Before:
    """What the host knew before a step; the weights and averages are kept by the device.

    step: steps done; stages: their state; ema_updates, probe_updates: of the two averages.
    """

    step: int
    seconds: float
    stages: dict[str, Any]
    ema_updates: int
    probe_updates: int

    @classmethod
    def of(cls, state: TrainingState) -> Before:
        return cls(
            step=state.step,
            seconds=state.seconds,
            stages=state.stages.state_dict(),
            ema_updates=state.ema.updates,
            probe_updates=state.probes.ema.updates if state.probes is not None else 0,
        )

    def return_to(self, state: TrainingState) -> None:
        """Make the state that of the last step that was finite."""
        state.step = self.step
        state.seconds = self.seconds
        state.stages.load_state_dict(self.stages)
        state.ema.updates = self.ema_updates
        if state.probes is not None:
            state.probes.ema.updates = self.probe_updates
        state.whole = True


class NotFiniteError(Exception):
    """A step's loss or gradient is not finite; the state is that before the step."""

    def __init__(self, quantity: str) -> None:
        super().__init__(f"the {quantity} is not finite")
        self.quantity = quantity


class FiniteCheck:
    """Reads the numbers of the steps into the log window, unless one of them is not finite.

    skip: 1 on the device from the first step on that is not finite, 0 before; None where every
    step is read before its update.
    """

    def __init__(self, state: TrainingState, *, each_step: bool, device: torch.device) -> None:
        """each_step: read every step before its update, as `reads_each_step` decides."""
        self.state = state
        self.skip = None if each_step else torch.zeros((), device=device)
        # A gradient that overflows in fp16 is no failure: the scaler skips the step.
        self.scaled = state.scaler is not None
        self.before: Before | None = None
        self.unread: list[tuple[Before | None, StepNumbers]] = []

    def begin_step(self) -> None:
        """Remember what is known before a step."""
        if self.skip is not None:
            self.before = Before.of(self.state)

    def add(self, numbers: StepNumbers) -> None:
        """Take in a step after its backward pass and before its update.

        Raises NotFiniteError where every step is read.
        """
        self.unread.append((self.before, numbers))
        if self.skip is None:
            self.read()
            return
        finite = torch.isfinite(numbers.loss) & torch.isfinite(numbers.grad_norm)
        torch.maximum(self.skip, (~finite).float(), out=self.skip)

    def after_step(self, *, due: bool) -> None:
        """Read the numbers where something is due. Raises NotFiniteError."""
        if due or len(self.unread) >= MOST:
            self.read()

    def read(self) -> None:
        """Read all steps that wait. Raises NotFiniteError, with the state before that step."""
        unread = self.unread
        self.unread = []
        values = _read([numbers for _, numbers in unread])
        for (before, numbers), (loss, grad_norm, loss_B) in zip(unread, values, strict=True):
            quantity = ""
            if not math.isfinite(loss):
                quantity = "loss"
            elif not math.isfinite(grad_norm) and not self.scaled:
                quantity = "gradient"
            if quantity:
                if before is not None:
                    before.return_to(self.state)
                raise NotFiniteError(quantity)
            self.state.log_window.add(numbers.t_B, loss_B, loss, grad_norm)


def build_check(
    state: TrainingState, optimizer: torch.optim.Optimizer, recipe: Recipe, device: torch.device
) -> FiniteCheck:
    """The check of a run. optimizer: the network's, not wrapped; it skips steps where asked to."""
    # Weights that are shared out cannot be skipped by a number that is not.
    each_step = state.sharded or reads_each_step(recipe, state.stages, device)
    check = FiniteCheck(state, each_step=each_step, device=device)
    if check.skip is not None:
        optimizer.found_inf = check.skip  # type: ignore[attr-defined]  # fused: reads it
    return check


def reads_each_step(recipe: Recipe, stages: Stages, device: torch.device) -> bool:
    """Whether the numbers of a step are read before its update.

    Only on CUDA do fused optimisers and averages skip a step by a number on the device; in fp16 the
    scaler decides on that, and its scale must not move after a step that is not finite.
    """
    return device.type != "cuda" or recipe.train.precision == "fp16" or stages.reads_losses


def _read(steps: Sequence[StepNumbers]) -> list[tuple[float, float, Tensor]]:
    """Loss, gradient norm and losses [B] on the CPU of each step, by one copy from the device."""
    if not steps:
        return []
    rows = [torch.cat([step.loss[None], step.grad_norm[None], step.loss_B]) for step in steps]
    rows_SN = torch.stack(rows).cpu()
    heads = rows_SN[:, :2].tolist()
    return [(loss, norm, row_N[2:]) for (loss, norm), row_N in zip(heads, rows_SN, strict=True)]
