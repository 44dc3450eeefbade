"""What the probes of a run show, in plain sentences. Reads rows only: no torch, no SciPy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from stagecli.errors import among
from stagecli.files import JsonRow, number
from stagecli.report.probe_rows import LevelProgress, is_old, progress_by_level
from stagecli.stage.base import LEAST_PROGRESS
from stagecli.stage.regime_alarm import NEEDED
from stagecli.stage.regime_progress import SPOKEN
from stagecli.stage.regime_variable import REFINEMENT

RECENT = 6  # probes over which optimiser time per step is taken
LEAST_GAIN = 5e-4  # of Dn; a smaller one to the end of the run is not worth a sentence
NEARLY_ALL = 0.95  # of the progress: from here on the rest is hardly worth its steps
LONG = 0.5  # a budget is too long if nearly all of the progress was made in this share of it
SHORT = 0.5  # ... too short if Dn still falls at this share of its average pace at its end
AT_END = 0.95  # of the steps from which a budget is judged too short
LATCHED = 0.05  # by which r exceeds the present estimate before that is explained
# Shares of the progress at a noise level in words, by their upper ends.
SHARES = (
    (0.07, "hardly anything"),
    (0.15, "a tenth"),
    (0.29, "a quarter"),
    (0.42, "a third"),
    (0.58, "half"),
    (0.71, "two thirds"),
    (0.85, "three quarters"),
    (math.inf, "nearly everything"),
)


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
    scale = f"(0: the codec's own error, 1: {reference})"
    distance = f"Dn, the distance to the targets, is {level_of(measured):.3f} {scale}"
    missing = len(rows) - len(measured)
    if is_old(rows[-1]):
        return [distance, *_old_rule(rows), *_warnings(rows, missing)]
    levels = progress_by_level(measured[-1])
    return [
        *_progress(levels, distance),
        *_still_to_come(levels),
        *_stage(rows),
        *_gain(measured, steps),
        *_budget(measured, levels, steps),
        *_warnings(rows, missing),
    ]


def horizon(seen: int) -> int:
    """How far a slope can be extended: the power of ten within a fifth of the steps seen."""
    return int(10 ** math.floor(math.log10(max(seen / 5, 1))))


def level_of(measured: Sequence[JsonRow]) -> float:
    """Dn of the last probes with a value, as their median."""
    return statistics.median(row["Dn"] for row in measured[-3:])


def share_of_progress(levels: Sequence[LevelProgress]) -> float:
    """Share of the progress within the budget that has been made, as r is computed."""
    made = math.fsum(level.made for level in levels)
    return made / (math.fsum(level.total for level in levels) + LEAST_PROGRESS)


def share_in_words(share: float) -> str:
    """`a quarter`, `half`, `nearly everything`."""
    return next(word for end, word in SHARES if share < end)


def _progress(levels: Sequence[LevelProgress], distance: str) -> list[str]:
    if not levels:
        return [f"{distance}; progress is measured from the {SPOKEN}th probe on"]
    if math.fsum(level.made for level in levels) < LEAST_PROGRESS:
        return [f"no semantic progress beyond the noise yet: {distance}"]
    percent = f"{100 * share_of_progress(levels):.0f} %"
    return [f"{percent} of the semantic progress that this budget allows has been made; {distance}"]


def _still_to_come(levels: Sequence[LevelProgress]) -> list[str]:
    """The noise level with the most progress to come, and how much that is."""
    candidates = [level for level in levels if level.total >= LEAST_PROGRESS]
    if not candidates:
        return []
    most = max(candidates, key=lambda level: level.to_come)
    share = most.to_come / most.total
    if share < SHARES[0][0]:
        return ["at every noise level hardly anything is still to come"]
    return [f"at t = {float(most.t):g} {share_in_words(share)} is still to come"]


def _stage(rows: Sequence[JsonRow]) -> list[str]:
    last = rows[-1]
    sentences = []
    r = number(last.get("r"))
    now = number(last.get("r_now"))
    refining = next((row for row in rows if row.get("stage") == "refinement"), None)
    if r is not None and refining is not None:
        sentences.append(
            f"refinement since step {refining['step']:,} (r, the share made, is {r:.2f})"
        )
    elif r is not None and last.get("stage") != "waiting":
        sentences.append(_not_refining(r))
    if r is not None and now is not None and r - now > LATCHED:
        sentences.append(
            f"r stays at {r:.2f}, which an earlier estimate reached: it never falls, although the"
            f" present estimate is {now:.2f}"
        )
    source = last.get("source", "measured")
    if source == "replay":
        sentences.append("r was replayed from another run: it was not measured here")
    elif source != "measured":
        sentences.append("r is a straight line over the steps: it was not measured here")
    return sentences


def _not_refining(r: float) -> str:
    if r < REFINEMENT:
        return (
            f"semantic acquisition: r, the share made, is {r:.2f}, and refinement starts at"
            f" {REFINEMENT}"
        )
    return (
        f"r, the share made, has reached {r:.2f}; refinement takes {NEEDED} probes in a row from"
        f" {REFINEMENT} on"
    )


@dataclass(frozen=True)
class Slope:
    """Fall of Dn per step at the last slope and learning rate, with a standard error."""

    fall: float
    error: float

    @classmethod
    def of(cls, measured: Sequence[JsonRow]) -> Slope | None:
        """None without a slope of this version's rule."""
        if not measured or is_old(measured[-1]):
            return None
        last = measured[-1]
        slope = number(last.get("slope"))
        error = number(last.get("slope_se"))
        pace = _pace(measured)
        if slope is None or error is None or pace is None:
            return None
        return cls(-slope * pace, error * pace)


