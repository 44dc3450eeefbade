"""Where clips come from: the interface of a source.

A source is checked as a whole before any training: every line, every caption, every file. All
problems are reported together. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from stagecli.data.cache import Count
from stagecli.data.decoding import AudioInfo
from stagecli.data.rows import Clip, Split
from stagecli.errors import Problem


class Source(Protocol):
    """Clips of one data set.

    sample_rate: Hz of the audio that `read` returns; skipped: entries left out, and why;
    passed_over: files that look like audio and are no entries, in sentences with counts; notices:
    what else the check found, such as a damaged cache that was made again.
    """

    sample_rate: int
    skipped: list[Problem]
    passed_over: list[str]
    notices: list[str]

    def clips(self, split: Split) -> Sequence[Clip]:
        """The clips of a split, in an order that does not change."""
        ...

    def read(self, clip: Clip) -> np.ndarray:
        """The whole clip: float32 [N] mono at `sample_rate`."""
        ...

    def content_hash(self, clip: Clip) -> str:
        """Hex digest of the audio content, unchanged when a file is moved or touched."""
        ...

    def content_hashes(self, clips: Sequence[Clip], progress: Count | None = None) -> list[str]:
        """`content_hash` of many clips, at once. progress: (clips done, clips)."""
        ...

    def info(self, clip: Clip) -> AudioInfo | None:
        """Format and peak of a clip's audio; None where no file holds it."""
        ...

    def bandwidth(self, clip: Clip) -> float | None:
        """Hz up to which a clip's audio has content; None where no file holds it."""
        ...
