"""The training loop; the only file that knows Accelerate.

It knows no mechanism by name: each step asks the stages for a plan, adds the loss they return, and
tells them what was seen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from stagecli.data.examples import clip_at, stratified
from stagecli.data.frames import to_device, to_frames
from stagecli.data.loader import MicroBatches, loader
from stagecli.errors import EXIT_FAILED, Problem, StageError
from stagecli.flow.objective import Result, flow_loss, weighted_mean
from stagecli.generate.pipeline import Pipeline
from stagecli.metrics import in_training
from stagecli.model.ema import EMA
from stagecli.model.network import Network, count_parameters
from stagecli.recipe.dump import dump_recipe
from stagecli.runs import checkpoint
from stagecli.runs.directory import Run, command_line
from stagecli.schema import Recipe
from stagecli.stage.base import Event, Plan, Probe, Signals
from stagecli.stage.controller import Stages
from stagecli.terminal.views import View
from stagecli.train.interrupt import Interrupt
from stagecli.train.log_window import LogWindow
from stagecli.train.prepare import Prepared, prepare, shortened
from stagecli.train.probe import ProbeSet
from stagecli.train.schedule import learning_rate
from stagecli.train.scorer import Scorer
from stagecli.train.validation import draw_samples, validate


class Trainer:
    """One run from recipe to last checkpoint: `Trainer(...).fit()`."""

    def __init__(
        self, recipe: Recipe, accelerator: Accelerator, run_dir: Path, run: Run | None, view: View
    ) -> None:
        """run: the open run directory, None on all but the main process. Raises StageError before any step."""
        self.recipe = recipe
        self.run_dir = run_dir
        self.run = run
        self.view = view
        self.table = recipe.train
        self.accelerator = accelerator
        self.device = accelerator.device
        self.stages = Stages.of(recipe)
        with accelerator.main_process_first():
            self.prepared: Prepared = prepare(
                recipe, run_dir, self.device, view.progress, self.stages.features
            )
        self.codec = self.prepared.codec
        torch.manual_seed(self.table.seed)
        text = self.prepared.text
        self.network = Network(
            recipe, channels=self.codec.channels, text_width=text.width if text else None
        )
        self.network.to(self.device)
        if self.table.compile:
            self.network.dit.compile_blocks()
        self.ema = EMA(self.network, self.table.ema)
        optimizer = torch.optim.AdamW(
            self.network.parameter_groups(self.table.weight_decay),
            lr=self.table.lr,
            betas=self.table.betas,
            fused=self.device.type in ("cuda", "cpu"),
        )
        self.wrapped, self.optimizer = self.accelerator.prepare(self.network, optimizer)
        self.stages.attach(
            self.network, self.prepared.features.width if self.prepared.features else None
        )
        self.probe_set: ProbeSet | None = None
        if self.stages.probes is not None:
            self.probe_set = ProbeSet(
                self.stages.probes, self.prepared, self.network, accelerator, view.progress
            )
        self.log_window = LogWindow(self.table.bins)
        self.step = 0
        self.seconds = 0.0
        self.probing = 0.0
        self.newest_valid: tuple[int, float] | None = None  # step and loss
        self.interrupt = Interrupt()
        self.pipeline = Pipeline(
            recipe=recipe,
            codec=self.codec,
            network=self.network,
            text=text,
            device=self.device,
            autocast=self.accelerator.autocast,
        )
        self.scorer: Scorer | None = None
        if self.table.evaluate_every:
            self.scorer = Scorer(self.prepared, self.pipeline, accelerator, view.progress)
        self.scores: tuple[int, dict[str, float]] = (
            -1,
            {},
        )  # step of the newest evaluation, and what it gave

    def fit(self) -> str:
        """Train to the last step. Returns "finished" or "interrupted"; raises StageError on a non-finite loss."""
        self._resume()
        table = self.table
        world = self.accelerator.num_processes
        micro = MicroBatches(
            batch_size=table.batch_size,
            accumulate=table.accumulate,
            rank=self.accelerator.process_index,
            world=world,
            start=self.step,
            stop=table.steps,
        )
        with ExitStack() as stack:
            stack.enter_context(self.interrupt)
            data = self._batches(micro)
            self.log_window.began = time.monotonic()
            while self.step < table.steps and not self._stop():
                began = time.monotonic()
                plan = self.stages.plan(self.step)
                u = stratified(table.seed, self.step, table.batch_size)
                torch.manual_seed(
                    hash((table.seed, self.step, self.accelerator.process_index)) % 2**63
                )
                self.wrapped.train()
                rate = learning_rate(self.step, table)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                seen_t = []
                seen_loss = []
                loss = torch.zeros((), device=self.device)
                for part in range(table.accumulate):
                    batch = to_frames(to_device(next(data), self.device), self.codec)
                    t_B, weight_B = (
                        x.to(self.device) for x in plan.density.sample(u[micro.rows(part)])
                    )
                    last = part == table.accumulate - 1
                    with ExitStack() as sync:
                        if not last:
                            sync.enter_context(self.accelerator.no_sync(self.wrapped))
                        result = self._loss(plan, batch, t_B)
                        total = self._total(plan, result, weight_B) / table.accumulate
                        self.accelerator.backward(total)
                    loss += total.detach()
                    seen_t.append(t_B)
                    seen_loss.append(result.loss_B.detach())
                mean_loss = float(self.accelerator.reduce(loss, "mean"))
                if not math.isfinite(mean_loss):
                    self._fail(batch, "loss")
                grad_norm = float(
                    self.accelerator.clip_grad_norm_(self.wrapped.parameters(), table.clip)
                )
                if (
                    not math.isfinite(grad_norm) and self.accelerator.scaler is None
                ):  # a scaler skips such a step
                    self._fail(batch, "gradient")
                scale = self.accelerator.scaler.get_scale() if self.accelerator.scaler else 1.0
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                self.stages.step(rate, self._all_reduce_mean, scale)
                if not self.accelerator.optimizer_step_was_skipped:
                    self.ema.update(self.network)
                self.step += 1
                t_B = self.accelerator.gather(torch.cat(seen_t)).cpu()
                loss_B = self.accelerator.gather(torch.cat(seen_loss)).cpu()
                self.log_window.add(t_B, loss_B, mean_loss, grad_norm)
                self.seconds += time.monotonic() - began
                probe, spent = self._probe()
                ema_weights = self.probe_set.ema.weights if self.probe_set and probe else None
                seen = Signals(
                    self.step, t_B, loss_B, grad_norm, rate, probe, ema_weights, self.newest_valid
                )
                for event in self.stages.observe(seen):
                    self._event(event)
                if (
                    self.fed and self.stages.features is None
                ):  # from here the loader reads no features any more
                    data = self._batches(micro.since(self.step))
                if probe is not None:
                    cost = {
                        "seconds": spent,
                        "seconds_total": self.probing,
                        "share": self.probing / self.seconds,
                    }
                    self._record("probes", {**probe.row(), **self.stages.probe_row(), **cost})
                self._after_step(rate)
            return self._finish()

    def _batches(self, micro: MicroBatches) -> Iterator[dict[str, Tensor]]:
        """Micro-batches from a step on, with the features that the stages want at present."""
        self.fed = self.stages.features is not None
        self.prepared.features = self.prepared.features if self.fed else None
        return iter(loader(self.prepared.examples(self.prepared.train, features=self.fed), micro))

    def _all_reduce_mean(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, "mean")

    def _loss(self, plan: Plan, batch: dict[str, Tensor], t_B: Tensor) -> Result:
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

    def _total(self, plan: Plan, result: Result, weight_B: Tensor) -> Tensor:
        """Weighted mean loss plus what the active mechanisms add."""
        if plan.loss_weight is not None:
            weight_B = weight_B * plan.loss_weight(result.t_B)
        total = weighted_mean(result.loss_B, weight_B)
        extra = self.stages.loss(plan, result)
        return total if extra is None else total + extra

    def _probe(self) -> tuple[Probe | None, float]:
        """The measurement that is due after this step, if any, and the seconds it took."""
        if self.probe_set is None:
            return None, 0.0
        began = time.monotonic()
        self.probe_set.follow(self.network, self.step)
        probe = self.probe_set.measure(self.network) if self.probe_set.due(self.step) else None
        spent = time.monotonic() - began
        self.probing += spent
        self.log_window.leave_out(spent)
        return probe, spent

    def _after_step(self, rate: float) -> None:
        """Rows, validation, samples and checkpoints that are due at this step."""
        table = self.table
        step = self.step
        last = self.step == self.table.steps
        self.view.step(step)
        if step % table.log_every == 0 or last:
            self._log(rate)
        if (table.validate_every and step % table.validate_every == 0) or last:
            self._validate()
        saves = step % table.checkpoint_every == 0 or last
        chooses = (
            table.best != in_training.LOSS
        )  # then a checkpoint without a score could not be compared
        if table.evaluate_every and (
            step % table.evaluate_every == 0 or last or (saves and chooses)
        ):
            self._evaluate()
        if saves:
            self.save()
        if table.samples and ((table.sample_every and step % table.sample_every == 0) or last):
            self._sample()

    def _log(self, rate: float) -> None:
        if self.log_window.steps:
            numbers = {
                **self.log_window.metrics(self.table.batch_size),
                "optim/lr": rate,
                **self.stages.metrics(),
            }
            self._record("metrics", {"samples": self.step * self.table.batch_size, **numbers})
            self._record("bins", self.log_window.by_bin())
        self.log_window.clear()

    def _validate(self) -> None:
        """Loss of the EMA weights on the fixed grid of t; remembered as the figure of this step."""
        pause = time.monotonic()
        with self.ema.applied(self.network):
            losses = validate(self.prepared, self.wrapped, self.codec, self.accelerator)
        self.newest_valid = (self.step, losses["valid/loss"])
        self._record("metrics", losses)
        self.log_window.leave_out(time.monotonic() - pause)

    def _evaluate(self) -> None:
        """Scores of samples of the EMA weights; the time they take is in their row."""
        pause = time.monotonic()
        assert self.scorer is not None
        with self.ema.applied(self.network):
            self.scores = (self.step, self.scorer.measure())
        spent = time.monotonic() - pause
        self._record(
            "metrics",
            {**self.scores[1], "eval/clips": len(self.scorer.captions), "eval/seconds": spent},
        )
        self.log_window.leave_out(time.monotonic() - pause)

    def _measured(self) -> float:
        """The value that `train.best` names, of the weights of this very step; nan where it was not measured."""
        step, found = self.scores
        if self.table.best == in_training.LOSS:
            step, loss = self.newest_valid or (-1, math.nan)
            found = {in_training.LOSS: loss}
        return found[self.table.best] if step == self.step else math.nan

    def save(self) -> None:
        """Write a checkpoint; the one that is best by `train.best` is kept besides the newest."""
        if (
            self.prepared.valid
            and self.table.validate_every
            and (self.newest_valid or (-1,))[0] != self.step
        ):
            self._validate()
        pause = time.monotonic()
        if self.run:
            best = in_training.best(
                self.run.info["best"], self.table.best, self.step, self._measured()
            )
            checkpoint.save(
                self.run.checkpoints,
                self.step,
                model=self.network.state_dict(),
                ema=self.ema.weights,
                codec={"mean_C": self.codec.mean_C, "std_C": self.codec.std_C},
                recipe=dump_recipe(self.recipe),
                trainer=self._state(),
                state={"samples": self.step * self.table.batch_size, "best": best},
            )
            self.run.save_info(best=best)
            checkpoint.rotate(self.run.checkpoints, self.table.keep, best["step"] if best else None)
        self.accelerator.wait_for_everyone()
        self.log_window.leave_out(time.monotonic() - pause)

    def _state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "optimizer": self.optimizer.state_dict(),
            "ema_updates": self.ema.updates,
            "log_window": self.log_window.state_dict(),
            "stages": self.stages.state_dict(),
            "probes": self.probe_set.state_dict() if self.probe_set else None,
            "probing": self.probing,
            "newest_valid": list(self.newest_valid) if self.newest_valid else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "seconds": self.seconds,
        }

    def _resume(self) -> None:
        """Continue from the newest checkpoint, if there is one, and open a new attempt."""
        folder = self.run_dir / "checkpoints"
        if checkpoint.steps(folder):
            path = checkpoint.find(folder)
            state, trainer = checkpoint.load_state(path)
            self.network.load_state_dict(checkpoint.load_weights(path, "model"))
            self.ema.load(checkpoint.load_weights(path, "ema"), trainer["ema_updates"])
            self.optimizer.load_state_dict(trainer["optimizer"])
            self.log_window.load_state_dict(trainer["log_window"])
            self.stages.load_state_dict(trainer["stages"])
            if self.accelerator.scaler is not None and trainer["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(trainer["scaler"])
            if self.probe_set is not None:
                self.probe_set.load_state_dict(trainer["probes"])
            self.newest_valid = tuple(trainer["newest_valid"]) if trainer["newest_valid"] else None
            self.step = state["step"]
            self.seconds = trainer["seconds"]
            self.probing = trainer["probing"]
            if self.run:  # a kill may have come between the checkpoint and run.json
                self.run.save_info(best=state["best"])
        if self.run:
            resumed = bool(self.run.info["attempts"])
            self.run.begin_attempt(self.step, command_line())
            self.run.save_info(parameters=count_parameters(self.network))
            self.view.start(self._facts())
            self._tell_left_out()
            if resumed:
                self._event(
                    Event("trainer", "stopped", "training", f"resumed from step {self.step}")
                )
            if changes := self.run.measured_otherwise:
                reason = (
                    f"scores from here on do not compare with those before: {'; '.join(changes)}"
                )
                self._event(Event("trainer", "as before", "measured otherwise", reason))

    def _tell_left_out(self) -> None:
        """Clips that `data.on_bad_file = "skip"` leaves out: named on the screen, all of them in the events."""
        clips = self.prepared.left_out
        for text in shortened(clips, f"all in {self.run_dir / 'events.jsonl'}"):
            self.view.note(f"left out: {text}")
        if clips:
            self._event(
                Event("data", "found", "left out", f"{len(clips)} clips left out", {"clips": clips})
            )

    def _facts(self) -> dict[str, Any]:
        return {
            "name": self.run_dir.name,
            "task": self.recipe.task.kind,
            "steps": self.table.steps,
            "step": self.step,
            "parameters": count_parameters(self.network),
            "device": str(self.device),
            "precision": self.table.precision,
            "batch_size": self.table.batch_size,
            "run_dir": str(self.run_dir),
            "best_by": None if self.table.best == in_training.LOSS else self.table.best,
        }

    def _event(self, event: Event) -> None:
        self._record("events", event.row(self.step))

    def _record(self, stream: str, row: dict[str, Any]) -> None:
        """A row of one of the run's streams, written and shown by the main process."""
        if self.run:
            view = self.view
            show = {
                "metrics": view.row,
                "bins": view.bins,
                "events": view.event,
                "probes": view.probe,
            }[stream]
            show(self.run.append(stream, {"step": self.step, **row}))

    def _sample(self) -> None:
        """Audio from the EMA weights, beside its samples.jsonl."""
        pause = time.monotonic()
        if self.run:
            folder = self.run_dir / "samples" / checkpoint.name_of(self.step)
            with self.ema.applied(self.network):
                draw_samples(self.pipeline, self.prepared, folder, self.table.samples, self.step)
        self.accelerator.wait_for_everyone()
        self.log_window.leave_out(time.monotonic() - pause)

    def _fail(self, batch: dict[str, Tensor], what: str) -> None:
        """A loss or gradient that is no number: keep the state before it, and say which clips it came from."""
        self.save()
        train = self.prepared.train
        seed = self.table.seed
        keys = [train[clip_at(seed, len(train), int(i))].key for i in batch["index"].tolist()]
        finite_input = all(
            bool(torch.isfinite(v).all()) for v in batch.values() if v.is_floating_point()
        )
        self._event(
            Event("trainer", "training", "failed", f"the {what} is not finite", {"clips": keys})
        )
        cause = (
            "the network"
            if finite_input
            else "the batch itself, which holds values that are not finite"
        )
        shown = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
        raise StageError(
            f"the {what} is not finite at step {self.step + 1}",
            problems=[Problem("cause", cause), Problem("last batch", shown)],
            hint=f"the state before it is saved (step {self.step}); lower train.lr or train.clip, or use precision "
            "fp32, under another --name",
            exit_code=EXIT_FAILED,
        )

    def _finish(self) -> str:
        if self.step >= self.table.steps:
            if (
                self.table.samples
                and not (self.run_dir / "samples" / checkpoint.name_of(self.step)).is_dir()
            ):
                self._sample()  # a kill between the last checkpoint and the last samples
            return "finished"
        if not self.run or self.step not in checkpoint.steps(self.run.checkpoints):
            self.save()
        return "interrupted"

    def _stop(self) -> bool:
        """True where any process was asked to stop: all of them then stop at the same step."""
        if self.accelerator.num_processes == 1:
            return self.interrupt.asked
        flag = torch.tensor([float(self.interrupt.asked)], device=self.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Raises StageError where the precision or the batch does not fit the machine."""
    table = recipe.train
    precision = "no" if table.precision == "fp32" else table.precision
    if precision == "fp16" and not torch.cuda.is_available():
        raise StageError(
            "fp16 needs a GPU",
            problems=[Problem("train.precision", "fp16")],
            hint="use --set train.precision=bf16",
        )
    accelerator = Accelerator(mixed_precision=precision)
    share = accelerator.num_processes * table.accumulate
    if table.batch_size % share:
        raise StageError(
            f"train.batch_size {table.batch_size} does not divide by {accelerator.num_processes} processes x "
            f"accumulate {table.accumulate}",
            hint=f"choose a multiple of {share}",
        )
    return accelerator
