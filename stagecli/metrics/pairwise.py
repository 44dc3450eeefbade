"""Distances between all pairs of clips in blocks, so that 10,000 x 10,000 never fill the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from stagecli.metrics.moments import Embeddings, checked_embeddings

# float64 distances per block: 16 MiB, and a few times that while they are processed.
VALUES_PER_BLOCK = 2**21
# The exact median: bins of a histogram, and values that are sorted once so few are left.
HISTOGRAM_BINS = 2**16
VALUES_SORTED = 2**21


def _squared(x_RD: Tensor, y_MD: Tensor) -> Tensor:
    """|x_i - y_j|^2 [R, M] as |x|^2 + |y|^2 - 2 x y, never below 0.

    Rounding is about 1e-16 of |x|^2, so centre the sets first; copies are near 0, not exactly 0.
    """
    squares_R1 = x_RD.square().sum(1, keepdim=True)
    squares_M = y_MD.square().sum(1)
    return torch.addmm(squares_M, x_RD, y_MD.T, alpha=-2).add_(squares_R1).clamp_min_(0)


def rows_per_block(columns: int, values: int) -> int:
    """Rows of a block of at most `values` values, at least one."""
    return max(1, values // max(1, columns))


def distance_blocks(
    x_ND: Tensor, y_MD: Tensor, values: int = VALUES_PER_BLOCK
) -> Iterator[tuple[slice, Tensor]]:
    """(rows, squared distances [R, M]) for consecutive rows of x; float64 inputs.

    The caller may overwrite a block.
    """
    step = rows_per_block(len(y_MD), values)
    for first in range(0, len(x_ND), step):
        rows = slice(first, min(first + step, len(x_ND)))
        yield rows, _squared(x_ND[rows], y_MD)


def triangle_blocks(
    x_ND: Tensor, values: int = VALUES_PER_BLOCK
) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, squared distances [R, C]) that hold every pair i < j of x once.

    Columns start at the first row. In the leading square, i >= j (each clip with itself, and pairs
    met twice) is infinity: exp(-inf) = 0, and it cannot be mistaken for a distance.
    """
    count = len(x_ND)
    step = rows_per_block(count, values)
    for first in range(0, count, step):
        rows = slice(first, min(first + step, count))
        columns = slice(first, count)
        block_RC = _squared(x_ND[rows], x_ND[columns])
        size = rows.stop - first
        block_RC[:, :size].masked_fill_(
            torch.ones(size, size, dtype=torch.bool).tril_(), float("inf")
        )
        yield rows, columns, block_RC


def _select(blocks: Callable[[], Iterator[Tensor]], rank: int, highest: float) -> float:
    """The value of `rank` (0 is the smallest) among those of `blocks()`, all in [0, highest].

    Each pass narrows the range to one bin of a histogram, until the values left fit into memory, so
    the result is exact. If more than 2^21 values lie within 2^-48 of the range, the smallest of
    them is returned.
    """
    steps: list[tuple[float, float, int]] = []

    def index(values: Tensor, low: float, scale: float) -> Tensor:
        return ((values - low) * scale).long().clamp_(0, HISTOGRAM_BINS - 1)

    def kept() -> Iterator[Tensor]:
        for values in blocks():
            for low, scale, target in steps:
                values = values[index(values, low, scale) == target]
            yield values

    low = 0.0
    scale = HISTOGRAM_BINS / highest
    while True:
        # Find the bin that holds the rank.
        counts = torch.zeros(HISTOGRAM_BINS, dtype=torch.int64)
        for values in kept():
            counts += torch.bincount(index(values, low, scale), minlength=HISTOGRAM_BINS)
        total = counts.cumsum(0)
        target = int(torch.searchsorted(total, rank, right=True))
        rank -= int(total[target - 1]) if target else 0
        steps.append((low, scale, target))

        # Sort what is left of it, or narrow once more.
        if int(counts[target]) <= VALUES_SORTED:
            return float(torch.cat(list(kept())).kthvalue(rank + 1).values)
        if len(steps) == 3:
            return min(float(values.min()) for values in kept() if len(values))
        low = low + target / scale
        scale = scale * HISTOGRAM_BINS


def median_pairwise_distance(values: Embeddings, block: int = VALUES_PER_BLOCK) -> float:
    """Exact median Euclidean distance between the clips of a set [N, D], over N (N - 1) / 2 pairs.

    For an even number of pairs the lower of the middle two, as in `torch.median`. Takes two passes
    over the distances (one if they fit into memory), `block` of them at a time; nothing is
    subsampled.
    Raises ValueError: not [N, D], fewer than two clips, NaN or infinite values.
    """
    x = checked_embeddings(values, "the set")
    x = x - x.mean(0)
    pairs = len(x) * (len(x) - 1) // 2

    def blocks() -> Iterator[Tensor]:
        for _, _, squared in triangle_blocks(x, block):
            yield squared[squared.isfinite()]

    rank = (pairs - 1) // 2
    if pairs <= VALUES_SORTED:
        return float(torch.cat(list(blocks())).kthvalue(rank + 1).values.sqrt())
    highest = 4 * float(x.square().sum(1).max())
    return 0.0 if highest == 0 else _select(blocks, rank, highest) ** 0.5


def kth_nearest_distance(values_ND: Tensor, k: int, block: int = VALUES_PER_BLOCK) -> Tensor:
    """Squared distance [N] of each clip to its k-th nearest other clip; float64, 1 <= k < N."""
    distance_N = values_ND.new_empty(len(values_ND))
    for rows, squared in distance_blocks(values_ND, values_ND, block):
        # A clip is not its own neighbour.
        position = torch.arange(rows.stop - rows.start)
        squared[position, torch.arange(rows.start, rows.stop)] = float("inf")
        distance_N[rows] = squared.topk(k, dim=1, largest=False).values[:, k - 1]
    return distance_N


def nearest_neighbours(
    x_ND: Tensor, y_MD: Tensor, block: int = VALUES_PER_BLOCK
) -> tuple[Tensor, Tensor]:
    """(distance [N], index [N]) of the clip of y nearest to each clip of x; float64.

    The nearest is found from products, then its distance is computed from the difference, so that a
    copy has distance exactly 0.
    """
    centre_D = y_MD.mean(0)
    blocks = distance_blocks(x_ND - centre_D, y_MD - centre_D, block)
    index_N = torch.cat([squared.argmin(1) for _, squared in blocks])
    return (x_ND - y_MD[index_N]).square().sum(1).sqrt(), index_N
