"""The Frechet distance of two sets of embeddings: plain, from moments, extrapolated, and with an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stagecli.metrics.bootstrap import Interval, shifted_interval
from stagecli.metrics.mel import log_mel_statistics
from stagecli.metrics.moments import Embeddings, Moments, checked_sets

__all__ = [
    "FrechetDistance",
    "FrechetInfinity",
    "frechet_difference",
    "frechet_distance",
    "frechet_infinity",
    "frechet_interval",
    "frechet_of_moments",
    "log_mel_statistics",
]

_NAMES = ("x", "y")
_PER_DIMENSION = (
    4  # smallest subset per dimension: from there on the bias is a straight line in 1/n
)


@dataclass(frozen=True)
class FrechetDistance:
    """value: squared units of the embedding; n, m: clips of x and of y; dim: D.

    biased: a set has no more clips than dimensions, so its covariance is singular and the sample size
    dominates the value. Below that the bias is still there and falls as 1/n: compare equal n only.
    """

    value: float
    n: int
    m: int
    dim: int
    biased: bool


def _factor(moments: Moments) -> Tensor:
    """L [D, D] with L L^T = C: Cholesky's, or where C is singular (few clips) the symmetric square root."""
    covariance = moments.covariance()
    factor_DD, failed = torch.linalg.cholesky_ex(covariance)
    if int(failed) == 0:
        return factor_DD
    values_D, vectors_DD = torch.linalg.eigh(covariance)
    return (vectors_DD * values_D.clamp_min(0).sqrt()) @ vectors_DD.T


def _distance(x: Moments, factor_x: Tensor, y: Moments) -> float:
    """|mu_x - mu_y|^2 + tr C_x + tr C_y - 2 tr (C_x C_y)^(1/2), never below 0.

    C_x C_y = L L^T C_y has the eigenvalues of the symmetric L^T C_y L, whatever factor L of C_x is taken.
    """
    cov_y = y.covariance()
    product = factor_x.T @ cov_y @ factor_x
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    trace_x = x.scatter_DD.trace() / (x.count - 1)
    value = (x.mean_D - y.mean_D).square().sum() + trace_x + cov_y.trace() - 2 * cross
    return max(float(value), 0.0)


def _distance_of_rows(x: Moments, factor_x: Tensor, y_MD: Tensor) -> float:
    """`_distance` to the clips y themselves: M x M values instead of D x D where clips are fewer than dimensions."""
    if len(y_MD) > x.dim:
        return _distance(x, factor_x, Moments.of(y_MD))
    centred_MD = (y_MD - y_MD.mean(0)) / math.sqrt(len(y_MD) - 1)
    rows_MD = centred_MD @ factor_x
    cross = torch.linalg.eigvalsh(rows_MD @ rows_MD.T).clamp_min(0).sqrt().sum()
    traces = x.scatter_DD.trace() / (x.count - 1) + centred_MD.square().sum()
    return max(float((x.mean_D - y_MD.mean(0)).square().sum() + traces - 2 * cross), 0.0)


def frechet_of_moments(x: Moments, y: Moments) -> FrechetDistance:
    """`frechet_distance` of two sets that were gathered batch by batch; the clips themselves are not needed.

    Raises ValueError: fewer than two clips, different D.
    """
    if x.dim != y.dim:
        raise ValueError(f"x and y have different dimensions: {x.dim} and {y.dim}")
    n = x.count
    m = y.count
    dim = x.dim
    return FrechetDistance(_distance(x, _factor(x), y), n, m, dim, min(n, m) <= dim)


def frechet_distance(x_ND: Embeddings, y_MD: Embeddings) -> FrechetDistance:
    """Frechet distance of two Gaussians fitted to x [N, D] and y [M, D] (Dowson and Landau, 1982).

    |mu_x - mu_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), in float64. The trace of the root is the sum of
    the roots of the eigenvalues of the symmetric L^T C_y L, C_x = L L^T: real and never negative where a general
    matrix square root of C_x C_y turns complex, and faster.
    Raises ValueError: not [N, D], fewer than two clips, different D, NaN or infinite values.
    """
    x, y = checked_sets(x_ND, y_MD, _NAMES)
    return frechet_of_moments(Moments.of(x), Moments.of(y))


