"""Do transformer blocks form groups along the depth? Sketches, similarity, exact partition, and a test of it.

Pure functions without state. Shapes: L blocks, M matrix types, p sketch width, N draws. Similarities are cosines in
[-1, 1] with ones on the diagonal; labels count groups from 0 in order of depth. Formulas and figures:
`docs/structure.md`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

LEAST = 2  # blocks per group
LARGEST_K = 6
DRAWS = 200  # surrogates of the null


# -- sketches --------------------------------------------------------------------------------------


@dataclass
class Sketch:
    """A fixed random linear map from tensors of n entries to p numbers: entries are shuffled, signed, and summed.

    Every bucket takes n / p entries (the last ones fewer), so it is CountSketch (Charikar et al. 2002) with balanced
    buckets: unbiased for inner products, with a standard deviation of at most sqrt((1 + cos^2) / p) |x| |y|, at a cost
    of O(n) and without a p x n matrix. Sums over a bucket are taken in one order, so it gives the same bits on one
    device each time.
    """

    order_N: Tensor  # int32 [n]
    sign_N: Tensor  # int8 [n]
    width: int

    @classmethod
    def make(cls, entries: int, width: int, seed: int, device: torch.device) -> Sketch:
        """The map for tensors of `entries` numbers; drawn on the CPU, so that it is the same everywhere."""
        rng = np.random.default_rng(seed)
        order = torch.from_numpy(rng.permutation(entries).astype(np.int32))
        sign = torch.from_numpy(
            (2 * rng.integers(0, 2, entries, dtype=np.int8) - 1).astype(np.int8)
        )
        return cls(order.to(device), sign.to(device), width)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """A tensor of n entries -> [p], fp32 on its device. Raises ValueError for another number of entries."""
        if x.numel() != len(self.order_N):
            raise ValueError(f"a tensor of {x.numel()} entries for a sketch of {len(self.order_N)}")
        mixed = x.detach().float().flatten().index_select(0, self.order_N) * self.sign_N
        mixed = torch.nn.functional.pad(mixed, (0, -len(mixed) % self.width))
        return mixed.view(-1, self.width).sum(0)


@torch.no_grad()
def traceless_moment(W_OD: Tensor) -> Tensor:
    """W^T W less the mean of its diagonal, [D, D]: the same whatever the order or rotation of the O outputs.

    Without the diagonal's mean all changes of scale, weight decay among them, would look alike.
    """
    A_DD = W_OD.float().T @ W_OD.float()
    return A_DD - A_DD.diagonal().mean() * torch.eye(len(A_DD), device=A_DD.device)


def similarity(update_MLp: Array) -> Array:
    """Mean over the matrix types of the cosine between the blocks' updates, [L, L].

    An update of zero has cosine 0 with every other one.
    """
    norm = np.linalg.norm(update_MLp, axis=-1, keepdims=True)
    unit = np.divide(update_MLp, norm, out=np.zeros_like(update_MLp), where=norm > 0)
    S_LL = (unit @ unit.transpose(0, 2, 1)).mean(0)
    S_LL = np.clip((S_LL + S_LL.T) / 2, -1.0, 1.0)
    np.fill_diagonal(S_LL, 1.0)
    return S_LL


def relative_change(S_LL: Array, before_LL: Array) -> float:
    """|S - before| / |S| in the Frobenius norm, the diagonal of ones left out; infinite where S is zero there."""
    off = ~np.eye(len(S_LL), dtype=bool)
    size = float(np.linalg.norm(S_LL[off]))
    return float(np.linalg.norm((S_LL - before_LL)[off])) / size if size > 0 else float("inf")


# -- partitions ------------------------------------------------------------------------------------


def counts(depth: int) -> range:
    """The numbers of groups that `depth` blocks allow: 2 to 6, at least two blocks in each."""
    return range(2, min(LARGEST_K, depth // LEAST) + 1)


def partitions(S_NLL: Array, groups: Sequence[int]) -> Labels:
    """For each K of `groups` the contiguous partition that minimises sum_g (1/|g|) sum_{i,j in g} (1 - S_ij).

    Exact, by dynamic programming over the last group's first block (Fisher 1958). S: [N, L, L]; returns
    [N, len(groups), L]. Of equal costs the partition with the earlier last boundary counts. Raises ValueError for a K
    that the depth does not allow.
    """
    N, L, _ = S_NLL.shape
    if not groups or min(groups) < 1 or max(groups) * LEAST > L:
        raise ValueError(f"{L} blocks cannot form {list(groups)} groups of at least {LEAST}")
    total = np.zeros((N, L + 1, L + 1))
    total[:, 1:, 1:] = (1 - S_NLL).cumsum(1).cumsum(2)
    at = np.arange(L + 1)
    size = at[None, :] - at[:, None]  # of the group from block i up to, not with, block j
    inner = (
        total[:, at, at][:, None, :]
        + total[:, at, at][:, :, None]
        - total
        - total.transpose(0, 2, 1)
    )
    cost_Nij = np.where(size >= LEAST, inner / np.maximum(size, 1), np.inf)
    best = cost_Nij[:, 0]
    starts = [np.zeros((N, L + 1), dtype=np.int64)]
    for _ in range(1, max(groups)):
        sums_Nij = best[:, :, None] + cost_Nij
        starts.append(sums_Nij.argmin(1))
        best = sums_Nij.min(1)
    labels = np.zeros((N, len(groups), L), dtype=np.int64)
    rows = np.arange(N)
    for column, K in enumerate(groups):
        end = np.full(N, L)
        for k in range(K - 1, 0, -1):
            end = starts[k][rows, end]
            labels[:, column] += at[None, :L] >= end[:, None]
    return labels


def contrast(S_NLL: Array, labels_NKL: Labels) -> Array:
    """Mean similarity within groups minus that between groups, over pairs of different blocks, [N, K]."""
    L = S_NLL.shape[-1]
    i, j = np.triu_indices(L, 1)
    pairs_NP = S_NLL[:, i, j]
    same_NKP = labels_NKL[:, :, i] == labels_NKL[:, :, j]
    inside = (same_NKP * pairs_NP[:, None]).sum(-1)
    of = same_NKP.sum(-1)
    outside = pairs_NP.sum(-1)[:, None] - inside
    return inside / np.maximum(of, 1) - outside / np.maximum(len(i) - of, 1)


def adjusted_rand(a: Sequence[int] | Labels, b: Sequence[int] | Labels) -> float:
    """Adjusted Rand index of two partitions of the same blocks (Hubert and Arabie 1985): 1 for equal ones, 0 on
    average for partitions that have nothing to do with each other. Two trivial partitions that are equal give 1."""
    first = np.unique(np.asarray(a), return_inverse=True)[1]
    second = np.unique(np.asarray(b), return_inverse=True)[1]
    if len(first) != len(second):
        raise ValueError(f"partitions of {len(first)} and of {len(second)} blocks")
    table = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(table, (first, second), 1)

    def pairs(n: Array) -> float:
        return float((n * (n - 1) / 2).sum())

    both = pairs(table)
    one = pairs(table.sum(1))
    other = pairs(table.sum(0))
    every = len(first) * (len(first) - 1) / 2
    expected = one * other / every if every else 0.0
    most = (one + other) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


def every_partition(depth: int) -> Iterator[Labels]:
    """All contiguous partitions that `partitions` may return."""
    for K in counts(depth):
        for cuts in combinations(range(LEAST, depth - LEAST + 1), K - 1):
            if all(b - a >= LEAST for a, b in zip((0, *cuts), (*cuts, depth), strict=True)):
                yield np.searchsorted(np.array(cuts), np.arange(depth), side="right").astype(
                    np.int64
                )


def choose(
    kind: str, depth: int, found: Grouping | None, rng: np.random.Generator
) -> tuple[int, ...]:
    """Labels that the term is to use: the ones `measured`, or a control: those `shuffled` over the blocks, a `random`
    contiguous partition, or `thirds` of the depth. The first two need `found`."""
    if kind == "thirds":
        return tuple(3 * k // depth for k in range(depth))
    if kind == "random":
        every = counts(depth)
        K = int(rng.integers(every.start, every.stop))
        cuts = (
            np.sort(rng.choice(depth - K - 1, K - 1, replace=False)) + 1
        )  # of depth - K, one added to each
        return tuple(
            np.searchsorted(cuts + np.arange(1, K), np.arange(depth), side="right").tolist()
        )
    assert found is not None
    if kind == "measured":
        return found.labels
    shuffles = [rng.permutation(found.labels) for _ in range(16)]
    return tuple(
        int(k) for k in min(shuffles, key=lambda labels: adjusted_rand(labels, found.labels))
    )


# -- the test --------------------------------------------------------------------------------------


def surrogates(S_LL: Array, draws: int, rng: np.random.Generator) -> Array:
    """Similarities without groups [N, L, L]: the mean per distance of depth is kept, the residuals of each diagonal are
    shuffled along it (Toeplitz null, this project's own)."""
    L = len(S_LL)
    out = np.repeat(np.eye(L)[None], draws, axis=0)
    for distance in range(1, L):
        at = np.arange(L - distance)
        row = np.tile(np.diagonal(S_LL, distance), (draws, 1))
        rng.permuted(row, axis=1, out=row)
        out[:, at, at + distance] = out[:, at + distance, at] = row
    return out


@dataclass(frozen=True)
class Grouping:
    """labels: [L]; contrast: of the partition; z: how far it stands out of the null, in standard deviations;
    p: share of the null that reaches it, (1 + reached) / (1 + draws)."""

    labels: tuple[int, ...]
    contrast: float
    z: float
    p: float

    @property
    def K(self) -> int:
        return max(self.labels) + 1


def group(S_LL: Array, seed: int, draws: int = DRAWS) -> Grouping:
    """The best partition of L >= 4 blocks and its score against the null.

    Per K the contrast is expressed in standard deviations of the null's contrast for that K; K is the one with the
    largest such value. z is that value, again in standard deviations, against the same maximum over K of every
    surrogate: what choosing K gains is in the null too.
    """
    groups = list(counts(len(S_LL)))
    both = np.concatenate([S_LL[None], surrogates(S_LL, draws, np.random.default_rng(seed))])
    labels = partitions(both, groups)
    value_NK = contrast(both, labels)
    mean_K = value_NK[1:].mean(0)
    spread_K = value_NK[1:].std(0)
    score_NK = (value_NK - mean_K) / np.maximum(spread_K, 1e-12)
    chosen = int(score_NK[0].argmax())
    top_N = score_NK.max(1)
    spread = float(top_N[1:].std())
    z = float(top_N[0] - top_N[1:].mean()) / spread if spread > 1e-9 else 0.0
    reached = int((top_N[1:] >= top_N[0] - 1e-9).sum())
    return Grouping(
        tuple(labels[0, chosen].tolist()),
        float(value_NK[0, chosen]),
        z,
        (1 + reached) / (1 + draws),
    )


@cache
def reachable(depth: int, z: float) -> tuple[int, int, float]:
    """How many ideal block structures (1 within groups, 0 between) of this depth reach z in `group`, of how many, and
    the largest z of them. A null over few blocks holds many matrices that have groups by chance."""
    found = [
        group((labels[:, None] == labels[None]).astype(float), 0).z
        for labels in every_partition(depth)
    ]
    return sum(value >= z for value in found), len(found), max(found, default=0.0)


# -- the term ----------------------------------------------------------------------------------------


def second_moments(W_LOD: Tensor, P_DX: Tensor) -> Tensor:
    """W^T W P of every block, flattened and of length 1: [L, D * X]; D is the side of the residual stream."""
    return torch.nn.functional.normalize((W_LOD.mT @ (W_LOD @ P_DX)).flatten(1), dim=1)


@lru_cache(maxsize=8)  # it is asked for every step, and a copy to a GPU makes it wait
def membership(labels: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(1 where a block is in a group [L, G], what takes blocks to the means of their groups [G, L])."""
    same_LG = torch.nn.functional.one_hot(torch.tensor(labels)).float().to(device)
    return same_LG, (same_LG / same_LG.sum(0)).T


def between(moments: Sequence[Tensor], labels: tuple[int, ...]) -> Tensor:
    """Cosines [M, G, G] of the groups' means, with a gradient for the first of a pair only; -1 on the diagonal."""
    _, mean_GL = membership(labels, moments[0].device)
    unit = [torch.nn.functional.normalize(mean_GL @ B_LX, dim=1) for B_LX in moments]
    return torch.stack([(u_GX @ u_GX.detach().T).fill_diagonal_(-1.0) for u_GX in unit])


def pull_and_hinge(
    moments: Sequence[Tensor], labels: tuple[int, ...], ceiling_MGG: Tensor, beta: float
) -> Tensor:
    """Per type [M]: mean over blocks of 1 - cos(B, its group's mean without gradient), plus beta times the mean over
    pairs of groups of how far their cosine exceeds `ceiling_MGG`."""
    same_LG, mean_GL = membership(labels, moments[0].device)
    apart = []
    for B_LX in moments:
        target_LX = same_LG @ (mean_GL @ B_LX.detach())
        apart.append(
            (1 - torch.nn.functional.cosine_similarity(B_LX, target_LX, dim=1, eps=1e-12)).mean()
        )
    past_MGG = torch.relu(
        between(moments, labels) - ceiling_MGG
    )  # relu: no gradient at the ceiling itself
    G = past_MGG.shape[1]
    past_MGG = past_MGG * (1 - torch.eye(G, device=past_MGG.device))
    return torch.stack(apart) + beta * past_MGG.sum((1, 2)) / max(1, G * (G - 1))
