"""Sets of clips, and their embeddings by a judge: computed clip by clip and cached on disk."""

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


@dataclass(frozen=True, kw_only=True)
class ClipSet:
    """A set of clips that are read one at a time.

    title: shown by progress bars. read: clip i as audio [N]. keys: identify the audio of each clip
    in a cache, where that is known without reading it. names: of the clips, for error messages.
    """

    title: str
    read: Callable[[int], np.ndarray]
    count: int
    keys: Sequence[str] | None = None
    names: Sequence[str] | None = None

    def subset(self, indices: Sequence[int], title: str) -> ClipSet:
        """The clips at `indices`, under another title."""
        return ClipSet(
            title=title,
            read=lambda i: self.read(indices[i]),
            count=len(indices),
            keys=[self.keys[i] for i in indices] if self.keys else None,
            names=[self.names[i] for i in indices] if self.names else None,
        )

    def name(self, i: int) -> str:
        """How to name clip i in an error message."""
        return self.names[i] if self.names else f"{self.title}, clip {i}"


@dataclass(frozen=True)
class ClipEmbeddings:
    """Embeddings of N clips, float64.

    mean, deviation: mean and standard deviation over time of the judge's features, [N, D] each;
    log_mel: log-mel statistics [N, 128].
    """

    mean: Tensor
    deviation: Tensor
    log_mel: Tensor

    def __len__(self) -> int:
        return len(self.mean)

    def subset(self, indices: Sequence[int]) -> ClipEmbeddings:
        """The clips at `indices`."""
        return ClipEmbeddings(self.mean[indices], self.deviation[indices], self.log_mel[indices])

    def mean_and_deviation(self) -> Tensor:
        """Mean and deviation side by side [N, 2 D]: the input of classifiers."""
        return torch.cat([self.mean, self.deviation], dim=1)


@dataclass(frozen=True, kw_only=True)
class Embedder:
    """A judge with a cache, for clips at `rate` Hz.

    Clips are embedded one at a time, so that no embedding depends on a batch.
    """

    judge: Encoder
    rate: int
    device: torch.device
    cache: FeatureCache
    note: Callable[[str], None]

    @property
    def convention(self) -> str:
        """The judge as printed with every number."""
        return f"judge: {self.judge.label} (weights {self.judge.fingerprint()[:12]})"

    def embed(self, clips: ClipSet, progress: Progress) -> ClipEmbeddings:
        """Raises StageError naming the clip if one is too short or contains NaN."""
        width = self.judge.dimension
        values = cached_rows(
            self.cache,
            clips,
            self._embed_clip,
            progress=lambda done, total: progress(f"{clips.title}: judge", done, total),
            note=self.note,
        )
        return ClipEmbeddings(
            values[:, :width], values[:, width : 2 * width], values[:, 2 * width :]
        )

    @torch.no_grad()
    def _embed_clip(self, audio: np.ndarray, name: str) -> np.ndarray:
        audio_1N = torch.from_numpy(audio)[None]
        try:
            features_LD = self.judge(audio_1N.to(self.device), self.rate)[0]
            statistics_K = log_mel_statistics(audio_1N, self.rate)[0]
        except (ValueError, StageError) as error:
            raise StageError(
                "cannot score a clip", problems=[Problem(name, str(error))], exit_code=EXIT_FAILED
            ) from None
        mean_D = features_LD.mean(0).cpu()
        deviation_D = features_LD.std(0, correction=0).cpu()
        parts = (mean_D, deviation_D, statistics_K)
        return torch.cat([part.float() for part in parts]).numpy()


def open_embedder(
    judge: Encoder,
    rate: int,
    cache_dir: Path,
    device: torch.device | None = None,
    *,
    note: Callable[[str], None],
) -> Embedder:
    """An embedder whose cache in `cache_dir` is named by the judge's weights and the rate in Hz.

    note: receives a line if some of the cache was damaged.
    """
    device = device or torch.device("cpu")
    config = {
        "weights": judge.fingerprint(),
        "layers": list(judge.layers),
        "sample_rate": rate,
        "log_mel": 64,
    }
    return Embedder(
        judge=judge.to(device),
        rate=rate,
        device=device,
        cache=FeatureCache(cache_dir, "judged", config),
        note=note,
    )


def cached_rows(
    cache: FeatureCache,
    clips: ClipSet,
    compute: Callable[[np.ndarray, str], np.ndarray],
    *,
    progress: Callable[[int, int], None],
    note: Callable[[str], None],
) -> Tensor:
    """[N, D] float64, one row per clip: from the cache, or `compute(audio, name)`.

    One clip is in memory at a time. A clip without a key is identified by a hash of its samples.
    note: receives a line if some of the cache was damaged.
    """
    rows = []
    damaged = cache.damaged
    for i in range(clips.count):
        key = clips.keys[i] if clips.keys else None
        row = cache.get(key) if key else None
        if row is None:
            audio = np.ascontiguousarray(clips.read(i), dtype=np.float32)
            key = key or hashlib.sha256(audio.tobytes()).hexdigest()
            row = cache.get(key)
            if row is None:
                row = compute(audio, clips.name(i))
                cache.put(key, row)
        rows.append(np.array(row))
        progress(i + 1, clips.count)
    for line in cache.damage_notice(damaged):
        note(line)
    return torch.from_numpy(np.stack(rows)).double()
