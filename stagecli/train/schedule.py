"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from stagecli.schema import Train


def learning_rate(step: int, train: Train) -> float:
    """Rate of optimiser step `step` (from 0): linear warm-up, then cosine, constant or WSD.

    WSD (warm-up, stable, decay) falls linearly to `lr_end` over the last fifth of the steps.
    """
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    end = train.lr * train.lr_end
    if train.schedule == "cosine":
        share = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
        return end + (train.lr - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    if train.schedule == "wsd":
        left = (train.steps - step) / max(1, train.steps // 5)
        return end + (train.lr - end) * min(1.0, left)
    return train.lr
