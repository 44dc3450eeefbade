"""Reads a run directory, and nothing else: the rows behind what `inspect-regime` shows, plots and prints as JSON.

A run may be in training, killed in the middle of a line, or written by another version. Reading never
fails over such damage: what can be read is used and the rest is named in `RunReport.damage`.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stagecli.errors import StageError
from stagecli.files import JsonRow
from stagecli.report import regime as report_regime
from stagecli.report.curves import number
from stagecli.stage import registry

__all__ = ["RunReport", "read_run"]

SCHEMA = 1
LARGEST_STEP = 10**12  # a larger one is damage
DAMAGE_LISTED = 3  # damaged lines named per file; the rest are counted

# Half a surrogate pair, as a file name that is not UTF-8 leaves it in a message: nothing can print it.
LONE = re.compile(
    r"(?<!\\)\\ud(?:[89ab]..(?!\\ud[c-f])|(?<!\\ud[89ab]..\\ud)[c-f]..)", re.IGNORECASE
)
_DECODE = json.JSONDecoder(parse_constant=lambda _: None).decode  # NaN and Infinity read as null


@dataclass
class RunReport:
    """A run directory as read.

    info: run.json; metrics, bins, events, probes: rows in file order, without the superseded ones (probes: as
    `regime.in_order` leaves them); wants_probes: the recipe has a [stage.regime] table; chosen_by: its `train.best`;
    superseded: metrics rows that a later attempt trained again; last_seen: attempt -> unix time of its
    last row; checkpoints: {"name", "step", "latest"}; samples: {"path", "count"};
    evals: {"file", "document"}; damage: what could not be read, as `file:line: reason`.
    """

    path: Path
    info: JsonRow = field(default_factory=dict)
    metrics: list[JsonRow] = field(default_factory=list)
    bins: list[JsonRow] = field(default_factory=list)
    events: list[JsonRow] = field(default_factory=list)
    probes: list[JsonRow] = field(default_factory=list)
    wants_probes: bool = False
    chosen_by: str = "valid/loss"
    superseded: int = 0
    last_seen: dict[int, float] = field(default_factory=dict)
    checkpoints: list[JsonRow] = field(default_factory=list)
    samples: list[JsonRow] = field(default_factory=list)
    evals: list[JsonRow] = field(default_factory=list)
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
        raise StageError(
            f"cannot read the run `{path}`: {problem}", hint="check its permissions"
        ) from None
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
    report.last_seen = {
        attempt: t for attempt, seen in newest.items() if (t := number(seen)) is not None
    }
    before = len(report.metrics)
    limits = _limits(report.info, first)
    for name in ("metrics", "bins", "events", "probes"):
        setattr(report, name, _drop_superseded(getattr(report, name), limits))
    report.superseded = before - len(report.metrics)
    report.probes = report_regime.in_order(report.probes, report.damage)
    stage, train = _tables(path / "recipe.toml", "stage", "train")
    report.wants_probes = registry.REGIME in stage
    report.chosen_by = str(train.get("best", report.chosen_by))
    _read_products(report)


def _not_a_run(path: Path) -> StageError:
    if not path.exists():
        near = []
        if path.parent.is_dir():
            near = difflib.get_close_matches(
                path.name, [p.name for p in path.parent.iterdir() if p.is_dir()], 1
            )
        hint = (
            f"did you mean `{path.parent / near[0]}`?"
            if near
            else "runs are made by `stagecli train RECIPE`"
        )
        return StageError(f"`{path}` does not exist", hint=hint)
    inside = (
        [p for p in sorted(path.iterdir()) if (p / "run.json").is_file()] if path.is_dir() else []
    )
    hint = (
        f"name one of the runs in it, such as `{inside[-1]}`"
        if inside
        else "give the directory that holds run.json"
    )
    return StageError(
        f"`{path}` is not a run directory: it holds neither run.json nor metrics.jsonl", hint=hint
    )


def _read_info(path: Path, damage: list[str]) -> JsonRow:
    try:
        info = _DECODE(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        damage.append("run.json: missing; name, budget and status are unknown")
        return {}
    except json.JSONDecodeError as problem:
        damage.append(
            f"run.json:{problem.lineno}: not readable ({problem.msg}); name and status are unknown"
        )
        return {}
    if not isinstance(info, dict):
        damage.append("run.json:1: not an object; name, budget and status are unknown")
        return {}
    if info.get("schema") != SCHEMA:
        damage.append(
            f"run.json: schema {info.get('schema')}, this version reads {SCHEMA}; showing what it can"
        )
    return info


def _read_rows(path: Path, damage: list[str], *, expected: bool) -> list[JsonRow]:
    """Rows of one JSONL file; every row returned has an integer `step` and `attempt`."""
    if not path.is_file():
        if expected:
            damage.append(f"{path.name}: missing")
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    if "\\ud" in text or "\\uD" in text:
        text = LONE.sub(r"\\ufffd", text)
    try:  # an undamaged file parses in one go, which is much faster than line by line
        rows = _DECODE("[" + text.strip().replace("\n", ",") + "]")
        if all(_is_row(row) and type(row.get("attempt")) is int for row in rows):
            return rows
    except (ValueError, RecursionError):
        pass
    lines = text.split("\n")
    rows = []
    broken = 0
    named = 0
    for index, line in enumerate(lines):
        if not line:
            continue
        try:
            row = _DECODE(line)
        except (ValueError, RecursionError):
            row = None
        if _is_row(row):
            if type(row.setdefault("attempt", 1)) is int:
                rows.append(row)
                continue
        broken += 1
        if index == len(lines) - 1:  # no newline at its end
            damage.append(
                f"{path.name}:{index + 1}: cut off in the middle of a line; read up to there"
            )
            named += 1
        elif named < DAMAGE_LISTED:
            damage.append(f"{path.name}:{index + 1}: not a readable row; skipped")
            named += 1
    if broken > named:
        damage.append(f"{path.name}: {broken} damaged lines in all")
    return rows


def _is_row(row: Any) -> bool:
    return type(row) is dict and type(step := row.get("step")) is int and 0 <= step <= LARGEST_STEP


def _limits(info: JsonRow, first: dict[int, int]) -> dict[int, int]:
    """Attempt -> the step at which it resumed; from run.json, else from the first step of its rows."""
    limits = {attempt: step - 1 for attempt, step in first.items()}
    for entry in attempts(info):
        if type(entry.get("attempt")) is int and type(entry.get("from_step")) is int:
            limits[entry["attempt"]] = entry["from_step"]
    return limits


def _tables(recipe: Path, *names: str) -> list[JsonRow]:
    """Tables of the recipe; empty where there are none or the file cannot be read."""
    try:
        whole = tomllib.loads(recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        whole = {}
    return [table if isinstance(table := whole.get(name), dict) else {} for name in names]


def attempts(info: JsonRow) -> list[JsonRow]:
    """The attempts that run.json lists; none where it does not."""
    entries = info.get("attempts")
    return (
        [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    )


def _drop_superseded(rows: list[JsonRow], limits: dict[int, int]) -> list[JsonRow]:
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
            report.evals.append(
                {"file": f"evals/{file.name}", "document": _DECODE(file.read_text())}
            )
        except ValueError:
            report.damage.append(f"evals/{file.name}: not readable")
