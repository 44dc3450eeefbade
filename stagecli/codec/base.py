"""The codec interface: audio <-> the frames the model diffuses."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Standard deviations of a channel by which `limit` lets frames leave the range of the training
# set; about 1 dB for log-mel frames.
RANGE_MARGIN = 0.05


class Codec(nn.Module):
    """Audio [B, N] at `sample_rate` <-> normalised frames x0 [B, T, C], differentiable both ways.

    sample_rate: Hz; hop: audio samples per frame; channels: C; is_network: frames are expensive and
    worth caching. Subclasses implement `analyse` and `synthesise`, which work on raw frames. The
    per-channel statistics of the training set (`fit`) are applied here, so that `encode` yields
    frames of mean 0 and standard deviation 1 per channel over the training set. low_C, high_C: the
    range of its raw frames; infinite for runs that have not saved it.
    """

    mean_C: Tensor
    std_C: Tensor
    low_C: Tensor
    high_C: Tensor

    def __init__(self, *, sample_rate: int, hop: int, channels: int, is_network: bool) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.hop = hop
        self.channels = channels
        self.is_network = is_network
        self.register_buffer("mean_C", torch.zeros(channels))
        self.register_buffer("std_C", torch.ones(channels))
        # Not part of the codec's identity, which caches are named by.
        unbounded_C = torch.full((channels,), math.inf)
        self.register_buffer("low_C", -unbounded_C, persistent=False)
        self.register_buffer("high_C", unbounded_C, persistent=False)

    def frames(self, length: int) -> int:
        """Number of frames T that `encode` yields for `length` audio samples."""
        return -(-length // self.hop)

    def analyse(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, N] -> raw frames [B, T, C] with T = `frames(N)`."""
        raise NotImplementedError

    def synthesise(self, raw_BTC: Tensor, draft: bool = False) -> Tensor:
        """Raw frames [B, T, C] -> audio [B, T * hop], deterministically.

        draft: trade quality for speed, where the codec can.
        """
        raise NotImplementedError

    def encode(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, N] -> normalised frames [B, T, C]."""
        return self.normalise(self.analyse(audio_BN))

    def normalise(self, raw_BTC: Tensor) -> Tensor:
        """Raw frames [B, T, C] -> normalised frames."""
        return (raw_BTC - self.mean_C) / self.std_C

    def limit(self, frames_BTC: Tensor) -> Tensor:
        """Normalised frames [B, T, C] limited to the range of the training set, plus a margin.

        Frames are companded or logarithmic, so a prediction a little outside of it can be audio of
        a hundred times full scale.
        """
        low_C = self.normalise(self.low_C) - RANGE_MARGIN
        high_C = self.normalise(self.high_C) + RANGE_MARGIN
        return frames_BTC.clamp(low_C, high_C)

    def decode(
        self, frames_BTC: Tensor, length: int | None = None, *, draft: bool = False
    ) -> Tensor:
        """Normalised frames [B, T, C] -> audio [B, length] (default T * hop).

        draft: good enough for frequent measurements such as probes, not for listening.
        """
        audio_BN = self.synthesise(frames_BTC * self.std_C + self.mean_C, draft)
        return audio_BN if length is None else audio_BN[:, :length]

    @torch.no_grad()
    def fit(self, audio: Iterable[Tensor], floor: float = 1e-4, raw: bool = False) -> None:
        """Set mean_C, std_C, low_C and high_C from batches of audio [B, N] of the training split.

        raw: the batches are raw frames [B, T, C] instead. floor: lower bound of a channel's
        standard deviation. Sums are kept in float64. Raises ValueError without any frame.
        """
        total_C = torch.zeros(self.channels, dtype=torch.float64)
        squares_C = torch.zeros(self.channels, dtype=torch.float64)
        low_C = torch.full((self.channels,), math.inf, dtype=torch.float64)
        high_C = -low_C
        count = 0
        for batch in audio:
            raw_BTC = batch if raw else self.analyse(batch)
            raw_FC = raw_BTC.reshape(-1, self.channels).double().cpu()
            total_C += raw_FC.sum(0)
            squares_C += raw_FC.square().sum(0)
            count += raw_FC.shape[0]
            low_C = torch.minimum(low_C, raw_FC.amin(0))
            high_C = torch.maximum(high_C, raw_FC.amax(0))
        if count == 0:
            raise ValueError("codec statistics need at least one frame of audio")
        mean_C = total_C / count
        deviation_C = (squares_C / count - mean_C.square()).clamp_min(0).sqrt()
        self.mean_C.copy_(mean_C.float())
        self.std_C.copy_(deviation_C.clamp_min(floor).float())
        self.low_C.copy_(low_C.float())
        self.high_C.copy_(high_C.float())

    def statistics(self) -> dict[str, Tensor]:
        """The fitted tensors by name, as a run keeps them."""
        names = ("mean_C", "std_C", "low_C", "high_C")
        return {name: self.get_buffer(name).cpu() for name in names}
