"""Groups of transformer blocks along the depth: sketches, similarity, exact partition, and its
test.

Pure functions without state. Shapes: L blocks, M matrix types, p sketch width, N draws.
Similarities are cosines in [-1, 1] with ones on the diagonal; labels count groups from 0 in order
of depth. Formulas and measurements: `docs/structure.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    """A fixed random linear map from tensors of n entries to p numbers.

    Entries are shuffled, signed, and summed in p buckets of n / p entries (the last ones have
    fewer): CountSketch (Charikar et al. 2002) with balanced buckets. Unbiased for inner products,
    with a standard deviation of at most sqrt((1 + cos^2) / p) |x| |y|, at a cost of O(n) and
    without a p x n matrix. A bucket is summed in a fixed order, so a device gives the same bits
    each time.
    """

    order_N: Tensor  # int32 [n]
    sign_N: Tensor  # int8 [n]
    width: int

    @classmethod
    def make(cls, entries: int, width: int, seed: int, device: torch.device) -> Sketch:
        """The map for tensors of `entries` numbers, drawn on the CPU so that it is the same on
        every device.
        """
        rng = np.random.default_rng(seed)
        order = torch.from_numpy(rng.permutation(entries).astype(np.int32))
        bits = rng.integers(0, 2, entries, dtype=np.int8)
        sign = torch.from_numpy((2 * bits - 1).astype(np.int8))
        return cls(order.to(device), sign.to(device), width)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Map a tensor of n entries to [p], fp32 on its device. Raises ValueError for another
        number of entries.
        """
        if x.numel() != len(self.order_N):
            raise ValueError(f"a tensor of {x.numel()} entries for a sketch of {len(self.order_N)}")
        mixed = x.detach().float().flatten().index_select(0, self.order_N) * self.sign_N
        mixed = torch.nn.functional.pad(mixed, (0, -len(mixed) % self.width))
        return mixed.view(-1, self.width).sum(0)


@torch.no_grad()
def traceless_moment(W_OD: Tensor) -> Tensor:
    """W^T W minus the mean of its diagonal, [D, D]: invariant to order and rotation of the O
    outputs.

    With the mean left in, all changes of scale, such as weight decay, would look alike.
    """
    A_DD = W_OD.float().T @ W_OD.float()
    return A_DD - A_DD.diagonal().mean() * torch.eye(len(A_DD), device=A_DD.device)


def similarity(update_MLp: Array) -> Array:
    """Mean over the matrix types of the cosine between the updates of two blocks, [L, L].

    An update of zero has cosine 0 with every other one.
    """
    norm = np.linalg.norm(update_MLp, axis=-1, keepdims=True)
    unit = np.divide(update_MLp, norm, out=np.zeros_like(update_MLp), where=norm > 0)
    S_LL = (unit @ unit.transpose(0, 2, 1)).mean(0)
    S_LL = np.clip((S_LL + S_LL.T) / 2, -1.0, 1.0)
    np.fill_diagonal(S_LL, 1.0)
    return S_LL


def relative_change(S_LL: Array, before_LL: Array) -> float:
    """|S - before| / |S| in the Frobenius norm without the diagonal; infinite where S is zero
    off the diagonal.
    """
    off = ~np.eye(len(S_LL), dtype=bool)
    size = float(np.linalg.norm(S_LL[off]))
    return float(np.linalg.norm((S_LL - before_LL)[off])) / size if size > 0 else float("inf")


# -- partitions ------------------------------------------------------------------------------------


