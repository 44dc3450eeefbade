"""The parts of a run: what stays the same, and what every step changes and a resume restores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stagecli.errors import StageError
from stagecli.files import JsonRow
from stagecli.model.ema import EMA
from stagecli.model.network import Network
from stagecli.model.sharded import is_sharded, share_out_state, shared_like
from stagecli.runs import checkpoint
from stagecli.schema import Recipe
from stagecli.stage.controller import Stages
from stagecli.train.log_window import LogWindow
from stagecli.train.prepare import Prepared
from stagecli.train.probe import ProbeSet
from stagecli.train.recorder import Recorder

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What stays the same while a run trains.

    run_dir: on every process; recorder: writes on the main one; wrapped: the network as Accelerate
    wraps it for the forward pass.
    """

    recipe: Recipe
    run_dir: Path
    accelerator: Accelerator
    prepared: Prepared
    wrapped: nn.Module
    recorder: Recorder


@dataclass(kw_only=True)
class TrainingState:
    """Everything that changes from step to step and therefore belongs in a checkpoint.

    step: optimiser steps done; seconds: time spent on them over all attempts; probe_seconds: time
    spent on probes; newest_valid: (step, validation loss) of the newest validation; whole: False
    while a step is taken in, from the update of the weights to the last mechanism.
    """

    network: Network
    ema: EMA
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    stages: Stages
    probes: ProbeSet | None
    log_window: LogWindow
    step: int = 0
    seconds: float = 0.0
    probe_seconds: float = 0.0
    newest_valid: tuple[int, float] | None = None
    whole: bool = True

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the weights, so that saving takes all of them."""
        return is_sharded(self.network)

    def state_dict(self) -> dict[str, Any]:
        """All but the weights of the network and of its EMA, which have files of their own."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "ema_updates": self.ema.updates,
            "log_window": self.log_window.state_dict(),
            "stages": self.stages.state_dict(),
            "probes": self.probes.state_dict() if self.probes else None,
            "probe_seconds": self.probe_seconds,
            "newest_valid": list(self.newest_valid) if self.newest_valid else None,
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "seconds": self.seconds,
        }

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds of it: `model`, `ema` and `trainer`."""
        return {
            "model": self.network.state_dict(),
            "ema": self.ema.weights,
            "trainer": self.state_dict(),
        }

    def restore(self, path: Path) -> JsonRow:
        """Continue from the checkpoint at `path`; returns its state.json.

        Raises StageError where the checkpoint is damaged, was written by another version, or holds
        the state of other mechanisms.
        """
        progress, trainer = checkpoint.load_state(path)
        if not isinstance(trainer, dict):
            raise checkpoint.damaged(path, "its trainer state is not a dictionary")
        if set(trainer) != set(self.state_dict()):
            raise StageError(
                f"cannot resume from {path}: another version of stagecli wrote its trainer state",
                hint="train under another name with --name; "
                "inspect-regime, sample and evaluate still read this run",
            )

        # Checkpoints of earlier versions have no sums: damage may show only here.
        try:
            self._restore_parts(path, trainer)
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise checkpoint.damaged(path, f"its state does not fit this run: {error}") from error

        # Where it stands.
        self.step = progress["step"]
        return progress

    def _restore_parts(self, path: Path, trainer: dict[str, Any]) -> None:
        # Weights and optimiser.
        own = self.network.state_dict()
        weights = checkpoint.load_weights(path, "model")
        self.network.load_state_dict(
            {name: shared_like(value, own.get(name, value)) for name, value in weights.items()}
        )
        self.ema.load(checkpoint.load_weights(path, "ema"), int(trainer["ema_updates"]))
        self.optimizer.load_state_dict(share_out_state(trainer["optimizer"], self.optimizer))
        if self.scaler is not None and trainer["scaler"] is not None:
            self.scaler.load_state_dict(trainer["scaler"])

        # What the run has measured.
        self.log_window.load_state_dict(trainer["log_window"])
        self.stages.load_state_dict(trainer["stages"])
        if self.probes is not None:
            self.probes.load_state_dict(trainer["probes"])
        self.newest_valid = tuple(trainer["newest_valid"]) if trainer["newest_valid"] else None
        self.seconds = float(trainer["seconds"])
        self.probe_seconds = float(trainer["probe_seconds"])
