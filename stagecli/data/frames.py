"""A batch of audio -> a batch of frames, on the device: the input of objective and network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stagecli.codec.base import Codec
from stagecli.condition.low import band_weight, kept_band


@torch.no_grad()
def to_frames(batch: Mapping[str, Tensor], codec: Codec) -> dict[str, Tensor]:
    """Replace audio in a batch of `Collate` by normalised frames [B, T, C].

    `audio` [B, N] or cached `raw` frames become `x0`, `low` [B, N] becomes its frames with `band`
    [B, C], True for channels kept from it. `weight`, broadcastable to x0, is added where padding,
    the kept band, or what lies above `content` must not count: 0 there, 1 elsewhere.
    """
    frames = {name: value for name, value in batch.items() if name not in ("audio", "raw", "low")}
    if "audio" in batch:
        frames["x0"] = codec.encode(batch["audio"])
    elif "raw" in batch:
        frames["x0"] = codec.normalise(batch["raw"])
    weight = None
    if "low" in batch:
        frames["low"] = codec.encode(batch["low"])
        band = kept_band(codec.channel_hz, batch["cutoff"], codec.sample_rate)  # type: ignore[arg-type]
        frames["band"] = band
        weight = band_weight(band)
        if "content" in batch:
            end_B = batch["content"] * codec.sample_rate / 2
            weight = weight * (codec.channel_hz <= end_B[:, None])[:, None, :]  # type: ignore[operator]
    if "mask" in batch:
        mask = batch["mask"][..., None].float()
        weight = mask if weight is None else weight * mask
    if weight is not None:
        frames["weight"] = weight
    return frames


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The batch on `device`, copied asynchronously from pinned memory."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
