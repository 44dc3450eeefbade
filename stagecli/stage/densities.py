"""Densities of t on (0, 1) with closed forms, and weights of the loss by t. Pure functions of t: torch only.

t = 1 is noise. `logit t` is -ln(SNR) / 2 for x_t = (1 - t) x0 + t eps, as SNR = ((1 - t) / t)^2.
Everything is computed in float64 on the CPU, element by element, so that a sample's t depends neither on the device
nor on what else is in its batch; t leaves as float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from stagecli.schema import Objective

# t stays here: both are float32 and neither is 0 or 1
T_LOW = 1e-7
T_HIGH = 1 - 2**-23
U_EDGE = 1e-12  # u is brought this far from 0 and 1, where quantiles are infinite


def per_sample(x: Tensor, name: str) -> Tensor:
    """x, if it has shape [B]. A (B, 1, 1, 1) would multiply a (B,) to (B, 1, 1, B) without a word."""
    if x.ndim != 1:
        raise ValueError(
            f"{name} must have shape [B], one number per sample, and has {tuple(x.shape)}"
        )
    return x


class TimeDensity:
    """Base of the densities: frozen, hashable, increasing in u. t and u are float64 of any shape, but in `sample`."""

    @property
    def breaks(self) -> tuple[float, ...]:
        """t where the density or its weight jumps or bends: an integral is split there."""
        return ()

    def cdf(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def log_prob(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def quantile(self, u: Tensor) -> Tensor:
        """The inverse of `cdf`."""
        raise NotImplementedError

    def pdf(self, t: Tensor) -> Tensor:
        return self.log_prob(t).exp()

    def weight(self, t: Tensor) -> Tensor:
        """Weight of the loss at t; its mean over the density is 1."""
        return torch.ones_like(t)

    def sample(self, u_B: Tensor) -> tuple[Tensor, Tensor]:
        """Uniform numbers u [B] -> t [B] and weights [B] in float32 on u's device; t increases with u.

        u goes through the CPU: MPS has no float64, and all processes are to agree to the bit.
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
    """LL(m, s): logit t is logistic around m with scale s. (0, 1) is uniform, (ln a, 1) the shift by a of SD3."""

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

    Untruncated: SD3, arXiv 2403.03206, eq. 19. Truncated and stretched to (0, 1): as stable-audio-tools does it.
    """

    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def _below(self, y: Tensor) -> Tensor:
        """Probability of less than y before truncation."""
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
        (low, high) = self.mass
        width = self.high - self.low
        y = self.low + width * t
        z = (torch.logit(y) - self.mean) / self.std
        scale = math.log(width) - math.log(high - low) - math.log(self.std * math.sqrt(2 * math.pi))
        return scale - 0.5 * z.square() - torch.log(y) - torch.log1p(-y)

    def quantile(self, u: Tensor) -> Tensor:
        low, high = self.mass
        y = torch.sigmoid(self.mean + self.std * torch.special.ndtri(low + (high - low) * u))
        return (y - self.low) / (self.high - self.low)


def plain(objective: Objective) -> TimeDensity:
    """The density of the `[objective]` table."""
    if objective.density == "uniform" or objective.floor == 1:
        return Uniform()
    normal = LogitNormal(objective.mean, objective.std)
    return Floored(normal, objective.floor) if objective.floor else normal


def log_snr_normal(mean: float, std: float) -> LogitNormal:
    """ln SNR ~ N(mean, std^2) with SNR = ((1 - t) / t)^2, so that logit t = -ln(SNR) / 2."""
    return LogitNormal(-mean / 2, std / 2)


@dataclass(frozen=True)
class Binned(TimeDensity):
    """A density times a factor per bin of t, normalised; within a bin it keeps its shape.

    edges: n + 1 of them, from 0 to 1; factors: n, positive.
    """

    base: TimeDensity
    edges: tuple[float, ...]
    factors: tuple[float, ...]

    @property
    def breaks(self) -> tuple[float, ...]:
        return (*self.base.breaks, *self.edges[1:-1])

    @cached_property
    def _steps(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Inner edges [n - 1]; the base's and this density's cdf at the edges [n + 1]; the normalised factors [n]."""
        edges = torch.tensor(self.edges, dtype=torch.float64)
        below = self.base.cdf(edges)
        factors = torch.tensor(self.factors, dtype=torch.float64)
        factors = factors / (below.diff() * factors).sum()
        cumulated = torch.cat(
            [torch.zeros(1, dtype=torch.float64), (below.diff() * factors).cumsum(0)]
        )
        return edges[1:-1].contiguous(), below, cumulated, factors

    def ratio(self, t: Tensor) -> Tensor:
        """This density over the base's."""
        inner, _, _, factors = self._steps
        return factors[torch.searchsorted(inner, t.contiguous(), right=True)]

    def cdf(self, t: Tensor) -> Tensor:
        inner, below, cumulated, factors = self._steps
        bin_ = torch.searchsorted(inner, t.contiguous(), right=True)
        return cumulated[bin_] + factors[bin_] * (self.base.cdf(t) - below[bin_])

    def log_prob(self, t: Tensor) -> Tensor:
        return self.base.log_prob(t) + self.ratio(t).log()

    def quantile(self, u: Tensor) -> Tensor:
        _, below, cumulated, factors = self._steps
        bin_ = torch.searchsorted(cumulated[1:-1].contiguous(), u.contiguous(), right=True)
        inside = below[bin_] + (u - cumulated[bin_]) / factors[bin_]
        return self.base.quantile(
            torch.minimum(inside, below[bin_ + 1]).clamp(U_EDGE / 1e3, 1 - U_EDGE / 1e3)
        )


