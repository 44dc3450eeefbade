"""The training loss by bin of t, remembered over steps: what some densities of t are derived
from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from stagecli.stage.densities import per_sample

HALF_LIFE = 128  # of the average of a bin's loss, in samples of that bin


class LossHistory(Protocol):
    """Losses by bin of t."""

    seen: Tensor
    """Steps or samples that each bin has seen."""

    @property
    def ready(self) -> bool:
        """Whether every bin has seen enough."""
        ...

    def add(self, t_B: Tensor, loss_B: Tensor) -> None:
        """Take in t and unweighted loss of the global batch."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class SquaredLosses:
    """Mean squared loss per bin over its last `history` steps, for the kind `loss-second-moment`.

    After `LossSecondMomentResampler` of Improved DDPM (arXiv 2102.09672). A step counts once per
    bin, with the mean over its samples there, so that neither the batch size nor the order of the
    batch matters.

    edges: of the bins, ascending from 0 to 1.
    """

    def __init__(self, edges: tuple[float, ...], history: int) -> None:
        self.inner = torch.tensor(edges[1:-1], dtype=torch.float64)
        self.squares = torch.zeros(len(edges) - 1, history, dtype=torch.float64)  # ring per bin
        self.seen = torch.zeros(len(edges) - 1, dtype=torch.int64)

    def add(self, t_B: Tensor, loss_B: Tensor) -> None:
        count, mean = _by_bin(self.inner, t_B, loss_B, power=2)
        hit = count > 0
        self.squares[hit, self.seen[hit] % self.squares.shape[1]] = mean[hit]
        self.seen += hit

    @property
    def ready(self) -> bool:
        return bool((self.seen >= self.squares.shape[1]).all())

    def factors(self, floor: float) -> tuple[float, ...]:
        """Factors of equally likely bins: sqrt(E[loss^2]) over its mean, mixed with `floor` of
        1.
        """
        root = self.squares.mean(dim=1).sqrt()
        relative = root / root.mean() if float(root.mean()) > 0 else torch.ones_like(root)
        return tuple(((1 - floor) * relative + floor).tolist())

    def state_dict(self) -> dict[str, Tensor]:
        return {"squares": self.squares, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.squares = state["squares"].clone()
        self.seen = state["seen"].clone()


class RecentLosses:
    """Mean loss per bin over its last samples, for the kind `infonoise`.

    edges: of the bins, ascending from 0 to 1.
    """

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.inner = torch.tensor(edges[1:-1], dtype=torch.float64)
        self.sums = torch.zeros(len(edges) - 1, dtype=torch.float64)
        self.norms = torch.zeros_like(self.sums)
        self.seen = torch.zeros(len(edges) - 1, dtype=torch.int64)

    def add(self, t_B: Tensor, loss_B: Tensor) -> None:
        count, mean = _by_bin(self.inner, t_B, loss_B)
        keep = 0.5 ** (count / HALF_LIFE)  # 1 where a bin has no sample
        self.sums = keep * self.sums + (1 - keep) * mean
        self.norms = keep * self.norms + (1 - keep)
        self.seen += count

    @property
    def ready(self) -> bool:
        return bool((self.seen >= HALF_LIFE).all())

    def means(self) -> tuple[float, ...]:
        """Mean loss of every bin, once `ready`."""
        return tuple((self.sums / self.norms).tolist())

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self.sums, "norms": self.norms, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.sums = state["sums"].clone()
        self.norms = state["norms"].clone()
        self.seen = state["seen"].clone()


def _by_bin(inner: Tensor, t_B: Tensor, loss_B: Tensor, power: int = 1) -> tuple[Tensor, Tensor]:
    """Number of samples and mean of loss^power per bin, leaving out losses that are not finite.

    Summed in the order of t, so that it does not matter which process trained a sample.
    """
    t, order = per_sample(t_B, "t").double().sort(stable=True)
    loss = per_sample(loss_B, "loss").double()[order]
    finite = loss.isfinite()
    bins = len(inner) + 1
    bin_of_sample = torch.searchsorted(inner, t[finite].contiguous(), right=True)
    count = torch.bincount(bin_of_sample, minlength=bins)
    total = torch.bincount(bin_of_sample, weights=loss[finite].pow(power), minlength=bins)
    return count, total / count.clamp_min(1)
