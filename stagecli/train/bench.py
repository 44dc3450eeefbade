"""`stagecli bench`: how fast a recipe trains on this machine, and where the time goes."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from stagecli.data.cache import Progress
from stagecli.errors import Problem, StageError
from stagecli.report.formats import duration
from stagecli.schema import Recipe
from stagecli.terminal.console import Console
from stagecli.terminal.views import QuietView
from stagecli.train.interrupt import Interrupt
from stagecli.train.memory import peak_memory
from stagecli.train.precision import resolve_precision
from stagecli.train.processes import build_accelerator
from stagecli.train.setup import build_trainer

WARM = 3  # steps that do not count


class TimedTrainer(QuietView):
    """A trainer without a run directory, which takes steps on request; it is its own view."""

    def __init__(self, recipe: Recipe, folder: Path, progress: Progress) -> None:
        """recipe: with a precision that is resolved. Raises StageError."""
        self.progress = progress  # type: ignore[assignment,method-assign]
        folder.mkdir(parents=True, exist_ok=True)
        self.trainer = build_trainer(recipe, build_accelerator(recipe), folder, None, self)
        self.interrupt = Interrupt()
        self.done = 0
        self.first = 0
        self.last = 0
        # Wall seconds, CPU seconds and seconds without data, at the first and the last step.
        self.began = (0.0, 0.0, 0.0)
        self.ended = (0.0, 0.0, 0.0)

    def step(self, step: int) -> None:
        """Called by the trainer after each step."""
        self.done += 1
        if self.done == self.first:
            self.began = self.clocks()
        if self.done == self.last:
            self.ended = self.clocks()
            self.interrupt.requested = True

    def clocks(self) -> tuple[float, float, float]:
        """The three clocks, once the device has done all that was asked of it."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time(), self.trainer.feed.waited

    def take(self, count: int, warm: int = WARM) -> tuple[float, float, float]:
        """Wall seconds, CPU seconds and seconds without data per step, over `count` steps."""
        self.interrupt = Interrupt()
        self.done = 0
        self.first = warm
        self.last = warm + count
        self.trainer.train(self.interrupt)
        wall, cpu, waited = (
            (end - begin) / count for begin, end in zip(self.began, self.ended, strict=True)
        )
        return wall, cpu, waited

    def probe_seconds(self) -> float:
        """Seconds of one probe, the second of two; 0 where nothing probes."""
        probes = self.trainer.state.probes
        seconds = 0.0
        for _ in range(2 if probes is not None else 0):
            began, _, _ = self.clocks()
            assert probes is not None
            probes.measure(self.trainer.state.network)
            seconds = self.clocks()[0] - began
        return seconds


def bench(recipe: Recipe, steps: int, progress: Progress) -> dict[str, Any]:
    """Speed, shares of the time and peak memory of `steps` steps, by name.

    Probes count by what one takes and how often they come; the mechanisms by the same steps without
    any `[stage.*]`. Raises StageError.
    """
    recipe = quiet(resolve_precision(recipe), steps)
    with tempfile.TemporaryDirectory() as folder:
        timed = TimedTrainer(recipe, Path(folder) / "whole", progress)
        step_s, _, waited = timed.take(steps)
        memory = peak_memory()
        probe_s = timed.probe_seconds()
        every = timed.trainer.stages.probes.every if timed.trainer.stages.probes else 0
        device = timed.trainer.device
        del timed
        static_s = step_s
        if recipe.stage:
            plain = recipe.model_copy(update={"stage": {}})
            static_s = TimedTrainer(plain, Path(folder) / "plain", progress).take(steps)[0]
    whole = step_s + (probe_s / every if every else 0.0)
    samples = recipe.train.batch_size / whole
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "precision": recipe.train.precision,
        "compile": recipe.train.compile,
        "steps": steps,
        "step_s": step_s,
        "steps_per_s": 1 / whole,
        "samples_per_s": samples,
        "audio_s_per_s": samples * recipe.data.seconds,
        "data_wait": waited / step_s,
        "probes": (whole - step_s) / whole,
        "mechanisms": (step_s - static_s) / step_s,
        "peak_memory_bytes": memory,
        "hours": whole * recipe.train.steps / 3600,
    }


def quiet(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with nothing between steps but rows. Raises StageError for too few of them."""
    options = recipe.train
    if options.steps < WARM + steps:
        raise StageError(
            f"{steps} steps and {WARM} before them are more than the recipe has",
            problems=[Problem("train.steps", str(options.steps))],
            hint=f"use --steps {max(1, options.steps - WARM)}, or set more train.steps",
        )
    last = {name: options.steps for name in ("checkpoint_every", "sample_every")}
    if options.validate_every:
        last["validate_every"] = options.steps
    train = options.model_copy(update={**last, "evaluate_every": 0, "samples": 0})
    return recipe.model_copy(update={"train": train})


def show_bench(document: dict[str, Any], console: Console) -> None:
    """Print the result of `bench` as a table."""
    steps = document["steps"]
    rows = [
        ("step", f"{1e3 * document['step_s']:.1f} ms, mean of {steps}"),
        ("samples/s", f"{document['samples_per_s']:.1f}"),
        ("audio", f"{document['audio_s_per_s']:.1f} s per second"),
        ("waiting for data", f"{100 * document['data_wait']:.1f} %"),
        ("probes", f"{100 * document['probes']:.1f} %"),
        ("mechanisms", f"{100 * document['mechanisms']:.1f} %"),
        ("peak memory", f"{document['peak_memory_bytes'] / 2**30:.2f} GB"),
        ("the whole run", duration(3600 * document["hours"])),
    ]
    title = f"{document['device']}, {document['precision']}, compile {document['compile']}"
    console.table(title, ["", ""], rows)
