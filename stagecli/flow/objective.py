"""Rectified flow: the path x_t, its velocity and the loss; t and noise come from the caller.

With data x0, noise eps ~ N(0, I) and t in [0, 1], where t = 1 is noise:

    x_t = (1 - t) x0 + t eps            a straight path from data to noise
    v   = d x_t / dt = eps - x0         its velocity, the target of the network
    L   = E || v_hat(x_t, t) - v ||^2   whose minimum is v_hat = E[eps - x0 | x_t]

A prediction of the velocity is one of the data too: x0_hat = x_t - t v_hat.

Source: Liu et al., 2022 (arXiv 2209.03003), with the time axis reversed as in Esser et al., 2024
(arXiv 2403.03206).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Result:
    """The loss of one batch, and the quantities that stage mechanisms read.

    loss_B: mean squared velocity error per sample, fp32; velocity_BTC: v_hat, fp32; x_BTC: x_t;
    condition: as passed to the network; hidden: as in `model.dit.Output`.
    """

    loss_B: Tensor
    velocity_BTC: Tensor
    x_BTC: Tensor
    t_B: Tensor
    condition: Any = None
    hidden: dict[int, Tensor] = field(default_factory=dict)

    @property
    def x0_hat_BTC(self) -> Tensor:
        """The predicted data, x_t - t v_hat."""
        return self.x_BTC - self.t_B[:, None, None] * self.velocity_BTC


def interpolate(x0_BTC: Tensor, noise_BTC: Tensor, t_B: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t eps, [B, T, C]."""
    t = t_B[:, None, None].to(x0_BTC.dtype)
    return (1 - t) * x0_BTC + t * noise_BTC


def flow_loss(
    network: Callable,
    x0_BTC: Tensor,
    noise_BTC: Tensor,
    t_B: Tensor,
    condition: object,
    *,
    weight_BTC: Tensor | None = None,
    return_hidden: Collection[int] = (),
) -> Result:
    """Per-sample loss || v_hat - (eps - x0) ||^2 of `network(x_t, t, condition, return_hidden)`.

    weight_BTC: weight of each frame and channel, broadcastable to x0, 0 on padding and on the band
    kept from the input; the loss is the weighted mean per sample, 0 where nothing has weight.
    return_hidden: numbers of the blocks whose outputs the result holds; 0: the first one's input.
    """
    x_BTC = interpolate(x0_BTC, noise_BTC, t_B)
    prediction = network(x_BTC, t_B, condition, return_hidden)
    velocity_BTC = prediction.velocity_BTC.float()
    error_BTC = (velocity_BTC - (noise_BTC - x0_BTC).float()).square()
    if weight_BTC is None:
        loss_B = error_BTC.mean(dim=(1, 2))
    else:
        weight = weight_BTC.expand_as(error_BTC)
        loss_B = (weight * error_BTC).sum(dim=(1, 2)) / weight.sum(dim=(1, 2)).clamp_min(1e-8)
    return Result(loss_B, velocity_BTC, x_BTC, t_B, condition, prediction.hidden)


def weighted_mean(loss_B: Tensor, weight_B: Tensor) -> Tensor:
    """Mean over the batch of weight times loss.

    Raises ValueError unless both are [B]: [B, 1] times [B] would silently be [B, B].
    """
    if weight_B.shape != loss_B.shape or loss_B.ndim != 1:
        raise ValueError(
            f"weights of shape {tuple(weight_B.shape)} for losses of shape {tuple(loss_B.shape)}"
        )
    return (weight_B * loss_B).mean()
