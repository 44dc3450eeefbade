"""What the probes of a run say, in plain sentences. Reads rows only (`slope.Regime.row`): no torch, no SciPy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from stagecli.files import JsonRow
from stagecli.report.curves import number
from stagecli.stage.regime_progress import LEAST_FALL, OFFSET
from stagecli.stage.regime_variable import REFINEMENT

EARLY = 0.25  # of the steps seen: a curve that had 90 % of its fall by then saturated early


def reading(
    probes: Sequence[JsonRow], *, steps: int | None = None, reference: str = "another clip"
) -> list[str]:
    """Sentences without full stop, most important first; each is said only if its numbers are there.

    probes: rows with "step" and what `Regime.row` gives, oldest first; steps: the budget, for what is left of it;
    reference: what Dn = 1 stands for.
    """
    rows = [row for row in probes if number(row.get("step")) is not None]
    good = [row for row in rows if number(row.get("Dn")) is not None]
    if not good:
        return (
            ["no probe has a number yet"]
            if not rows
            else [f"none of the {len(rows)} probes has a number"]
        )
    return [
        *_progress(good, reference),
        *_stage(rows),
        *_gain(good, steps),
        *_saturation(good),
        *_warnings(rows, len(rows) - len(good)),
    ]


def _progress(good: Sequence[JsonRow], reference: str) -> list[str]:
    last = good[-1]
    level = statistics.median(row["Dn"] for row in good[-3:])
    if last.get("clock_step") is None:
        against = f"{'no' if level >= 1 else 'hardly'} nearer to the target than {reference}"
        what = against if level >= 0.9 else "too few probes under it to count progress from"
        return [
            f"Dn is {level:.3f} (1: {reference}, 0: the codec's ceiling), {what}: the clock has not started"
        ]
    q = number(last.get("q"))
    error = number(last.get("q_se"))
    since = f"since step {last['clock_step']:,}"
    if q is None:
        return [f"Dn is {level:.3f}; progress is counted {since}, too few probes for a slope yet"]
    if error is not None and error > 0.5:  # two of them are more than the average itself
        return [
            f"how fast semantic progress is, against its average {since}, cannot be told yet; Dn is {level:.3f}"
        ]
    give = "" if error is None else f" (± {200 * error:.0f})"
    if error is not None and q + 2 * error < 0:
        return [f"semantic progress is negative: Dn, now {level:.3f}, moves away from the target"]
    return [
        f"semantic progress is at {100 * q:.0f} %{give} of its average {since}; Dn is {level:.3f}"
    ]


def _stage(rows: Sequence[JsonRow]) -> list[str]:
    r = rows[-1].get("r")
    source = rows[-1].get("source", "measured")
    out = []
    if number(r) is not None:
        begun = next((row for row in rows if row.get("stage") == "refinement"), None)
        if begun is not None:
            by = ", by the fail-safe and not by measurement" if begun.get("failsafe") else ""
            out.append(f"refinement since step {begun['step']:,} (r = {r:.2f}){by}")
        elif rows[-1].get("stage") == "waiting":
            out.append(f"r stays at {r:.2f} until the clock starts")
        else:
            out.append(f"semantic acquisition (r = {r:.2f}; refinement begins at {REFINEMENT})")
    if source != "measured":
        out.append(
            f"r is {'replayed from another run' if source == 'replay' else 'a straight line in the step'}: "
            "it was not measured here"
        )
    return out


def horizon(seen: int) -> int:
    """The power of ten that is at most a fifth of the steps seen: as far as a slope is worth extending."""
    return int(10 ** math.floor(math.log10(max(seen / 5, 1))))


def _gain(good: Sequence[JsonRow], steps: int | None) -> list[str]:
    """What more steps buy at the present slope, or that it cannot be told from noise."""
    last = good[-1]
    slope = number(last.get("slope"))
    error = number(last.get("slope_se"))
    if slope is None or error is None or len(good) < 2:
        return []
    before = good[
        max(0, len(good) - 6)
    ]  # tau per step, as lately: under a falling rate a step is worth less
    pace = (last["tau"] - before["tau"]) / (last["step"] - before["step"])
    level = statistics.median(max(row["Dn"], 0.0) for row in good[-5:]) + OFFSET

    def fall(beta: float, more: int) -> float:
        return level * -math.expm1(min(50.0, beta * pace * more))

    more = horizon(last["step"])
    out = []
    best = fall(slope - 2 * error, more)
    least = fall(slope + 2 * error, more)
    if least > 0:
        about = f"about {fall(slope, more):.2g} of Dn ({least:.2g} to {best:.2g})"
        out.append(f"at this slope {more:,} more steps buy {about}")
    elif best > 0:
        out.append(
            f"at this slope {more:,} more steps buy at most {best:.2g} of Dn, if anything: "
            "the slope cannot be told from 0"
        )
    left = (steps or 0) - last["step"]
    gain = fall(slope, left) if left > 0 else 0.0
    if least > 0 and gain >= 5e-4 and last.get("stage") == "refinement":
        until = f"by step {steps:,} Dn would go from {level - OFFSET:.3f} to about {level - OFFSET - gain:.3f}"
        out.append(f"{until} at this slope; the learning rate's course is taken as it is now")
    return out


def _saturation(good: Sequence[JsonRow]) -> list[str]:
    """Where most of the fall lies, if it lies early: usual for super-resolution, whose input has the meaning."""
    start = good[-1].get("clock_step")
    if start is None or len(good) < 20:
        return []
    logs = [math.log(max(row["Dn"], 0.0) + OFFSET) for row in good]
    smooth = [statistics.median(logs[max(0, i - 2) : i + 3]) for i in range(len(logs))]
    first = next((i for i, row in enumerate(good) if row["step"] >= start), 0)
    fall = smooth[first] - smooth[-1]
    if fall < 2 * LEAST_FALL:
        return (
            [f"Dn has hardly moved since step {start:,} ({100 * -math.expm1(-fall):.1f} %)"]
            if fall >= 0
            else []
        )
    done = (
        row["step"]
        for row, v in zip(good[first:], smooth[first:], strict=True)
        if smooth[first] - v >= 0.9 * fall
    )
    at = next(done)
    share = at / good[-1]["step"]
    if share > EARLY:
        return []
    of = f"{100 * share:.0f} % of the steps so far"
    return [
        f"D saturated early: 90 % of its fall since step {start:,} was done by step {at:,} ({of})"
    ]


def _warnings(rows: Sequence[JsonRow], missing: int) -> list[str]:
    last = rows[-1]
    out = []
    if last.get("frozen"):
        since = last["step"]
        for row in reversed(rows):
            if not row.get("frozen"):
                break
            since = row["step"]
        p = number(last.get("p_rise"))
        held = "r is frozen" if last.get("source", "measured") == "measured" else "alarm"
        out.append(
            f"{held} since step {since:,}: D is rising" + ("" if p is None else f" (p = {p:.1g})")
        )
    lifted = next((row["step"] for row in rows if row.get("failsafe")), None)
    if lifted is not None:
        out.append(
            f"from step {lifted:,} r was lifted by the fail-safe: it follows the step, not the measurement"
        )
    if missing:
        out.append(f"{missing} of {len(rows)} probes gave no number; r did not move there")
    return out
