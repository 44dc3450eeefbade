"""The training loop.

It names no mechanism: each step asks the stages for a plan, adds the loss they return, and passes
on what the step showed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from stagecli.data.examples import stratified
from stagecli.data.frames import to_device, to_frames
from stagecli.flow.objective import Result, flow_loss, weighted_mean
from stagecli.flow.schedule import learning_rate
from stagecli.model.sharded import WholeTensors, whole
from stagecli.stage.base import Plan, Probe, Signals
from stagecli.stage.controller import Stages
from stagecli.train.attempt import begin_attempt
from stagecli.train.failure import StepError, not_finite, rescue
from stagecli.train.feed import Batch, Feed
from stagecli.train.finite import FiniteCheck, NotFiniteError, StepNumbers
from stagecli.train.graph import GraphedLoss
from stagecli.train.interrupt import Interrupt
from stagecli.train.outputs import Outputs
from stagecli.train.state import RunContext, TrainingState


@dataclass(kw_only=True)
class Times:
    """t and its importance weights of a whole step, [B] each, on the CPU."""

    t_B: Tensor
    weight_B: Tensor


@dataclass(kw_only=True)
class MicroStep:
    """Forward and backward of one micro-batch.

    loss: its share of the step's loss, a scalar; loss_B: unweighted loss per example.
    """

    loss: Tensor
    loss_B: Tensor


class Trainer:
    """Takes a run from the state it is given to its last step; `setup.build_trainer` makes one."""

    def __init__(
        self, context: RunContext, state: TrainingState, outputs: Outputs, check: FiniteCheck
    ) -> None:
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
        self.check = check
        self.graphed: GraphedLoss | None = None
        if self.options.compile == "step":
            self.graphed = GraphedLoss(context.wrapped, context.recipe.condition.max_length)
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
            raise rescue(self.first_failure(error), self.outputs) from error
        finally:
            with suppress(OSError):  # a second write error must not mask the first
                self.recorder.close(self.state.step)

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
                self.read_numbers(due=True)
                return

            # What this step does: the stages' plan, t of each example, the learning rate.
            self.check.begin_step()
            plan = self.stages.plan(state.step)
            times = self.draw_times(plan)
            lr = learning_rate(state.step, options)

            # Forward and backward, one micro-batch at a time.
            self.wrapped.train()
            micro_steps = [
                self.forward_backward(plan, batch, times, number)
                for number, batch in enumerate(batches)
            ]

            # Update the weights, unless the loss or the gradient is not finite.
            numbers = self.take_numbers(times, micro_steps)
            state.whole = False
            self.update(lr)
            state.step += 1

            # Measure what is due, and let the stages react.
            probe, probe_seconds = self.probe()
            events = self.stages.observe(self.signals(numbers, lr, probe))
            self.read_numbers(due=bool(events or self.outputs.due()))
            state.seconds += time.monotonic() - began - probe_seconds
            for event in events:
                self.recorder.event(state.step, event)
            self.feed.follow_stages()
            if probe is not None:
                self.record_probe(probe, probe_seconds)
            state.whole = True

            # Rows, samples and checkpoints.
            self.outputs.after_step(lr)

    def draw_times(self, plan: Plan) -> Times:
        """t of the whole step, over all micro-batches and processes.

        The stages see all of them before the first forward pass.
        """
        options = self.options
        u_B = stratified(options.seed, self.state.step, options.batch_size)
        t_B, weight_B = plan.density.sample(u_B)
        self.stages.begin_step(plan, t_B)
        return Times(t_B=t_B, weight_B=weight_B)

    def forward_backward(self, plan: Plan, batch: Batch, times: Times, number: int) -> MicroStep:
        """Accumulate the gradient of a micro-batch.

        number: of the micro-batch in its step. Processes exchange gradients in the last one only,
        or in each where they share out the weights.
        """
        batch = to_frames(to_device(batch, self.device), self.prepared.codec)
        own = self.feed.order.rows(number)
        t_B = times.t_B[own].to(self.device, non_blocking=True)
        weight_B = times.weight_B[own].to(self.device, non_blocking=True)
        # Gradients that are shared out would be whole in every process until they are exchanged.
        exchanged = number == self.options.accumulate - 1 or self.state.sharded
        with nullcontext() if exchanged else self.accelerator.no_sync(self.wrapped):
            result = self.flow_loss(plan, batch, t_B)
            loss = total_loss(self.stages, plan, result, weight_B) / self.options.accumulate
            self.accelerator.backward(loss)
        return MicroStep(loss=loss.detach(), loss_B=result.loss_B.detach())

    def flow_loss(self, plan: Plan, batch: Batch, t_B: Tensor) -> Result:
        """The loss of a micro-batch of frames, and what the plan asks for."""
        if self.graphed is not None and not plan.inspected:
            return self.graphed(batch, t_B, plan.hidden)
        with self.accelerator.autocast():
            return flow_loss(
                self.wrapped,
                batch["x0"],
                batch["noise"],
                t_B,
                batch,
                weight_BTC=batch.get("weight"),
                return_hidden=plan.hidden,
            )

    def take_numbers(self, times: Times, micro_steps: list[MicroStep]) -> StepNumbers:
        """Clip the gradient, and pass on what the step showed, over all processes.

        Raises StageError for a step that is not finite, if every step is read.
        """
        loss = torch.zeros((), device=self.device)
        for micro in micro_steps:
            loss += micro.loss
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.options.clip)
        numbers = StepNumbers(
            loss=self.all_reduce_mean(loss),
            grad_norm=whole(torch.as_tensor(norm, device=self.device)),
            t_B=times.t_B,
            loss_B=self.gather([micro.loss_B for micro in micro_steps]),
        )
        try:
            self.check.add(numbers)
        except NotFiniteError as error:
            raise self.failure(error.quantity) from error
        return numbers

    def read_numbers(self, *, due: bool) -> None:
        """Read what the last steps showed, where something is due.

        Raises StageError for a step that was not finite, with the state before it.
        """
        try:
            self.check.after_step(due=due)
        except NotFiniteError as error:
            raise self.failure(error.quantity) from error

    def update(self, lr: float) -> None:
        """One optimiser step of the network, of its EMA and of what the mechanisms train."""
        state = self.state
        scale = state.scaler.get_scale() if state.scaler is not None else 1.0
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        self.stages.step(lr, self.all_reduce_mean, scale, self.check.skip)
        if not self.accelerator.optimizer_step_was_skipped:
            state.ema.update(state.network, self.check.skip)

    def probe(self) -> tuple[Probe | None, float]:
        """The probe that is due after this step, if any, and the seconds it took."""
        state = self.state
        if state.probes is None:
            return None, 0.0
        due = state.probes.due(state.step)
        self.read_numbers(due=due)
        began = time.monotonic()
        state.probes.follow(state.network, state.step, self.check.skip)
        probe = state.probes.measure(state.network) if due else None
        seconds = time.monotonic() - began
        state.probe_seconds += seconds
        state.log_window.leave_out(seconds)
        return probe, seconds

    def signals(self, numbers: StepNumbers, lr: float, probe: Probe | None) -> Signals:
        """What the mechanisms get to see of a step."""
        ema_weights: Mapping[str, Tensor] | None = None
        probes = self.state.probes
        if probes is not None and probe is not None:
            ema_weights = WholeTensors(probes.ema.weights)
        return Signals(
            step=self.state.step,
            t_B=numbers.t_B,
            loss_B=numbers.loss_B,
            grad_norm=numbers.grad_norm,
            lr=lr,
            probe=probe,
            ema_weights=ema_weights,
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
        """Values of this step's micro-batches, of all processes, in the order of the batch."""
        gathered = self.accelerator.gather(torch.stack(parts))
        return gathered.unflatten(0, (-1, len(parts))).transpose(0, 1).flatten()

    def first_failure(self, error: Exception) -> Exception:
        """What ended training: an error, or a step before it that was not finite."""
        try:
            self.read_numbers(due=True)
        except StepError as earlier:
            return earlier
        except Exception:  # after some errors the device gives no more answers, and no weights
            self.state.whole = False
        return error

    def failure(self, quantity: str) -> StepError:
        """The error of the step to come, whose loss or gradient is not finite."""
        batch = to_frames(to_device(self.feed.last_batch(), self.device), self.prepared.codec)
        return not_finite(quantity, self.state.step + 1, batch, self.prepared)


def total_loss(stages: Stages, plan: Plan, result: Result, weight_B: Tensor) -> Tensor:
    """Mean of the weighted loss per example, plus what the active mechanisms add.

    weight_B: importance weights of the t drawn, [B]. Raises ValueError for any other shape.
    """
    if plan.loss_weight is not None:
        weight_B = weight_B * plan.loss_weight(result.t_B)
    loss = weighted_mean(result.loss_B, weight_B)
    added = stages.loss(plan, result)
    return loss if added is None else loss + added
