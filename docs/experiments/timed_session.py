"""A trainer that takes steps on request and times them; for the measurements beside this file."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from stagecli.model.dit import DiT
from stagecli.recipe.load import load_recipe
from stagecli.schema import Recipe
from stagecli.terminal.views import QuietView
from stagecli.train.interrupt import Interrupt
from stagecli.train.precision import resolve_precision
from stagecli.train.setup import build_accelerator, build_trainer


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def load(name: str, settings: Sequence[str]) -> Recipe:
    """A recipe that does nothing between steps; steps: its own number."""
    steps = load_recipe(name, settings).train.steps
    keys = ("validate_every", "checkpoint_every", "sample_every")
    never = [f"train.{key}={steps}" for key in keys]
    return resolve_precision(load_recipe(name, [*never, "train.samples=0", *settings]))


class Session(QuietView):
    """A whole `Trainer` of a recipe, without a run directory."""

    def __init__(
        self, name: str, settings: Sequence[str], folder: Path, *, compile_blocks: bool = True
    ) -> None:
        """compile_blocks: False: `train.compile = "step"` records plain blocks."""
        # Accelerate refuses to change the precision within a process.
        state = sys.modules["accelerate.state"]
        state.AcceleratorState._reset_state(reset_partial_state=True)
        recipe = load(name, settings)
        original = DiT.compile_blocks
        if not compile_blocks:
            DiT.compile_blocks = lambda _: None  # type: ignore[method-assign]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.trainer = build_trainer(recipe, build_accelerator(recipe), folder, None, self)
        finally:
            DiT.compile_blocks = original  # type: ignore[method-assign]
        self.interrupt = Interrupt()
        self.done = 0
        self.warm = 0
        self.count = 0
        self.began = (0.0, 0.0)  # wall and CPU seconds at the first step that counts
        self.ended = (0.0, 0.0)

    def step(self, step: int) -> None:
        """Called by the trainer after each step."""
        self.done += 1
        if self.done == self.warm:
            synchronize()
            self.began = (time.perf_counter(), time.process_time())
        if self.done == self.warm + self.count:
            synchronize()
            self.ended = (time.perf_counter(), time.process_time())
            self.interrupt.requested = True

    def take(self, count: int, warm: int = 3) -> float:
        """Seconds per step over `count` steps, after `warm` that do not count."""
        self.interrupt = Interrupt()
        self.done = 0
        self.warm = warm
        self.count = count
        self.trainer.train(self.interrupt)
        return (self.ended[0] - self.began[0]) / count

    def take_cpu(self, count: int, warm: int = 3) -> float:
        """CPU seconds of `count` steps."""
        self.take(count, warm)
        return self.ended[1] - self.began[1]

    def loss(self) -> float:
        """Mean training loss of the steps since the last row."""
        window = self.trainer.state.log_window
        return window.loss / max(1, window.steps)

    def close(self, status: str = "finished", message: str = "") -> None:
        """Free what the trainer holds."""
        if hasattr(self, "trainer"):
            del self.trainer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
