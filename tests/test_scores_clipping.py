"""Flat tops are clipping where there are enough of them, and steeper than the quantisation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stagecli.metrics.checks import clip_statistics
from stagecli.metrics.lsd_presets import LSD_PRESETS

RATE = 16000


def noise(seed: int = 0, level: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return level * torch.randn(RATE, generator=generator, dtype=torch.float64)


def tone(hertz: float, level: float) -> Tensor:
    return level * torch.sin(2 * math.pi * hertz / RATE * torch.arange(RATE, dtype=torch.float64))


def test_one_run_of_equal_samples_at_a_low_peak_is_not_clipping() -> None:
    audio = noise(level=0.02).clamp(-0.1, 0.1)
    audio[5000:5003] = 0.16
    assert clip_statistics(audio).clipped == 0
    audio[5000:5003] = 1.0
    assert clip_statistics(audio).clipped == 3, "at full scale it is"


@pytest.mark.parametrize("steps", [20, 33, 200])
@pytest.mark.parametrize("hertz", [100.0, 440.0, 900.0, 1500.0])
def test_rounded_tops_of_a_coarse_quantisation_are_not_clipping(steps: int, hertz: float) -> None:
    wave = (tone(hertz, 1.0) * steps).round() / steps
    assert clip_statistics(0.16 * wave).clipped == 0


def test_clipping_that_was_turned_down_is_still_doubted() -> None:
    facts = clip_statistics(0.16 * (4 * tone(440, 0.5)).clamp(-1, 1))
    assert facts.clipped > 100
    assert "flat tops at 0.16" in facts.warnings()[0] and "perhaps clipped" in facts.warnings()[0]


def test_a_preset_prints_its_own_floor() -> None:
    preset = LSD_PRESETS["ssr_eval"]
    assert "12 where X is 0" in preset.convention
    assert "8 where X is 0" in replace(preset, floor=1e-8).convention
