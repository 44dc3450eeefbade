"""What the probes of a run amount to: rows of probes.jsonl -> the regime's numbers, curves and facts. No torch."""

from __future__ import annotations

import math
import re
import statistics
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from stagecli.files import JsonRow
from stagecli.report.curves import bar, duration, number, series, thin
from stagecli.report.reading import horizon, reading

LEVEL = re.compile(r"Dn?_t(\d+(?:\.\d+)?)")
NUMBERS = (
    "D",
    "Dn",
    "d_ceiling",
    "d_ref",
    "tau",
    "slope",
    "slope_se",
    "q",
    "q_se",
    "target",
    "r",
    "p_rise",
    "seconds",
    "seconds_total",
    "share",
)
TEXTS = ("stage", "source", "monitor")
FACTS = (
    "stage",
    "r",
    "target of r",
    "Dn",
    "D",
    "scale of D",
    "slope of Dn",
    "q",
    "clock",
    "source",
    "monitor",
    "probes",
    "probe time",
)
RECENT = 6  # probes over which optimiser time per step is taken
LARGEST_UNIT = (
    1000  # a slope is given per 1,000 steps, or per 100 or 10 in a run of under 5,000 or 500
)


# -- rows ------------------------------------------------------------------------------------------


def in_order(rows: Sequence[JsonRow], damage: list[str]) -> list[JsonRow]:
    """Probe rows with rising steps and numbers that are numbers.

    Where attempts overlap the later one counts. Within an attempt, rows that do not fit into the longest rising
    sequence of steps are left out, and said in `damage`.
    """
    attempts: dict[int, list[JsonRow]] = {}
    for row in rows:
        attempts.setdefault(row["attempt"], []).append(row)
    out: list[JsonRow] = []
    stray = 0
    for attempt in sorted(attempts):
        kept = _rising(attempts[attempt])
        stray += len(attempts[attempt]) - len(kept)
        while out and out[-1]["step"] >= kept[0]["step"]:
            out.pop()
        out += kept
    if stray:
        rows_ = "1 row" if stray == 1 else f"{stray} rows"
        damage.append(
            f"probes.jsonl: {rows_} out of order (the step goes backwards within an attempt); left out"
        )
    return [_clean(row) for row in out]


def _rising(rows: Sequence[JsonRow]) -> list[JsonRow]:
    """The longest subsequence of strictly rising steps."""
    tails: list[int] = []  # of the best sequence of each length: the smallest last step ...
    ends: list[int] = []  # ... and its row
    before: list[int | None] = []
    for i, row in enumerate(rows):
        k = bisect_left(tails, row["step"])
        before.append(ends[k - 1] if k else None)
        tails[k:] = [row["step"], *tails[k + 1 :]]
        ends[k:] = [i, *ends[k + 1 :]]
    out: list[JsonRow] = []
    at = ends[-1] if ends else None
    while at is not None:
        out.append(rows[at])
        at = before[at]
    return out[::-1]


def _clean(row: JsonRow) -> JsonRow:
    out = dict(row)
    for key in row:
        if key in NUMBERS or LEVEL.fullmatch(key):
            out[key] = number(row[key])
        elif key in TEXTS and not isinstance(row[key], str):
            del out[key]
    for key in ("frozen", "failsafe"):
        out[key] = row.get(key) is True
    clock = row.get("clock_step")
    out["clock_step"] = clock if type(clock) is int else None
    return out