def frechet_interval(
    x_ND: Embeddings,
    y_MD: Embeddings,
    seed: int,
    *,
    resample: Literal["y", "both"] = "both",
    level: float = 0.95,
    draws: int = 100,
) -> Interval:
    """Bootstrap interval of `frechet_distance` over clips: how far other clips, as many, would move it.

    x: reference [N, D], y: generated [M, D]; resample "y" takes the reference as given. A draw repeats clips, so
    its distance is too large by about the bias 1/n has already put into the value; the quantiles are shifted
    back by that amount, which is returned as `bias`. The interval is therefore one of this number at this
    n, not of the distance between the populations. Each draw costs one distance.
    Raises ValueError as `frechet_distance`; level outside (0, 1).
    """
    x, y = checked_sets(x_ND, y_MD, _NAMES)
    rng = np.random.default_rng(seed)
    whole = Moments.of(x)
    factor = _factor(whole)
    value = _distance(whole, factor, Moments.of(y))
    replicates = []
    for _ in range(draws):
        part = whole
        part_factor = factor
        if resample == "both":
            part = Moments.of(x[rng.integers(len(x), size=len(x))])
            part_factor = _factor(part)
        replicates.append(
            _distance(part, part_factor, Moments.of(y[rng.integers(len(y), size=len(y))]))
        )
    return shifted_interval(value, replicates, level, lowest=0.0)


def frechet_difference(
    x_ND: Embeddings,
    a_MD: Embeddings,
    b_MD: Embeddings,
    seed: int,
    *,
    level: float = 0.95,
    draws: int = 100,
) -> Interval:
    """Distance of b minus that of a to one reference x, with a bootstrap interval; row i of a and of b: one prompt.

    A draw takes the same prompts for both, and the reference as given. The biases of two sets of one size cancel as
    far as their spreads are alike; what is left is in `bias`, by which the quantiles are shifted.
    Raises ValueError as `frechet_distance`; a and b of different shapes.
    """
    x, a = checked_sets(x_ND, a_MD, _NAMES)
    _, b = checked_sets(x_ND, b_MD, _NAMES)
    if a.shape != b.shape:
        raise ValueError(f"pairs need equal shapes, got {tuple(a.shape)} and {tuple(b.shape)}")
    whole = Moments.of(x)
    factor = _factor(whole)
    rng = np.random.default_rng(seed)

    def change(rows: np.ndarray) -> float:
        before, after = (_distance_of_rows(whole, factor, y[rows]) for y in (a, b))
        return after - before

    replicates = [change(rng.integers(len(a), size=len(a))) for _ in range(draws)]
    return shifted_interval(change(np.arange(len(a))), replicates, level)


