"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from stagecli.schema import Train


def learning_rate(step: int, options: Train) -> float:
    """Learning rate of optimiser step `step`, counted from 0.

    A linear warm-up is followed by a cosine, a constant or WSD (warm-up, stable, decay), which
    falls linearly to `lr_end` over the last fifth of the steps.
    """
    if step < options.warmup_steps:
        return options.lr * (step + 1) / options.warmup_steps
    end = options.lr * options.lr_end
    if options.schedule == "cosine":
        share = (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
        return end + (options.lr - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    if options.schedule == "wsd":
        remaining = (options.steps - step) / max(1, options.steps // 5)
        return end + (options.lr - end) * min(1.0, remaining)
    return options.lr


def total_time(options: Train) -> float:
    """Optimiser time of the whole budget: the sum of the learning rate over its maximum."""
    return math.fsum(learning_rate(step, options) for step in range(options.steps)) / options.lr
