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


def part_lengths(length: int, size: int, step: int) -> list[int]:
    """The lengths of the parts that `overlapping` makes of `length` audio samples."""
    lengths = []
    while length > size:
        lengths.append(size)
        length -= step
    return [*lengths, length] if length else lengths


def joined(parts: Iterable[np.ndarray], overlap: int, margin: int) -> Iterator[np.ndarray]:
    """Parts [n, C] that overlap by `overlap` samples -> blocks of one signal, crossfaded.

    margin: samples at either end of the overlap for which only the part counts that has its end
    farther away. No part but an only one is shorter than the overlap.
    """
    place_N = np.arange(overlap, dtype=np.float32) - margin
    fade_N1 = np.clip(place_N / max(1, overlap - 2 * margin), 0.0, 1.0)[:, None]
    tail_NC: np.ndarray | None = None
    for part_NC in parts:
        if tail_NC is not None:
            head_NC = tail_NC + fade_N1 * (part_NC[:overlap] - tail_NC)
            part_NC = np.concatenate([head_NC, part_NC[overlap:]])
        settled = max(0, len(part_NC) - overlap)
        yield part_NC[:settled]
        tail_NC = part_NC[settled:]
    if tail_NC is not None:
        yield tail_NC
