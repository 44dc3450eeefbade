"""The regime of a run as numbers and curves, from the rows of its probes. No torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from stagecli.files import JsonRow, number
from stagecli.report.curves import curve_summary, series
from stagecli.report.probe_rows import noise_levels
from stagecli.report.regime_sentences import horizon, regime_sentences

RECENT = 6  # probes over which optimiser time per step is taken
LARGEST_UNIT = 1000  # slopes are given per 1,000 steps, or per 100 or 10 in a short run
NEWEST_VALUES = ("D", "Dn", "d_ceiling", "d_ref")  # of the newest probe that has a value
NEWEST_STATE = ("tau", "slope", "slope_se", "q", "q_se", "target", "r", "p_rise")
NEWEST_FLAGS = ("frozen", "failsafe", "stage", "clock_step", "source", "monitor")


def summarize_regime(
    rows: Sequence[JsonRow],
    events: Sequence[JsonRow],
    *,
    steps: int | None,
    task: str | None = None,
    points: int = 60,
) -> JsonRow | None:
    """The regime of a run, ready for JSON; None without a probe.

    rows: from `probe_rows.in_order`; events: all of the run; steps: the budget; points: per curve
    in "series". "rows" carries every probe. "rate" is the slope as people read it (`dn_rate`),
    "slope" is per unit of optimiser time.
    """
    if not rows:
        return None
    last = rows[-1]
    measured = [row for row in rows if row.get("Dn") is not None]
    newest = measured[-1] if measured else last
    gaps = [b["step"] - a["step"] for a, b in zip(rows, rows[1:], strict=False)]

    # What the probes measured.
    document: JsonRow = {
        "probes": len(rows),
        "without_number": len(rows) - len(measured),
        "every": statistics.median(gaps) if gaps else None,
        "first_step": rows[0]["step"],
        "last_step": last["step"],
        "last_step_with_number": measured[-1]["step"] if measured else None,
        "reference": reference_name(task),
    }
    document |= {key: newest.get(key) for key in NEWEST_VALUES}
    document["by_t"] = {
        t: {"D": newest.get(f"D_t{t}"), "Dn": newest.get(f"Dn_t{t}")} for t in noise_levels(rows)
    }

    # What the regime made of it, and what the probes cost.
    document |= {key: last.get(key) for key in (*NEWEST_STATE, *NEWEST_FLAGS)}
    return document | {
        "rate": dn_rate(rows, slope_unit(steps, last["step"])),
        "seconds": _seconds(rows),
        "share": last.get("share"),
        "stages": stage_spans(rows),
        "events": [event for event in events if event.get("mechanism") == "regime"],
        "series": _curves(rows, points),
        "reading": _sentences(rows, steps, task),
        "rows": list(rows),
    }


def slope_unit(steps: int | None, seen: int) -> int:
    """Steps per which a slope is given: 1,000, less in a short run; steps: the budget, if known."""
    return max(1, min(LARGEST_UNIT, horizon(max(1, steps or seen))))


def dn_rate(rows: Sequence[Mapping[str, Any]], unit: int) -> JsonRow | None:
    """Relative change of Dn (+ 0.01) in `unit` steps at the last probe's slope; None without one.

    {"per_steps", "change", "error"}: error is two standard errors, None if unknown. Optimiser time
    per step is that of the last probes: under a falling learning rate a step counts for less.
    """
    last = rows[-1] if rows else {}
    slope = number(last.get("slope"))
    error = number(last.get("slope_se"))
    timed = [row for row in rows[-RECENT:] if number(row.get("tau")) is not None]
    if slope is None or not timed or not timed[-1]["step"]:
        return None
    first = timed[0]
    newest = timed[-1]
    if newest["step"] > first["step"]:
        pace = (newest["tau"] - first["tau"]) / (newest["step"] - first["step"])
    else:
        pace = newest["tau"] / newest["step"]

    def change(beta: float) -> float:
        return math.expm1(min(50.0, max(-50.0, beta * pace * unit)))

    width = None
    if error is not None:
        width = abs(change(slope + 2 * error) - change(slope - 2 * error)) / 2
    return {"per_steps": unit, "change": change(slope), "error": width}


def stage_spans(rows: Sequence[Mapping[str, Any]]) -> list[JsonRow]:
    """The stages one after another, by the probes: {"stage", "from_step", "to_step"}."""
    spans: list[JsonRow] = []
    for row in rows:
        if not spans or spans[-1]["stage"] != row.get("stage"):
            span = {"stage": row.get("stage"), "from_step": row["step"], "to_step": row["step"]}
            spans.append(span)
        spans[-1]["to_step"] = row["step"]
    return spans


def reference_name(task: Any) -> str:
    """What Dn = 1 stands for."""
    return {"t2a": "another clip", "sr": "the input"}.get(str(task), "the reference")


def absence_note(wanted: bool, status: str) -> str:
    """Why a run has no probe; wanted: its recipe has a [stage.regime] section."""
    if not wanted:
        return (
            "no regime: this run has no probes; a [stage.regime] section in the recipe enables them"
        )
    if status in ("running", "created"):
        return "no regime yet: the first probe comes during training"
    return "no regime: the recipe has a [stage.regime] section, but the run contains no probe"


def _seconds(rows: Sequence[JsonRow]) -> float | None:
    total: float | None = rows[-1].get("seconds_total")
    if total is not None:
        return total
    known = [row["seconds"] for row in rows if row.get("seconds") is not None]
    return sum(known) if known else None


def _curves(rows: Sequence[JsonRow], points: int) -> JsonRow:
    curves: JsonRow = {}
    for key in ("Dn", *(f"Dn_t{t}" for t in noise_levels(rows)), "D", "r"):
        steps, values = series(rows, key)
        if values:
            curves[key] = curve_summary(steps, values, points)
    return curves


def _sentences(rows: Sequence[JsonRow], steps: int | None, task: Any) -> list[str]:
    """`regime_sentences`, which needs tau wherever there is a slope."""
    if any(row.get("tau") is None for row in rows if row.get("Dn") is not None):
        rows = [{**row, "slope": None} for row in rows]
    return regime_sentences(rows, steps=steps, reference=reference_name(task))
