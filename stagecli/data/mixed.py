"""Synthesised clips beside recordings: `data.synth_share`. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from stagecli.data.cache import Count
from stagecli.data.decoding import AudioInfo
from stagecli.data.rows import Clip, Split, is_synthesised
from stagecli.data.source import Source
from stagecli.data.synth import SynthSource


class MixedSource:
    """Recordings, and after them in the training split the clips of `synth`.

    Valid and test hold recordings only: measurements stay what they are without synthesised clips.
    """

    def __init__(self, recordings: Source, synth: SynthSource) -> None:
        self.recordings = recordings
        self.synth = synth
        self.sample_rate = recordings.sample_rate
        self.skipped = recordings.skipped
        self.passed_over = recordings.passed_over
        self.notices = recordings.notices

    def clips(self, split: Split) -> Sequence[Clip]:
        recordings = self.recordings.clips(split)
        return [*recordings, *self.synth.clips(split)] if split == "train" else recordings

    def read(self, clip: Clip) -> np.ndarray:
        return self._source_of(clip).read(clip)

    def content_hash(self, clip: Clip) -> str:
        return self._source_of(clip).content_hash(clip)

    def content_hashes(self, clips: Sequence[Clip], progress: Count | None = None) -> list[str]:
        recordings = [clip for clip in clips if not is_synthesised(clip)]
        hashes = iter(self.recordings.content_hashes(recordings, progress))
        return [
            self.synth.content_hash(clip) if is_synthesised(clip) else next(hashes)
            for clip in clips
        ]

    def info(self, clip: Clip) -> AudioInfo | None:
        return self._source_of(clip).info(clip)

    def bandwidth(self, clip: Clip) -> float | None:
        return self._source_of(clip).bandwidth(clip)

    def _source_of(self, clip: Clip) -> Source:
        return self.synth if is_synthesised(clip) else self.recordings


def places(index: int, share: float) -> tuple[bool, int]:
    """Whether the example at a global sample index is synthesised, and its number in its kind.

    Of any run of examples, `share` are synthesised to within one, spread evenly.
    """
    before = math.floor(index * share)
    if math.floor((index + 1) * share) > before:
        return True, before
    return False, index - before
