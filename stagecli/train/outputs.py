"""What a run produces between steps: rows, validation, evaluation, samples and checkpoints."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from stagecli.errors import StageError, among, significant
from stagecli.files import JsonRow, read_json_lines
from stagecli.flow.schedule import learning_rate
from stagecli.generate.pipeline import Pipeline
from stagecli.metrics import in_training
from stagecli.model.sharded import gathered
from stagecli.recipe.dump import dump_recipe
from stagecli.runs import checkpoint
from stagecli.stage.base import Event
from stagecli.train.scorer import Scorer
from stagecli.train.state import RunContext, TrainingState
from stagecli.train.validation import draw_samples, validate

# A column of the row that records each kind of measurement.
COLUMNS = {"metrics": "train/loss", "validation": "valid/loss", "scores": "eval/clips"}


class Outputs:
    """Writes what is due after a step; the time this takes is not part of the training speed.

    Everything is measured on the EMA weights. Only the main process writes.
    """

    def __init__(
        self,
        context: RunContext,
        state: TrainingState,
        pipeline: Pipeline,
        scorer: Scorer | None,
    ) -> None:
        """pipeline: generates with the network that is trained; scorer: None without evaluation."""
        self.context = context
        self.recipe = context.recipe
        self.options = context.recipe.train
        self.run_dir = context.run_dir
        self.accelerator = context.accelerator
        self.prepared = context.prepared
        self.wrapped = context.wrapped
        self.recorder = context.recorder
        self.state = state
        self.pipeline = pipeline
        self.scorer = scorer
        self.scores: dict[str, float] = {}  # of the newest evaluation
        self.scored_step = -1
        self.saved_step = 0  # of the newest checkpoint; 0 before the first

    def after_step(self, lr: float) -> None:
        """Write everything that is due after this step; lr: the step's learning rate."""
        self.recorder.view.step(self.state.step)
        self.write(self.due(), lr)

    def catch_up(self) -> None:
        """Write what is due after the step resumed from and has no record.

        A kill while samples were drawn, or an error in validation, came in between.
        """
        step = self.state.step
        self.saved_step = step
        if step == 0:
            if self.options.init and self.options.validate_every and self.prepared.valid:
                self.validate()  # where fine-tuning starts
            return
        missing = self.due() - self.recorded()
        self.accelerator.wait_for_everyone()  # before any process writes a record
        if missing & {"validation", "scores"} and "checkpoint" in self.due():
            missing.add("checkpoint")  # which of them is best depends on these
        self.write(missing, learning_rate(step - 1, self.options))

    def due(self) -> set[str]:
        """Names of what is due after this step."""
        options = self.options
        step = self.state.step
        last = step == options.steps
        saves = last or is_due(step, options.checkpoint_every)
        draws = options.samples > 0 or bool(options.prompts)
        # A checkpoint without a score could not be compared with the best, so it gets one too.
        needs_score = saves and options.best != in_training.LOSS
        names = {
            "metrics": last or is_due(step, options.log_every),
            "validation": last or is_due(step, options.validate_every),
            "scores": options.evaluate_every > 0
            and (last or needs_score or is_due(step, options.evaluate_every)),
            "checkpoint": saves,
            "samples": draws and (last or is_due(step, options.sample_every)),
        }
        return {name for name, needed in names.items() if needed}

    def recorded(self) -> set[str]:
        """Names of what the run directory holds of the step resumed from."""
        step = self.state.step
        names = {"checkpoint"}
        rows = self.run_dir / "metrics.jsonl"
        for _, row in read_json_lines(rows) if rows.exists() else ():
            if isinstance(row, dict) and row.get("step") == step:
                names |= {name for name, column in COLUMNS.items() if column in row}
        if (self.run_dir / "samples" / checkpoint.name_of(step) / "samples.jsonl").exists():
            names.add("samples")
        return names

    def write(self, names: set[str], lr: float) -> None:
        """Write what `names` lists, in the order in which one needs the other."""
        if "metrics" in names:
            self.log(lr)
        if "validation" in names:
            self.validate()
        if "scores" in names:
            self.evaluate()
        if "checkpoint" in names:
            self.save()
        if "samples" in names:
            self.draw_samples()
        if "checkpoint" in names:
            with self.state.log_window.paused():
                self.recorder.picture(self.state.step)

    def log(self, lr: float) -> None:
        """A row of metrics and one of noise bins over the steps since the last ones."""
        window = self.state.log_window
        step = self.state.step
        if window.steps:
            row = {
                "samples": step * self.options.batch_size,
                **window.metrics(self.options.batch_size),
                "optim/lr": lr,
                **self.state.stages.metrics(),
            }
            self.recorder.record("metrics", step, row)
            self.recorder.record("bins", step, window.by_bin())
        window.clear()

    def validate(self) -> None:
        """Loss on the fixed grid of t; remembered as the validation loss of this step."""
        state = self.state
        with state.log_window.paused():
            with state.ema.applied(state.network):
                losses = validate(self.prepared, self.wrapped, self.accelerator)
            state.newest_valid = (state.step, losses["valid/loss"])
            self.recorder.record("metrics", state.step, losses)

    def evaluate(self) -> None:
        """Scores of generated audio, in a row that says how long they took."""
        assert self.scorer is not None
        state = self.state
        with state.log_window.paused():
            began = time.monotonic()
            with state.ema.applied(state.network):
                self.scores = self.scorer.measure()
            self.scored_step = state.step
            cost = {
                "eval/clips": len(self.scorer.captions),
                "eval/seconds": time.monotonic() - began,
            }
            self.recorder.record("metrics", state.step, {**self.scores, **cost})

    def draw_samples(self) -> None:
        """A few audio files, beside their samples.jsonl."""
        state = self.state
        run = self.recorder.run
        with state.log_window.paused():
            if run is not None:
                folder = run.path / "samples" / checkpoint.name_of(state.step)
                rows = self._draw_into(folder)
                self._report_loud(rows)
                self._report_alone(rows)
                self.recorder.samples(state.step, folder, rows)
            elif state.sharded:  # the main process needs this one's part of the weights
                with tempfile.TemporaryDirectory() as scratch:
                    self._draw_into(Path(scratch) / "samples")
            self.accelerator.wait_for_everyone()

    def _draw_into(self, folder: Path) -> list[JsonRow]:
        state = self.state
        with state.ema.applied(state.network):
            return draw_samples(
                self.pipeline, self.prepared, folder, self.options.samples, state.step
            )

    def _report_loud(self, rows: Sequence[JsonRow]) -> None:
        """An event if any sample exceeds full scale."""
        loud = [row for row in rows if row["peak"] > 1]
        if loud:
            evidence = {
                "peak": max(row["peak"] for row in loud),
                "gain_db": min(row["gain_db"] for row in loud),
            }
            reason = (
                f"{among(len(loud), len(rows), 'sample', 'exceeds', 'exceed')} full scale: "
                f"a peak of {significant(evidence['peak'], 3)}, "
                f"written {evidence['gain_db']:.1f} dB quieter"
            )
            event = Event("samples", "drawn", "turned down", reason, evidence)
            self.recorder.event(self.state.step, event)

    def _report_alone(self, rows: Sequence[JsonRow]) -> None:
        """An event if the recording of a prompt could not be read."""
        reasons = [row["no_reference"] for row in rows if "no_reference" in row]
        if reasons:
            event = Event("samples", "drawn", "without a reference", reasons[0], {})
            self.recorder.event(self.state.step, event)

    def save(self) -> None:
        """Write a checkpoint with a validation loss of its step.

        Raises StageError where it cannot be written.
        """
        state = self.state
        validated = state.newest_valid is not None and state.newest_valid[0] == state.step
        if self.prepared.valid and self.options.validate_every and not validated:
            self.validate()
        with state.log_window.paused():
            self.write_checkpoint()
            self.accelerator.wait_for_everyone()

    def rescue(self, *, together: bool) -> None:
        """Save the last whole step after an error, if it is not saved yet.

        Without the other processes, which may be gone, and without a validation, which may be the
        error. together: whether all processes have this error and come here. Raises StageError
        where it cannot be written.
        """
        if not self.state.whole or self.state.step == self.saved_step:
            return
        if self.state.sharded and not together:
            raise StageError("its weights are shared out, and not all processes are here")
        self.write_checkpoint()

    def write_checkpoint(self) -> None:
        """Write a checkpoint on the main process; keep the newest and the best by `train.best`."""
        state = self.state
        run = self.recorder.run
        parts = state.parts()
        if state.sharded:
            parts = gathered(parts, keep=run is not None)
        if run is not None:
            metric = self.options.best
            best = in_training.best(run.info["best"], metric, state.step, self.value_of(metric))
            checkpoint.save(
                run.checkpoints,
                state.step,
                **parts,
                codec=self.prepared.codec.statistics(),
                recipe=dump_recipe(self.recipe),
                state={"samples": state.step * self.options.batch_size, "best": best},
            )
            run.save_info(best=best)
            best_step = best["step"] if best else None
            checkpoint.rotate(run.checkpoints, self.options.keep, best_step)
        self.saved_step = state.step

    def value_of(self, metric: str) -> float:
        """The metric for the weights of this very step; NaN where it was not measured."""
        if metric == in_training.LOSS:
            step, value = self.state.newest_valid or (-1, math.nan)
        else:
            step = self.scored_step
            value = self.scores.get(metric, math.nan)
        return value if step == self.state.step else math.nan

    def finish(self) -> str:
        """Save where a stop was requested. Returns "finished" or "interrupted"."""
        if self.state.step >= self.options.steps:
            return "finished"
        if self.state.step != self.saved_step:
            self.save()
        return "interrupted"


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps (0: never) is due after this step."""
    return every > 0 and step % every == 0
