"""Densities of t that follow a measurement by noise level, each above a floor of uniform t.

Every function returns None where the measurement prefers no noise level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from stagecli.stage.base import LEAST_PROGRESS, NoiseLevel
from stagecli.stage.densities import PiecewiseLinear, TimeDensity, Uniform

GRID = tuple(np.linspace(0, 1, 65).tolist())  # nodes of a density that is curved in t


@lru_cache(maxsize=4)
def by_progress(levels: tuple[NoiseLevel, ...], missing: float, floor: float) -> TimeDensity | None:
    """(1 - missing) of a density proportional to the progress that a level has within the budget,
    made and to come, and `missing` of one proportional to Dn^2, which alone counts until progress
    is measured.

    Linear in t between the levels, 0 at t = 0, constant beyond the last level.
    """
    lacks = _density([min(1.0, max(0.0, level.Dn)) ** 2 for level in levels], levels)
    scopes = _density([level.scope for level in levels], levels)
    if not is_measured(levels) or scopes is None:
        return None if lacks is None else _above_floor(*lacks, floor)
    if lacks is None:
        return _above_floor(*scopes, floor)
    nodes, values = scopes
    pairs = zip(values, lacks[1], strict=True)
    mixed = tuple((1 - missing) * scope + missing * lack for scope, lack in pairs)
    return _above_floor(nodes, mixed, floor)


def is_measured(levels: Sequence[NoiseLevel]) -> bool:
    """Whether the levels have progress beyond the noise."""
    return math.fsum(level.scope for level in levels) >= LEAST_PROGRESS


def _density(
    heights: Sequence[float], levels: Sequence[NoiseLevel]
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(nodes, values) of area 1 through heights at the noise levels; None where all are 0."""
    nodes = (0.0, *(level.t for level in levels), 1.0)
    values = (0.0, *heights, heights[-1])
    area = _area(nodes, values)
    return (nodes, tuple(value / area for value in values)) if area > 0 else None


@lru_cache(maxsize=4)
def by_discrepancy(
    levels: tuple[NoiseLevel, ...], power: float, floor: float
) -> TimeDensity | None:
    """Proportional to t (1 - t) Dn^power, Dn linear in t and constant beyond the levels."""
    Dn = np.interp(GRID, [level.t for level in levels], [max(0.0, level.Dn) for level in levels])
    return _hump(Dn**power, floor)


def by_loss(t: Sequence[float], losses: Sequence[float], floor: float) -> TimeDensity | None:
    """Proportional to t (1 - t) L, L the velocity loss at t, linear between and constant beyond.

    InfoNoise (arXiv 2602.18647) asks for a density of ln sigma proportional to mmse / sigma^2,
    sigma = t / (1 - t), times a gate at low noise, if every error of x0 weighs the same. The
    velocity loss weighs it by 1 / t^2, so that density over weight, as a density of t, is this. The
    factor t (1 - t) and the floor do the gate's work.
    """
    return _hump(np.interp(GRID, t, losses), floor)


def _hump(factors: np.ndarray, floor: float) -> TimeDensity | None:
    """t (1 - t) times factors, which are given on the grid."""
    values = tuple(x * (1 - x) * y for x, y in zip(GRID, factors.tolist(), strict=True))
    return _above_floor(GRID, values, floor) if any(values) else None


def _above_floor(nodes: tuple[float, ...], values: tuple[float, ...], floor: float) -> TimeDensity:
    """(1 - floor) of the density through the values plus `floor` of the uniform one."""
    if floor >= 1:
        return Uniform()
    area = _area(nodes, values)
    return PiecewiseLinear(nodes, tuple((1 - floor) * value / area + floor for value in values))


def _area(nodes: Sequence[float], values: Sequence[float]) -> float:
    pairs = list(zip(nodes, values, strict=True))
    return math.fsum(
        (y1 + y0) / 2 * (x1 - x0) for (x0, y0), (x1, y1) in zip(pairs, pairs[1:], strict=False)
    )
