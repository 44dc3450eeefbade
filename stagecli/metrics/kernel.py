"""Kernel audio distance: an unbiased distance of two sets that does not assume Gaussians."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stagecli.metrics.bootstrap import Interval, shifted_interval
from stagecli.metrics.moments import Embeddings, checked_sets
from stagecli.metrics.pairwise import (
    VALUES_PER_BLOCK,
    distance_blocks,
    median_pairwise_distance,
    triangle_blocks,
)

_SCALE = 100.0
_NAMES = ("the reference", "the generated set")


@dataclass(frozen=True)
class KernelDistance:
    """value: 100 x squared MMD, may be negative; bandwidth: of the kernel; n, m: reference and
    generated clips."""

    value: float
    bandwidth: float
    n: int
    m: int
    dim: int


def _prepared(
    reference: Embeddings, generated: Embeddings, bandwidth: float | None
) -> tuple[Tensor, Tensor, float]:
    """Both sets centred on the reference's mean, and the bandwidth."""
    x, y = checked_sets(reference, generated, _NAMES)
    if bandwidth is None:
        bandwidth = median_pairwise_distance(x)
        if bandwidth == 0:
            raise ValueError(
                "half of the reference clips are copies of each other, so no typical distance "
                "between clips is left to measure by"
            )
    if not 0 < bandwidth < float("inf"):
        raise ValueError(f"the bandwidth must be positive, got {bandwidth}")
    centre_D = x.mean(0)
    return x - centre_D, y - centre_D, bandwidth


def kernel_audio_distance(
    reference: Embeddings,
    generated: Embeddings,
    bandwidth: float | None = None,
    block: int = VALUES_PER_BLOCK,
) -> KernelDistance:
    """KAD = 100 x unbiased squared maximum mean discrepancy (Gretton et al., 2012; Chung et al.,
    2025).

    reference [N, D], generated [M, D]; the mean of k over pairs i < j within each set, minus twice
    its mean over pairs across the sets, k(a, b) = exp(-|a - b|^2 / (2 s^2)). Bandwidth s: the exact
    median distance between clips of the REFERENCE, unless given (use one for all systems of a
    table). Unbiased: for equal distributions it scatters about 0, negative half the time, whatever
    the number of clips. float64, `block` distances at a time.
    Raises ValueError: not [N, D], fewer than two clips, different D, NaN or infinite values, a
    median distance of 0.
    """
    x, y, bandwidth = _prepared(reference, generated, bandwidth)
    gamma = -0.5 / bandwidth**2
    n, dim = x.shape
    m = y.shape[0]
    within = [
        sum(float(squared.mul_(gamma).exp_().sum()) for _, _, squared in triangle_blocks(z, block))
        for z in (x, y)
    ]
    across = sum(
        float(squared.mul_(gamma).exp_().sum()) for _, squared in distance_blocks(x, y, block)
    )
    value = 2 * within[0] / (n * (n - 1)) + 2 * within[1] / (m * (m - 1)) - 2 * across / (n * m)
    return KernelDistance(_SCALE * value, bandwidth, n, m, dim)


def _counts(n: int, draws: int, rng: np.random.Generator, resample: bool) -> Tensor:
    """How often each resample holds each clip, [n, draws] float64; ones without resampling."""
    if not resample:
        return torch.ones(n, draws, dtype=torch.float64)
    drawn = [np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(draws)]
    return torch.from_numpy(np.stack(drawn, axis=1)).double()


def _interval(values: list[float], level: float) -> Interval:
    """The interval of the first value by the others, which are its resamples."""
    if not all(map(math.isfinite, values[1:])):
        raise ValueError(
            "no interval: with so few clips some resamples hold one clip only; score more clips"
        )
    return shifted_interval(values[0], values[1:], level)


def kernel_interval(
    reference: Embeddings,
    generated: Embeddings,
    seed: int,
    *,
    bandwidth: float | None = None,
    resample: Literal["generated", "both"] = "both",
    level: float = 0.95,
    draws: int = 200,
    block: int = VALUES_PER_BLOCK,
) -> Interval:
    """Bootstrap interval of `kernel_audio_distance`, with the bandwidth of the whole reference.

    A resample repeats clips. Counting a clip and its copy as a pair would put k = 1 into the means
    within a set and raise every replicate by about 200 / n. Such pairs are left out; the remaining
    bias is small, returned, and removed from the quantiles. All draws share one pass over the
    kernel. resample "generated" keeps the reference fixed. Near 0 the distribution of the value is
    not normal, and the interval is rough.
    Raises ValueError as `kernel_audio_distance`; so few clips that a resample holds one clip only;
    level outside (0, 1).
    """
    x, y, bandwidth = _prepared(reference, generated, bandwidth)
    rng = np.random.default_rng(seed)
    counts = [
        _counts(len(z), draws, rng, drawn) for z, drawn in ((x, resample == "both"), (y, True))
    ]
    values = _resampled(x, y, bandwidth, counts, block)
    return _interval(values, level)


def kernel_difference(
    reference: Embeddings,
    a: Embeddings,
    b: Embeddings,
    seed: int,
    *,
    level: float = 0.95,
    draws: int = 200,
    block: int = VALUES_PER_BLOCK,
) -> Interval:
    """KAD of b minus KAD of a against one reference, with a bootstrap interval.

    Row i of a and of b belongs to one prompt. A draw takes the same prompts for both and the same
    clips of the reference, so that what they share (hard prompts, an odd reference) cancels.
    Raises ValueError as `kernel_interval`; a and b of different shapes.
    """
    x, first, bandwidth = _prepared(reference, a, None)
    second = _prepared(reference, b, bandwidth)[1]
    if first.shape != second.shape:
        raise ValueError(
            f"pairs need equal shapes, got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    rng = np.random.default_rng(seed)
    counts = [_counts(len(z), draws, rng, True) for z in (x, first)]
    before = _resampled(x, first, bandwidth, counts, block)
    after = _resampled(x, second, bandwidth, counts, block)
    values = [b_value - a_value for a_value, b_value in zip(before, after, strict=True)]
    return _interval(values, level)


def _resampled(
    x: Tensor, y: Tensor, bandwidth: float, counts: list[Tensor], block: int
) -> list[float]:
    """KAD of the sets, then of each resample, in one pass over the kernel.

    counts: of x and of y, a column per resample.
    """
    gamma = -0.5 / bandwidth**2
    draws = counts[0].shape[1]
    # Column 0 is the value itself: every clip once.
    weights = [torch.cat([torch.ones(len(c), 1, dtype=torch.float64), c], dim=1) for c in counts]
    total = torch.zeros(draws + 1, dtype=torch.float64)
    for z, counts_NB in zip((x, y), weights, strict=True):
        pairs = torch.zeros(draws + 1, dtype=torch.float64)
        for rows, columns, squared in triangle_blocks(z, block):
            pairs += (counts_NB[rows] * (squared.mul_(gamma).exp_() @ counts_NB[columns])).sum(0)
        total += 2 * pairs / (counts_NB.sum(0).square() - counts_NB.square().sum(0))
    across = torch.zeros(draws + 1, dtype=torch.float64)
    for rows, squared in distance_blocks(x, y, block):
        across += (weights[0][rows] * (squared.mul_(gamma).exp_() @ weights[1])).sum(0)
    total -= 2 * across / (weights[0].sum(0) * weights[1].sum(0))
    return [float(value) for value in _SCALE * total]
