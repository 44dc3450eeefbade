"""The velocity of the windows of a long input, each with its own condition."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stagecli.flow import sampler
from stagecli.model.dit import Conditioning


def velocity_of_windows(
    velocity: Callable[[Conditioning, Tensor, float], Tensor],
    low_BTC: Tensor,
    share: float,
    *,
    band_BC: Tensor,
    level_B: Tensor,
    text: Conditioning,
    grid: tuple[int, int],
    advance: Callable[[int], None] | None,
) -> sampler.WindowVelocity:
    """The network's velocity for a slice of all windows, as `sampler.windowed` calls it.

    velocity: of the network; low_BTC: encoded inputs; share: cutoff as a fraction of the Nyquist
    frequency; band_BC (one row): the kept channels; level_B: log10 of each clip's gain; text: of
    each clip; grid: frames of a window and between windows; advance: called with the number of
    windows done.
    """
    window, hop = grid
    starts = sampler.window_starts(low_BTC.shape[1], window, hop)
    low_WTC = sampler.windows(low_BTC, starts, window)
    device = low_BTC.device

    def of_windows(x_BTC: Tensor, t: float, which: slice) -> Tensor:
        count = x_BTC.shape[0]
        # Windows are numbered clip by clip.
        clip_B = torch.arange(which.start, which.stop, device=device) // len(starts)
        condition = Conditioning(
            low_BTC=low_WTC[which],
            cutoff_B=torch.full((count,), share, device=device),
            level_B=level_B[clip_B],
            band_BC=band_BC.expand(count, -1),
        )
        if text.text_BLD is not None and text.text_mask_BL is not None:
            condition.text_BLD = text.text_BLD[clip_B]
            condition.text_mask_BL = text.text_mask_BL[clip_B]
        velocity_BTC = velocity(condition, x_BTC, t)
        if advance:
            advance(count)
        return velocity_BTC

    return of_windows
