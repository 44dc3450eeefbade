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


def schedule_change(step: int, before: Train, now: Train) -> str:
    """What another `train.steps` does to the learning rate after `step`; "" if nothing."""
    old = learning_rate(step, before)
    new = learning_rate(step, now)
    if math.isclose(old, new, rel_tol=1e-6, abs_tol=1e-12):
        return ""
    way_out = 'to extend a run without that, train it with train.schedule = "constant" under --name'
    if now.schedule == "wsd":
        start = before.steps - before.steps // 5
        way_out = f"to continue before its decay, add --from-checkpoint with a step up to {start}"
    return (
        f"train.steps {before.steps} -> {now.steps} stretches the {now.schedule} schedule: "
        f"at step {step} the learning rate {'rises' if new > old else 'falls'} "
        f"from {old:.3g} to {new:.3g}; {way_out}"
    )


def total_time(options: Train) -> float:
    """Optimiser time of the whole budget: the sum of the learning rate over its maximum."""
    return math.fsum(learning_rate(step, options) for step in range(options.steps)) / options.lr