def levels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The t of the probes as the rows spell them, lowest first."""
    found = {match[1] for row in rows for key in row if (match := LEVEL.fullmatch(key))}
    return sorted(found, key=float)


def unit(steps: int | None, seen: int) -> int:
    """Steps per which a slope is given: 1,000, or less in a short run; steps: the budget, if known."""
    return max(1, min(LARGEST_UNIT, horizon(max(1, steps or seen))))


def rate(rows: Sequence[Mapping[str, Any]], per: int) -> JsonRow | None:
    """Relative change of Dn (+ 0.01) in `per` steps at the slope of the last probe; None without a slope.

    {"per_steps", "change", "error"}: error is two standard errors, None if unknown. Optimiser time per step is
    that of the last probes: under a falling learning rate a step is worth less.
    """
    last = rows[-1] if rows else {}
    slope = number(last.get("slope"))
    error = number(last.get("slope_se"))
    known = [row for row in rows[-RECENT:] if number(row.get("tau")) is not None]
    if slope is None or not known or not known[-1]["step"]:
        return None
    first = known[0]
    newest = known[-1]
    if newest["step"] > first["step"]:
        pace = (newest["tau"] - first["tau"]) / (newest["step"] - first["step"])
    else:
        pace = newest["tau"] / newest["step"]

    def change(beta: float) -> float:
        return math.expm1(min(50.0, max(-50.0, beta * pace * per)))

    wide = None if error is None else abs(change(slope + 2 * error) - change(slope - 2 * error)) / 2
    return {"per_steps": per, "change": change(slope), "error": wide}


def rate_text(found: JsonRow | None) -> str:
    """`-2.1 % ± 0.4 per 1,000 steps`, `-` for None."""
    if found is None:
        return "-"
    change = 100 * found["change"]
    error = found["error"]
    give = "" if error is None else f" ± {100 * error:.2g}" if error < 1 else " ± over 100"
    return f"{change:+.2g} %{give} per {found['per_steps']:,} steps"


# -- summary ---------------------------------------------------------------------------------------


def summary(
    rows: Sequence[JsonRow],
    events: Sequence[JsonRow],
    *,
    steps: int | None,
    task: str | None = None,
    points: int = 60,
) -> JsonRow | None:
    """The regime of a run, ready for JSON; None without a probe.

    rows: from `in_order`; events: all of the run; steps: the budget; task: of the run; points: per curve in "series".
    "rows" carries every probe. "rate" is the slope as people read it (`rate`), "slope" per unit of optimiser time.
    """
    if not rows:
        return None
    last = rows[-1]
    good = [row for row in rows if row.get("Dn") is not None]
    newest = good[-1] if good else last
    gaps = [b["step"] - a["step"] for a, b in zip(rows, rows[1:], strict=False)]
    out: JsonRow = {
        "probes": len(rows),
        "without_number": len(rows) - len(good),
        "every": statistics.median(gaps) if gaps else None,
        "first_step": rows[0]["step"],
        "last_step": last["step"],
        "last_step_with_number": good[-1]["step"] if good else None,
        "D": newest.get("D"),
        "Dn": newest.get("Dn"),
        "by_t": {
            t: {"D": newest.get(f"D_t{t}"), "Dn": newest.get(f"Dn_t{t}")} for t in levels(rows)
        },
        "d_ceiling": newest.get("d_ceiling"),
        "d_ref": newest.get("d_ref"),
    }
    for key in ("tau", "slope", "slope_se", "q", "q_se", "target", "r", "p_rise"):
        out[key] = last.get(key)
    for key in ("frozen", "failsafe", "stage", "clock_step", "source", "monitor"):
        out[key] = last.get(key)
    spent = [row["seconds"] for row in rows if row.get("seconds") is not None]
    total = last.get("seconds_total")
    share = last.get("share")
    out |= {
        "rate": rate(rows, unit(steps, last["step"])),
        "seconds": (sum(spent) if spent else None) if total is None else total,
        "share": share,
        "stages": spans(rows),
        "events": [event for event in events if event.get("mechanism") == "regime"],
        "series": _curves(rows, points),
        "reading": _words(rows, steps, task),
        "rows": list(rows),
    }
    return out


def spans(rows: Sequence[Mapping[str, Any]]) -> list[JsonRow]:
    """The stages one after another: {"stage", "from_step", "to_step"}, by the probes."""
    out: list[JsonRow] = []
    for row in rows:
        if not out or out[-1]["stage"] != row.get("stage"):
            out.append(
                {"stage": row.get("stage"), "from_step": row["step"], "to_step": row["step"]}
            )
        out[-1]["to_step"] = row["step"]
    return out


def _curves(rows: Sequence[JsonRow], points: int) -> JsonRow:
    """name -> first, lowest, highest, last, and thinned "step" and "value"."""
    out: JsonRow = {}
    for key in ("Dn", *(f"Dn_t{t}" for t in levels(rows)), "D", "r"):
        steps, values = series(rows, key)
        if values:
            thinned = thin(steps, values, points)
            out[key] = {
                "first": values[0],
                "lowest": min(values),
                "highest": max(values),
                "last": values[-1],
            }
            out[key] |= {"step": [round(p[0]) for p in thinned], "value": [p[1] for p in thinned]}
    return out


def reference(task: Any) -> str:
    """What Dn = 1 stands for."""
    return {"t2a": "another clip", "sr": "the input"}.get(str(task), "the reference")


def _words(rows: Sequence[JsonRow], steps: int | None, task: Any) -> list[str]:
    """`stage.reading`, which asks for tau wherever there is a slope."""
    if any(row.get("tau") is None for row in rows if row.get("Dn") is not None):
        rows = [{**row, "slope": None} for row in rows]
    return reading(rows, steps=steps, reference=reference(task))


def note(asked: bool, status: str) -> str:
    """What to say of a run without a probe; asked: its recipe has a [stage.regime] table."""
    if not asked:
        return (
            "no regime: this run has no probes; a [stage.regime] table in the recipe turns them on"
        )
    if status in ("running", "created"):
        return "no probe yet: the first one comes with training"
    return "no regime: the recipe asks for it ([stage.regime]), but the run holds no probe"


def spell(text: str, plain: bool) -> str:
    """`text` in ASCII where plain."""
    return text.replace("±", "+-") if plain else text


def facts(regime: JsonRow | None, plain: bool = False) -> dict[str, str]:
    """The regime as (what, value), both to read; plain: ASCII only. Every key is there, `-` for what is not known."""
    if regime is None:
        return dict.fromkeys(FACTS, "-")
    g = regime
    since = g["stages"][-1]["from_step"]
    stage = (g["stage"] or "unknown") + (f" since step {since:,}" if len(g["stages"]) > 1 else "")
    flags = [
        text
        for key, text in (("frozen", "frozen: D is rising"), ("failsafe", "on the fail-safe"))
        if g[key]
    ]
    error = "" if g["q_se"] is None else f" ± {2 * g['q_se']:.2g}"
    scale = [
        f"{name} {g[key]:.3g}"
        for key, name in (("d_ceiling", "ceiling"), ("d_ref", "reference"))
        if g[key] is not None
    ]
    stale = ""
    if g["last_step_with_number"] is not None and g["last_step_with_number"] < g["last_step"]:
        stale = f" at step {g['last_step_with_number']:,}; later probes have no number"
    missing = f", {g['without_number']} without a number" if g["without_number"] else ""
    every = "" if g["every"] is None else f", every {g['every']:,.0f} steps"
    clock = "not started" if g["clock_step"] is None else f"started at step {g['clock_step']:,}"
    values = (
        ", ".join([stage, *flags]),
        "-" if g["r"] is None else f"{g['r']:.3f} {bar(g['r'], 12, plain)}",
        "-" if g["target"] is None else f"{g['target']:.2f}",
        _value(g["Dn"]) + stale,
        _value(g["D"]),
        ", ".join(scale) or "-",
        rate_text(g["rate"]),
        "-" if g["q"] is None else f"{g['q']:.2f}{error}",
        clock,
        g["source"] or "-",
        g["monitor"] or "-",
        f"{g['probes']:,}{every}{missing}",
        cost(g["seconds"], g["share"]),
    )
    return dict(zip(FACTS, values, strict=True))


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def cost(seconds: float | None, share: float | None) -> str:
    """`3m 10s, 2.1 % of training`."""
    part = "" if share is None else f", {100 * share:.2g} % of training"
    return duration(seconds) + part


# -- events ----------------------------------------------------------------------------------------


def timeline(events: Sequence[JsonRow]) -> list[JsonRow]:
    """Events as {"step", "change", "reason", "evidence"} to read; repeats that change no stage are one entry."""
    out: list[JsonRow] = []
    last: tuple[Any, Any] | None = None
    for event in events:
        before = event.get("from")
        after = event.get("to")
        same = before == after
        if same and out and last == (before, after):
            out[-1]["times"] += 1
            out[-1]["to_step"] = event["step"]
            continue
        last = (before, after)
        change = f"{after or '-'} stays" if same else f"{before or '-'} -> {after or '-'}"
        out.append(
            {
                "step": event["step"],
                "to_step": event["step"],
                "times": 1,
                "change": change,
                "reason": str(event.get("reason") or ""),
                "evidence": evidence(event.get("evidence")),
            }
        )
    for entry in out:
        if entry["times"] > 1:
            entry["change"] += f" ({entry['times']} times, the last at step {entry['to_step']:,})"
    return out


def evidence(found: Any) -> str:
    """The numbers behind an event: `Dn 0.412, q 0.08 ± 0.03`; what is null, false or text is left out."""
    if not isinstance(found, Mapping):
        return ""
    parts = []
    for key, value in found.items():
        v = number(value)
        if v is None or str(key).endswith("_se"):
            continue
        error = number(found.get(f"{key}_se"))
        shown = (
            f"{value:,}" if type(value) is int else f"{v:,.0f}" if abs(v) >= 1000 else f"{v:.3g}"
        )
        parts.append(f"{key} {shown}" + ("" if error is None else f" ± {2 * error:.2g}"))
    return ", ".join(parts)
