"""Chooses the blocks to guide by gate ablation (AG-REPA, arXiv 2603.01006)."""

from __future__ import annotations

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
        self.changes_L: Tensor | None = None  # of this process, not yet used

    @torch.no_grad()
    def measure(self, network: nn.Module, result: Result) -> None:
        """Measure |v without block k - v| / |v| on a batch, once per step for every block k."""
        if self.changes_L is not None:
            return
        velocity_BTC = result.velocity_BTC
        changes = []
        for block in blocks_of(network):
            handle = block.register_forward_hook(lambda module, args, output: args[0])
            try:
                output = network(result.x_BTC, result.t_B, result.condition)
            finally:
                handle.remove()
            difference_BTC = output.velocity_BTC.float() - velocity_BTC
            changes.append(difference_BTC.norm() / velocity_BTC.norm())
        self.changes_L = torch.stack(changes)

    def choose(self, all_reduce_mean: Callable[[Tensor], Tensor]) -> Choice | None:
        """The choice by the mean over processes, or None where nothing was measured."""
        if self.changes_L is None:
            return None
        mean_L = all_reduce_mean(self.changes_L).tolist()
        self.changes_L = None
        changes = dict(enumerate(mean_L, 1))
        best = sorted(changes, key=lambda k: -changes[k])[: self.count]
        return Choice(tuple(sorted(best)), changes)
