"""The regime of a run as numbers and curves, from the rows of its probes. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from stagecli.files import JsonRow
from stagecli.report.curves import curve_summary, series
from stagecli.report.probe_rows import is_old, noise_levels
from stagecli.report.regime_sentences import Slope, horizon, regime_sentences

LARGEST_UNIT = 1000  # slopes are given per 1,000 steps, or per 100 or 10 in a short run
NEWEST_VALUES = ("D", "Dn", "d_ceiling", "d_ref")  # of the newest probe that has a value
NEWEST_STATE = ("tau", "tau_end", "slope", "slope_se", "r", "r_now", "p_rise")
NEWEST_FLAGS = ("frozen", "stage", "source", "monitor")
BY_LEVEL = {"D": "D", "Dn": "Dn", "G": "made", "R": "to_come", "r": "r"}  # column -> name


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
    "slope" is per unit of optimiser time. "by_t" holds D, Dn and the progress of the newest probe
    with a value, by noise level.
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
        t: {name: newest.get(f"{column}_t{t}") for column, name in BY_LEVEL.items()}
        for t in noise_levels(rows)
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
        "old_rule": is_old(last),
        "reading": regime_sentences(rows, steps=steps, reference=reference_name(task)),
        "rows": list(rows),
    }


def slope_unit(steps: int | None, seen: int) -> int:
    """Steps per which a slope is given: 1,000, less in a short run; steps: the budget, if known."""
    return max(1, min(LARGEST_UNIT, horizon(max(1, steps or seen))))


def dn_rate(rows: Sequence[JsonRow], unit: int) -> JsonRow | None:
    """Change of Dn in `unit` steps at the last probe's slope and learning rate; None without one.

    {"per_steps", "change", "error"}: error is two standard errors.
    """
    slope = Slope.of([row for row in rows if row.get("Dn") is not None])
    if slope is None:
        return None
    return {"per_steps": unit, "change": -unit * slope.fall, "error": 2 * unit * slope.error}


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
