"""The targets of guidance: a teacher's features, or the codec's frames of the clean crop.

A head compares what its projectors make of the hidden states with one target. Its loss has one
value per block and sample; the mechanism weights and adds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stagecli.stage.guidance_projection import Projection

BETA = 0.05  # of smooth L1: quadratic up to here, then linear
CONSTANT = 1e-3  # deviation, over the root mean square of all features, that counts as none


@dataclass(frozen=True)
class FrameChoice:
    """Every `stride`-th frame of a target, beginning with the one at step mod stride."""

    step: int
    stride: int

    def of(self, length: int) -> slice:
        """The frames of a target of `length` frames."""
        stride = min(self.stride, length)
        return slice(self.step % stride, None, stride)


class Head:
    """Base class: projectors that predict one target.

    figure: name of what `reported` returns, in rows of metrics.
    """

    figure = ""

    def __init__(self, projection: Projection) -> None:
        self.projection = projection

    def losses(
        self, hidden_KBPW: Tensor, batch: Mapping[str, Tensor], frames: FrameChoice
    ) -> Tensor:
        """Loss [K, B] of the hidden states of K blocks, fp32.

        batch: of `to_frames`, and the features where a mechanism requests them.
        """
        raise NotImplementedError

    def reported(self, loss_KB: Tensor) -> Tensor:
        """The figure [K, B] behind a loss."""
        return loss_KB


class TeacherHead(Head):
    """1 - cosine with the teacher's features, mean over frames. by_clip: standardise these."""

    figure = "cosine"

    def __init__(self, projection: Projection, *, by_clip: bool) -> None:
        super().__init__(projection)
        self.by_clip = by_clip

    def losses(
        self, hidden_KBPW: Tensor, batch: Mapping[str, Tensor], frames: FrameChoice
    ) -> Tensor:
        features_BLD = batch["features"].float()
        if self.by_clip:
            features_BLD = standardised(features_BLD)
        return 1 - self.cosines(hidden_KBPW, features_BLD, frames.of(features_BLD.shape[1]))

    def cosines(self, hidden_KBPW: Tensor, target_BLD: Tensor, frames: slice) -> Tensor:
        """Mean cosines [K, B] of projected hidden states with the features at `frames`.

        The hidden states are interpolated from P tokens to the L frames of the features. Cosines
        are computed in fp32: normalising in fp16 gives NaN late in training (REPA, issue 46).
        """
        x_NWP = hidden_KBPW.flatten(0, 1).transpose(1, 2)
        x_NWL = F.interpolate(x_NWP, size=target_BLD.shape[1], mode="linear")[..., frames]
        x_KBLW = x_NWL.transpose(1, 2).unflatten(0, hidden_KBPW.shape[:2])
        projected_KBLD = self.projection(x_KBLW)
        return F.cosine_similarity(projected_KBLD, target_BLD[:, frames], dim=-1, eps=1e-6).mean(-1)

    def reported(self, loss_KB: Tensor) -> Tensor:
        return 1 - loss_KB


class CodecHead(Head):
    """Smooth L1 distance to the codec's frames x0, as the objective weights them.

    patch: frames per token. A token's frames are predicted from its own hidden state; padding and
    the kept band (sr) count as little as in the objective.
    """

    figure = "error"

    def __init__(self, projection: Projection, *, patch: int) -> None:
        super().__init__(projection)
        self.patch = patch

    def losses(
        self, hidden_KBPW: Tensor, batch: Mapping[str, Tensor], frames: FrameChoice
    ) -> Tensor:
        x0_BTC = batch["x0"].float()
        weight_BTC = batch.get("weight", torch.ones_like(x0_BTC[:1, :1, :1])).expand_as(x0_BTC)
        tokens = frames.of(hidden_KBPW.shape[2])
        target_BPK = by_token(x0_BTC, self.patch)[:, tokens]
        weight_BPK = by_token(weight_BTC, self.patch)[:, tokens]

        predicted_KBPK = self.projection(hidden_KBPW[:, :, tokens])
        target_KBPK = target_BPK.expand_as(predicted_KBPK)
        error_KBPK = F.smooth_l1_loss(predicted_KBPK, target_KBPK, reduction="none", beta=BETA)
        total_B = weight_BPK.sum((1, 2)).clamp_min(1e-8)
        return (weight_BPK * error_KBPK).sum((2, 3)) / total_B


def standardised(features_BLD: Tensor) -> Tensor:
    """Each channel over the frames of its crop, with mean 0 and deviation 1 (of the population).

    A channel that is constant, up to rounding, becomes 0: nothing is aligned with its noise.
    """
    centred_BLD = features_BLD - features_BLD.mean(1, keepdim=True)
    deviation_B1D = centred_BLD.square().mean(1, keepdim=True).sqrt()
    size_B11 = features_BLD.square().mean((1, 2), keepdim=True).sqrt()
    varies_B1D = deviation_B1D > CONSTANT * size_B11
    return torch.where(varies_B1D, centred_BLD / deviation_B1D.clamp_min(1e-12), 0.0)


def by_token(frames_BTC: Tensor, patch: int) -> Tensor:
    """[B, T, C] -> [B, P, patch * C], the frames of each token; T is padded with zeros."""
    extra = -frames_BTC.shape[1] % patch
    padded_BTC = F.pad(frames_BTC, (0, 0, 0, extra)) if extra else frames_BTC
    return padded_BTC.unflatten(1, (-1, patch)).flatten(2)
