"""Loss weights of a batch of frames: padding and the band kept from the input count for nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from stagecli.codec.base import Codec
from stagecli.data.frames import to_frames

RATE = 8000


class Halves(Codec):
    """Two samples per frame, one in each channel; the channels are at 1 and 3 kHz."""

    def __init__(self) -> None:
        super().__init__(sample_rate=RATE, hop=2, channels=2, is_network=False)
        self.register_buffer("channel_hz", torch.tensor([1000.0, 3000.0]))

    def analyse(self, audio_BN: Tensor) -> Tensor:
        return audio_BN.unflatten(1, (-1, 2))


def batch(**more: Tensor) -> dict[str, Tensor]:
    return {"audio": torch.arange(8.0)[None], "noise": torch.zeros(1, 4, 2), **more}


def test_without_padding_or_band_there_are_no_weights() -> None:
    frames = to_frames(batch(), Halves())
    assert frames["x0"].tolist() == [[[0, 1], [2, 3], [4, 5], [6, 7]]]
    assert "weight" not in frames
    assert "audio" not in frames


def test_padding_has_weight_zero() -> None:
    mask = torch.tensor([[True, True, False, False]])
    weight = to_frames(batch(mask=mask), Halves())["weight"]
    assert weight.expand(1, 4, 2).tolist() == [[[1, 1], [1, 1], [0, 0], [0, 0]]]


def test_the_band_kept_from_the_input_has_weight_zero() -> None:
    low = {"low": torch.zeros(1, 8), "cutoff": torch.tensor([0.5])}  # half of 4 kHz
    frames = to_frames(batch(**low), Halves())
    assert frames["band"].tolist() == [[True, False]]
    assert frames["weight"].expand(1, 4, 2).tolist() == [[[0, 1]] * 4]
    mask = torch.tensor([[True, True, True, False]])
    both = to_frames(batch(**low, mask=mask), Halves())["weight"]
    assert both.expand(1, 4, 2).tolist() == [[[0, 1]] * 3 + [[0, 0]]]
