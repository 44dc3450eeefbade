"""A run's numbers in plain sentences; every one is derived from a number, none is said by default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stagecli.files import JsonRow
from stagecli.report import evaluation as report_evaluation
from stagecli.report.curves import duration, level_change, number


def sentences(
    summary: JsonRow, speed: tuple[Sequence[int], Sequence[float]], rate: Sequence[float]
) -> list[str]:
    """What the numbers of `report.summary` say, most general first.

    speed: steps and samples per second; rate: learning rates.
    """
    s = summary
    regime = s["regime"]["reading"] if s["regime"] else []
    evaluation = report_evaluation.sentences(s["evaluation"], rate)
    return [
        *_say_state(s),
        *regime,
        *_say_loss(s),
        *evaluation,
        *_say_bins(s),
        *_say_speed(s, speed),
    ]


def _say_state(s: JsonRow) -> list[str]:
    step = s["step"]
    steps = s["steps"]
    seconds = s["time"]
    at = f"step {step:,}" + (f" of {steps:,} ({100 * step / steps:.0f} %)" if steps else "")
    out = []
    ago = seconds["last_row_s_ago"]
    if (
        s["status"] == "running"
        and ago is not None
        and ago > max(600, 100 * (s["speed"]["step_s"] or 0))
    ):
        out.append(
            f"marked running at {at}, but nothing was written for {duration(ago)}: it may have been killed"
        )
    elif s["status"] == "running":
        left = (
            f", about {duration(seconds['eta_s'])} left at the present pace"
            if seconds["eta_s"]
            else ""
        )
        out.append(f"running, {at}{left}")
    else:
        out.append(f"{s['status']} at {at}" + (f": {s['message']}" if s["message"] else ""))
    if s["superseded_rows"]:
        last = s["attempts"][-1] if s["attempts"] else {}
        out.append(
            f"{_rows(s['superseded_rows'])} trained again after a resume (attempt {last.get('attempt', '?')}"
            f" continued from step {last.get('from_step', '?')}); only the later ones are shown"
        )
    return out


def _rows(count: int) -> str:
    return f"{count:,} row" + ("" if count == 1 else "s")


def _moved(change: float) -> str:
    return (
        "did not move"
        if abs(change) < 5e-4
        else f"{'fell' if change < 0 else 'rose'} {_percent(change)}"
    )


def _percent(change: float) -> str:
    return f"{abs(100 * change):.1f} %" if abs(change) < 0.1 else f"{abs(100 * change):.0f} %"


def _say_loss(s: JsonRow) -> list[str]:
    out = []
    loss = s["loss"]
    valid = s["validation"]
    if loss["non_finite_rows"]:
        first = loss["non_finite_first"]
        out.append(
            f"training loss was not finite in {_rows(loss['non_finite_rows'])}, first at step {first:,}"
        )
    t = loss["trend"]
    if t and t["direction"] == "flat":
        out.append(
            f"training loss shows no trend beyond its noise since step {t['from_step']:,} (last third)"
        )
    elif t:
        verb = "fell" if t["change"] < 0 else "rose"
        out.append(
            f"training loss {verb} {_percent(t['change'])} since step {t['from_step']:,} (last third of the run)"
        )
    if not valid:
        return out
    q = valid["last_quarter"]
    if q:
        verb = "fell" if q["change"] < 0 else "rose"
        verb = "held within its noise, moving" if q["direction"] == "flat" else verb
        out.append(
            f"validation loss {verb} {_percent(q['change'])} over the last quarter of the run"
        )
    best = f"best validation loss {valid['best']:.4g} at step {valid['best_step']:,}"
    since = valid["steps_since_best"]
    if since:
        worse = valid["last"] / valid["best"] - 1 if valid["best"] else 0.0
        best += f"; not improved for {since:,} steps, now {_percent(worse)} above it"
    else:
        best += ", the newest measurement"
    return [*out, best]


def _say_bins(s: JsonRow) -> list[str]:
    bins = s["bins"]
    out = []
    if not bins or bins[0]["share"] is None:
        return []
    spans = [
        (j - i, -sum(b["share"] for b in bins[i:j]), i, j)
        for i in range(len(bins))
        for j in range(i + 1, len(bins) + 1)
    ]
    half = min((span for span in spans if -span[1] >= 0.5), default=None)
    if half and half[0] < len(bins):
        low = bins[half[2]]["t_low"]
        high = bins[half[3] - 1]["t_high"]
        out.append(f"{-100 * half[1]:.0f} % of the loss is at t in {low:.2f}-{high:.2f}")
    moved = []
    for b in bins:  # the second half of the run: the fall of the first steps says nothing about now
        known = [v for v in b["series"][len(b["series"]) // 2 :] if v is not None]
        quarter = len(known) // 4
        if quarter and sum(known[:quarter]) > 0:
            moved.append(
                (
                    sum(known[-quarter:]) / sum(known[:quarter]) - 1,
                    f"{b['t_low']:.2f}-{b['t_high']:.2f}",
                )
            )
    if len(moved) > 1:
        (low_change, low_t) = min(moved)
        (high_change, high_t) = max(moved)
        first = f"{_moved(low_change)} at t in {low_t}"
        second = f"{_moved(high_change)} at t in {high_t}"
        out.append(
            f"over the second half of the run, loss {first} (the best noise bin) and {second} (the worst)"
        )
    return out


def _say_speed(s: JsonRow, speed: tuple[Sequence[int], Sequence[float]]) -> list[str]:
    change = level_change(*speed)
    if change is None:
        return []
    near = [
        a.get("attempt")
        for a in s["attempts"][1:]
        if abs((a.get("from_step") or 0) - change["step"]) < 0.05 * max(s["step"], 1)
    ]
    verb = "fell" if change["after"] < change["before"] else "rose"
    why = f" (attempt {near[0]} began there)" if near else ""
    return [
        f"speed {verb} from {change['before']:.4g} to {change['after']:.4g} samples/s"
        f" around step {change['step']:,}{why}"
    ]


def best_text(best: Any) -> str:
    """Which checkpoint `--checkpoint best` is, and by what."""
    if not isinstance(best, dict) or number(best.get("step")) is None:
        return "-"
    value = number(best.get("value"))
    return f"step {best['step']:,}, {best.get('metric')}" + (
        "" if value is None else f" {value:.4g}"
    )
