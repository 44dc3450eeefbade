"""The training loop.

It names no mechanism: each step asks the stages for a plan, adds the loss they return, and passes
on what the step showed.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from stagecli.data.examples import stratified
from stagecli.data.frames import to_device, to_frames
from stagecli.errors import EXIT_FAILED, Problem
from stagecli.flow.objective import Result, flow_loss, weighted_mean
from stagecli.flow.schedule import learning_rate
from stagecli.stage.base import Plan, Probe, Signals
from stagecli.stage.controller import Stages
from stagecli.train.attempt import begin_attempt
from stagecli.train.failure import StepError, rescue
from stagecli.train.feed import Batch, Feed
from stagecli.train.interrupt import Interrupt
from stagecli.train.outputs import Outputs
from stagecli.train.state import RunContext, TrainingState


@dataclass(kw_only=True)
class MicroStep:
    """Forward and backward of one micro-batch.

    loss: its share of the step's loss, a scalar; t_B, loss_B: t and unweighted loss per example.
    """

    batch: Batch
    loss: Tensor
    t_B: Tensor
    loss_B: Tensor


class Trainer:
    """Takes a run from the state it is given to its last step; `setup.build_trainer` makes one."""

    def __init__(self, context: RunContext, state: TrainingState, outputs: Outputs) -> None:
        self.recipe = context.recipe
        self.options = context.recipe.train
        self.accelerator = context.accelerator
        self.device = context.accelerator.device
        self.prepared = context.prepared
        self.wrapped = context.wrapped
        self.recorder = context.recorder
        self.state = state
        self.stages = state.stages
        self.outputs = outputs
        self.feed = Feed(context, state)

    def fit(self, interrupt: Interrupt) -> str:
        """Train to the last step, or until a stop is requested.

        interrupt: entered by the caller. Returns "finished" or "interrupted". Raises StageError for
        whatever else ends training, with the last whole step saved.
        """
        begin_attempt(self.recipe, self.state, self.recorder, self.prepared, str(self.device))
        try:
            with interrupt.at_once(False):
                self.outputs.catch_up()
                self.train(interrupt)
                return self.outputs.finish()
        except Exception as error:
            raise rescue(error, self.outputs) from error

    def train(self, interrupt: Interrupt) -> None:
        """The loop. Raises StageError for a loss or gradient that is not finite, or lost data."""
        options = self.options
        state = self.state
        self.feed.open()
        state.log_window.restart_clock()
        while state.step < options.steps:
            # The step's data, unless a stop is requested.
            began = time.monotonic()
            batches = self.feed.take(interrupt)
            if batches is None:
                return

            # What this step does: the stages' plan, t of each example, the learning rate.
            plan = self.stages.plan(state.step)
            drawn = self.draw_times(plan)
            lr = learning_rate(state.step, options)

            # Forward and backward, one micro-batch at a time.
            self.wrapped.train()
            micro_steps = [
                self.forward_backward(plan, batch, drawn[number], number)
                for number, batch in enumerate(batches)
            ]

            # Update the weights, unless the loss or the gradient is not finite.
            loss = self.mean_loss(micro_steps)
            grad_norm = self.clip_gradient(micro_steps)
            state.whole = False
            self.update(lr)
            state.step += 1

            # What the step showed, gathered over all processes.
            t_B = self.gather([micro.t_B for micro in micro_steps])
            loss_B = self.gather([micro.loss_B for micro in micro_steps])
            state.log_window.add(t_B, loss_B, loss, grad_norm)
            state.seconds += time.monotonic() - began

            # Measure what is due, and let the stages react.
            probe, probe_seconds = self.probe()
            for event in self.stages.observe(
                self.signals(t_B=t_B, loss_B=loss_B, grad_norm=grad_norm, lr=lr, probe=probe)
            ):
                self.recorder.event(state.step, event)
            self.feed.follow_stages()
            if probe is not None:
                self.record_probe(probe, probe_seconds)
            state.whole = True

            # Rows, samples and checkpoints.
            self.outputs.after_step(lr)

    def draw_times(self, plan: Plan) -> list[tuple[Tensor, Tensor]]:
        """t and its importance weights, [B] each, for this process's micro-batches of a step.

        They are drawn for the whole step, over all micro-batches and processes, and the stages see
        them all before the first forward pass.
        """
        options = self.options
        u_B = stratified(options.seed, self.state.step, options.batch_size)
        t_B, weight_B = plan.density.sample(u_B)
        self.stages.begin_step(plan, t_B)
        rows = [self.feed.order.rows(number) for number in range(options.accumulate)]
        return [(t_B[own], weight_B[own]) for own in rows]

    def forward_backward(
        self, plan: Plan, batch: Batch, drawn: tuple[Tensor, Tensor], number: int
    ) -> MicroStep:
        """Accumulate the gradient of a micro-batch.

        drawn: t and weight of each example; number: of the micro-batch in its step. Processes
        exchange gradients in the last one only.
        """
        batch = to_frames(to_device(batch, self.device), self.prepared.codec)
        t_B, weight_B = (value.to(self.device) for value in drawn)
        last = number == self.options.accumulate - 1
        with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
            with self.accelerator.autocast():
                result = flow_loss(
                    self.wrapped,
                    batch["x0"],
                    batch["noise"],
                    t_B,
                    batch,
                    weight_BTC=batch.get("weight"),
                    return_hidden=plan.hidden,
                )
            loss = total_loss(self.stages, plan, result, weight_B) / self.options.accumulate
            self.accelerator.backward(loss)
        return MicroStep(batch=batch, loss=loss.detach(), t_B=t_B, loss_B=result.loss_B.detach())

    def mean_loss(self, micro_steps: list[MicroStep]) -> float:
        """The step's loss over all processes. Raises StageError where it is not finite."""
        loss = torch.zeros((), device=self.device)
        for micro in micro_steps:
            loss += micro.loss
        mean = float(self.all_reduce_mean(loss))
        if not math.isfinite(mean):
            self.fail("loss", micro_steps[-1].batch)
        return mean

    def clip_gradient(self, micro_steps: list[MicroStep]) -> float:
        """Clip the gradient; its norm before. Raises StageError where that is not finite."""
        parameters = self.wrapped.parameters()
        norm = float(self.accelerator.clip_grad_norm_(parameters, self.options.clip))
        if not math.isfinite(norm) and self.state.scaler is None:  # a scaler skips such a step
            self.fail("gradient", micro_steps[-1].batch)
        return norm

    def update(self, lr: float) -> None:
        """One optimiser step of the network, of its EMA and of what the mechanisms train."""
        state = self.state
        scale = state.scaler.get_scale() if state.scaler is not None else 1.0
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        self.stages.step(lr, self.all_reduce_mean, scale)
        if not self.accelerator.optimizer_step_was_skipped:
            state.ema.update(state.network)

    def probe(self) -> tuple[Probe | None, float]:
        """The probe that is due after this step, if any, and the seconds it took."""
        state = self.state
        if state.probes is None:
            return None, 0.0
        began = time.monotonic()
        state.probes.follow(state.network, state.step)
        probe = state.probes.measure(state.network) if state.probes.due(state.step) else None
        seconds = time.monotonic() - began
        state.probe_seconds += seconds
        state.log_window.leave_out(seconds)
        return probe, seconds

    def signals(
        self, *, t_B: Tensor, loss_B: Tensor, grad_norm: float, lr: float, probe: Probe | None
    ) -> Signals:
        """What the mechanisms get to see of a step."""
        probes = self.state.probes
        return Signals(
            step=self.state.step,
            t_B=t_B,
            loss_B=loss_B,
            grad_norm=grad_norm,
            lr=lr,
            probe=probe,
            ema_weights=probes.ema.weights if probes is not None and probe is not None else None,
            valid=self.state.newest_valid,
        )

    def record_probe(self, probe: Probe, seconds: float) -> None:
        """A row of probes: the measurement, the mechanisms' conclusions, and its cost."""
        cost = {
            "seconds": seconds,
            "seconds_total": self.state.probe_seconds,
            "share": self.state.probe_seconds / self.state.seconds,
        }
        row = {**probe.row(), **self.stages.probe_row(), **cost}
        self.recorder.record("probes", self.state.step, row)

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """Mean over the processes."""
        return self.accelerator.reduce(tensor, "mean")

    def gather(self, parts: list[Tensor]) -> Tensor:
        """Values of this step's micro-batches, of all processes, on the CPU."""
        return self.accelerator.gather(torch.cat(parts)).cpu()

    def fail(self, quantity: str, batch: Batch) -> NoReturn:
        """Raise a StageError that names the batch's clips."""
        # Which clips, and whether they or the network are the cause.
        examples = self.prepared.examples(self.prepared.train)
        keys = [examples.clip_of(int(index)).key for index in batch["index"].tolist()]
        inputs = [value for value in batch.values() if value.is_floating_point()]
        cause = "the network"
        if not all(bool(torch.isfinite(value).all()) for value in inputs):
            cause = "the batch itself, which holds values that are not finite"

        more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
        raise StepError(
            f"the {quantity} is not finite at step {self.state.step + 1}",
            problems=[
                Problem("cause", cause),
                Problem("last batch", ", ".join(keys[:4]) + more),
            ],
            hint="lower train.lr or train.clip, or use precision fp32, under another --name",
            exit_code=EXIT_FAILED,
            evidence={"clips": keys},
        )


def total_loss(stages: Stages, plan: Plan, result: Result, weight_B: Tensor) -> Tensor:
    """Mean of the weighted loss per example, plus what the active mechanisms add.

    weight_B: importance weights of the t drawn, [B]. Raises ValueError for any other shape.
    """
    if plan.loss_weight is not None:
        weight_B = weight_B * plan.loss_weight(result.t_B)
    loss = weighted_mean(result.loss_B, weight_B)
    added = stages.loss(plan, result)
    return loss if added is None else loss + added