@dataclass(frozen=True)
class FrechetInfinity:
    """value: intercept, the distance at infinite n; low, high: bootstrap interval, None where no draws were asked.

    r2: of the straight line through distance against 1/n; slope: d distance / d (1/n); sizes: subset sizes
    of y; plain: `frechet_distance` of the whole sets, what the value is to be read beside.
    The value may come out slightly negative.
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


def _prefixes(values_ND: Tensor, sizes: list[int], order: np.ndarray) -> list[Moments]:
    """Moments of the first clips of `order`, as many as each of `sizes` (ascending); each clip is read once."""
    total = Moments.empty(values_ND.shape[1])
    parts = []
    first = 0
    for size in sizes:
        if size > first:
            total = total.updated(values_ND[order[first:size]])
        parts.append(total)
        first = size
    return parts


def _line(
    x: Tensor,
    y: Tensor,
    sizes: list[int],
    fixed: tuple[Moments, Tensor] | None,
    shuffles: int,
    rng: np.random.Generator,
) -> tuple[float, float, float]:
    """(intercept, slope, R^2) of the distance against 1 / size of y, over nested subsets without repetition.

    fixed: moments of x and the factor of its covariance, where the whole of x is used throughout.
    """
    points = []
    for _ in range(shuffles):
        if fixed is None:
            sizes_x = [max(2, round(size * len(x) / len(y))) for size in sizes]
            left = [
                (part, _factor(part)) for part in _prefixes(x, sizes_x, rng.permutation(len(x)))
            ]
        else:
            left = [fixed] * len(sizes)
        right = _prefixes(y, sizes, rng.permutation(len(y)))
        points += [
            (1 / part.count, _distance(*whole, part))
            for whole, part in zip(left, right, strict=True)
        ]
    inverse, distance = np.array(points).T
    slope, intercept = np.polyfit(inverse, distance, 1)
    residual = distance - (intercept + slope * inverse)
    spread = distance.var()
    return float(intercept), float(slope), float(1 - residual.var() / spread) if spread > 0 else 1.0


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
    """FAD-infinity: the Frechet distance extrapolated to infinitely many generated clips (Gui et al., 2024).

    x: reference [N, D], y: generated [M, D]. A straight line is fitted, by least squares, to the distances of
    subsets of y against 1/size and read at 0: `points` sizes, equally spaced in 1/size from `smallest`
    (default: the larger of 4 D and M / 8) to M, each with `shuffles` nested subsets. over "y": the reference is
    used whole and its own bias stays; "both": its subsets shrink in proportion, and it goes too (from 4 D M / N).
    Subsets are drawn WITHOUT repetition (Chong and Forsyth, 2020). `fadtk` draws with repetition: then the
    limit is the distance of the very clips at hand, bias and all, and nothing is gained (docs/metrics.md).
    draws > 0: bootstrap interval over clips. The mean of the replicates lies at the plain distance for the same
    reason, so their quantiles are shifted onto the value. Cost: draws * shuffles * points distances.
    Raises ValueError: as `frechet_distance`; fewer than 2 * smallest clips in y, points < 3.
    """
    x, y = checked_sets(x_ND, y_MD, _NAMES)
    (n, dim) = x.shape
    m = y.shape[0]
    if smallest is None:
        # The reference's subsets are n / m as large, and must hold 4 D clips as well.
        per_dimension = _PER_DIMENSION * (max(1.0, m / n) if over == "both" else 1)
        smallest = max(math.ceil(per_dimension * dim), m // 8, 8)
    if points < 3 or shuffles < 1 or smallest < 2:
        raise ValueError(
            "an extrapolation needs at least 3 points, 1 shuffle and subsets of 2 clips"
        )
    if m < 2 * smallest:
        against = f" against {n}" if over == "both" else ""
        raise ValueError(
            f"{m} clips{against} are too few to extrapolate in {dim} dimensions: {2 * smallest} are needed for "
            f"subsets from {smallest} clips up"
        )
    sizes = sorted({round(1 / inverse) for inverse in np.linspace(1 / smallest, 1 / m, points)})
    rng = np.random.default_rng(seed)
    whole = Moments.of(x)
    factor = _factor(whole)
    fixed = None if over == "both" else (whole, factor)
    value, slope, r2 = _line(x, y, sizes, fixed, shuffles, rng)
    interval = None
    if draws:
        replicates = []
        for _ in range(draws):
            again_y = y[rng.integers(m, size=m)]
            again_x = x[rng.integers(n, size=n)] if over == "both" else x
            replicates.append(_line(again_x, again_y, sizes, fixed, shuffles, rng)[0])
        interval = shifted_interval(value, replicates, level)
    low, high = (interval.low, interval.high) if interval else (None, None)
    plain = _distance(whole, factor, Moments.of(y))
    return FrechetInfinity(value, low, high, r2, slope, tuple(sizes), plain, n, m, dim)
