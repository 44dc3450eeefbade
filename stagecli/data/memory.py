"""Decoded audio and other arrays of clips, held in memory while there is space. No torch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from stagecli.data.rows import Clip


class Memory:
    """Least-recently-used cache of arrays by clip, such as decoded audio, bounded in megabytes.

    load: computes the array of a clip that is not held.
    """

    def __init__(self, load: Callable[[Clip], np.ndarray], megabytes: int) -> None:
        self.load = load
        self.budget = megabytes * 2**20
        self.used = 0
        self.held: OrderedDict[str, np.ndarray] = OrderedDict()

    def read(self, clip: Clip) -> np.ndarray:
        """The array of a clip, held until others need its space."""
        array = self.held.pop(clip.key, None)
        if array is None:
            array = self.load(clip)
            self.used += array.nbytes
        self.held[clip.key] = array
        while self.used > self.budget and len(self.held) > 1:
            self.used -= self.held.popitem(last=False)[1].nbytes
        return array
