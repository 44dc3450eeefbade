"""Measures whether the gradients of guidance and of the diffusion loss point in opposite
directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

QUARTERS = 4  # ranges of t that the conflict is reported for
MEAN = "gradient_cosine"
NAMES = (MEAN, *(f"{MEAN}_t{(q + 0.5) / QUARTERS:.3f}" for q in range(QUARTERS)))


class ConflictMeter:
    """Cosines between the two losses' gradients at the output of a block, every so many steps.

    values: the newest measurement by name, over all guided samples and by quarter of t; empty
    before the first one.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.due = False  # in the step being trained: in each of its micro-batches
        self.fresh = False  # `values` were measured in the newest step
        self.values: dict[str, float] = {}
        self.sums_2Q: Tensor | None = None  # of this process, not yet in `values`

    def plan(self, step: int) -> None:
        """Decide whether a step measures; `step` steps are done before it."""
        self.due = (step + 1) % self.every == 0

    def watch(self, hidden_BPW: Tensor, t_B: Tensor) -> Tensor:
        """An alias of the hidden states for guidance to read; the backward pass leaves `sums_2Q`.

        The gradient that arrives at the alias is guidance's, and at the block's output the sum of
        both, so that the measurement costs no pass of its own. Factors on a sample's loss do not
        change its cosine.
        """
        guidance: list[Tensor] = []
        alias_BPW = hidden_BPW.view_as(hidden_BPW)
        alias_BPW.register_hook(lambda g: guidance.append(g.float().flatten(1)))

        def compare(gradient: Tensor) -> None:
            diffusion_BN = gradient.float().flatten(1) - guidance[0]
            sums_2Q = _gradient_cosines(guidance[0], diffusion_BN, t_B)
            self.sums_2Q = sums_2Q if self.sums_2Q is None else self.sums_2Q + sums_2Q

        hidden_BPW.register_hook(compare)
        return alias_BPW

    def gather(self, all_reduce_mean: Callable[[Tensor], Tensor]) -> None:
        """Average a pending measurement over processes, so that all of them decide alike."""
        if self.sums_2Q is None:
            return
        sums_2Q = all_reduce_mean(self.sums_2Q)
        self.sums_2Q = None
        rows = zip(NAMES, *sums_2Q.tolist(), strict=True)
        self.values = {name: total / count for name, total, count in rows if count > 0}
        self.fresh = MEAN in self.values

    @property
    def fresh_cosine(self) -> float | None:
        """Mean cosine if the newest step measured it, else None."""
        return self.values[MEAN] if self.fresh else None

    def clear(self) -> None:
        self.fresh = False
        self.values = {}

    def state_dict(self) -> dict[str, Any]:
        return {"values": dict(self.values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.values = dict(state["values"])


def _gradient_cosines(guidance_BN: Tensor, diffusion_BN: Tensor, t_B: Tensor) -> Tensor:
    """Sums and counts [2, 1 + QUARTERS] of the samples' cosines: over all guided ones, and by
    quarter of t.
    """
    guided_B = (guidance_BN.norm(dim=1) > 0).double()
    quarter_BQ = F.one_hot((t_B * QUARTERS).long().clamp(0, QUARTERS - 1), QUARTERS).double()
    member_BQ = guided_B[:, None] * F.pad(quarter_BQ, (1, 0), value=1.0)
    cosine_B = F.cosine_similarity(guidance_BN, diffusion_BN, dim=1).double()
    return torch.stack([cosine_B @ member_BQ, member_BQ.sum(0)])
