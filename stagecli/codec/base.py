"""The codec interface: audio <-> the frames the model diffuses."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Codec(nn.Module):
    """Audio [B, N] at `sample_rate` <-> normalised frames x0 [B, T, C], differentiable both ways.

    Subclasses set the four attributes below and implement `analyse` and `synthesise`, which work
    on raw frames; the per-channel statistics of the training set (`fit`) are applied here, so that
    `encode` gives frames of mean 0 and standard deviation 1 per channel over the training set.
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, *, sample_rate: int, hop: int, channels: int, is_network: bool) -> None:
        super().__init__()
        self.sample_rate = sample_rate  # Hz
        self.hop = hop  # samples per frame
        self.channels = channels  # C
        self.is_network = is_network  # True: frames are worth caching
        self.register_buffer("mean_C", torch.zeros(channels))
        self.register_buffer("std_C", torch.ones(channels))

    def frames(self, samples: int) -> int:
        """Number of frames T that `encode` gives for `samples` samples."""
        return -(-samples // self.hop)

    def analyse(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, N] -> raw frames [B, T, C] with T = `frames(N)`."""
        raise NotImplementedError

    def synthesise(self, raw_BTC: Tensor, draft: bool = False) -> Tensor:
        """Raw frames [B, T, C] -> audio [B, T * hop]. Deterministic. draft: cheap, where a codec has a cheap way."""
        raise NotImplementedError

    def encode(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, N] -> normalised frames [B, T, C]."""
        return self.normalise(self.analyse(audio_BN))

    def normalise(self, raw_BTC: Tensor) -> Tensor:
        """Raw frames [B, T, C] -> normalised frames."""
        return (raw_BTC - self.mean_C) / self.std_C

    def decode(
        self, frames_BTC: Tensor, samples: int | None = None, *, draft: bool = False
    ) -> Tensor:
        """Normalised frames [B, T, C] -> audio [B, samples] (default T * hop).

        draft: good enough for a measurement that is made often, such as a probe; not for listening.
        """
        audio_BN = self.synthesise(frames_BTC * self.std_C + self.mean_C, draft)
        return audio_BN if samples is None else audio_BN[:, :samples]

    @torch.no_grad()
    def fit(self, audio: Iterable[Tensor], floor: float = 1e-4, raw: bool = False) -> None:
        """Set mean_C and std_C from an iterable of audio [B, N] of the training split.

        raw: the iterable gives raw frames [B, T, C] instead. Sums are kept in float64; a channel
        whose deviation is under `floor` gets `floor`.
        """
        total = torch.zeros(self.channels, dtype=torch.float64)
        square = torch.zeros(self.channels, dtype=torch.float64)
        count = 0
        for item in audio:
            raw_FC = (item if raw else self.analyse(item)).reshape(-1, self.channels).double().cpu()
            total += raw_FC.sum(0)
            square += raw_FC.square().sum(0)
            count += raw_FC.shape[0]
        if count == 0:
            raise ValueError("codec statistics need at least one frame of audio")
        mean = total / count
        deviation = (square / count - mean.square()).clamp_min(0).sqrt()
        self.mean_C.copy_(mean.float())
        self.std_C.copy_(deviation.clamp_min(floor).float())
