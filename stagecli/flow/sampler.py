"""Samplers: free functions from noise at t = 1 to frames at t = 0.

A velocity is a function (x [B, T, C], t in (0, 1]) -> eps - x0, of the same shape. The callback
gets (step, t, x) after each step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
Callback = Callable[[int, float, Tensor], None]


def times(steps: int, shift: float = 1.0) -> list[float]:
    """steps + 1 times from 1 down to 0; shift > 1 spends more of them near noise (SD3, eq. 23)."""
    grid = [1 - i / steps for i in range(steps + 1)]
    return [shift * t / (1 + (shift - 1) * t) for t in grid]


def euler(
    velocity: Velocity, x_BTC: Tensor, grid: list[float], callback: Callback | None = None
) -> Tensor:
    """First order, one network call a step."""
    for i, (t, nxt) in enumerate(zip(grid, grid[1:], strict=False)):
        x_BTC = x_BTC + (nxt - t) * velocity(x_BTC, t)
        if callback:
            callback(i, nxt, x_BTC)
    return x_BTC


def heun(
    velocity: Velocity, x_BTC: Tensor, grid: list[float], callback: Callback | None = None
) -> Tensor:
    """Second order, two network calls a step; the last step is Euler's, as v at t = 0 is not trained."""
    for i, (t, nxt) in enumerate(zip(grid, grid[1:], strict=False)):
        v = velocity(x_BTC, t)
        guess = x_BTC + (nxt - t) * v
        x_BTC = guess if nxt == 0 else x_BTC + (nxt - t) * 0.5 * (v + velocity(guess, nxt))
        if callback:
            callback(i, nxt, x_BTC)
    return x_BTC


def ab2(
    velocity: Velocity, x_BTC: Tensor, grid: list[float], callback: Callback | None = None
) -> Tensor:
    """Second-order Adams-Bashforth with variable steps: one network call a step, multistep."""
    before: Tensor | None = None
    last = 0.0
    for i, (t, nxt) in enumerate(zip(grid, grid[1:], strict=False)):
        v = velocity(x_BTC, t)
        step = nxt - t
        slope = v if before is None else v + (step / (2 * last)) * (v - before)
        x_BTC = x_BTC + step * slope
        before = v
        last = step
        if callback:
            callback(i, nxt, x_BTC)
    return x_BTC


SAMPLERS: dict[str, Callable[..., Tensor]] = {"euler": euler, "heun": heun, "ab2": ab2}


def classifier_free(
    conditional: Velocity, unconditional: Velocity, scale: float, interval: tuple[float, float]
) -> Velocity:
    """Classifier-free guidance (Ho and Salimans 2022) inside an interval of t (Kynkaanniemi et al. 2024).

    A scale of 1 is off: the unconditional velocity is then not called.
    """
    low, high = interval

    def velocity(x_BTC: Tensor, t: float) -> Tensor:
        v = conditional(x_BTC, t)
        if scale == 1.0 or not low <= t <= high:
            return v
        plain = unconditional(x_BTC, t)
        return plain + scale * (v - plain)

    return velocity


def keep_band(velocity: Velocity, kept_BTC: Tensor, band_BC: Tensor) -> Velocity:
    """Drive the channels where `band_BC` is True straight to `kept_BTC`, which they reach exactly at t = 0."""
    band = band_BC[:, None, :]

    def constrained(x_BTC: Tensor, t: float) -> Tensor:
        return torch.where(band, (x_BTC - kept_BTC) / t, velocity(x_BTC, t))

    return constrained


def window_starts(frames: int, window: int, hop: int) -> list[int]:
    """Starts of the windows that cover `frames` frames; the last one ends at the end."""
    if frames <= window:
        return [0]
    return [*range(0, frames - window, hop), frames - window]


def windows(x_BTC: Tensor, starts: list[int], window: int) -> Tensor:
    """[B, T, C] -> [B * W, min(T, window), C], one row per clip and start, in the order of `windowed`."""
    return torch.stack([x_BTC[:, s : s + window] for s in starts], dim=1).flatten(0, 1)


def windowed(
    velocity: Callable[[Tensor, float, slice], Tensor],
    frames: int,
    window: int,
    hop: int,
    group: int,
) -> Velocity:
    """One velocity over any length from overlapping windows (MultiDiffusion, arXiv 2302.08113).

    `velocity(x [G, window, C], t, which)` gets at most `group` windows at once; `which` are their numbers, those of
    the first clip of x [B, T, C] before those of the second. All windows of a clip share its row of x and are
    blended by triangles, so no seam arises.
    """
    starts = window_starts(frames, window, hop)
    size = min(frames, window)
    ramp = torch.arange(1, size + 1, dtype=torch.float32)
    ramp = torch.minimum(ramp, ramp.flip(0))[:, None]

    def whole(x_BTC: Tensor, t: float) -> Tensor:
        weight = ramp.to(x_BTC)
        total = torch.zeros_like(x_BTC)
        norm = torch.zeros_like(x_BTC[..., :1])
        places = [(clip, start) for clip in range(len(x_BTC)) for start in starts]
        for first in range(0, len(places), group):
            which = slice(first, min(first + group, len(places)))
            cut = torch.stack([x_BTC[clip, start : start + size] for clip, start in places[which]])
            for (clip, start), part in zip(places[which], velocity(cut, t, which), strict=True):
                total[clip, start : start + size] += weight * part
                norm[clip, start : start + size] += weight
        return total / norm

    return whole
