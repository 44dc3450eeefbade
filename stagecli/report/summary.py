"""A run's rows as numbers, curves and sentences: everything `inspect-regime` says, ready for JSON. No torch."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from stagecli.files import JsonRow
from stagecli.report import RunReport, attempts
from stagecli.report import evaluation as report_evaluation
from stagecli.report import mechanisms as report_mechanisms
from stagecli.report import regime as report_regime
from stagecli.report.curves import number, series, thin, trend
from stagecli.report.words import sentences

__all__ = ["bin_rows", "summary"]

SERIES_POINTS = 60  # points per curve in a summary: enough for a sparkline, small enough for JSON

Columns = Callable[[str], tuple[list[int], list[float]]]  # a metric's name -> its steps and values


def summary(report: RunReport, *, now: float | None = None) -> JsonRow:
    """Everything `inspect-regime` says about a run, ready for JSON; unknown values are None.

    now: unix time to judge a running run by (default: the clock).
    """
    now = time.time() if now is None else now
    info = report.info
    rows = report.metrics
    columns = cache(lambda key: series(rows, key))
    step = max((row["step"] for row in rows), default=None)
    if step is None:
        step = max((c["step"] for c in report.checkpoints if c["step"] is not None), default=0)
    steps = info.get("steps") if type(info.get("steps")) is int else None
    last_row = max(report.last_seen.values(), default=None)
    out: JsonRow = {
        "path": str(report.path),
        "name": report.name,
        "id": info.get("id"),
        "task": info.get("task"),
        "status": info.get("status") or "unknown",
        "message": info.get("message"),
        "step": step,
        "steps": steps,
        "parameters": info.get("parameters"),
        "created": info.get("created"),
        "version": info.get("version"),
        "signature": info.get("signature"),
        "best_checkpoint": info.get("best"),
        "loss": _loss(rows, columns),
        "validation": _validation(rows, columns),
        "bins": _bins(report.bins),
        "speed": _speed(rows, columns),
        "learning_rate": next(iter(columns("optim/lr")[1][-1:]), None),
        "time": {
            "spent_s": _spent(report),
            "last_row_s_ago": None if last_row is None else now - last_row,
        },
        "evaluation": report_evaluation.summary(rows, columns, report.chosen_by),
        "series": _curves(
            columns, [*report_evaluation.names(rows), *report_mechanisms.names(rows)]
        ),
        "superseded_rows": report.superseded,
        "events": report.events,
        "attempts": attempts(info),
        "checkpoints": report.checkpoints,
        "samples": report.samples,
        "evals": report.evals,
        "damage": report.damage,
    }
    out["regime"] = report_regime.summary(
        report.probes,
        report.events,
        steps=steps,
        task=report.info.get("task"),
        points=SERIES_POINTS,
    )
    out["regime_note"] = (
        None if report.probes else report_regime.note(report.wants_probes, out["status"])
    )
    out["time"]["eta_s"] = _eta(rows, step, steps) if out["status"] == "running" else None
    shown = report_mechanisms.probe_summaries(report.probes, report.events, points=SERIES_POINTS)
    out |= shown
    out["reading"] = sentences(out, columns("speed/samples_per_s"), columns("optim/lr")[1])
    out["reading"] += [line for one in shown.values() if one for line in one["reading"]]
    return _clean(out)


def _clean(value: Any) -> Any:
    """Numbers that JSON cannot hold become null, wherever an event or an evaluation put them."""
    if isinstance(value, dict):
        return {str(k): _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _loss(rows: Sequence[JsonRow], columns: Columns) -> JsonRow:
    steps, values = columns("train/loss")
    bad = []
    if len(values) < len(rows):
        bad = [
            row["step"] for row in rows if "train/loss" in row and number(row["train/loss"]) is None
        ]
    tail = values[-max(1, len(values) // 20) :]
    return {
        "first": values[0] if values else None,
        "last": values[-1] if values else None,
        "smoothed": sum(tail) / len(tail) if tail else None,  # mean of the last 5 % of the rows
        "trend": trend(steps, values, 1 / 3),
        "non_finite_rows": len(bad),
        "non_finite_first": bad[0] if bad else None,
    }


def _validation(rows: Sequence[JsonRow], columns: Columns) -> JsonRow | None:
    steps, values = columns("valid/loss")
    if not values:
        return None
    best = min(range(len(values)), key=values.__getitem__)
    quarter = trend(steps, values, 0.25)
    if quarter is None and len(values) >= 4:  # too few points for a trend: its ends
        cut = steps[-1] - 0.25 * (steps[-1] - steps[0])
        a = max(i for i, s in enumerate(steps) if s <= cut)
        change = values[-1] / values[a] - 1 if values[a] else 0.0
        quarter = {"from_step": steps[a], "to_step": steps[-1], "change": change, "direction": None}
    measured = [row for row in rows if "valid/loss" in row]
    keys = sorted({key for row in measured for key in row if key.startswith("valid/loss_t")})
    by_t = {}
    for key in keys:
        part = series(measured, key)[1]
        if part:
            by_t[key.removeprefix("valid/loss_t")] = {
                "first": part[0],
                "last": part[-1],
                "best": min(part),
            }
    return {
        "first": values[0],
        "last": values[-1],
        "last_step": steps[-1],
        "best": values[best],
        "best_step": steps[best],
        "steps_since_best": steps[-1] - steps[best],
        "last_quarter": quarter,
        "by_t": by_t,
    }


def bin_rows(rows: Sequence[JsonRow]) -> tuple[list[float], list[tuple[int, list[Any], list[Any]]]]:
    """The edges of the noise bins and (step, loss per bin, count per bin) of the rows that have those edges."""
    edges: list[float] = []
    for row in reversed(rows):
        found = row.get("edges")
        if isinstance(found, list) and len(found) > 1 and all(number(e) is not None for e in found):
            edges = found
            break
    size = len(edges) - 1
    out = []
    for row in rows if edges else ():
        loss = row.get("loss")
        count = row.get("count")
        if isinstance(loss, list) and isinstance(count, list) and len(loss) == len(count) == size:
            if row.get("edges") == edges:
                out.append((row["step"], loss, count))
    return edges, out


def _bins(rows: Sequence[JsonRow]) -> list[JsonRow]:
    """Per noise bin: mean loss over the first and the last tenth of the rows, over time, its share of the loss now."""
    edges, good = bin_rows(rows)
    tenth = max(1, len(good) // 10)
    cuts = [i * len(good) // SERIES_POINTS for i in range(SERIES_POINTS + 1)]
    buckets = [good[a:b] for a, b in zip(cuts, cuts[1:], strict=False) if b > a]
    steps = [round(statistics.fmean(row[0] for row in bucket)) for bucket in buckets]
    out: list[JsonRow] = []
    total = 0.0
    for k in range(len(edges) - 1):
        (first, _) = _bin_mean(good[:tenth], k)
        (last, weight) = _bin_mean(good[-tenth:], k)
        total += (last or 0.0) * weight
        out.append(
            {
                "t_low": edges[k],
                "t_high": edges[k + 1],
                "first": first,
                "last": last,
                "count": weight,
                "change": last / first - 1 if first and last is not None else None,
                "step": steps,
                "series": [_bin_mean(b, k)[0] for b in buckets],
            }
        )
    for entry in out:
        entry["share"] = (entry["last"] or 0.0) * entry["count"] / total if total > 0 else None
    return out


def _bin_mean(
    rows: Sequence[tuple[int, list[Any], list[Any]]], k: int
) -> tuple[float | None, float]:
    total = weight = 0.0
    for _, loss, count in rows:
        value = number(loss[k])
        n = number(count[k])
        if value is not None and n:
            total = total + value * n
            weight = weight + n
    return (total / weight if weight else None), weight


def _speed(rows: Sequence[JsonRow], columns: Columns) -> JsonRow:
    rate = columns("speed/samples_per_s")[1]
    step = columns("speed/step_s")[1]
    return {
        "samples_per_s": statistics.median(rate) if rate else None,
        "step_s": statistics.median(step) if step else None,
        "samples": next(
            (n for row in reversed(rows) if (n := number(row.get("samples"))) is not None), None
        ),
    }


def _spent(report: RunReport) -> float | None:
    """Seconds of training over all attempts; an attempt that never ended counts to its last row."""
    total = 0.0
    known = False
    for entry in attempts(report.info):
        start = _unix(entry.get("started"))
        end = _unix(entry.get("ended")) or report.last_seen.get(entry.get("attempt", -1))
        if start is not None and end is not None:
            total = total + max(0.0, end - start)
            known = True
    if not known and report.last_seen:
        times = series(report.metrics, "time")[1]
        return max(times) - min(times) if times else None
    return total if known else None


def _unix(stamp: object) -> float | None:
    try:
        return datetime.fromisoformat(stamp).timestamp() if isinstance(stamp, str) else None
    except ValueError:
        return None


def _eta(rows: Sequence[JsonRow], step: int, steps: int | None) -> float | None:
    """Seconds left at the wall-clock pace of the last 50 rows, which includes validation and saving."""
    recent = [
        row
        for row in rows[-50:]
        if row["attempt"] == rows[-1]["attempt"] and number(row.get("time"))
    ]
    if steps is None or not rows:
        return None
    if len(recent) > 1 and recent[-1]["step"] > recent[0]["step"]:
        pace = (recent[-1]["time"] - recent[0]["time"]) / (recent[-1]["step"] - recent[0]["step"])
    else:
        pace = number(rows[-1].get("speed/step_s")) or 0.0
    return max(0, steps - step) * pace if pace > 0 else None


def _curves(columns: Columns, more: Sequence[str]) -> JsonRow:
    """The curves of the terminal view: name -> first, lowest, highest, last, and thinned "step" and "value"."""
    out: JsonRow = {}
    for key in (
        "train/loss",
        "valid/loss",
        "train/grad_norm",
        "optim/lr",
        "speed/samples_per_s",
        *more,
    ):
        steps, values = columns(key)
        if values:
            points = thin(steps, values, SERIES_POINTS)
            out[key] = {
                "first": values[0],
                "lowest": min(values),
                "highest": max(values),
                "last": values[-1],
            }
            out[key] |= {"step": [round(p[0]) for p in points], "value": [p[1] for p in points]}
    return out
