"""Features of whole clips by a frozen SSL encoder, computed once, and cut to the crop that is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stagecli.condition.low import level_gain
from stagecli.data.cache import FeatureCache
from stagecli.data.examples import Memory
from stagecli.data.rows import Clip
from stagecli.data.source import Source
from stagecli.schema import Recipe
from stagecli.ssl import open_encoder

CENTRE_CLIPS = 256  # clips whose mean feature is taken out


class TargetFeatures:
    """[L, D] of any crop of the training clips. The encoder is needed for what the cache lacks, and then gone.

    A clip is encoded whole, brought to one level (as sr trains it), and zero-padded where it is shorter than a crop;
    features lie on the encoder's grid, and a crop between two of them takes their linear interpolation.
    """

    def __init__(
        self,
        name: str,
        layer: int | Sequence[int] | str,
        recipe: Recipe,
        source: Source,
        clips: Sequence[Clip],
        device: torch.device,
        progress: Callable[[int, int], None],
    ) -> None:
        """name: "kind:model" of the encoder. Raises StageError where it cannot be made."""
        self.source = source
        self.rate = recipe.data.sample_rate
        self.samples = round(recipe.data.seconds * recipe.data.sample_rate)
        encoder = open_encoder(name, layer).to(device)
        self.width = encoder.dimension
        self.frame_rate = encoder.frame_rate
        self.label = encoder.label
        self.count = encoder.frames(
            int(self.samples * encoder.sample_rate / self.rate)
        )  # L of a crop
        config = {
            "weights": encoder.fingerprint(),
            "layers": list(encoder.layers),
            "sample_rate": self.rate,
            "least_seconds": recipe.data.seconds,
            "holds": "features and lengths",
        }
        self.cache = FeatureCache(Path(recipe.data.cache_dir), "features", config)
        by_key = {source.content_hash(clip): clip for clip in clips}

        @torch.no_grad()
        def compute(keys: list[str]) -> Iterable[np.ndarray]:
            for key in keys:
                audio = source.read(by_key[key])
                self.cache.put(
                    _length(key), np.array(len(audio))
                )  # first: with the features, their length is known
                audio = np.pad(
                    audio * level_gain(audio), (0, max(0, self.samples - len(audio)))
                ).astype(np.float32)
                yield (
                    encoder(torch.from_numpy(audio)[None].to(device), self.rate)[0]
                    .half()
                    .cpu()
                    .numpy()
                )

        self.cache.fill(list(by_key), compute, batch=1, progress=progress)
        self.memory = Memory(self._whole, recipe.data.memory_mb)
        self.lengths: dict[str, int] = {}  # in samples, by key of the clip
        chosen = list(by_key)[:: max(1, len(by_key) // CENTRE_CLIPS)]
        self.centre_D = torch.stack(
            [torch.from_numpy(self._cached(key)).float().mean(0) for key in chosen]
        ).mean(0)
        self.mean_D = self.centre_D.numpy()

    def _cached(self, key: str) -> np.ndarray:
        found = self.cache.get(key)
        if found is None:
            raise RuntimeError(
                "a clip left the feature cache while training; start again to refill it"
            )
        return np.array(found)

    def _whole(self, clip: Clip) -> np.ndarray:
        return self._cached(self.source.content_hash(clip))

    def samples_of(self, clip: Clip) -> int:
        """Length of a clip in samples, as it was read: what says where a crop may start."""
        if clip.key not in self.lengths:
            self.lengths[clip.key] = int(self._cached(_length(self.source.content_hash(clip))))
        return self.lengths[clip.key]

    def crop(self, clip: Clip, start: int) -> Tensor:
        """Centred features [L, D] of the crop that starts at sample `start`."""
        whole_LD = self.memory.read(clip)
        place = start / self.rate * self.frame_rate
        first = min(int(place), len(whole_LD) - 1)
        share = place - int(place)
        # One feature more than fits, for the interpolation; past the end the last one stands.
        part_LD = whole_LD[first : first + self.count + 1].astype(np.float32)
        if (missing := self.count + 1 - len(part_LD)) > 0:
            part_LD = np.concatenate([part_LD, np.repeat(part_LD[-1:], missing, axis=0)])
        # numpy: some 30 of these a step, of a few numbers each, where torch's overhead per call counts
        return torch.from_numpy((1 - share) * part_LD[:-1] + share * part_LD[1:] - self.mean_D)


def _length(key: str) -> str:
    return f"{key} samples"
