"""Metrics of nearest neighbours: precision, recall, density, coverage, and whether samples are copies."""

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
_NAMES = ("the reference", "the generated set")


@dataclass(frozen=True)
class Manifold:
    """precision, recall, coverage in 0..1; density may pass 1. k: which neighbour; n, m: reference, generated."""

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
    """Precision and recall (Kynkaanniemi et al., 2019), density and coverage (Naeem et al., 2020), all by k-NN.

    reference [N, D], generated [M, D]. Each clip has a ball that ends at its k-th nearest other clip of its own
    set. Precision: share of generated clips inside some reference ball; recall: share of reference clips
    inside some generated ball; density: reference balls that hold a generated clip, mean over generated clips,
    divided by k; coverage: share of reference balls that hold some generated clip. "Inside" is strict, as in
    the authors' `prdc`: equal sets then have density 1; where k copies or more make a ball of radius 0,
    it holds nothing. Depends on N and M and on k (3 and 5 are both in use): compare equal ones only.
    Recall is fooled by scattered outliers among generated clips, precision by those of the reference.
    Raises ValueError: not [N, D], k < 1, no more than k clips in a set, different D, NaN or infinite values.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    x, y = checked_sets(reference, generated, _NAMES, least=k + 1)
    centre_D = x.mean(0)
    x = x - centre_D
    y = y - centre_D
    radius_x, radius_y = (kth_nearest_distance(z, k, block) for z in (x, y))
    holders_M = torch.zeros(len(y), dtype=torch.int64)
    recalled = 0
    covered = 0
    for rows, squared in distance_blocks(x, y, block):
        inside_RM = squared < radius_x[rows, None]
        holders_M += inside_RM.sum(0)
        covered += int(inside_RM.any(1).sum())
        recalled += int((squared < radius_y).any(1).sum())
    n = len(x)
    m = len(y)
    precision = float((holders_M > 0).double().mean())
    density = float(holders_M.double().mean()) / k
    return Manifold(precision, recalled / n, density, covered / n, k, n, m)


class NearPair(NamedTuple):
    """Places of a sample and of its nearest training clip, their distance, and its rank among real test clips.

    rank: share of real test clips that lie nearer to the training set than this sample does.
    """

    sample: int
    training: int
    distance: float
    rank: float


@dataclass(frozen=True)
class Memorisation:
    """Distances to the nearest training clip, of samples and of real test clips, against one training set.

    samples, real: quantiles {share: distance}; threshold: 1st percentile of the real test clips; nearer: share
    of samples below it with its Wilson interval (0.01 if samples are like new recordings); copies: samples at
    distance 0; pairs: nearest first. coarse: fewer than 100 real test clips, so the threshold is
    little more than the nearest of them. leaked: a real test clip is itself a copy of a training clip.
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
    """Are samples nearer to training clips than real clips that nobody trained on?

    samples [N, D], training [T, D], real_test [M, D] in one embedding; both sides search the same training set,
    as the distance to the nearest neighbour falls with its size (more training clips: nearer, by chance alone).
    Bring real test clips through the same codec as the samples, or a duller decoder reads as novelty.
    cosine: distances of vectors scaled to length 1, |a - b| = sqrt(2 - 2 cos). What the embedding cannot
    tell apart (a copy at another level, shifted, cut) is not found; a sample may copy a part of a clip unseen.
    Raises ValueError: not [N, D], different D, an empty set, NaN or infinite values, a zero vector with cosine.
    """
    sets = [
        checked_embeddings(values, name, least=1)
        for values, name in (
            (samples, "the samples"),
            (training, "the training set"),
            (real_test, "the test set"),
        )
    ]
    if len({values.shape[1] for values in sets}) > 1:
        raise ValueError(
            f"the sets have different dimensions: {', '.join(str(v.shape[1]) for v in sets)}"
        )
    if cosine:
        sets = [_unit(values) for values in sets]
    made, known, real = sets
    distance_N, place_N = nearest_neighbours(made, known, block)
    real_M = nearest_neighbours(real, known, block)[0]
    threshold = float(np.quantile(real_M.numpy(), 0.01))
    rank_N = torch.searchsorted(real_M.sort().values, distance_N).double() / len(real_M)
    order = distance_N.argsort(stable=True)[:most_pairs].tolist()
    pairs = tuple(
        NearPair(i, int(place_N[i]), float(distance_N[i]), float(rank_N[i])) for i in order
    )
    return Memorisation(
        samples=_quantiles(distance_N),
        real=_quantiles(real_M),
        threshold=threshold,
        nearer=wilson_interval(int((distance_N < threshold).sum()), len(made)),
        copies=int((distance_N == 0).sum()),
        pairs=pairs,
        coarse=len(real) < 100,
        leaked=bool((real_M == 0).any()),
    )


def _unit(values_ND: Tensor) -> Tensor:
    length_N1 = values_ND.norm(dim=1, keepdim=True)
    if bool((length_N1 == 0).any()):
        raise ValueError("an embedding is all zeros: it has no direction")
    return values_ND / length_N1


def _quantiles(values_N: Tensor) -> dict[float, float]:
    return dict(zip(QUANTILES, np.quantile(values_N.numpy(), QUANTILES).tolist(), strict=True))
