"""Long audio in blocks, so that memory does not grow with its length. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


def overlapping(blocks: Iterable[np.ndarray], size: int, step: int) -> Iterator[np.ndarray]:
    """Blocks [n, C] of any lengths -> parts of `size` samples whose starts are `step` apart.

    The last part is shorter, but longer than the overlap, unless it is the only one. No blocks, no
    parts.
    """
    held: list[np.ndarray] = []
    length = 0
    for block_NC in blocks:
        held.append(block_NC)
        length += len(block_NC)
        if length <= size:
            continue
        whole_NC = np.concatenate(held)
        while len(whole_NC) > size:
            yield whole_NC[:size]
            whole_NC = whole_NC[step:]
        held = [whole_NC.copy()]
        length = len(whole_NC)
    if length:
        yield np.concatenate(held)
