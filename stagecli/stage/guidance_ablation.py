"""Chooses the blocks to guide by gate ablation (AG-REPA, arXiv 2603.01006)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stagecli.flow.objective import Result
from stagecli.stage.base import blocks_of


@dataclass(frozen=True)
class Choice:
    """blocks: those chosen, from 1, ascending; changes: block -> change of the velocity without
    it.
    """

    blocks: tuple[int, ...]
    changes: dict[int, float]


class GateAblation:
    """Finds the blocks that the velocity depends on most. count: how many to choose."""

    def __init__(self, count: int) -> None:
        self.count = count
        # Squared norms over the micro-batches of this process, not yet used: of the change without
        # each block, and of the velocity in the last place.
        self.squares_L1: Tensor | None = None

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")  # compiled blocks would pass over the hooks
    def measure(self, network: nn.Module, result: Result) -> None:
        """Measure |v without block k - v| and |v| on a micro-batch, for every block k."""
        velocity_BTC = result.velocity_BTC
        squares = []
        for block in blocks_of(network):
            handle = block.register_forward_hook(lambda module, args, output: args[0])
            try:
                output = network(result.x_BTC, result.t_B, result.condition)
            finally:
                handle.remove()
            difference_BTC = output.velocity_BTC.float() - velocity_BTC
            squares.append(difference_BTC.square().sum())
        squares_L1 = torch.stack([*squares, velocity_BTC.square().sum()])
        self.squares_L1 = squares_L1 if self.squares_L1 is None else self.squares_L1 + squares_L1

    def choose(self, all_reduce_mean: Callable[[Tensor], Tensor]) -> Choice | None:
        """The choice by |v without block k - v| / |v| over the whole batch of the step.

        None where nothing was measured.
        """
        if self.squares_L1 is None:
            return None
        *squares, velocity = all_reduce_mean(self.squares_L1).tolist()
        self.squares_L1 = None
        norm = math.sqrt(velocity) or 1.0  # a network begins with a velocity of 0
        changes = {k: math.sqrt(square) / norm for k, square in enumerate(squares, 1)}
        best = sorted(changes, key=lambda k: -changes[k])[: self.count]
        return Choice(tuple(sorted(best)), changes)
