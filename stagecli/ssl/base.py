"""The encoder interface: audio -> features [B, L, D] of a frozen self-supervised network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stagecli.dsp.resample import resample_tensor
from stagecli.errors import StageError
from stagecli.hub import weights_hash

Layer = int | Sequence[int] | str
"""Which hidden states an encoder returns: a number, a list to average, or "mean"."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How features are laid out in time; everything but `chunk` in samples at the encoder's rate.

    first: receptive field of one feature, the least audio; hop: distance from one feature to the
    next; chunk: most features of one forward pass; window: most samples of one forward pass (None:
    any length).
    """

    first: int
    hop: int
    chunk: int | None = None
    window: int | None = None

    def count(self, length: int) -> int:
        """Number of features L of `length` samples; 0 for fewer than `first`."""
        return max(0, (length - self.first) // self.hop + 1)

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
    """Layer choice of an encoder with `count` blocks -> sorted layer numbers in 0..count.

    Layer 0 is the input of the first block, k the output of block k; the last one has the final
    norm, where the network has one. Negative numbers count from the end; "mean" is 1..count.
    name: the encoder, for the message. Raises StageError for layers that do not exist.
    """
    wanted: Sequence[int] = []
    if isinstance(choice, int):
        wanted = [choice]
    elif choice == "mean":
        wanted = range(1, count + 1)
    elif not isinstance(choice, str):
        wanted = choice
    hint = (
        f"choose from 0 (before the first block) to {count}, -1 for the last, "
        'a list to average, or "mean"'
    )
    # bool is an int to Python, but `layer = true` is a slip.
    if not wanted or not all(type(k) is int for k in wanted):
        raise StageError(f"encoder {name}: {choice!r} is not a choice of layers", hint=hint)
    missing = [k for k in wanted if not -count - 1 <= k <= count]
    if missing:
        raise StageError(
            f"encoder {name} has no layer {missing[0]}: it has layers 0 to {count}", hint=hint
        )
    return tuple(sorted({k % (count + 1) for k in wanted}))


class Encoder(nn.Module):
    """Audio [B, N] at any rate -> features [B, L, D] in float32; frozen, differentiable in audio.

    name: kind and checkpoint id, printed with every score; sample_rate: Hz, to which audio is
    resampled; band: highest frequency the encoder can see, Hz (Nyquist of its rate, or the top of
    its mel filters); dimension: D; layers: the hidden states returned, averaged where there are
    several; grid: layout of the features in time. Subclasses implement `encode`.

    The weights stay in float32, because features are compared by small differences.
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
        # Before a subclass drops the blocks above the highest layer it returns.
        self._fingerprint = weights_hash(network)
        self.train(False)

    @property
    def frame_rate(self) -> float:
        """Features per second."""
        return self.sample_rate / self.grid.hop

    @property
    def receptive_field(self) -> int:
        """The least audio the encoder accepts, in samples at `sample_rate`."""
        return self.grid.first

    @property
    def label(self) -> str:
        """Name and layers, for tables."""
        return f"{self.name}, layer {'+'.join(str(k) for k in self.layers)}"

    def fingerprint(self) -> str:
        """Hash of the checkpoint's weights, independent of the layer (cache keys need both)."""
        return self._fingerprint

    def frames(self, length: int) -> int:
        """Number of features L of `length` samples at `sample_rate`."""
        return self.grid.count(length)

    def train(self, mode: bool = True) -> Encoder:
        """Stay in evaluation mode whatever `mode` is: the encoder is frozen."""
        return super().train(False)

    def encode(self, audio_BN: Tensor) -> Tensor:
        """float32 audio [B, N] at `sample_rate`, at most one window -> features [B, >= L, D]."""
        raise NotImplementedError

    def forward(self, audio_BN: Tensor, sample_rate: int | None = None) -> Tensor:
        """Audio [B, N] at `sample_rate` Hz (default: the encoder's) -> features [B, L, D].

        L = `frames(N)`, where N counts samples after resampling. float32 inside and out, also
        under autocast. Audio longer than one window of the network is encoded window by window, on
        one grid of features. Raises StageError for audio shorter than the receptive field,
        ValueError for another shape.
        """
        if audio_BN.ndim != 2:
            raise ValueError(f"audio must be [B, N], not of shape {tuple(audio_BN.shape)}")
        with torch.autocast(device_type=audio_BN.device.type, enabled=False):
            audio_BN = audio_BN.float()
            if sample_rate is not None and sample_rate != self.sample_rate:
                audio_BN = resample_tensor(audio_BN, sample_rate, self.sample_rate)
            length = audio_BN.shape[1]
            count = self.frames(length)
            if count == 0:
                raise StageError(
                    f"audio of {length} samples at {self.sample_rate} Hz is shorter than the "
                    f"receptive field of {self.name}, {self.receptive_field} samples",
                    hint="use longer clips, or an encoder with a shorter receptive field",
                )
            chunk = self.grid.chunk or count
            window = self.grid.window or length
            pieces = []
            for first in range(0, count, chunk):
                start = first * self.grid.hop
                pieces.append(self.encode(audio_BN[:, start : start + window])[:, :chunk])
            return torch.cat(pieces, dim=1)[:, :count].float()


@contextmanager
def recorded(blocks: nn.ModuleList, item: int = 0) -> Iterator[dict[int, Tensor]]:
    """Hidden states of forward passes in this context: {0: input of block 1, k: output of block k}.

    item: index of the hidden state, where a block returns a tuple. Hooks give the same states in
    every release of `transformers`, whose `output_hidden_states` differ in the final norm.
    """
    states: dict[int, Tensor] = {}

    def before(_: nn.Module, args: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
        states[0] = args[0] if args else keywords["hidden_states"]

    def after(number: int, output: Tensor | tuple[Tensor, ...]) -> None:
        states[number] = output[item] if isinstance(output, tuple) else output

    handles = [blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
    for number, block in enumerate(blocks, 1):
        handles.append(
            block.register_forward_hook(lambda _, __, output, k=number: after(k, output))
        )
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def mean_of_layers(states: dict[int, Tensor], layers: Sequence[int]) -> Tensor:
    """Mean over `layers` of hidden states, each [B, L, D]."""
    if len(layers) == 1:
        return states[layers[0]]
    return torch.stack([states[k] for k in layers]).mean(0)
