"""Features of whole clips by a frozen SSL encoder, computed once and cut to each crop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stagecli.condition.low import level_gain
from stagecli.data.cache import Count, FeatureCache
from stagecli.data.memory import Memory
from stagecli.data.rows import Clip
from stagecli.data.source import Source
from stagecli.schema import Recipe

if TYPE_CHECKING:
    from stagecli.ssl.base import Encoder

CENTRE_CLIPS = 256  # clips whose mean feature is subtracted


class TargetFeatures:
    """Features [L, D] of any crop of the training clips, read from a filled cache.

    Features lie on the encoder's grid; a crop between two of them gets their linear interpolation.
    `build_target_features` makes one.
    """

    def __init__(
        self,
        *,
        cache: FeatureCache,
        source: Source,
        encoder: Encoder,
        centre_D: Tensor,
        recipe: Recipe,
    ) -> None:
        """encoder: only described here, not kept; centre_D: mean feature, which is subtracted."""
        self.cache = cache
        self.source = source
        self.centre_D = centre_D
        self.mean_D = centre_D.numpy()
        self.width = encoder.dimension
        self.frame_rate = encoder.frame_rate
        self.label = encoder.label
        self.sample_rate = recipe.data.sample_rate
        num_samples = round(recipe.data.seconds * recipe.data.sample_rate)
        # L of a crop.
        self.count = encoder.frames(int(num_samples * encoder.sample_rate / self.sample_rate))
        self.memory = Memory(self._whole, recipe.data.memory_mb)
        self.lengths: dict[str, int] = {}  # in samples, by key of the clip

    def _whole(self, clip: Clip) -> np.ndarray:
        return cached(self.cache, self.source.content_hash(clip))

    def samples_of(self, clip: Clip) -> int:
        """Length of a clip in samples, as it was read; it decides where a crop may start."""
        if clip.key not in self.lengths:
            key = length_key(self.source.content_hash(clip))
            self.lengths[clip.key] = int(cached(self.cache, key))
        return self.lengths[clip.key]

    def crop(self, clip: Clip, start: int) -> Tensor:
        """Centred features [L, D] of the crop that starts at sample `start`."""
        whole_LD = self.memory.read(clip)
        position = start / self.sample_rate * self.frame_rate
        first = min(int(position), len(whole_LD) - 1)
        share = position - int(position)

        # One feature more than fits, for the interpolation; the last one repeats past the end.
        part_LD = whole_LD[first : first + self.count + 1].astype(np.float32)
        missing = self.count + 1 - len(part_LD)
        if missing > 0:
            part_LD = np.concatenate([part_LD, np.repeat(part_LD[-1:], missing, axis=0)])
        # In numpy: a step does some 30 of these on few numbers each, where torch's overhead shows.
        return torch.from_numpy((1 - share) * part_LD[:-1] + share * part_LD[1:] - self.mean_D)


def build_target_features(
    encoder: Encoder,
    *,
    recipe: Recipe,
    source: Source,
    clips: Sequence[Clip],
    device: torch.device,
    progress: Count,
) -> TargetFeatures:
    """Fill the cache with the features of `clips`; the encoder is then no longer needed.

    A clip is encoded whole, brought to one level (as sr trains it), and zero-padded where it is
    shorter than a crop.
    """
    # The cache: everything that the values depend on is in its configuration.
    encoder = encoder.to(device)
    sample_rate = recipe.data.sample_rate
    config = {
        "weights": encoder.fingerprint(),
        "layers": list(encoder.layers),
        "sample_rate": sample_rate,
        "least_seconds": recipe.data.seconds,
        "holds": "features and lengths",
    }
    cache = FeatureCache(Path(recipe.data.cache_dir), "features", config)
    by_key = {source.content_hash(clip): clip for clip in clips}
    crop_samples = round(recipe.data.seconds * sample_rate)

    @torch.no_grad()
    def compute(keys: list[str]) -> Iterable[np.ndarray]:
        for key in keys:
            audio = source.read(by_key[key])
            # The length first: where there are features, their length is then known.
            cache.put(length_key(key), np.array(len(audio)))
            padding = max(0, crop_samples - len(audio))
            padded_N = np.pad(audio * level_gain(audio), (0, padding)).astype(np.float32)
            features_BLD = encoder(torch.from_numpy(padded_N)[None].to(device), sample_rate)
            yield features_BLD[0].half().cpu().numpy()

    cache.fill(list(by_key), compute, batch=1, progress=progress)

    # The centre: the mean feature over some of the clips.
    chosen = list(by_key)[:: max(1, len(by_key) // CENTRE_CLIPS)]
    means = [torch.from_numpy(cached(cache, key)).float().mean(0) for key in chosen]
    return TargetFeatures(
        cache=cache,
        source=source,
        encoder=encoder,
        centre_D=torch.stack(means).mean(0),
        recipe=recipe,
    )


def cached(cache: FeatureCache, key: str) -> np.ndarray:
    """An array of a filled cache. Raises RuntimeError where it was removed since."""
    array = cache.get(key)
    if array is None:
        raise RuntimeError("a clip left the feature cache while training; start again to refill it")
    return np.array(array)


def length_key(key: str) -> str:
    """Under which key of the cache the length of a clip's audio is."""
    return f"{key} samples"
