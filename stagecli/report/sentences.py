"""A run's numbers in plain sentences; each is derived from a number, none appears by default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stagecli.errors import counted
from stagecli.files import JsonRow, number
from stagecli.report.curves import level_change
from stagecli.report.evaluation import evaluation_sentences
from stagecli.report.formats import duration, percent, significant, step_of

SILENT_SECONDS = 600.0  # a running run that wrote nothing for so long may be dead ...
SILENT_STEPS = 100  # ... if that is also longer than so many steps take
UNMOVED = 5e-4  # a relative change below it counts as none


def run_sentences(
    summary: JsonRow, speed: tuple[Sequence[int], Sequence[float]], rates: Sequence[float]
) -> list[str]:
    """The document of `summary.summarize_run` in words, the most general first.

    speed: steps and samples per second; rates: learning rates.
    """
    return [
        *_state(summary),
        *(summary["regime"]["reading"] if summary["regime"] else []),
        *_training_loss(summary["loss"]),
        *_validation_loss(summary["validation"]),
        *evaluation_sentences(summary["evaluation"], rates),
        *_largest_share(summary["bins"]),
        *_best_and_worst_bin(summary["bins"]),
        *_speed(summary, speed),
    ]


def best_checkpoint_text(best: Any) -> str:
    """Which checkpoint `--checkpoint best` uses, and by which metric; `-` if there is none."""
    if not isinstance(best, dict) or number(best.get("step")) is None:
        return "-"
    text = f"step {best['step']:,}, {best.get('metric')}"
    value = number(best.get("value"))
    return text if value is None else f"{text} {significant(value)}"


def _state(summary: JsonRow) -> list[str]:
    step = summary["step"]
    steps = summary["steps"]
    progress = f"step {step_of(step, steps)}"
    if steps and step <= steps:
        progress += f" ({100 * step / steps:.0f} %)"
    sentences = []
    if summary["status"] == "running":
        sentences.append(_running(summary, progress))
    else:
        reason = f": {summary['message']}" if summary["message"] else ""
        sentences.append(f"{summary['status']} at {progress}{reason}")
    if summary["superseded_rows"]:
        last = summary["attempts"][-1] if summary["attempts"] else {}
        sentences.append(
            f"{counted(summary['superseded_rows'], 'row')} trained again after a resume"
            f" (attempt {last.get('attempt', '?')} continued from step"
            f" {last.get('from_step', '?')}); only the newer rows are shown"
        )
    return sentences


def _running(summary: JsonRow, progress: str) -> str:
    seconds = summary["time"]
    silence = seconds["last_row_s_ago"]
    patience = max(SILENT_SECONDS, SILENT_STEPS * (summary["speed"]["step_s"] or 0))
    if silence is not None and silence > patience:
        return (
            f"marked as running at {progress}, but nothing was written for {duration(silence)}:"
            " it may have been killed"
        )
    if seconds["eta_s"]:
        return f"running, {progress}, about {duration(seconds['eta_s'])} left at the current pace"
    return f"running, {progress}"


def _moved(change: float) -> str:
    if abs(change) < UNMOVED:
        return "did not change"
    return f"{'fell' if change < 0 else 'rose'} by {percent(change)}"


def _training_loss(loss: JsonRow) -> list[str]:
    sentences = []
    if loss["non_finite_rows"]:
        sentences.append(
            f"training loss was not finite in {counted(loss['non_finite_rows'], 'row')},"
            f" first at step {loss['non_finite_first']:,}"
        )
    trend = loss["trend"]
    if trend and trend["direction"] == "flat":
        sentences.append(
            f"training loss shows no trend beyond its noise since step {trend['from_step']:,}"
            " (the last third of the run)"
        )
    elif trend:
        sentences.append(
            f"training loss {_moved(trend['change'])} since step {trend['from_step']:,}"
            " (the last third of the run)"
        )
    return sentences


def _validation_loss(validation: JsonRow | None) -> list[str]:
    if not validation:
        return []
    sentences = []
    quarter = validation["last_quarter"]
    if quarter and quarter["direction"] == "flat":
        sentences.append(
            "validation loss moved within its noise over the last quarter of the run"
            f" (by {percent(quarter['change'])})"
        )
    elif quarter:
        sentences.append(
            f"validation loss {_moved(quarter['change'])} over the last quarter of the run"
        )
    best = validation["best"]
    text = f"best validation loss {significant(best)} at step {validation['best_step']:,}"
    if validation["steps_since_best"]:
        excess = validation["last"] / best - 1 if best else 0.0
        text += (
            f"; no improvement for {counted(validation['steps_since_best'], 'step')},"
            f" now {percent(excess)} above it"
        )
    else:
        text += ", the newest measurement"
    return [*sentences, text]


def _largest_share(bins: Sequence[JsonRow]) -> list[str]:
    """The narrowest range of noise levels that holds half of the loss."""
    if not bins or bins[0]["share"] is None:
        return []
    ranges = []
    for first in range(len(bins)):
        for end in range(first + 1, len(bins) + 1):
            share = sum(entry["share"] for entry in bins[first:end])
            if share >= 0.5:
                ranges.append((end - first, -share, first, end))
    if not ranges:
        return []
    width, negative_share, first, end = min(ranges)
    if width == len(bins):
        return []
    low = bins[first]["t_low"]
    high = bins[end - 1]["t_high"]
    share = f"{-100 * negative_share:.0f} %"
    return [f"{share} of the loss comes from noise levels t = {low:.2f} to {high:.2f}"]


def _best_and_worst_bin(bins: Sequence[JsonRow]) -> list[str]:
    """Which bins moved most over the second half: the fall of the first steps is not about now."""
    changes = []
    for entry in bins:
        half = entry["series"][len(entry["series"]) // 2 :]
        known = [value for value in half if value is not None]
        quarter = len(known) // 4
        if quarter and sum(known[:quarter]) > 0:
            change = sum(known[-quarter:]) / sum(known[:quarter]) - 1
            changes.append((change, f"{entry['t_low']:.2f}-{entry['t_high']:.2f}"))
    if len(changes) < 2:
        return []
    best_change, best_bin = min(changes)
    worst_change, worst_bin = max(changes)
    return [
        f"over the second half of the run the loss {_moved(best_change)} at t = {best_bin}"
        f" (the best noise bin) and {_moved(worst_change)} at t = {worst_bin} (the worst)"
    ]


def _speed(summary: JsonRow, speed: tuple[Sequence[int], Sequence[float]]) -> list[str]:
    change = level_change(*speed)
    if change is None:
        return []
    verb = "fell" if change["after"] < change["before"] else "rose"
    text = (
        f"speed {verb} from {significant(change['before'])} to {significant(change['after'])}"
        f" samples/s around step {change['step']:,}"
    )
    nearby = [
        entry.get("attempt")
        for entry in summary["attempts"][1:]
        if abs((entry.get("from_step") or 0) - change["step"]) < 0.05 * max(summary["step"], 1)
    ]
    return [f"{text} (attempt {nearby[0]} started there)" if nearby else text]
