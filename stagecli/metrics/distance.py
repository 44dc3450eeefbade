"""Frechet distance of two sets of embeddings: plain, extrapolated, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stagecli.metrics.bootstrap import Interval, shifted_interval
from stagecli.metrics.moments import Embeddings, Moments, checked_sets

_NAMES = ("the reference", "the generated set")
# Smallest subset per dimension: from there on the bias is a straight line in 1/n.
_CLIPS_PER_DIMENSION = 4


@dataclass(frozen=True, kw_only=True)
class FrechetDistance:
    """value: squared units of the embedding; n, m: clips of x and of y; dim: D.

    biased: a set has no more clips than dimensions, so its covariance is singular and the number of
    clips dominates the value. With more clips a bias remains that falls as 1/n: compare equal n
    only.
    """

    value: float
    n: int
    m: int
    dim: int
    biased: bool


@dataclass(frozen=True)
class _Gaussian:
    """Moments of a set and a factor L [D, D] of its covariance, L L^T = C."""

    moments: Moments
    factor: Tensor

    @staticmethod
    def of(moments: Moments) -> _Gaussian:
        """L is Cholesky's, or the symmetric square root if C is singular (few clips)."""
        covariance = moments.covariance()
        factor_DD, failed = torch.linalg.cholesky_ex(covariance)
        if int(failed) == 0:
            return _Gaussian(moments, factor_DD)
        values_D, vectors_DD = torch.linalg.eigh(covariance)
        root_DD = (vectors_DD * values_D.clamp_min(0).sqrt()) @ vectors_DD.T
        return _Gaussian(moments, root_DD)


def _distance(x: _Gaussian, y: Moments) -> float:
    """|mu_x - mu_y|^2 + tr C_x + tr C_y - 2 tr (C_x C_y)^(1/2), never below 0.

    C_x C_y = L L^T C_y has the eigenvalues of the symmetric L^T C_y L, for any factor L of C_x.
    """
    cov_y = y.covariance()
    product = x.factor.T @ cov_y @ x.factor
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    trace_x = x.moments.scatter_DD.trace() / (x.moments.count - 1)
    value = (x.moments.mean_D - y.mean_D).square().sum() + trace_x + cov_y.trace() - 2 * cross
    return max(float(value), 0.0)


def _distance_to_clips(x: _Gaussian, y_MD: Tensor) -> float:
    """`_distance` to the clips themselves: M x M values instead of D x D if M <= D."""
    if len(y_MD) > x.moments.dim:
        return _distance(x, Moments.of(y_MD))
    centred_MD = (y_MD - y_MD.mean(0)) / math.sqrt(len(y_MD) - 1)
    rows_MD = centred_MD @ x.factor
    cross = torch.linalg.eigvalsh(rows_MD @ rows_MD.T).clamp_min(0).sqrt().sum()
    trace_x = x.moments.scatter_DD.trace() / (x.moments.count - 1)
    traces = trace_x + centred_MD.square().sum()
    value = (x.moments.mean_D - y_MD.mean(0)).square().sum() + traces - 2 * cross
    return max(float(value), 0.0)


def frechet_of_moments(x: Moments, y: Moments) -> FrechetDistance:
    """`frechet_distance` of two sets from their moments; the clips themselves are not needed.

    Raises ValueError: fewer than two clips, different D.
    """
    if x.dim != y.dim:
        raise ValueError(f"x and y have different dimensions: {x.dim} and {y.dim}")
    return FrechetDistance(
        value=_distance(_Gaussian.of(x), y),
        n=x.count,
        m=y.count,
        dim=x.dim,
        biased=min(x.count, y.count) <= x.dim,
    )


