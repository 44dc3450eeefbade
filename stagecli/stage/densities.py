"""Densities of t on (0, 1) with closed forms. Pure functions of t: torch only.

t = 1 is noise. `logit t` is -ln(SNR) / 2 for x_t = (1 - t) x0 + t eps, because SNR = ((1 - t) /
t)^2. Everything is computed in float64 on the CPU, element by element, so that a sample's t depends
neither on the device nor on the rest of its batch; the drawn t is rounded to float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# Range of the drawn t: both ends are float32 numbers other than 0 and 1.
T_LOW = 1e-7
T_HIGH = 1 - 2**-23
U_EDGE = 1e-12  # u is clamped this far from 0 and 1, where quantiles are infinite


def per_sample(x: Tensor, name: str) -> Tensor:
    """Return x if it has shape [B].

    Raises ValueError for any other shape: (B, 1, 1, 1) times (B,) would silently broadcast to (B,
    1, 1, B).
    """
    if x.ndim != 1:
        raise ValueError(
            f"{name} must have shape [B], one number per sample, but has {tuple(x.shape)}"
        )
    return x


class TimeDensity:
    """Base class of the densities, which are frozen and hashable.

    t and u are float64 tensors of any shape, except in `sample`; `quantile` increases with u.
    """

    @property
    def breaks(self) -> tuple[float, ...]:
        """Values of t where the density or its weight jumps or has a kink: integrals are split
        there.
        """
        return ()

    def cdf(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def log_prob(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def quantile(self, u: Tensor) -> Tensor:
        """Inverse of `cdf`."""
        raise NotImplementedError

    def pdf(self, t: Tensor) -> Tensor:
        return self.log_prob(t).exp()

    def weight(self, t: Tensor) -> Tensor:
        """Importance weight of the loss at t; its mean over the density is 1."""
        return torch.ones_like(t)

    def sample(self, u_B: Tensor) -> tuple[Tensor, Tensor]:
        """Map uniform numbers u [B] to t [B] and weights [B], float32 on u's device; t increases
        with u.

        Computed on the CPU: MPS has no float64, and all processes must agree to the bit. Raises
        ValueError for another shape than [B].
        """
        u = per_sample(u_B, "u").detach().to("cpu", torch.float64).clamp(U_EDGE, 1 - U_EDGE)
        t_B = self.quantile(u).float().clamp(T_LOW, T_HIGH)
        return t_B.to(u_B.device), self.weight(t_B.double()).float().to(u_B.device)


@dataclass(frozen=True)
class Uniform(TimeDensity):
    """t = u, to the bit."""

    def cdf(self, t: Tensor) -> Tensor:
        return t

    def log_prob(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def quantile(self, u: Tensor) -> Tensor:
        return u


@dataclass(frozen=True)
class LogitLogistic(TimeDensity):
    """LL(m, s): logit t is logistic around m with scale s.

    LL(0, 1) is uniform; LL(ln a, 1) is the timestep shift by a of SD3 (arXiv 2403.03206).
    """

    m: float = 0.0
    s: float = 1.0

    def cdf(self, t: Tensor) -> Tensor:
        return torch.sigmoid((torch.logit(t) - self.m) / self.s)

    def log_prob(self, t: Tensor) -> Tensor:
        y = (torch.logit(t) - self.m) / self.s
        logsigmoid = torch.nn.functional.logsigmoid
        return logsigmoid(y) + logsigmoid(-y) - math.log(self.s) - torch.log(t) - torch.log1p(-t)

    def quantile(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.m + self.s * torch.logit(u))


@dataclass(frozen=True)
class LogitNormal(TimeDensity):
    """logit y ~ N(mean, std^2) between low and high, and t = (y - low) / (high - low).

    Untruncated: SD3, arXiv 2403.03206, eq. 19. Truncated and stretched to (0, 1): as in
    stable-audio-tools.
    """

    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def _below(self, y: Tensor) -> Tensor:
        """Probability below y before truncation."""
        return torch.special.ndtr((torch.logit(y) - self.mean) / self.std)

    @cached_property
    def mass(self) -> tuple[float, float]:
        """Probability below low and below high, before truncation."""
        low, high = self._below(torch.tensor([self.low, self.high], dtype=torch.float64)).tolist()
        return low, high

    def cdf(self, t: Tensor) -> Tensor:
        low, high = self.mass
        return (self._below(self.low + (self.high - self.low) * t) - low) / (high - low)

    def log_prob(self, t: Tensor) -> Tensor:
        low, high = self.mass
        width = self.high - self.low
        y = self.low + width * t
        z = (torch.logit(y) - self.mean) / self.std
        scale = math.log(width) - math.log(high - low) - math.log(self.std * math.sqrt(2 * math.pi))
        return scale - 0.5 * z.square() - torch.log(y) - torch.log1p(-y)

    def quantile(self, u: Tensor) -> Tensor:
        low, high = self.mass
        y = torch.sigmoid(self.mean + self.std * torch.special.ndtri(low + (high - low) * u))
        return (y - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class PiecewiseLinear(TimeDensity):
    """Linear between nodes, normalised.

    nodes: ascending from 0 to 1; values: at the nodes, at least 0 and not all 0.
    """

    nodes: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def breaks(self) -> tuple[float, ...]:
        return self.nodes[1:-1]

    @cached_property
    def _pieces(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(nodes [n], normalised values [n], slopes [n - 1], cdf at the nodes [n])."""
        x = torch.tensor(self.nodes, dtype=torch.float64)
        y = torch.tensor(self.values, dtype=torch.float64)
        areas = (y[1:] + y[:-1]) / 2 * x.diff()
        y = y / areas.sum()
        below = torch.cat([torch.zeros(1, dtype=torch.float64), areas.cumsum(0) / areas.sum()])
        return x, y, y.diff() / x.diff(), below

    def cdf(self, t: Tensor) -> Tensor:
        x, y, slopes, below = self._pieces
        k = torch.searchsorted(x[1:-1].contiguous(), t.contiguous(), right=True)
        inside = t - x[k]
        return below[k] + inside * (y[k] + slopes[k] * inside / 2)

    def log_prob(self, t: Tensor) -> Tensor:
        x, y, slopes, _ = self._pieces
        k = torch.searchsorted(x[1:-1].contiguous(), t.contiguous(), right=True)
        return (y[k] + slopes[k] * (t - x[k])).clamp_min(1e-300).log()

    def quantile(self, u: Tensor) -> Tensor:
        x, y, slopes, below = self._pieces
        k = torch.searchsorted(below[1:-1].contiguous(), u.contiguous(), right=True)
        rest = (u - below[k]).clamp_min(0)
        # The stable root of y s + slope s^2 / 2 = rest, also for a slope of 0.
        root = (y[k].square() + 2 * slopes[k] * rest).clamp_min(0).sqrt()
        inside = 2 * rest / (y[k] + root).clamp_min(1e-300)
        return torch.minimum(x[k] + inside, x[k + 1])


def log_snr_normal(mean: float, std: float) -> LogitNormal:
    """ln SNR ~ N(mean, std^2) with SNR = ((1 - t) / t)^2, so that logit t = -ln(SNR) / 2."""
    return LogitNormal(-mean / 2, std / 2)
