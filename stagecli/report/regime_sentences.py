"""What the probes of a run show, in plain sentences. Reads rows only: no torch, no SciPy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from stagecli.files import JsonRow, number
from stagecli.stage.regime_progress import LEAST_FALL, OFFSET
from stagecli.stage.regime_variable import REFINEMENT

EARLY = 0.25  # of the steps seen: a curve that did 90 % of its fall by then saturated early
NEAR_REFERENCE = 0.9  # Dn from here on is hardly closer than the reference
UNCERTAIN = 0.5  # with a larger standard error, q may be anything up to the average itself
LEAST_GAIN = 5e-4  # of Dn; a smaller one to the end of the run is not worth a sentence
SATURATION_PROBES = 20  # before an early saturation is reported


def regime_sentences(
    probes: Sequence[JsonRow], *, steps: int | None = None, reference: str = "another clip"
) -> list[str]:
    """Sentences without a full stop, the most important first, each only if its numbers are there.

    probes: rows with "step" and what `Regime.row` gives, oldest first; steps: the budget;
    reference: what Dn = 1 stands for.
    """
    rows = [row for row in probes if number(row.get("step")) is not None]
    measured = [row for row in rows if number(row.get("Dn")) is not None]
    if not rows:
        return ["no probe has given a value yet"]
    if not measured:
        which = "the only probe" if len(rows) == 1 else f"all {len(rows):,} probes"
        return [f"{which} gave no value"]
    return [
        _progress(measured, reference),
        *_stage(rows),
        *_gain(measured, steps),
        *_saturation(measured),
        *_warnings(rows, len(rows) - len(measured)),
    ]


def horizon(seen: int) -> int:
    """How far a slope can be extended: the power of ten within a fifth of the steps seen."""
    return int(10 ** math.floor(math.log10(max(seen / 5, 1))))


def _progress(measured: Sequence[JsonRow], reference: str) -> str:
    last = measured[-1]
    level = statistics.median(row["Dn"] for row in measured[-3:])
    distance = f"Dn is {level:.3f} (0: the codec's own error, 1: {reference})"
    if last.get("clock_step") is None:
        if level >= 1:
            reason = f"no closer to the target than {reference}"
        elif level >= NEAR_REFERENCE:
            reason = f"hardly closer to the target than {reference}"
        else:
            reason = "low enough, but not yet for enough probes in a row"
        return f"{distance}, {reason}: the clock has not started, so progress is not measured yet"

    q = number(last.get("q"))
    error = number(last.get("q_se"))
    since = f"since step {last['clock_step']:,}"
    if q is None:
        return f"{distance}; progress is measured {since}, with too few probes yet for a slope"
    if error is not None and error > UNCERTAIN:
        return (
            f"{distance}; whether semantic progress is faster or slower than its average {since}"
            " is still too uncertain"
        )
    if error is not None and q + 2 * error < 0:
        return f"semantic progress is negative: predictions move away from the target; {distance}"
    interval = "" if error is None else f" (± {200 * error:.0f})"
    return f"semantic progress is at {100 * q:.0f} %{interval} of its average {since}; {distance}"


def _stage(rows: Sequence[JsonRow]) -> list[str]:
    last = rows[-1]
    sentences = []
    if number(last.get("r")) is not None:
        sentences.append(_stage_sentence(rows))
    source = last.get("source", "measured")
    if source == "replay":
        sentences.append("r was replayed from another run: it was not measured here")
    elif source != "measured":
        sentences.append("r is a straight line over the steps: it was not measured here")
    return sentences


def _stage_sentence(rows: Sequence[JsonRow]) -> str:
    last = rows[-1]
    r = last["r"]
    refining = next((row for row in rows if row.get("stage") == "refinement"), None)
    if refining is not None:
        text = f"refinement since step {refining['step']:,} (r = {r:.2f})"
        return (
            f"{text}, set by the fail-safe and not by measurement"
            if refining.get("failsafe")
            else text
        )
    if last.get("stage") == "waiting":
        if last.get("failsafe"):
            return f"r = {r:.2f} is set by the fail-safe although the clock has not started"
        return f"r stays at {r:.2f} until the clock starts"
    if r >= REFINEMENT:
        return (
            f"r = {r:.2f} has reached the threshold of refinement ({REFINEMENT}), but not yet for"
            " enough probes in a row: the stage is still semantic acquisition"
        )
    return f"semantic acquisition (r = {r:.2f}; refinement starts at {REFINEMENT})"


def _gain(measured: Sequence[JsonRow], steps: int | None) -> list[str]:
    """What more steps buy at the present slope, or that it cannot be told from noise."""
    last = measured[-1]
    slope = number(last.get("slope"))
    error = number(last.get("slope_se"))
    if slope is None or error is None or len(measured) < 2:
        return []

    # Optimiser time per step over the last probes: under a falling rate a step counts for less.
    before = measured[max(0, len(measured) - 6)]
    pace = (last["tau"] - before["tau"]) / (last["step"] - before["step"])
    level = statistics.median(max(row["Dn"], 0.0) for row in measured[-5:]) + OFFSET

    def fall(beta: float, more: int) -> float:
        return level * -math.expm1(min(50.0, beta * pace * more))

    # Over the next steps, with the range that two standard errors leave.
    more = horizon(last["step"])
    most = fall(slope - 2 * error, more)
    least = fall(slope + 2 * error, more)
    sentences = []
    if least > 0:
        sentences.append(
            f"at this slope {more:,} more steps buy about {fall(slope, more):.2g} of Dn"
            f" ({least:.2g} to {most:.2g})"
        )
    elif most > 0:
        sentences.append(
            f"at this slope {more:,} more steps buy at most {most:.2g} of Dn, if anything:"
            " the slope cannot be told apart from 0"
        )

    # To the end of the budget, where the slope is no transient.
    left = (steps or 0) - last["step"]
    gain = fall(slope, left) if left > 0 else 0.0
    if least > 0 and gain >= LEAST_GAIN and last.get("stage") == "refinement":
        sentences.append(
            f"at this slope Dn would go from {level - OFFSET:.3f} to about"
            f" {level - OFFSET - gain:.3f} by step {steps:,}, with the learning rate as it is now"
        )
    return sentences


def _saturation(measured: Sequence[JsonRow]) -> list[str]:
    """Whether most of the fall was early, as usual in sr: the input has the meaning already."""
    start = measured[-1].get("clock_step")
    if start is None or len(measured) < SATURATION_PROBES:
        return []
    logs = [math.log(max(row["Dn"], 0.0) + OFFSET) for row in measured]
    smooth = [statistics.median(logs[max(0, i - 2) : i + 3]) for i in range(len(logs))]
    first = next((i for i, row in enumerate(measured) if row["step"] >= start), 0)
    fall = smooth[first] - smooth[-1]
    if fall < 0:
        return []
    if fall < 2 * LEAST_FALL:
        return [f"Dn has hardly moved since step {start:,} ({100 * -math.expm1(-fall):.1f} %)"]
    done = next(
        row["step"]
        for row, value in zip(measured[first:], smooth[first:], strict=True)
        if smooth[first] - value >= 0.9 * fall
    )
    share = done / measured[-1]["step"]
    if share > EARLY:
        return []
    return [
        f"D saturated early: 90 % of its fall since step {start:,} was done by step {done:,}"
        f" ({100 * share:.0f} % of the steps so far)"
    ]


def _warnings(rows: Sequence[JsonRow], missing: int) -> list[str]:
    sentences = []
    if rows[-1].get("frozen"):
        sentences.append(_frozen_sentence(rows))
    lifted = next((row["step"] for row in rows if row.get("failsafe")), None)
    if lifted is not None:
        sentences.append(
            f"from step {lifted:,} on r was lifted by the fail-safe: it follows the step count,"
            " not the measurement"
        )
    if missing:
        sentences.append(f"{missing} of {len(rows)} probes gave no value; r did not move there")
    return sentences


def _frozen_sentence(rows: Sequence[JsonRow]) -> str:
    last = rows[-1]
    since = last["step"]
    for row in reversed(rows):
        if not row.get("frozen"):
            break
        since = row["step"]
    measured = last.get("source", "measured") == "measured"
    state = "r has been frozen" if measured else "there has been an alarm"
    text = f"{state} since step {since:,}: D is rising"
    p = number(last.get("p_rise"))
    return text if p is None else f"{text} (p = {p:.1g})"