def frechet_distance(x_ND: Embeddings, y_MD: Embeddings) -> FrechetDistance:
    """Frechet distance of Gaussians fitted to x [N, D] and y [M, D] (Dowson and Landau, 1982).

    |mu_x - mu_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), in float64. The trace of the root is the
    sum of the roots of the eigenvalues of the symmetric L^T C_y L, C_x = L L^T: real and never
    negative, where a general matrix square root of C_x C_y turns complex, and faster.
    Raises ValueError: not [N, D], fewer than two clips, different D, NaN or infinite values.
    """
    x, y = checked_sets(x_ND, y_MD, _NAMES)
    return frechet_of_moments(Moments.of(x), Moments.of(y))


def frechet_difference(
    x_ND: Embeddings,
    a_MD: Embeddings,
    b_MD: Embeddings,
    seed: int,
    *,
    level: float = 0.95,
    draws: int = 100,
) -> Interval:
    """Distance of b minus distance of a to one reference x, with a bootstrap interval.

    Row i of a and of b belongs to one prompt. A draw takes the same prompts for both and keeps the
    reference fixed. The biases of two sets of one size cancel as far as their spreads are alike;
    the rest is `bias`, by which the quantiles are shifted.
    Raises ValueError as `frechet_distance`; a and b of different shapes.
    """
    x, a = checked_sets(x_ND, a_MD, _NAMES)
    _, b = checked_sets(x_ND, b_MD, _NAMES)
    if a.shape != b.shape:
        raise ValueError(f"pairs need equal shapes, got {tuple(a.shape)} and {tuple(b.shape)}")
    whole = _Gaussian.of(Moments.of(x))
    rng = np.random.default_rng(seed)

    def change(prompts: np.ndarray) -> float:
        return _distance_to_clips(whole, b[prompts]) - _distance_to_clips(whole, a[prompts])

    replicates = [change(rng.integers(len(a), size=len(a))) for _ in range(draws)]
    return shifted_interval(change(np.arange(len(a))), replicates, level)


@dataclass(frozen=True, kw_only=True)
class FrechetInfinity:
    """value: intercept, the distance at infinite n; it may come out slightly negative.

    low, high: bootstrap interval, None without draws. r2: of the straight line through distance
    against 1/n; slope: d distance / d (1/n); sizes: subset sizes of y; plain: `frechet_distance` of
    the whole sets, to be read beside the value.
    """

    value: float
    low: float | None
    high: float | None
    r2: float
    slope: float
    sizes: tuple[int, ...]
    plain: float
    n: int
    m: int
    dim: int


def _nested_subsets(
    values_ND: Tensor, sizes: Sequence[int], rng: np.random.Generator
) -> list[Moments]:
    """Moments of random subsets of ascending `sizes`, each within the next; reads a clip once."""
    order = rng.permutation(len(values_ND))
    total = Moments.empty(values_ND.shape[1])
    subsets = []
    first = 0
    for size in sizes:
        if size > first:
            total = total.updated(values_ND[order[first:size]])
        subsets.append(total)
        first = size
    return subsets


@dataclass(frozen=True)
class _BiasFit:
    """The straight line through the distances of subsets against 1 / size."""

    intercept: float
    slope: float
    r2: float


def _fit_bias(
    x: Tensor | _Gaussian,
    y: Tensor,
    sizes: Sequence[int],
    shuffles: int,
    rng: np.random.Generator,
) -> _BiasFit:
    """Fit the bias over nested subsets of y without repetition.

    x: a Gaussian is used whole throughout; a tensor [N, D] shrinks in proportion to y.
    """
    points = []
    for _ in range(shuffles):
        if isinstance(x, _Gaussian):
            references = [x] * len(sizes)
        else:
            sizes_x = [max(2, round(size * len(x) / len(y))) for size in sizes]
            references = [_Gaussian.of(part) for part in _nested_subsets(x, sizes_x, rng)]
        for reference, generated in zip(references, _nested_subsets(y, sizes, rng), strict=True):
            points.append((1 / generated.count, _distance(reference, generated)))
    inverse, distance = np.array(points).T
    slope, intercept = np.polyfit(inverse, distance, 1)
    residual = distance - (intercept + slope * inverse)
    spread = distance.var()
    r2 = float(1 - residual.var() / spread) if spread > 0 else 1.0
    return _BiasFit(float(intercept), float(slope), r2)


