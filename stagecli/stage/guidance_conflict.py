"""Compares the gradients of guidance and of the diffusion loss: their conflict, and what guidance
gains.

At the output of the deepest guided block, with g_i and d_i the gradients of guidance and of the
diffusion loss for sample i:

    gradient_cosine = mean_i cos(g_i, d_i)                  over guided samples, those with h >= 1/2
    gain            = sum_i <g_i, d_i> / sum_i <d_i, d_i>   over samples with t >= 1/2

A step of length eta against g lowers the diffusion loss by eta <g, d> to first order, and one
against d by eta <d, d>: the gain is what guidance adds to the decrease that the diffusion loss
brings about itself, where t is high and meaning is decided. `gain_bound` is the upper bound of its
mean over the newest WINDOW measurements, by a one-sided t test at 5 %.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

QUARTERS = 4  # ranges of t that the conflict is reported for
MEAN = "gradient_cosine"
GAIN = "gain"
BOUND = "gain_bound"
NAMES = (MEAN, *(f"{MEAN}_t{(q + 0.5) / QUARTERS:.3f}" for q in range(QUARTERS)), GAIN)
GAIN_FROM = 0.5  # t
WINDOW = 10  # measurements of the gain that are judged together
QUANTILE = 1.833  # 95 % of Student's t with WINDOW - 1 degrees of freedom


class ConflictMeter:
    """Measures the two losses' gradients at the output of a block, every so many steps.

    values: the newest measurement by name, cosines over all guided samples and by quarter of t;
    empty before the first one.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.due = False  # in the step being trained: in each of its micro-batches
        self.fresh = False  # `values` were measured in the newest step
        self.values: dict[str, float] = {}
        self.gains: list[float] = []  # the newest ones, WINDOW at most
        self.sums_2Q: Tensor | None = None  # of this process, not yet in `values`

    def plan(self, step: int) -> None:
        """Decide whether a step measures; `step` steps are done before it."""
        self.due = (step + 1) % self.every == 0

    def watch(self, hidden_BPW: Tensor, t_B: Tensor, h_B: Tensor) -> Tensor:
        """An alias of the hidden states for guidance to read; the backward pass leaves `sums_2Q`.

        The gradient that arrives at the alias is guidance's, and at the block's output the sum of
        both, so that the measurement costs no pass of its own. Factors on the whole loss change
        nothing, and factors on a sample's loss do not change its cosine. h_B: of `Gate`.
        """
        guidance: list[Tensor] = []
        alias_BPW = hidden_BPW.view_as(hidden_BPW)
        alias_BPW.register_hook(lambda g: guidance.append(g.float().flatten(1)))

        def compare(gradient: Tensor) -> None:
            diffusion_BN = gradient.float().flatten(1) - guidance[0]
            sums_2Q = _compare_gradients(guidance[0], diffusion_BN, t_B, h_B >= 0.5)
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
        values = {name: total / count for name, total, count in rows if count > 0}
        # A gradient that overflowed in fp16 is no measurement.
        self.values = {name: value for name, value in values.items() if math.isfinite(value)}
        self.fresh = bool(self.values)
        if GAIN in self.values:
            self.gains = [*self.gains, self.values[GAIN]][-WINDOW:]
        bound = upper_bound(self.gains)
        if bound is not None:
            self.values[BOUND] = bound

    def newest(self, name: str) -> float | None:
        """A value if the newest step measured it, else None."""
        return self.values.get(name) if self.fresh else None

    def clear(self) -> None:
        self.fresh = False
        self.values = {}
        self.gains = []

    def state_dict(self) -> dict[str, Any]:
        return {"values": dict(self.values), "gains": list(self.gains)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.values = dict(state["values"])
        self.gains = list(state["gains"])


def upper_bound(gains: Sequence[float]) -> float | None:
    """Upper bound of the mean of WINDOW gains, None where there are fewer."""
    if len(gains) < WINDOW:
        return None
    return statistics.fmean(gains) + QUANTILE * statistics.stdev(gains) / math.sqrt(WINDOW)


def _compare_gradients(
    guidance_BN: Tensor, diffusion_BN: Tensor, t_B: Tensor, guided_B: Tensor
) -> Tensor:
    """Numerators and denominators [2, Q] of the values NAMES: a mean of cosines over all guided
    samples, one by quarter of t, and the gain.
    """
    # Cosines: sums and counts.
    member_B = (guided_B & (guidance_BN.norm(dim=1) > 0)).double()
    quarter_BQ = F.one_hot((t_B * QUARTERS).long().clamp(0, QUARTERS - 1), QUARTERS).double()
    member_BQ = member_B[:, None] * F.pad(quarter_BQ, (1, 0), value=1.0)
    cosine_B = F.cosine_similarity(guidance_BN, diffusion_BN, dim=1).double()
    cosines_2Q = torch.stack([cosine_B @ member_BQ, member_BQ.sum(0)])

    # The gain: inner products.
    late_B1 = (t_B >= GAIN_FROM).double()[:, None]
    guidance_BN = guidance_BN.double() * late_B1
    diffusion_BN = diffusion_BN.double() * late_B1
    gain_21 = torch.stack([(guidance_BN * diffusion_BN).sum(), diffusion_BN.square().sum()])[
        :, None
    ]
    return torch.cat([cosines_2Q, gain_21], dim=1)
