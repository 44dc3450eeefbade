"""Reads a run directory, and nothing else: what `inspect-regime` shows, plots and prints as JSON.

A run may be in training, killed in the middle of a line, or written by another version. Reading never
fails over such damage: what can be read is used and the rest is named in `RunReport.damage`.
"""

from __future__ import annotations

import difflib
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from stagecli.curves import number, series, sparkline, thin, trend
from stagecli.errors import StageError
from stagecli.report_words import sentences

__all__ = ["RunReport", "read_run", "sparkline", "summary"]

SCHEMA = 1
SERIES_POINTS = 60  # points per curve in a summary: enough for a sparkline, small enough for JSON
DAMAGE_LISTED = 3  # damaged lines named per file; the rest are counted

Row = dict[str, Any]
Columns = Callable[[str], tuple[list[int], list[float]]]  # a metric's name -> its steps and values
_DECODE = json.JSONDecoder(parse_constant=lambda _: None).decode  # NaN and Infinity read as null


@dataclass
class RunReport:
    """A run directory as read.

    info: run.json; metrics, bins, events, probes: rows in file order, without the superseded ones;
    superseded: metrics rows that a later attempt trained again; last_seen: attempt -> unix time of its
    last row; checkpoints: {"name", "step", "latest"}; samples: {"path", "count"};
    evals: {"file", "document"}; damage: what could not be read, as `file:line: reason`.
    """

    path: Path
    info: Row = field(default_factory=dict)
    metrics: list[Row] = field(default_factory=list)
    bins: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    probes: list[Row] = field(default_factory=list)
    superseded: int = 0
    last_seen: dict[int, float] = field(default_factory=dict)
    checkpoints: list[Row] = field(default_factory=list)
    samples: list[Row] = field(default_factory=list)
    evals: list[Row] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The run's name, or its directory's where run.json does not say."""
        return str(self.info.get("name") or self.path.resolve().name)


# -- reading ---------------------------------------------------------------------------------------


def read_run(path: str | Path) -> RunReport:
    """Read the run directory at `path`; raises StageError if it is not one."""
    path = Path(path)
    if not (path / "run.json").is_file() and not (path / "metrics.jsonl").is_file():
        raise _not_a_run(path)
    report = RunReport(path)
    try:
        _read_all(report)
    except OSError as problem:
        raise StageError(f"cannot read the run `{path}`: {problem}", hint="check its permissions") from None
    return report


def _read_all(report: RunReport) -> None:
    path = report.path
    report.info = _read_info(path / "run.json", report.damage)
    for name in ("metrics", "bins", "events", "probes"):
        expected = name in ("metrics", "bins")
        setattr(report, name, _read_rows(path / f"{name}.jsonl", report.damage, expected=expected))
    first: dict[int, int] = {}
    for row in report.metrics:
        first.setdefault(row["attempt"], row["step"])
    newest = {row["attempt"]: row.get("time") for row in report.metrics}
    report.last_seen = {attempt: t for attempt, seen in newest.items() if (t := number(seen)) is not None}
    before = len(report.metrics)
    limits = _limits(report.info, first)
    for name in ("metrics", "bins", "events", "probes"):
        setattr(report, name, _drop_superseded(getattr(report, name), limits))
    report.superseded = before - len(report.metrics)
    _read_products(report)


def _not_a_run(path: Path) -> StageError:
    if not path.exists():
        near = []
        if path.parent.is_dir():
            near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir() if p.is_dir()], 1)
        hint = f"did you mean `{path.parent / near[0]}`?" if near else "runs are made by `stagecli train RECIPE`"
        return StageError(f"`{path}` does not exist", hint=hint)
    inside = [p for p in sorted(path.iterdir()) if (p / "run.json").is_file()] if path.is_dir() else []
    hint = f"name one of the runs in it, such as `{inside[-1]}`" if inside else "give the directory that holds run.json"
    return StageError(f"`{path}` is not a run directory: it holds neither run.json nor metrics.jsonl", hint=hint)


def _read_info(path: Path, damage: list[str]) -> Row:
    try:
        info = _DECODE(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        damage.append("run.json: missing; name, budget and status are unknown")
        return {}
    except json.JSONDecodeError as problem:
        damage.append(f"run.json:{problem.lineno}: not readable ({problem.msg}); name and status are unknown")
        return {}
    if not isinstance(info, dict):
        damage.append("run.json:1: not an object; name, budget and status are unknown")
        return {}
    if info.get("schema") != SCHEMA:
        damage.append(f"run.json: schema {info.get('schema')}, this version reads {SCHEMA}; showing what it can")
    return info


def _read_rows(path: Path, damage: list[str], *, expected: bool) -> list[Row]:
    """Rows of one JSONL file; every row returned has an integer `step` and `attempt`."""
    if not path.is_file():
        if expected:
            damage.append(f"{path.name}: missing")
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    try:  # an undamaged file parses in one go, which is much faster than line by line
        rows = _DECODE("[" + text.strip().replace("\n", ",") + "]")
        if all(type(row) is dict and type(row.get("step")) is int and type(row.get("attempt")) is int for row in rows):
            return rows
    except ValueError:
        pass
    lines = text.split("\n")
    rows, broken = [], 0
    for index, line in enumerate(lines):
        if not line:
            continue
        try:
            row = _DECODE(line)
        except ValueError:
            row = None
        if type(row) is dict and type(row.get("step")) is int:
            if type(row.setdefault("attempt", 1)) is int:
                rows.append(row)
                continue
        broken += 1
        if index == len(lines) - 1:  # no newline at its end
            damage.append(f"{path.name}:{index + 1}: cut off in the middle of a line; read up to there")
        elif broken <= DAMAGE_LISTED:
            damage.append(f"{path.name}:{index + 1}: not a readable row; skipped")
    if broken > DAMAGE_LISTED + 1:
        damage.append(f"{path.name}: {broken} damaged lines in all")
    return rows


def _limits(info: Row, first: dict[int, int]) -> dict[int, int]:
    """Attempt -> the step at which it resumed; from run.json, else from the first step of its rows."""
    limits = {attempt: step - 1 for attempt, step in first.items()}
    for entry in _attempts(info):
        if type(entry.get("attempt")) is int and type(entry.get("from_step")) is int:
            limits[entry["attempt"]] = entry["from_step"]
    return limits


def _attempts(info: Row) -> list[Row]:
    entries = info.get("attempts")
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _drop_superseded(rows: list[Row], limits: dict[int, int]) -> list[Row]:
    ceiling: dict[int, float] = {}
    for row in rows:
        attempt = row["attempt"]
        if attempt not in ceiling:
            ceiling[attempt] = min((s for a, s in limits.items() if a > attempt), default=math.inf)
    if all(limit == math.inf for limit in ceiling.values()):
        return rows
    return [row for row in rows if row["step"] <= ceiling[row["attempt"]]]


def _read_products(report: RunReport) -> None:
    folder = report.path / "checkpoints"
    names = sorted(p.name for p in folder.glob("step_*") if p.is_dir())
    pointer = folder / "latest"
    latest = pointer.read_text(errors="replace").strip() if pointer.is_file() else ""
    if latest and latest not in names:
        report.damage.append(f"checkpoints/latest: points at `{latest}`, which is not there")
    for name in names:
        digits = name.removeprefix("step_")
        step = int(digits) if digits.isdigit() else None
        report.checkpoints.append({"name": name, "step": step, "latest": name == latest})
    for file in sorted(report.path.glob("samples/**/samples.jsonl")):
        with file.open("rb") as lines:
            count = sum(1 for line in lines if line.strip())
        report.samples.append({"path": str(file.parent.relative_to(report.path)), "count": count})
    for file in sorted(report.path.glob("evals/*.json")):
        try:
            report.evals.append({"file": f"evals/{file.name}", "document": _DECODE(file.read_text())})
        except ValueError:
            report.damage.append(f"evals/{file.name}: not readable")


# -- summary ---------------------------------------------------------------------------------------


def summary(report: RunReport, *, now: float | None = None) -> Row:
    """Everything `inspect-regime` says about a run, ready for JSON; unknown values are None.

    now: unix time to judge a running run by (default: the clock).
    """
    now = time.time() if now is None else now
    info, rows = report.info, report.metrics
    columns = cache(lambda key: series(rows, key))
    step = max((row["step"] for row in rows), default=None)
    if step is None:
        step = max((c["step"] for c in report.checkpoints if c["step"] is not None), default=0)
    steps = info.get("steps") if type(info.get("steps")) is int else None
    last_row = max(report.last_seen.values(), default=None)
    out: Row = {
        "path": str(report.path), "name": report.name, "id": info.get("id"), "task": info.get("task"),
        "status": info.get("status") or "unknown", "message": info.get("message"),
        "step": step, "steps": steps, "parameters": info.get("parameters"), "created": info.get("created"),
        "version": info.get("version"), "signature": info.get("signature"),
        "best_checkpoint": info.get("best"),
        "loss": _loss(rows, columns), "validation": _validation(rows, columns), "bins": _bins(report.bins),
        "speed": _speed(rows, columns), "learning_rate": next(iter(columns("optim/lr")[1][-1:]), None),
        "time": {"spent_s": _spent(report), "last_row_s_ago": None if last_row is None else now - last_row},
        "series": _curves(columns),
        "superseded_rows": report.superseded, "events": report.events, "attempts": _attempts(info),
        "checkpoints": report.checkpoints, "samples": report.samples, "evals": report.evals,
        "damage": report.damage,
    }  # fmt: skip
    out["time"]["eta_s"] = _eta(rows, step, steps) if out["status"] == "running" else None
    out["reading"] = sentences(out, columns("speed/samples_per_s"))
    return _clean(out)


def _clean(value: Any) -> Any:
    """Numbers that JSON cannot hold become null, wherever an event or an evaluation put them."""
    if isinstance(value, dict):
        return {str(k): _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _loss(rows: Sequence[Row], columns: Columns) -> Row:
    steps, values = columns("train/loss")
    bad = []
    if len(values) < len(rows):
        bad = [row["step"] for row in rows if "train/loss" in row and number(row["train/loss"]) is None]
    tail = values[-max(1, len(values) // 20) :]
    return {
        "first": values[0] if values else None, "last": values[-1] if values else None,
        "smoothed": sum(tail) / len(tail) if tail else None,  # mean of the last 5 % of the rows
        "trend": trend(steps, values, 1 / 3), "non_finite_rows": len(bad), "non_finite_first": bad[0] if bad else None,
    }  # fmt: skip


def _validation(rows: Sequence[Row], columns: Columns) -> Row | None:
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
            by_t[key.removeprefix("valid/loss_t")] = {"first": part[0], "last": part[-1], "best": min(part)}
    return {
        "first": values[0], "last": values[-1], "last_step": steps[-1], "best": values[best],
        "best_step": steps[best], "steps_since_best": steps[-1] - steps[best], "last_quarter": quarter, "by_t": by_t,
    }  # fmt: skip


def _bins(rows: Sequence[Row]) -> list[Row]:
    """Per noise bin: mean loss over the first and the last tenth of the rows, its share of the loss now."""
    edges = rows[-1].get("edges") if rows else None
    if not isinstance(edges, list) or len(edges) < 2 or any(number(e) is None for e in edges):
        return []
    size = len(edges) - 1
    good = []
    for row in rows:
        loss, count = row.get("loss"), row.get("count")
        if isinstance(loss, list) and isinstance(count, list) and len(loss) == len(count) == size:
            if row.get("edges") == edges:
                good.append((loss, count))
    tenth = max(1, len(good) // 10)
    buckets = [
        good[i * len(good) // SERIES_POINTS : (i + 1) * len(good) // SERIES_POINTS] for i in range(SERIES_POINTS)
    ]
    buckets = [b for b in buckets if b]
    out, total = [], 0.0
    for k in range(size):
        (first, _), (last, weight) = _bin_mean(good[:tenth], k), _bin_mean(good[-tenth:], k)
        total += (last or 0.0) * weight
        out.append({
            "t_low": edges[k], "t_high": edges[k + 1], "first": first, "last": last, "count": weight,
            "change": last / first - 1 if first and last is not None else None,
            "series": [_bin_mean(b, k)[0] for b in buckets],
        })  # fmt: skip
    for entry in out:
        entry["share"] = (entry["last"] or 0.0) * entry["count"] / total if total > 0 else None
    return out


def _bin_mean(rows: Sequence[tuple[list[Any], list[Any]]], k: int) -> tuple[float | None, float]:
    total = weight = 0.0
    for loss, count in rows:
        value, n = number(loss[k]), number(count[k])
        if value is not None and n:
            total, weight = total + value * n, weight + n
    return (total / weight if weight else None), weight


def _speed(rows: Sequence[Row], columns: Columns) -> Row:
    rate, step = columns("speed/samples_per_s")[1], columns("speed/step_s")[1]
    return {
        "samples_per_s": statistics.median(rate) if rate else None,
        "step_s": statistics.median(step) if step else None,
        "samples": next((n for row in reversed(rows) if (n := number(row.get("samples"))) is not None), None),
    }


def _spent(report: RunReport) -> float | None:
    """Seconds of training over all attempts; an attempt that never ended counts to its last row."""
    total, known = 0.0, False
    for entry in _attempts(report.info):
        start = _unix(entry.get("started"))
        end = _unix(entry.get("ended")) or report.last_seen.get(entry.get("attempt", -1))
        if start is not None and end is not None:
            total, known = total + max(0.0, end - start), True
    if not known and report.last_seen:
        times = series(report.metrics, "time")[1]
        return max(times) - min(times) if times else None
    return total if known else None


def _unix(stamp: object) -> float | None:
    try:
        return datetime.fromisoformat(stamp).timestamp() if isinstance(stamp, str) else None
    except ValueError:
        return None


def _eta(rows: Sequence[Row], step: int, steps: int | None) -> float | None:
    """Seconds left at the wall-clock pace of the last 50 rows, which includes validation and saving."""
    recent = [row for row in rows[-50:] if row["attempt"] == rows[-1]["attempt"] and number(row.get("time"))]
    if steps is None or not rows:
        return None
    if len(recent) > 1 and recent[-1]["step"] > recent[0]["step"]:
        pace = (recent[-1]["time"] - recent[0]["time"]) / (recent[-1]["step"] - recent[0]["step"])
    else:
        pace = number(rows[-1].get("speed/step_s")) or 0.0
    return max(0, steps - step) * pace if pace > 0 else None


def _curves(columns: Columns) -> Row:
    """The curves of the terminal view: name -> first, lowest, highest, last, and thinned "step" and "value"."""
    out: Row = {}
    for key in ("train/loss", "valid/loss", "train/grad_norm", "optim/lr", "speed/samples_per_s"):
        steps, values = columns(key)
        if values:
            points = thin(steps, values, SERIES_POINTS)
            out[key] = {"first": values[0], "lowest": min(values), "highest": max(values), "last": values[-1]}
            out[key] |= {"step": [round(p[0]) for p in points], "value": [p[1] for p in points]}
    return out