@dataclass(frozen=True)
class Floored(TimeDensity):
    """(1 - share) of a density plus `share` of the uniform one, 0 < share < 1. u is inverted numerically."""

    density: TimeDensity
    share: float

    @property
    def breaks(self) -> tuple[float, ...]:
        return self.density.breaks

    def cdf(self, t: Tensor) -> Tensor:
        return (1 - self.share) * self.density.cdf(t) + self.share * t

    def log_prob(self, t: Tensor) -> Tensor:
        mixed = self.density.log_prob(t) + math.log1p(-self.share)
        return torch.logaddexp(mixed, torch.full_like(t, math.log(self.share)))

    def quantile(self, u: Tensor) -> Tensor:
        """Bisection on logit t, then Newton inside the bracket; a fixed number of steps, so that each element's
        result is its own."""
        own = torch.logit(self.density.quantile(u), eps=1e-15)
        other = torch.logit(u)
        # the two quantiles enclose the mixture's
        low = torch.minimum(own, other)
        high = torch.maximum(own, other)
        for _ in range(20):
            middle = (low + high) / 2
            above = self.cdf(torch.sigmoid(middle)) > u
            low = torch.where(above, low, middle)
            high = torch.where(above, middle, high)
        x = (low + high) / 2
        for _ in range(3):
            t = torch.sigmoid(x)
            x = x - (self.cdf(t) - u) / (self.pdf(t) * t * (1 - t)).clamp_min(1e-300)
            x = torch.minimum(torch.maximum(x, low), high)
        return torch.sigmoid(x)


@dataclass(frozen=True)
class Weighted(TimeDensity):
    """A density with importance weights (p_ref / p)^kappa, scaled so that their mean over it is 1.

    At kappa = 1 the expected weighted loss is that of plain training under the reference.
    """

    density: TimeDensity
    reference: TimeDensity
    kappa: float = 1.0

    @property
    def breaks(self) -> tuple[float, ...]:
        return (*self.density.breaks, *self.reference.breaks)

    def cdf(self, t: Tensor) -> Tensor:
        return self.density.cdf(t)

    def log_prob(self, t: Tensor) -> Tensor:
        return self.density.log_prob(t)

    def quantile(self, u: Tensor) -> Tensor:
        return self.density.quantile(u)

    @cached_property
    def _scale(self) -> float:
        if self.kappa == 1:
            return 1.0  # the integral of p_ref
        return _ratio_mean(self.density, self.reference, self.kappa)

    def weight(self, t: Tensor) -> Tensor:
        return (
            self.kappa * (self.reference.log_prob(t) - self.density.log_prob(t))
        ).exp() / self._scale


