"""Exponential moving average of the weights, in fp32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stagecli.model.sharded import copy_whole, own_part


class EMA:
    """avg <- d avg + (1 - d) w after each step, d = min(decay, (1 + n) / (10 + n)).

    n: updates so far; the short average at the start forgets the random initialisation. Where
    processes share out the weights, each of them averages its own part.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = {n: p.detach().float().clone() for n, p in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module, skip: Tensor | None = None) -> None:
        """Include the network's current weights.

        skip: a number on the device, at 1 the average stays as it is; the host need not know.
        """
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        average = [own_part(value) for value in self.weights.values()]
        current = [own_part(p.detach()).float() for p in network.parameters()]
        if skip is None:
            torch._foreach_lerp_(average, current, 1 - decay)
            return
        # Of the fused kernels one takes such a number and fits: avg - lr (w + weight_decay avg).
        torch._fused_sgd_(
            average,
            current,
            [],
            weight_decay=-1.0,
            momentum=0.0,
            lr=decay - 1,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
            found_inf=skip,
        )

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Context in which the network holds the average; its own weights return to the bit."""
        own = {n: p.detach().clone() for n, p in network.named_parameters()}
        self._copy(network, self.weights)
        try:
            yield
        finally:
            self._copy(network, own)

    @staticmethod
    @torch.no_grad()
    def _copy(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in network.named_parameters():
            own_part(parameter.detach()).copy_(own_part(weights[name]))

    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Continue from whole weights and an update count. Raises KeyError if any is missing."""
        self.updates = updates
        for name, value in self.weights.items():
            copy_whole(value, weights[name])
