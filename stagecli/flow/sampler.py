"""Samplers: free functions that solve dx/dt = v(x, t) from noise at t = 1 to frames at t = 0.

A velocity is a function (x [B, T, C], t in (0, 1]) -> the predicted eps - x0, [B, T, C]. Each
solver walks down a grid of times from `times`; `callback` is called with (step, t, x) after each
step. `classifier_free`, `keep_band`, `keep_frames` and `windowed` turn velocities into velocities.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
Callback = Callable[[int, float, Tensor], None]
WindowVelocity = Callable[[Tensor, float, slice], Tensor]
"""A velocity of windows, also called with the numbers of the windows."""


def times(steps: int, shift: float = 1.0, start: float = 1.0) -> list[float]:
    """steps + 1 times from `start` down to 0: t -> shift t / (1 + (shift - 1) t) of a uniform grid.

    shift > 1 spends more steps near noise (Esser et al., 2024, arXiv 2403.03206, eq. 23).
    """
    grid = [start * (1 - i / steps) for i in range(steps + 1)]
    return [shift * t / (1 + (shift - 1) * t) for t in grid]


def euler(
    velocity: Velocity, x_BTC: Tensor, grid: list[float], callback: Callback | None = None
) -> Tensor:
    """Euler's method, x' = x + (t' - t) v(x, t): first order, one network call per step."""
    for step, (t, next_t) in enumerate(pairwise(grid)):
        x_BTC = x_BTC + (next_t - t) * velocity(x_BTC, t)
        if callback:
            callback(step, next_t, x_BTC)
    return x_BTC


def heun(
    velocity: Velocity, x_BTC: Tensor, grid: list[float], callback: Callback | None = None
) -> Tensor:
    """Heun's method: an Euler step, then the mean of the velocities at both of its ends.

    Second order, two network calls per step. The last step is Euler's, because the velocity at
    t = 0 is not trained.
    """
    for step, (t, next_t) in enumerate(pairwise(grid)):
        v = velocity(x_BTC, t)
        euler_BTC = x_BTC + (next_t - t) * v
        if next_t == 0:
            x_BTC = euler_BTC
        else:
            x_BTC = x_BTC + (next_t - t) * 0.5 * (v + velocity(euler_BTC, next_t))
        if callback:
            callback(step, next_t, x_BTC)
    return x_BTC


def ab2(
    velocity: Velocity, x_BTC: Tensor, grid: list[float], callback: Callback | None = None
) -> Tensor:
    """Two-step Adams-Bashforth: second order at one network call per step.

    With step sizes h = t' - t and h_0 of the step before, x' = x + h (v + h / (2 h_0) (v - v_0)):
    the velocity extrapolated to the middle of the step. The first step is Euler's.
    """
    previous_v: Tensor | None = None
    previous_h = 0.0
    for step, (t, next_t) in enumerate(pairwise(grid)):
        v = velocity(x_BTC, t)
        h = next_t - t
        slope = v if previous_v is None else v + (h / (2 * previous_h)) * (v - previous_v)
        x_BTC = x_BTC + h * slope
        previous_v = v
        previous_h = h
        if callback:
            callback(step, next_t, x_BTC)
    return x_BTC


SAMPLERS: dict[str, Callable[..., Tensor]] = {"euler": euler, "heun": heun, "ab2": ab2}


def velocity_calls(sampler: str, steps: int) -> int:
    """How often a sampler of `SAMPLERS` calls the velocity."""
    return 2 * steps - 1 if sampler == "heun" else steps


def classifier_free(
    conditional: Velocity, unconditional: Velocity, scale: float, interval: tuple[float, float]
) -> Velocity:
    """Classifier-free guidance within an interval of t: v_u + scale (v_c - v_u), v_c outside.

    A scale of 1 is off: the unconditional velocity is then not called. Sources: Ho and Salimans,
    2022 (arXiv 2207.12598); the interval: Kynkaanniemi et al., 2024 (arXiv 2404.07724).
    """
    low, high = interval

    def velocity(x_BTC: Tensor, t: float) -> Tensor:
        v = conditional(x_BTC, t)
        if scale == 1.0 or not low <= t <= high:
            return v
        unconditional_v = unconditional(x_BTC, t)
        return unconditional_v + scale * (v - unconditional_v)

    return velocity


def keep_band(velocity: Velocity, kept_BTC: Tensor, band_BC: Tensor) -> Velocity:
    """Velocity (x - kept) / t where `band_BC` is True, which arrives at `kept_BTC` at t = 0."""
    return _keep(velocity, kept_BTC, band_BC[:, None, :])


def keep_frames(velocity: Velocity, kept_BTC: Tensor, known_T: Tensor) -> Velocity:
    """`keep_band` for the frames in which `known_T` is True: inpainting of the others.

    From noise eps the known frames are (1 - t) kept + t eps at every t: what is known, noised to
    the level of what is generated. Source: RePaint (Lugmayr et al., 2022, arXiv 2201.09865), here
    without its resampling, and with one noise for all t, so that solvers of any order may be used.
    """
    return _keep(velocity, kept_BTC, known_T[None, :, None])


def _keep(velocity: Velocity, kept_BTC: Tensor, mask: Tensor) -> Velocity:
    def constrained(x_BTC: Tensor, t: float) -> Tensor:
        return torch.where(mask, (x_BTC - kept_BTC) / t, velocity(x_BTC, t))

    return constrained


def window_starts(frames: int, window: int, hop: int) -> list[int]:
    """First frames of the windows that cover `frames` frames; the last window ends at the end."""
    if frames <= window:
        return [0]
    return [*range(0, frames - window, hop), frames - window]


def windows(x_BTC: Tensor, starts: list[int], window: int) -> Tensor:
    """[B, T, C] -> [B * W, min(T, window), C], in the order of `windowed`: clip by clip."""
    pieces = [x_BTC[:, start : start + window] for start in starts]
    return torch.stack(pieces, dim=1).flatten(0, 1)


def windowed(
    velocity: WindowVelocity,
    frames: int,
    window: int,
    hop: int,
    group: int,
) -> Velocity:
    """One velocity over any length from overlapping windows.

    velocity: called as velocity(x [G, window, C], t, numbers) with at most `group` windows at once;
    windows are numbered clip by clip. All windows of a clip read its row of x [B, T, C], and their
    velocities are averaged with triangular weights, so that no seam arises. Source: MultiDiffusion
    (Bar-Tal et al., 2023, arXiv 2302.08113).
    """
    starts = window_starts(frames, window, hop)
    size = min(frames, window)
    rising = torch.arange(1, size + 1, dtype=torch.float32)
    triangle_T1 = torch.minimum(rising, rising.flip(0))[:, None]

    def whole(x_BTC: Tensor, t: float) -> Tensor:
        weight = triangle_T1.to(x_BTC)
        total = torch.zeros_like(x_BTC)
        norm = torch.zeros_like(x_BTC[..., :1])
        places = [(clip, start) for clip in range(len(x_BTC)) for start in starts]
        for first in range(0, len(places), group):
            numbers = slice(first, min(first + group, len(places)))
            chosen = places[numbers]
            x_GTC = torch.stack([x_BTC[clip, start : start + size] for clip, start in chosen])
            for (clip, start), v in zip(chosen, velocity(x_GTC, t, numbers), strict=True):
                total[clip, start : start + size] += weight * v
                norm[clip, start : start + size] += weight
        return total / norm

    return whole
