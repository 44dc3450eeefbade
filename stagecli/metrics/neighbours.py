"""Metrics of nearest neighbours: precision, recall, density, coverage, and memorisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stagecli.metrics.classes import Share, wilson_interval
from stagecli.metrics.moments import Embeddings, checked_embeddings, checked_sets
from stagecli.metrics.pairwise import (
    VALUES_PER_BLOCK,
    distance_blocks,
    kth_nearest_distance,
    nearest_neighbours,
)

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95)
THRESHOLD_QUANTILE = 0.01
_NAMES = ("the reference", "the generated set")


@dataclass(frozen=True, kw_only=True)
class Manifold:
    """precision, recall and coverage in 0..1; density may exceed 1. k: which neighbour sets the
    radius; n, m: reference and generated clips."""

    precision: float
    recall: float
    density: float
    coverage: float
    k: int
    n: int
    m: int


def precision_recall(
    reference: Embeddings, generated: Embeddings, k: int = 5, block: int = VALUES_PER_BLOCK
) -> Manifold:
    """k-NN precision and recall (Kynkaanniemi et al., 2019), density and coverage (Naeem et al.,
    2020).

    reference [N, D], generated [M, D]. Each clip has a ball that reaches to its k-th nearest other
    clip of its own set. Precision: share of generated clips inside some reference ball. Recall:
    share of reference clips inside some generated ball. Density: reference balls that hold a
    generated clip, averaged over generated clips and divided by k. Coverage: share of reference
    balls that hold some generated clip.
    "Inside" is strict, as in the authors' `prdc`: equal sets have density 1, and a ball of radius 0
    (k copies or more) holds nothing. All depend on N, M and k (3 and 5 are both common): compare
    equal ones only. Outliers of the generated set inflate recall, outliers of the reference inflate
    precision.
    Raises ValueError: not [N, D], k < 1, no more than k clips in a set, different D, NaN or
    infinite values.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    x, y = checked_sets(reference, generated, _NAMES, least=k + 1)
    centre_D = x.mean(0)
    x = x - centre_D
    y = y - centre_D
    radius_x = kth_nearest_distance(x, k, block)
    radius_y = kth_nearest_distance(y, k, block)
    holders_M = torch.zeros(len(y), dtype=torch.int64)
    recalled = 0
    covered = 0
    for rows, squared in distance_blocks(x, y, block):
        inside_RM = squared < radius_x[rows, None]
        holders_M += inside_RM.sum(0)
        covered += int(inside_RM.any(1).sum())
        recalled += int((squared < radius_y).any(1).sum())
    return Manifold(
        precision=float((holders_M > 0).double().mean()),
        recall=recalled / len(x),
        density=float(holders_M.double().mean()) / k,
        coverage=covered / len(x),
        k=k,
        n=len(x),
        m=len(y),
    )


class NearPair(NamedTuple):
    """Indices of a sample and of its nearest training clip, and their distance.

    rank: share of real test clips that are nearer to the training set than this sample.
    """

    sample: int
    training: int
    distance: float
    rank: float


@dataclass(frozen=True, kw_only=True)
class Memorisation:
    """Distances to the nearest training clip, of samples and of real test clips.

    samples, real: quantiles {share: distance}. threshold: 1st percentile of the real test clips;
    nearer: share of samples below it with its Wilson interval (0.01 if samples are like new
    recordings). copies: samples at distance 0; pairs: nearest first. coarse: fewer than 100 real
    test clips, so the threshold is little more than the nearest of them. leaked: a real test clip
    is itself a copy of a training clip.
    """

    samples: dict[float, float]
    real: dict[float, float]
    threshold: float
    nearer: Share
    copies: int
    pairs: tuple[NearPair, ...]
    coarse: bool
    leaked: bool


def memorisation(
    samples: Embeddings,
    training: Embeddings,
    real_test: Embeddings,
    *,
    cosine: bool = False,
    most_pairs: int = 20,
    block: int = VALUES_PER_BLOCK,
) -> Memorisation:
    """Whether samples are nearer to training clips than real clips that were not trained on.

    samples [N, D], training [T, D] and real_test [M, D] in one embedding. Both sides search the
    same training set, because the distance to the nearest neighbour falls with its size. Send real
    test clips through the same codec as the samples, or a duller decoder looks like novelty.
    cosine: distances of vectors scaled to length 1, |a - b| = sqrt(2 - 2 cos). Copies that the
    embedding cannot recognise (another level, shifted, cut) are not found, nor copies of a part.
    Raises ValueError: not [N, D], different D, an empty set, NaN or infinite values, a zero vector
    with cosine.
    """
    # Check the three sets.
    sets = [
        checked_embeddings(samples, "the samples", least=1),
        checked_embeddings(training, "the training set", least=1),
        checked_embeddings(real_test, "the test set", least=1),
    ]
    if len({values.shape[1] for values in sets}) > 1:
        dims = ", ".join(str(values.shape[1]) for values in sets)
        raise ValueError(f"the sets have different dimensions: {dims}")
    if cosine:
        sets = [_unit(values) for values in sets]
    samples_ND, training_TD, real_MD = sets

    # Nearest training clips, and the distance below which a sample is suspicious.
    distance_N, index_N = nearest_neighbours(samples_ND, training_TD, block)
    real_M = nearest_neighbours(real_MD, training_TD, block)[0]
    threshold = float(np.quantile(real_M.numpy(), THRESHOLD_QUANTILE))

    # The nearest pairs, to be listened to.
    rank_N = torch.searchsorted(real_M.sort().values, distance_N).double() / len(real_M)
    order = distance_N.argsort(stable=True)[:most_pairs].tolist()
    pairs = tuple(
        NearPair(i, int(index_N[i]), float(distance_N[i]), float(rank_N[i])) for i in order
    )
    return Memorisation(
        samples=_quantiles(distance_N),
        real=_quantiles(real_M),
        threshold=threshold,
        nearer=wilson_interval(int((distance_N < threshold).sum()), len(distance_N)),
        copies=int((distance_N == 0).sum()),
        pairs=pairs,
        coarse=len(real_M) < 100,
        leaked=bool((real_M == 0).any()),
    )


def _unit(values_ND: Tensor) -> Tensor:
    length_N1 = values_ND.norm(dim=1, keepdim=True)
    if bool((length_N1 == 0).any()):
        raise ValueError("the features of a clip are all zeros: they have no direction")
    return values_ND / length_N1


def _quantiles(values_N: Tensor) -> dict[float, float]:
    return dict(zip(QUANTILES, np.quantile(values_N.numpy(), QUANTILES).tolist(), strict=True))
