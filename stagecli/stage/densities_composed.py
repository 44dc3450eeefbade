"""Densities of t made of other densities: reweighted by bins, mixed with uniform,
importance-weighted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stagecli.stage.densities import U_EDGE, LogitNormal, TimeDensity, Uniform
from stagecli.stage.quadrature import integral

if TYPE_CHECKING:
    from stagecli.schema import Objective


def objective_density(objective: Objective) -> TimeDensity:
    """The density of the recipe's `[objective]` section."""
    if objective.density == "uniform" or objective.floor == 1:
        return Uniform()
    normal = LogitNormal(objective.mean, objective.std)
    return Floored(normal, objective.floor) if objective.floor else normal


@dataclass(frozen=True)
class Binned(TimeDensity):
    """A density times one factor per bin of t, normalised.

    edges: n + 1 ascending numbers from 0 to 1; factors: n positive numbers.
    """

    base: TimeDensity
    edges: tuple[float, ...]
    factors: tuple[float, ...]

    @property
    def breaks(self) -> tuple[float, ...]:
        return (*self.base.breaks, *self.edges[1:-1])

    @cached_property
    def _steps(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(inner edges [n - 1], the base's cdf and this cdf at the edges [n + 1], normalised
        factors [n]).
        """
        edges = torch.tensor(self.edges, dtype=torch.float64)
        below = self.base.cdf(edges)
        factors = torch.tensor(self.factors, dtype=torch.float64)
        factors = factors / (below.diff() * factors).sum()
        zero = torch.zeros(1, dtype=torch.float64)
        cumulated = torch.cat([zero, (below.diff() * factors).cumsum(0)])
        return edges[1:-1].contiguous(), below, cumulated, factors

    def ratio(self, t: Tensor) -> Tensor:
        """Ratio of this density to the base."""
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
        inside = torch.minimum(inside, below[bin_ + 1])
        return self.base.quantile(inside.clamp(U_EDGE / 1e3, 1 - U_EDGE / 1e3))


@dataclass(frozen=True)
class Floored(TimeDensity):
    """(1 - share) times a density plus `share` times the uniform one, 0 < share < 1; inverted
    numerically.
    """

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
        """Bisection on logit t, then Newton inside the bracket.

        The number of steps is fixed, so that no element depends on the others.
        """
        own = torch.logit(self.density.quantile(u), eps=1e-15)
        other = torch.logit(u)
        # The quantiles of the two components enclose that of the mixture.
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
    """A density with importance weights (p_ref / p)^kappa, scaled to mean 1 over the density.

    With kappa = 1 the expected weighted loss equals that of plain training under the reference.
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
        log_ratio = self.reference.log_prob(t) - self.density.log_prob(t)
        return (self.kappa * log_ratio).exp() / self._scale


@lru_cache(maxsize=64)
def _ratio_mean(density: TimeDensity, reference: TimeDensity, kappa: float) -> float:
    """E_p[(p_ref / p)^kappa]."""
    return integral(
        lambda t: (kappa * reference.log_prob(t) + (1 - kappa) * density.log_prob(t)).exp(),
        (*density.breaks, *reference.breaks),
    )