def counts(depth: int) -> range:
    """Possible numbers of groups for `depth` blocks: 2 to 6, with at least two blocks in each."""
    return range(2, min(LARGEST_K, depth // LEAST) + 1)


def partitions(S_NLL: Array, groups: Sequence[int]) -> Labels:
    """The contiguous partition into K groups that minimises sum_g (1/|g|) sum_{i,j in g} (1 -
    S_ij), per K.

    Exact, by dynamic programming over the last group's first block (Fisher 1958). S: [N, L, L];
    groups: the values of K; returns labels [N, len(groups), L]. Ties go to the partition with the
    earlier last boundary. Raises ValueError for a K that the depth does not allow.
    """
    N, L, _ = S_NLL.shape
    if not groups or min(groups) < 1 or max(groups) * LEAST > L:
        raise ValueError(f"{L} blocks cannot form {list(groups)} groups of at least {LEAST}")

    # Cost of a group from block i to block j - 1, from sums over rectangles of 1 - S.
    total = np.zeros((N, L + 1, L + 1))
    total[:, 1:, 1:] = (1 - S_NLL).cumsum(1).cumsum(2)
    block = np.arange(L + 1)
    size = block[None, :] - block[:, None]
    corner = total[:, block, block]
    inner = corner[:, None, :] + corner[:, :, None] - total - total.transpose(0, 2, 1)
    cost_Nij = np.where(size >= LEAST, inner / np.maximum(size, 1), np.inf)

    # Lowest cost of the first j blocks with one group more each time, and where its last group
    # starts.
    best = cost_Nij[:, 0]
    starts = [np.zeros((N, L + 1), dtype=np.int64)]
    for _ in range(1, max(groups)):
        sums_Nij = best[:, :, None] + cost_Nij
        starts.append(sums_Nij.argmin(1))
        best = sums_Nij.min(1)

    # Back from the last group to the first.
    labels = np.zeros((N, len(groups), L), dtype=np.int64)
    draws = np.arange(N)
    for column, K in enumerate(groups):
        end = np.full(N, L)
        for k in range(K - 1, 0, -1):
            end = starts[k][draws, end]
            labels[:, column] += block[None, :L] >= end[:, None]
    return labels


def contrast(S_NLL: Array, labels_NKL: Labels) -> Array:
    """Mean similarity within groups minus that between groups, over pairs of different blocks,
    [N, K].
    """
    L = S_NLL.shape[-1]
    i, j = np.triu_indices(L, 1)
    pairs_NP = S_NLL[:, i, j]
    same_NKP = labels_NKL[:, :, i] == labels_NKL[:, :, j]
    inside = (same_NKP * pairs_NP[:, None]).sum(-1)
    count = same_NKP.sum(-1)
    outside = pairs_NP.sum(-1)[:, None] - inside
    return inside / np.maximum(count, 1) - outside / np.maximum(len(i) - count, 1)


def adjusted_rand(a: Sequence[int] | Labels, b: Sequence[int] | Labels) -> float:
    """Adjusted Rand index of two partitions of the same blocks (Hubert and Arabie 1985).

    1 for equal partitions, trivial ones included; 0 on average for independent ones. Raises
    ValueError for partitions of different lengths.
    """
    first = np.unique(np.asarray(a), return_inverse=True)[1]
    second = np.unique(np.asarray(b), return_inverse=True)[1]
    if len(first) != len(second):
        raise ValueError(f"partitions of {len(first)} and of {len(second)} blocks")
    contingency = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(contingency, (first, second), 1)

    def pairs(n: Array) -> float:
        return float((n * (n - 1) / 2).sum())

    both = pairs(contingency)
    one = pairs(contingency.sum(1))
    other = pairs(contingency.sum(0))
    every = len(first) * (len(first) - 1) / 2
    expected = one * other / every if every else 0.0
    most = (one + other) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


def choose(
    kind: str, depth: int, measured: Grouping | None, rng: np.random.Generator
) -> tuple[int, ...]:
    """Groups for the action: those `measured`, or a control.

    Controls: the measured labels `shuffled` over the blocks, a `random` contiguous partition, or
    `thirds` of the depth. `measured` and `shuffled` require a measured grouping.
    """
    if kind == "thirds":
        return tuple(3 * k // depth for k in range(depth))
    if kind == "random":
        return _random_partition(depth, rng)
    assert measured is not None
    labels = measured.labels
    if kind == "measured":
        return labels
    shuffles = [rng.permutation(labels) for _ in range(16)]
    least_alike = min(shuffles, key=lambda shuffled: adjusted_rand(shuffled, labels))
    return tuple(int(k) for k in least_alike)


def _random_partition(depth: int, rng: np.random.Generator) -> tuple[int, ...]:
    """A random contiguous partition: K uniformly, then uniform among the partitions into K
    groups.
    """
    numbers = counts(depth)
    K = int(rng.integers(numbers.start, numbers.stop))
    # Cuts of depth - K blocks into groups of at least one; one block added to each gives groups of
    # two.
    cuts = np.sort(rng.choice(depth - K - 1, K - 1, replace=False)) + 1
    labels = np.searchsorted(cuts + np.arange(1, K), np.arange(depth), side="right")
    return tuple(labels.tolist())


# -- the test --------------------------------------------------------------------------------------


def surrogates(S_LL: Array, draws: int, rng: np.random.Generator) -> Array:
    """Similarities without groups, [N, L, L]: every diagonal of S, shuffled along itself.

    Keeps the fall of the similarity with the distance in depth (Toeplitz null, this project's own).
    """
    L = len(S_LL)
    shuffled_NLL = np.repeat(np.eye(L)[None], draws, axis=0)
    for distance in range(1, L):
        block = np.arange(L - distance)
        diagonal = np.tile(np.diagonal(S_LL, distance), (draws, 1))
        rng.permuted(diagonal, axis=1, out=diagonal)
        shuffled_NLL[:, block, block + distance] = diagonal
        shuffled_NLL[:, block + distance, block] = diagonal
    return shuffled_NLL


@dataclass(frozen=True)
class Grouping:
    """A partition and its score.

    labels: [L]; contrast: of the partition; z: distance from the null, in its standard deviations;
    p: share of the null that reaches the score, (1 + reached) / (1 + draws).
    """

    labels: tuple[int, ...]
    contrast: float
    z: float
    p: float

    @property
    def K(self) -> int:
        return max(self.labels) + 1


def group(S_LL: Array, seed: int, draws: int = DRAWS) -> Grouping:
    """The best partition of L >= 4 blocks and its score against the null.

    The contrast for a K is expressed in standard deviations of the null's contrast for that K, and
    the K with the largest value is chosen. z compares that maximum, again in standard deviations,
    with the same maximum over K of every surrogate, so that the gain from choosing K is in the null
    too.
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