# -- weights of the loss by t ----------------------------------------------------------------------


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma) on the error of x0 (arXiv 2303.09556), as a weight on this project's velocity error.

    x0_hat = x_t - t v_hat, so |x0_hat - x0|^2 = t^2 |v_hat - v|^2 and the weight is t^2 min(SNR, gamma)
    = min((1 - t)^2, gamma t^2). The often quoted min(SNR, gamma) / (SNR + 1) is for the velocity of a
    variance-preserving path; it differs by the factor (1 - t)^2 + t^2.
    """

    gamma: float = 5.0

    @property
    def breaks(self) -> tuple[float, ...]:
        return (1 / (1 + math.sqrt(self.gamma)),)  # SNR = gamma

    def __call__(self, t: Tensor) -> Tensor:
        return torch.minimum((1 - t).square(), self.gamma * t.square())


@dataclass(frozen=True)
class ChangeAware:
    """SpeeD's weights (arXiv 2405.17403) on the path x_t = (1 - t) x0 + t eps.

    The share of noise in the variance, t^2 / ((1 - t)^2 + t^2) (1 - abar there), changes with t at the rate
    2 t (1 - t) / ((1 - t)^2 + t^2)^2, which is 0 at t = 0 and at most 2. That rate, scaled to [1 - lam, lam],
    is the weight below tau; above it is 1.
    """

    tau: float = 0.923
    lam: float = 0.6

    @property
    def breaks(self) -> tuple[float, ...]:
        return (self.tau,)

    def __call__(self, t: Tensor) -> Tensor:
        rate = t * (1 - t) / ((1 - t).square() + t.square()).square()
        return torch.where(
            t < self.tau, 1 - self.lam + (2 * self.lam - 1) * rate, torch.ones_like(t)
        )


Weight = MinSNR | ChangeAware


def product(weights: tuple[Weight, ...], t: Tensor) -> Tensor:
    value = torch.ones_like(t)
    for weight in weights:
        value = value * weight(t)
    return value


@dataclass(frozen=True)
class LossWeight:
    """`Plan.loss_weight`: the product of the weights, scaled so that its mean over the density (with the
    density's own importance weights) is 1."""

    weights: tuple[Weight, ...]
    density: TimeDensity

    def __call__(self, t_B: Tensor) -> Tensor:
        return product(self.weights, per_sample(t_B, "t")) / mean_weight(self.density, self.weights)


# -- integrals over t ------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def nodes(breaks: tuple[float, ...] = ()) -> tuple[Tensor, Tensor]:
    """t [N] and weights [N] of a quadrature over (0, 1): Gauss-Legendre in panels of a quarter of logit t,
    from -32 to 32, also split at the breaks."""
    cuts = {math.log(b) - math.log1p(-b) for b in breaks if 0 < b < 1}
    edges = np.array(sorted({*np.arange(-32, 32.125, 0.25).tolist(), *cuts}))
    point, width = np.polynomial.legendre.leggauss(8)
    half = np.diff(edges)[:, None] / 2
    middle = (edges[:-1] + edges[1:])[:, None] / 2
    x = torch.from_numpy((middle + half * point).ravel())
    t = torch.sigmoid(x)
    return t, torch.from_numpy((half * width).ravel()) * t * torch.sigmoid(-x)


def integral(function: Callable[[Tensor], Tensor], breaks: tuple[float, ...] = ()) -> float:
    """Of a function of t [N] over (0, 1), smooth between the breaks."""
    t, width = nodes(tuple(sorted(set(breaks))))
    return float((function(t) * width).sum())


@lru_cache(maxsize=64)
def _ratio_mean(density: TimeDensity, reference: TimeDensity, kappa: float) -> float:
    """E_p[(p_ref / p)^kappa]."""
    return integral(
        lambda t: (kappa * reference.log_prob(t) + (1 - kappa) * density.log_prob(t)).exp(),
        (*density.breaks, *reference.breaks),
    )


@lru_cache(maxsize=64)
def mean_weight(density: TimeDensity, weights: tuple[Weight, ...], power: float = 1.0) -> float:
    """E_p[(w(t) product of the weights)^power], w being the density's importance weights."""
    breaks = (*density.breaks, *(b for weight in weights for b in weight.breaks))
    return integral(
        lambda t: density.pdf(t) * (density.weight(t) * product(weights, t)).pow(power), breaks
    )


def effective_share(density: TimeDensity, weights: tuple[Weight, ...] = ()) -> float:
    """Effective sample size of the weights as a share of the batch, E[w]^2 / E[w^2]; 1: none lost."""
    if not weights and type(density).weight is TimeDensity.weight:
        return 1.0
    return mean_weight(density, weights) ** 2 / mean_weight(density, weights, 2.0)
