"""Sets of clips -> what a judge hears in them, clip by clip, remembered on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stagecli.data.cache import FeatureCache, Progress
from stagecli.errors import EXIT_FAILED, Problem, StageError
from stagecli.metrics.mel import log_mel_statistics
from stagecli.ssl.base import Encoder


@dataclass(frozen=True)
class Clips:
    """A set of clips that are read one at a time.

    name: as progress shows it; keys: what the audio of each is, for the cache, where that is known without reading it;
    names: of the clips, for errors.
    """

    name: str
    read: Callable[[int], np.ndarray]
    count: int
    keys: Sequence[str] | None = None
    names: Sequence[str] | None = None

    def part(self, places: Sequence[int], name: str) -> Clips:
        """Some of the clips, under another name."""
        keys, names = ([of[i] for i in places] if of else None for of in (self.keys, self.names))
        return Clips(name, lambda i: self.read(places[i]), len(places), keys, names)


@dataclass(frozen=True)
class Heard:
    """Of N clips: mean [N, D] and deviation [N, D] over time of the judge's features, log-mel statistics [N, 128]."""

    mean: Tensor
    deviation: Tensor
    log_mel: Tensor

    def __len__(self) -> int:
        return len(self.mean)

    def part(self, places: Sequence[int]) -> Heard:
        return Heard(self.mean[places], self.deviation[places], self.log_mel[places])

    def both(self) -> Tensor:
        """Mean and deviation side by side [N, 2 D]: what classifiers read."""
        return torch.cat([self.mean, self.deviation], dim=1)


class Listener:
    """A judge with a memory. Clips at `rate` Hz, one at a time, so that no feature depends on a batch."""

    def __init__(
        self, judge: Encoder, rate: int, cache_dir: Path, device: torch.device | None = None
    ) -> None:
        self.judge = judge.to(device or torch.device("cpu"))
        self.rate = rate
        self.device = device or torch.device("cpu")
        config = {
            "weights": judge.fingerprint(),
            "layers": list(judge.layers),
            "sample_rate": rate,
            "log_mel": 64,
        }
        self.cache = FeatureCache(cache_dir, "judged", config)

    @property
    def convention(self) -> str:
        """The judge as it is printed with every number."""
        return f"judge: {self.judge.label} (weights {self.judge.fingerprint()[:12]})"

    def __call__(self, clips: Clips, progress: Progress) -> Heard:
        """Raises StageError, naming the clip, where one is too short or holds NaN."""
        width = self.judge.dimension
        values = remembered(
            self.cache, clips, self._hear, lambda done, n: progress(f"{clips.name}: judge", done, n)
        )
        return Heard(values[:, :width], values[:, width : 2 * width], values[:, 2 * width :])

    @torch.no_grad()
    def _hear(self, audio: np.ndarray, name: str) -> np.ndarray:
        audio_1N = torch.from_numpy(audio)[None]
        try:
            features_LD = self.judge(audio_1N.to(self.device), self.rate)[0]
            statistics_K = log_mel_statistics(audio_1N, self.rate)[0]
        except (ValueError, StageError) as error:
            raise StageError(
                "cannot score a clip", problems=[Problem(name, str(error))], exit_code=EXIT_FAILED
            ) from None
        parts = (features_LD.mean(0).cpu(), features_LD.std(0, correction=0).cpu(), statistics_K)
        return torch.cat([part.float() for part in parts]).numpy()


def remembered(
    cache: FeatureCache,
    clips: Clips,
    compute: Callable[[np.ndarray, str], np.ndarray],
    progress: Callable[[int, int], None],
) -> Tensor:
    """[N, D] float64, a row per clip: `compute(audio, name)` where the cache lacks it. One clip is held at a time.

    A clip without a key is known by its samples.
    """
    rows = []
    for i in range(clips.count):
        key = clips.keys[i] if clips.keys else None
        found = cache.get(key) if key else None
        if found is None:
            audio = np.ascontiguousarray(clips.read(i), dtype=np.float32)
            key = key or hashlib.sha256(audio.tobytes()).hexdigest()
            found = cache.get(key)
            if found is None:
                found = compute(audio, clips.names[i] if clips.names else f"{clips.name}, clip {i}")
                cache.put(key, found)
        rows.append(np.array(found))
        progress(i + 1, clips.count)
    return torch.from_numpy(np.stack(rows)).double()
