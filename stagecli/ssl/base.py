"""The encoder interface: audio -> features [B, L, D] of a frozen self-supervised network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torchaudio
from torch import Tensor, nn

from stagecli.errors import StageError
from stagecli.hub import weights_hash

Layer = int | Sequence[int] | Literal["mean"]


@dataclass(frozen=True)
class Grid:
    """Where features lie on the samples, all in samples of the encoder's rate but `chunk`.

    first: least audio, enough for one feature (the receptive field); hop: samples from a feature to
    the next; chunk: most features of one pass, window: most samples of one pass (None: any length).
    """

    first: int
    hop: int
    chunk: int | None = None
    window: int | None = None

    def count(self, samples: int) -> int:
        """Number of features L for `samples` samples; 0 where they are fewer than `first`."""
        return max(0, (samples - self.first) // self.hop + 1)

    @staticmethod
    def of_convolutions(kernels: Sequence[int], strides: Sequence[int]) -> Grid:
        """Grid of a stack of convolutions without padding (the wav2vec 2.0 waveform encoder)."""
        first = 1
        hop = 1
        for kernel, stride in zip(kernels, strides, strict=True):
            first += (kernel - 1) * hop
            hop *= stride
        return Grid(first=first, hop=hop)


def choose_layers(choice: Layer, count: int, name: str) -> tuple[int, ...]:
    """Layer choice -> sorted layer numbers in 0..count.

    Layer 0 is what enters the first block, k the output of block k, `count` the last one with the
    final norm, where the network has one. Negative numbers count from the end; "mean" is 1..count.
    Raises StageError where there is no such layer.
    """
    wanted = (
        [choice] if isinstance(choice, int) else range(1, count + 1) if choice == "mean" else choice
    )
    hint = f'choose from 0 (before the first block) to {count}, -1 for the last, a list to average, or "mean"'
    # bool is an int to Python, but `layer = true` is a slip.
    if isinstance(wanted, str) or not wanted or not all(type(k) is int for k in wanted):
        raise StageError(f"encoder {name}: {choice!r} is not a choice of layers", hint=hint)
    wrong = [k for k in wanted if not -count - 1 <= k <= count]
    if wrong:
        raise StageError(
            f"encoder {name} has no layer {wrong[0]}: it has layers 0 to {count}", hint=hint
        )
    return tuple(sorted({k % (count + 1) for k in wanted}))


class Encoder(nn.Module):
    """Audio [B, N] at any rate -> features [B, L, D] in float32; frozen, but differentiable in the audio.

    name: kind and checkpoint id, printed with every number; sample_rate: Hz, what audio is resampled
    to; band: Hz, the highest frequency it can see; dimension: D; frame_rate: features per second;
    receptive_field: samples at `sample_rate`, the least audio it accepts; layers: the layers read,
    their average where there are several. Subclasses implement `encode`.

    The weights stay in float32: features are compared by small differences.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        sample_rate: int,
        band: float,
        dimension: int,
        layers: tuple[int, ...],
        grid: Grid,
    ) -> None:
        super().__init__()
        self.network = network.float().requires_grad_(False)
        self.name = name
        self.layers = layers
        self.grid = grid
        self.sample_rate = sample_rate
        self.band = band
        self.dimension = dimension
        # Before a subclass drops the blocks above the highest layer it reads.
        self._fingerprint = weights_hash(network)
        self.train(False)

    @property
    def frame_rate(self) -> float:
        return self.sample_rate / self.grid.hop

    @property
    def receptive_field(self) -> int:
        return self.grid.first

    @property
    def label(self) -> str:
        """Name with the layers read, for tables."""
        return f"{self.name}, layer {'+'.join(str(k) for k in self.layers)}"

    def fingerprint(self) -> str:
        """Hash of the checkpoint's weights, the same whatever layer is read (a cache key needs `layers` too)."""
        return self._fingerprint

    def frames(self, samples: int) -> int:
        """Number of features L for `samples` samples at `sample_rate`."""
        return self.grid.count(samples)

    def train(self, mode: bool = True) -> Encoder:
        """Stay in evaluation mode whatever the caller asks: the encoder is frozen."""
        return super().train(False)

    def encode(self, audio_BN: Tensor) -> Tensor:
        """float32 audio [B, N] at `sample_rate`, at most one window -> features [B, L or more, D]."""
        raise NotImplementedError

    def forward(self, audio_BN: Tensor, sample_rate: int | None = None) -> Tensor:
        """Audio [B, N] at `sample_rate` Hz (default: the encoder's) -> features [B, L, D], L = `frames(N)`.

        N counts samples after resampling. float32 inside and out, under autocast too. Audio longer than
        one window of the network is read window by window, on the same grid of features.
        Raises StageError for audio shorter than the receptive field.
        """
        if audio_BN.ndim != 2:
            raise ValueError(f"audio must be [B, N], not of shape {tuple(audio_BN.shape)}")
        with torch.autocast(device_type=audio_BN.device.type, enabled=False):
            audio_BN = audio_BN.float()
            if sample_rate is not None and sample_rate != self.sample_rate:
                audio_BN = torchaudio.functional.resample(audio_BN, sample_rate, self.sample_rate)
            count = self.frames(audio_BN.shape[1])
            grid = self.grid
            if count == 0:
                raise StageError(
                    f"audio of {audio_BN.shape[1]} samples at {self.sample_rate} Hz is shorter than the receptive "
                    f"field of {self.name}, {grid.first} samples",
                    hint="use longer clips, or an encoder with a shorter receptive field",
                )
            step = grid.chunk or count
            pieces = [
                self.encode(
                    audio_BN[
                        :, start * grid.hop : start * grid.hop + (grid.window or audio_BN.shape[1])
                    ]
                )
                for start in range(0, count, step)
            ]
            features_BLD = torch.cat([piece[:, :step] for piece in pieces], dim=1)
            return features_BLD[:, :count].float()


@contextmanager
def recorded(blocks: nn.ModuleList, part: int = 0) -> Iterator[dict[int, Tensor]]:
    """Hidden states of the calls inside the block: {0: what entered the first, k: output of block k}.

    part: which one, where a block gives a tuple. Hooks see the same thing in every release of
    `transformers`, whose `output_hidden_states` differ in whether the final norm is in.
    """
    states: dict[int, Tensor] = {}

    def before(_: nn.Module, args: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
        states[0] = args[0] if args else keywords["hidden_states"]

    def after(index: int, out: Tensor | tuple[Tensor, ...]) -> None:
        states[index] = out[part] if isinstance(out, tuple) else out

    handles = [blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
    for k, block in enumerate(blocks, 1):
        handles.append(block.register_forward_hook(lambda _, __, out, k=k: after(k, out)))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def average(states: dict[int, Tensor], layers: Sequence[int]) -> Tensor:
    """Mean of the named hidden states, each [B, L, D]."""
    return (
        states[layers[0]] if len(layers) == 1 else torch.stack([states[k] for k in layers]).mean(0)
    )
