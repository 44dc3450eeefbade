"""`bench.TimedTrainer` of a shipped recipe; for the measurements beside this file."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from stagecli.model.dit import DiT
from stagecli.recipe.load import load_recipe
from stagecli.schema import Recipe
from stagecli.train.bench import TimedTrainer
from stagecli.train.precision import resolve_precision


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def load(name: str, settings: Sequence[str]) -> Recipe:
    """A recipe that does nothing between steps; steps: its own number."""
    steps = load_recipe(name, settings).train.steps
    keys = ("validate_every", "checkpoint_every", "sample_every")
    never = [f"train.{key}={steps}" for key in keys]
    return resolve_precision(load_recipe(name, [*never, "train.samples=0", *settings]))


class Session(TimedTrainer):
    """A whole trainer of a shipped recipe with `--set` values."""

    def __init__(
        self, name: str, settings: Sequence[str], folder: Path, *, compile_blocks: bool = True
    ) -> None:
        """compile_blocks: False: `train.compile = "step"` records plain blocks."""
        # Accelerate refuses to change the precision within a process.
        state = sys.modules["accelerate.state"]
        state.AcceleratorState._reset_state(reset_partial_state=True)
        original = DiT.compile_blocks
        if not compile_blocks:
            DiT.compile_blocks = lambda _: None  # type: ignore[method-assign]
        try:
            super().__init__(load(name, settings), folder, lambda *_: None)
        finally:
            DiT.compile_blocks = original  # type: ignore[method-assign]

    def loss(self) -> float:
        """Mean training loss of the steps since the last row."""
        window = self.trainer.state.log_window
        return window.loss / max(1, window.steps)

    def free(self) -> None:
        """Free what the trainer holds."""
        del self.trainer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