def _subset_sizes(
    n: int, m: int, dim: int, *, over_both: bool, points: int, smallest: int | None
) -> list[int]:
    """Sizes of subsets of y, equally spaced in 1 / size. Raises ValueError: too few clips."""
    if smallest is None:
        # The reference's subsets are n / m as large, and need 4 D clips as well.
        per_dimension = _CLIPS_PER_DIMENSION * (max(1.0, m / n) if over_both else 1)
        smallest = max(math.ceil(per_dimension * dim), m // 8, 8)
    if points < 3 or smallest < 2:
        raise ValueError("an extrapolation needs at least 3 points and subsets of 2 clips")
    if m < 2 * smallest:
        against = f" against {n}" if over_both else ""
        raise ValueError(
            f"{m} clips{against} are too few to extrapolate in {dim} dimensions: {2 * smallest} "
            f"are needed for subsets from {smallest} clips up"
        )
    return sorted({round(1 / inverse) for inverse in np.linspace(1 / smallest, 1 / m, points)})


def frechet_infinity(
    x_ND: Embeddings,
    y_MD: Embeddings,
    seed: int,
    *,
    over: Literal["y", "both"] = "y",
    points: int = 8,
    shuffles: int = 4,
    smallest: int | None = None,
    draws: int = 0,
    level: float = 0.95,
) -> FrechetInfinity:
    """FAD-infinity: Frechet distance extrapolated to infinite clips (Gui et al., 2024).

    x: reference [N, D], y: generated [M, D]. A straight line is fitted, by least squares, to the
    distances of subsets of y against 1/size, and evaluated at 0. There are `points` sizes, equally
    spaced in 1/size from `smallest` (default: the larger of 4 D and M / 8) to M, each with
    `shuffles` nested subsets. over "y": the reference is used whole and its own bias remains;
    "both": its subsets shrink in proportion, which removes that bias too (from 4 D M / N clips).
    Subsets are drawn WITHOUT repetition (Chong and Forsyth, 2020). `fadtk` draws with repetition:
    then the limit is the distance of the given clips, bias included (docs/metrics.md).
    draws > 0: bootstrap interval over clips. For the same reason the replicates scatter about the
    plain distance, so their quantiles are shifted onto the value. Costs draws * shuffles * points
    distances.
    Raises ValueError: as `frechet_distance`; fewer than 2 * smallest clips in y, points < 3.
    """
    # Choose the subsets.
    x, y = checked_sets(x_ND, y_MD, _NAMES)
    n, dim = x.shape
    m = len(y)
    over_both = over == "both"
    sizes = _subset_sizes(n, m, dim, over_both=over_both, points=points, smallest=smallest)
    if shuffles < 1:
        raise ValueError("an extrapolation needs at least 1 shuffle")

    # Fit the line to the clips at hand, then to resamples of them.
    rng = np.random.default_rng(seed)
    whole = _Gaussian.of(Moments.of(x))
    fit = _fit_bias(x if over_both else whole, y, sizes, shuffles, rng)
    interval = None
    if draws:
        replicates = []
        for _ in range(draws):
            resampled_y = y[rng.integers(m, size=m)]
            reference = x[rng.integers(n, size=n)] if over_both else whole
            resample = _fit_bias(reference, resampled_y, sizes, shuffles, rng)
            replicates.append(resample.intercept)
        interval = shifted_interval(fit.intercept, replicates, level)
    return FrechetInfinity(
        value=fit.intercept,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        r2=fit.r2,
        slope=fit.slope,
        sizes=tuple(sizes),
        plain=_distance(whole, Moments.of(y)),
        n=n,
        m=m,
        dim=dim,
    )
