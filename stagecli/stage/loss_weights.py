"""Weights of the loss by t, scaled so that their mean over a density of t is 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from stagecli.stage.densities import TimeDensity, per_sample
from stagecli.stage.quadrature import integral


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma) on the error of x0 (Min-SNR, arXiv 2303.09556), as a weight on the velocity
    error.

    x0_hat = x_t - t v_hat, so |x0_hat - x0|^2 = t^2 |v_hat - v|^2 and the weight is t^2 min(SNR,
    gamma) = min((1 - t)^2, gamma t^2). The often quoted min(SNR, gamma) / (SNR + 1) applies to the
    velocity of a variance-preserving path; it differs by the factor (1 - t)^2 + t^2.
    """

    gamma: float = 5.0

    @property
    def breaks(self) -> tuple[float, ...]:
        return (1 / (1 + math.sqrt(self.gamma)),)  # SNR = gamma

    def __call__(self, t: Tensor) -> Tensor:
        return torch.minimum((1 - t).square(), self.gamma * t.square())


@dataclass(frozen=True)
class ChangeAware:
    """Change-aware weights of SpeeD (arXiv 2405.17403) on the path x_t = (1 - t) x0 + t eps.

    The noise's share of the variance, t^2 / ((1 - t)^2 + t^2) (1 - abar in the paper), changes with
    t at the rate 2 t (1 - t) / ((1 - t)^2 + t^2)^2, which is 0 at t = 0 and at most 2. Below tau
    the weight is that rate scaled to [1 - lam, lam]; above tau it is 1.
    """

    tau: float = 0.923
    lam: float = 0.6

    @property
    def breaks(self) -> tuple[float, ...]:
        return (self.tau,)

    def __call__(self, t: Tensor) -> Tensor:
        rate = t * (1 - t) / ((1 - t).square() + t.square()).square()
        below = 1 - self.lam + (2 * self.lam - 1) * rate
        return torch.where(t < self.tau, below, torch.ones_like(t))


Weight = MinSNR | ChangeAware


def product(weights: tuple[Weight, ...], t: Tensor) -> Tensor:
    """Product of the weights at t; 1 where there are none."""
    value = torch.ones_like(t)
    for weight in weights:
        value = value * weight(t)
    return value


@dataclass(frozen=True)
class LossWeight:
    """The product of some weights as `Plan.loss_weight`, t [B] -> [B].

    Scaled so that its mean over the density, with the density's own importance weights, is 1.
    """

    weights: tuple[Weight, ...]
    density: TimeDensity

    def __call__(self, t_B: Tensor) -> Tensor:
        return product(self.weights, per_sample(t_B, "t")) / mean_weight(self.density, self.weights)


@lru_cache(maxsize=64)
def mean_weight(density: TimeDensity, weights: tuple[Weight, ...], power: float = 1.0) -> float:
    """E_p[(w(t) product of the weights)^power], where w are the density's importance weights."""

    def integrand(t: Tensor) -> Tensor:
        return density.pdf(t) * (density.weight(t) * product(weights, t)).pow(power)

    return integral(integrand, (*density.breaks, *(b for w in weights for b in w.breaks)))


def effective_share(density: TimeDensity, weights: tuple[Weight, ...] = ()) -> float:
    """Effective sample size of the weights as a share of the batch, E[w]^2 / E[w^2]; 1 without
    weights.
    """
    if not weights and type(density).weight is TimeDensity.weight:
        return 1.0
    return mean_weight(density, weights) ** 2 / mean_weight(density, weights, 2.0)
