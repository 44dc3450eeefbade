"""A run directory as read: rows, checkpoints, samples, evaluations, and what could not be read.

A run may still be training, killed in the middle of a line, or written by another version. Reading
never fails over such damage: what can be read is used and the rest is named in `RunReport.damage`.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from stagecli.errors import StageError
from stagecli.files import CHANGED, JsonRow, number
from stagecli.report.probe_rows import in_order
from stagecli.report.rows import decode_json, drop_superseded, read_rows
from stagecli.report.run_info import SCHEMA, read_info_file
from stagecli.stage import registry

__all__ = ["RunReport", "attempts_of", "read_run", "with_distinct_names"]


@dataclass
class RunReport:
    """A run directory as read.

    info: run.json. metrics, bins, events, probes: rows in file order without the superseded ones
    (probes: as `probe_rows.in_order` leaves them). wants_probes: the recipe has a [stage.regime]
    section. chosen_by: its `train.best`. superseded: number of metrics rows that a later attempt
    trained again. last_seen: attempt -> Unix time of its last row. checkpoints: {"name", "step",
    "latest"}. samples: {"path", "count"}. evals: {"file", "document"}. damage: what could not be
    read, as `file:line: reason`.
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
        """The name in run.json, else that of the directory."""
        return str(self.info.get("name") or self.path.resolve().name)


def read_run(path: str | Path) -> RunReport:
    """Read the run directory at `path`. Raises StageError if it is not one or cannot be read."""
    path = Path(path)
    if not (path / "run.json").is_file() and not (path / "metrics.jsonl").is_file():
        raise _not_a_run(path)
    report = RunReport(path)
    try:
        report.info = _read_info(path / "run.json", report.damage)
        _read_streams(report)
        _read_recipe(report)
        report.checkpoints = _read_checkpoints(path / "checkpoints", report.damage)
        report.samples = _read_samples(path)
        report.evals = _read_evals(path, report.damage)
    except OSError as problem:
        raise StageError(
            f"cannot read the run `{path}`: {problem}", hint="check its permissions"
        ) from None
    return report


def with_distinct_names(reports: Sequence[RunReport]) -> list[RunReport]:
    """Runs to be shown together: those that share a name are named by their paths."""
    names = Counter(report.name for report in reports)
    return [
        report
        if names[report.name] == 1
        else replace(report, info={**report.info, "name": str(report.path)})
        for report in reports
    ]


def attempts_of(info: JsonRow) -> list[JsonRow]:
    """The attempts listed in run.json; empty if it lists none."""
    return list(info.get("attempts", []))


def _not_a_run(path: Path) -> StageError:
    if not path.exists():
        siblings = (
            [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        )
        near = difflib.get_close_matches(path.name, siblings, 1)
        hint = (
            f"did you mean `{path.parent / near[0]}`?"
            if near
            else "`stagecli train RECIPE` creates runs"
        )
        return StageError(f"`{path}` does not exist", hint=hint)
    children = sorted(path.iterdir()) if path.is_dir() else []
    runs = [child for child in children if (child / "run.json").is_file()]
    hint = (
        f"name one of the runs in it, such as `{runs[-1]}`"
        if runs
        else "name the directory that contains run.json"
    )
    return StageError(
        f"`{path}` is not a run directory: it contains neither run.json nor metrics.jsonl",
        hint=hint,
    )


def _read_info(path: Path, damage: list[str]) -> JsonRow:
    try:
        info, problems = read_info_file(path)
    except FileNotFoundError:
        damage.append("run.json: missing; name, budget and status are unknown")
        return {}
    if not info:
        damage += [f"{problem}; name and status are unknown" for problem in problems]
        return {}
    damage += [
        f"{problem}; {'it is read' if problem.endswith(CHANGED) else 'ignored'}"
        for problem in problems
    ]
    if info.get("schema") != SCHEMA:
        damage.append(
            f"run.json: has schema {info.get('schema')}, this version reads schema {SCHEMA};"
            " showing what is understood"
        )
    return info


def _read_streams(report: RunReport) -> None:
    """The four JSONL files, without the rows that a later attempt trained again."""
    path = report.path
    damage = report.damage
    metrics = read_rows(path / "metrics.jsonl", damage, expected=True)
    bins = read_rows(path / "bins.jsonl", damage, expected=True)
    events = read_rows(path / "events.jsonl", damage, expected=False)
    probes = read_rows(path / "probes.jsonl", damage, expected=False)

    newest = {row["attempt"]: row.get("time") for row in metrics}
    for attempt, time in newest.items():
        seconds = number(time)
        if seconds is not None:
            report.last_seen[attempt] = seconds

    resumed_at = _resumed_at(report.info, metrics)
    report.metrics = drop_superseded(metrics, resumed_at)
    report.superseded = len(metrics) - len(report.metrics)
    report.bins = drop_superseded(bins, resumed_at)
    report.events = drop_superseded(events, resumed_at)
    report.probes = in_order(drop_superseded(probes, resumed_at), damage)


def _resumed_at(info: JsonRow, metrics: list[JsonRow]) -> dict[int, int]:
    """Attempt -> the step it continued from: from run.json, else from the attempt's first row."""
    resumed_at: dict[int, int] = {}
    for row in metrics:
        resumed_at.setdefault(row["attempt"], row["step"] - 1)
    for entry in attempts_of(info):
        if type(entry.get("attempt")) is int and type(entry.get("from_step")) is int:
            resumed_at[entry["attempt"]] = entry["from_step"]
    return resumed_at


def _read_recipe(report: RunReport) -> None:
    """What the report needs of the recipe; defaults where the file cannot be read."""
    try:
        recipe = tomllib.loads((report.path / "recipe.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    stage = recipe.get("stage")
    train = recipe.get("train")
    report.wants_probes = isinstance(stage, dict) and registry.REGIME in stage
    if isinstance(train, dict):
        report.chosen_by = str(train.get("best", report.chosen_by))


def _read_checkpoints(folder: Path, damage: list[str]) -> list[JsonRow]:
    names = sorted(
        path.name
        for path in folder.glob("step_*")
        if re.fullmatch("step_[0-9]{1,13}", path.name) and path.is_dir()
    )
    pointer = folder / "latest"
    latest = pointer.read_text(errors="replace").strip() if pointer.is_file() else ""
    if latest and latest not in names:
        damage.append(f"checkpoints/latest: points to `{latest}`, which does not exist")
    checkpoints = []
    for name in names:
        if not (folder / name / "state.json").is_file():
            damage.append(f"checkpoints/{name}: has no state.json; `train` passes it over")
        step = int(name.removeprefix("step_"))
        checkpoints.append({"name": name, "step": step, "latest": name == latest})
    return checkpoints


def _read_samples(path: Path) -> list[JsonRow]:
    samples = []
    for file in sorted(path.glob("samples/**/samples.jsonl")):
        with file.open("rb") as lines:
            count = sum(1 for line in lines if line.strip())
        samples.append({"path": str(file.parent.relative_to(path)), "count": count})
    return samples


def _read_evals(path: Path, damage: list[str]) -> list[JsonRow]:
    evals = []
    for file in sorted(path.glob("evals/*.json")):
        name = f"evals/{file.name}"
        try:
            evals.append({"file": name, "document": decode_json(file.read_text())})
        except ValueError:
            damage.append(f"{name}: not readable")
    return evals
