"""Scores of the valid split during training: names of the rows, directions, the best. No torch.

Rows of metrics.jsonl are named `valid/loss` and `eval/NAME`, where NAME is in the registry of
metrics. For sr, `eval/NAME` is the mean over the cutoffs and `eval/NAME_HZ` the value at one.
"""

from __future__ import annotations

import difflib
import math
from typing import TYPE_CHECKING, Any

from stagecli.metrics.registry import METRICS, Metric

if TYPE_CHECKING:  # the schema needs pydantic, which `--help` must not import
    from stagecli.schema import Recipe

LOSS = "valid/loss"
PREFIX = "eval/"
T2A = ("kad", "fd_judge", "fd_log_mel")
MEANINGS = {
    "kad": "kernel audio distance (KAD) of samples to real clips, as the judge hears them",
    "fd_judge": "Fréchet distance (FD) of samples to real clips, as the judge hears them",
    "fd_log_mel": "Fréchet distance (FD) of samples to real clips, by their log-mel spectra",
    "log_mel": "distance of log-mel spectra to the target's",
    "si_sdr": "scale-invariant signal-to-distortion ratio (SI-SDR)",
}
BANDS = {"_hf": ", above the input's band", "_lf": ", within the input's band"}


def computed(recipe: Recipe) -> tuple[str, ...]:
    """Registry names of the metrics computed in training; LSD is that of `evaluate.preset`."""
    if recipe.task.kind == "t2a":
        return T2A
    distances = (
        m.name for m in METRICS.values() if m.family == "lsd" and m.preset == recipe.evaluate.preset
    )
    return (*distances, "log_mel", "si_sdr")


def at_cutoff(name: str, cutoff: float) -> str:
    """`lsd`, 4000 Hz -> `lsd_4000`."""
    return f"{name}_{cutoff:g}"


def meaning(row: str) -> str:
    """What a score computed in training measures, in a few words; "" for others."""
    match = described(row)
    if match is None:
        return ""
    metric = match[0]
    if metric.family == "lsd":
        band = next((text for end, text in BANDS.items() if metric.name.endswith(end)), "")
        return f"log-spectral distance (LSD) to the target{band}"
    return MEANINGS.get(metric.name, "")


def rows(recipe: Recipe) -> list[str]:
    """Names of all rows that an evaluation in training writes."""
    names = computed(recipe)
    cutoffs = recipe.evaluate.cutoffs if recipe.task.kind == "sr" else ()
    return [
        PREFIX + name
        for name in (*names, *(at_cutoff(name, hz) for hz in cutoffs for name in names))
    ]


def described(row: str) -> tuple[Metric, str] | None:
    """`eval/lsd_4000` -> (its entry in the registry, "4000").

    "" instead of a cutoff if there is none; None if the row is not a score.
    """
    if not row.startswith(PREFIX):
        return None
    name = row.removeprefix(PREFIX)
    if name in METRICS:
        return METRICS[name], ""
    head, _, hertz = name.rpartition("_")
    return (METRICS[head], hertz) if head in METRICS and hertz[:1].isdigit() else None


def higher_is_better(row: str) -> bool:
    """Whether higher values of a row are better; the loss and unknown rows are better lower."""
    match = described(row)
    return match is not None and match[0].better == "higher"


def refusal(recipe: Recipe) -> str | None:
    """Why `train.best` cannot choose a checkpoint of this recipe; None if it can."""
    row = recipe.train.best
    measured = rows(recipe)
    if row == LOSS:
        return None
    if row in measured:
        return (
            f"{row} is never measured: train.evaluate_every is 0"
            if not recipe.train.evaluate_every
            else None
        )
    match = described(row)
    task = recipe.task.kind
    if match is not None and match[0].task not in (task, "both"):
        return f"{row} is for {match[0].task}, and this recipe is for {task}"
    if match is not None:
        known = ", ".join([LOSS, *measured])
        return f"{row} is not computed in training with this recipe; there are {known}"
    near = difflib.get_close_matches(row, [LOSS, *measured], n=1, cutoff=0.4)
    return f"there is no metric {row!r}; " + (
        f"did you mean `{near[0]}`?" if near else f"such as {LOSS}, {measured[0]}"
    )


def best(before: dict[str, Any] | None, row: str, step: int, value: float) -> dict[str, Any] | None:
    """The best checkpoint, {"step", "metric", "value"}, after one at `step` with `value`.

    before: the best until then. Ties go to the newer checkpoint; a value that is not finite never
    wins; a best by another metric is discarded.
    """
    if not math.isfinite(value):
        return before
    sign = -1 if higher_is_better(row) else 1
    if before and before["metric"] == row and sign * value > sign * before["value"]:
        return before
    return {"step": step, "metric": row, "value": value}
