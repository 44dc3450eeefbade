"""Gain matching, for systems that do not keep the level of their input."""

from __future__ import annotations

import torch
from torch import Tensor


def least_squares_gain(reference: Tensor, estimate: Tensor) -> Tensor:
    """The g that minimises sum (x - g y)^2, g = <x, y> / <y, y>; x reference, y estimate.

    [N] or [B, N] -> float64 [] or [B]. 1 for a silent estimate; 0 or negative if the two are
    unrelated or one is inverted. Content of the estimate that the reference lacks, or has at
    another phase, lowers g below the ratio of levels; match on the shared band if that matters.
    Raises ValueError: shapes differ, empty, not finite.
    """
    if reference.shape != estimate.shape or reference.ndim not in (1, 2) or reference.numel() == 0:
        raise ValueError(
            f"a gain needs two clips of one shape, got {reference.shape} and {estimate.shape}"
        )
    x = reference.double()
    y = estimate.double()
    energy = y.square().sum(-1)
    gain = (x * y).sum(-1) / energy.masked_fill(energy == 0, 1.0)
    if not bool(torch.isfinite(gain).all()):
        raise ValueError("the reference or the estimate contains NaN or infinite samples")
    return gain.masked_fill(energy == 0, 1.0)


def match_gain(reference: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    """(g * estimate in its dtype, g in float64), g the least-squares gain, one per clip.

    [N] or [B, N]. A matched score is blind to level: call it "gain matched" and print g. Peak
    normalisation is no substitute, because it follows a single sample.
    Raises ValueError as `least_squares_gain`, and if g is not positive: a score after flipping the
    sign or muting the clip would mean nothing.
    """
    gain = least_squares_gain(reference, estimate)
    if not bool((gain > 0).all()):
        raise ValueError(
            "the gain is not positive: the estimate is inverted or unrelated to the reference"
        )
    return (estimate.double() * gain[..., None]).to(estimate.dtype), gain