def _pace(measured: Sequence[JsonRow]) -> float | None:
    """Optimiser time per step over the last probes: under a falling learning rate a step counts
    for less.
    """
    timed = [row for row in measured[-RECENT:] if number(row.get("tau")) is not None]
    if not timed or timed[-1]["step"] <= 0:
        return None
    first = timed[0]
    newest = timed[-1]
    if newest["step"] > first["step"]:
        return (newest["tau"] - first["tau"]) / (newest["step"] - first["step"])
    return newest["tau"] / newest["step"]


def _gain(measured: Sequence[JsonRow], steps: int | None) -> list[str]:
    """What more steps would buy at the present slope, or that it cannot be told from noise."""
    slope = Slope.of(measured)
    if slope is None:
        return []
    more = horizon(measured[-1]["step"])
    gain, least, most = (more * (slope.fall + width * slope.error) for width in (0, -2, 2))
    if least > 0:
        return [
            f"{more:,} more steps would buy about {gain:.2g} of Dn ({least:.2g} to {most:.2g}), at"
            " the present slope and learning rate"
        ]
    if most > 0:
        return [
            f"{more:,} more steps would buy at most {most:.2g} of Dn, if anything: the slope cannot"
            " be told apart from 0"
        ]
    return []


def _budget(
    measured: Sequence[JsonRow], levels: Sequence[LevelProgress], steps: int | None
) -> list[str]:
    """What the rest of the budget will bring, and whether it is too long or too short."""
    if not levels or not steps:
        return []
    last = measured[-1]
    to_come = math.fsum(level.to_come for level in levels) / len(levels)
    sentences = []
    if last["step"] < steps and to_come >= LEAST_GAIN:
        level = level_of(measured)
        sentences.append(
            f"Dn would go from {level:.3f} to about {max(0.0, level - to_come):.3f} by the end of"
            f" the budget, step {steps:,}"
        )
    return [*sentences, *_too_long(measured, levels, steps), *_too_short(measured, levels, steps)]


def _too_long(
    measured: Sequence[JsonRow], levels: Sequence[LevelProgress], steps: int
) -> list[str]:
    if share_of_progress(levels) < NEARLY_ALL:
        return []
    values = [row["Dn"] for row in measured]
    smooth = [statistics.median(values[max(0, i - 2) : i + 1]) for i in range(len(values))]
    limit = smooth[-1] + (1 - NEARLY_ALL) * (max(smooth) - smooth[-1])
    done = next(row["step"] for row, value in zip(measured, smooth, strict=True) if value <= limit)
    if done > LONG * steps:
        return []
    return [
        f"the budget is longer than needed: {100 * NEARLY_ALL:.0f} % of the progress was made by"
        f" step {done:,}, {100 * done / steps:.0f} % of the steps"
    ]


def _too_short(
    measured: Sequence[JsonRow], levels: Sequence[LevelProgress], steps: int
) -> list[str]:
    last = measured[-1]
    slope = number(last.get("slope"))
    error = number(last.get("slope_se"))
    tau = number(last.get("tau"))
    made = math.fsum(level.made for level in levels) / len(levels)
    if last["step"] < AT_END * steps or slope is None or error is None or not tau or made <= 0:
        return []
    pace = -slope * tau / made
    if slope + 2 * error >= 0 or pace < SHORT:
        return []
    return [
        f"the budget is too short: at its end Dn still falls at {100 * pace:.0f} % of its average"
        " pace, the decay of the learning rate aside, so a longer one would buy more"
    ]


def _old_rule(rows: Sequence[JsonRow]) -> list[str]:
    """r and stage of a run of an earlier version."""
    last = rows[-1]
    r = number(last.get("r"))
    sentences = []
    if r is not None:
        sentences.append(f"r = {r:.2f} was computed by the rule of an earlier version")
    lifted = next((row["step"] for row in rows if row.get("failsafe") is True), None)
    if lifted is not None:
        sentences.append(
            f"from step {lifted:,} on r followed the step count (the fail-safe of that version),"
            " not the measurement"
        )
    return sentences


def _warnings(rows: Sequence[JsonRow], missing: int) -> list[str]:
    sentences = []
    if rows[-1].get("frozen"):
        sentences.append(_frozen_sentence(rows))
    if missing:
        sentences.append(
            f"{among(missing, len(rows), 'probe')} gave no value; r did not move there"
        )
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
    text = f"{state} since step {since:,}: D is rising, so predictions move away from the targets"
    p = number(last.get("p_rise"))
    return text if p is None else f"{text} (p = {p:.1g})"
