"""Reads a study directory: its plan, the scores of its runs, and their probes. No torch.

A study may be half done, and its files may be damaged: what can be read is used, and the rest is
counted in `StudyResults.notes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from stagecli.errors import StageError, counted
from stagecli.files import JsonRow, number, read_json
from stagecli.report.rows import read_rows
from stagecli.report.run_report import RunReport, read_run

__all__ = ["Arm", "ScoreKey", "ScoredMetric", "StudyPlan", "StudyResults", "read_study"]


@dataclass(frozen=True)
class ScoredMetric:
    """A score of the study; title: as printed; lower: lower is better."""

    name: str
    title: str
    lower: bool


@dataclass(frozen=True)
class Arm:
    """One arm; settings: its overrides as text; adaptive: its density of t is measured while
    training.
    """

    name: str
    summary: str
    seeds: tuple[int, ...]
    adaptive: bool
    settings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """study.json. strengths: values of cfg_scale, or (None,) where the task has none; score_steps:
    ascending.
    """

    name: str
    recipe: str
    task: str
    steps: int
    baseline: str
    against: tuple[str, ...]
    primary: str
    score_steps: tuple[int, ...]
    strengths: tuple[float | None, ...]
    metrics: dict[str, ScoredMetric]
    arms: dict[str, Arm]

    @property
    def others(self) -> list[Arm]:
        """The arms but the baseline, in the order of the study."""
        return [arm for arm in self.arms.values() if arm.name != self.baseline]


class ScoreKey(NamedTuple):
    """What one row of scores.jsonl is about."""

    arm: str
    seed: int
    step: int
    strength: float | None


@dataclass
class StudyResults:
    """A study as read.

    rows: the last row of every key. runs: (arm, seed) -> run directory, for those that have begun.
    notes: what is missing, damaged or no number, in words. unmeasured: scores that some arms never
    have, such as those of probes where an arm has none.
    """

    path: Path
    plan: StudyPlan
    rows: dict[ScoreKey, JsonRow] = field(default_factory=dict)
    runs: dict[tuple[str, int], RunReport] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unmeasured: list[str] = field(default_factory=list)

    def values(self, arm: str, metric: str, step: int, strength: float | None) -> dict[int, float]:
        """Seed -> score, for the seeds that have a finite one."""
        pairs = (
            (seed, self.value(ScoreKey(arm, seed, step, strength), metric))
            for seed in self.plan.arms[arm].seeds
        )
        return {seed: value for seed, value in pairs if value is not None}

    def value(self, key: ScoreKey, metric: str) -> float | None:
        """A score, or "seconds" of training; None if it is missing or no finite number."""
        return number(self.rows.get(key, {}).get(metric))

    def expected(self, arm: Arm) -> Iterator[ScoreKey]:
        """All keys that the finished study has of an arm."""
        for seed in arm.seeds:
            for step in self.plan.score_steps:
                for strength in self.plan.strengths:
                    yield ScoreKey(arm.name, seed, step, strength)


def read_study(path: Path) -> StudyResults:
    """Read the study directory at `path`. Raises StageError if it is none."""
    results = StudyResults(path, _read_plan(path))
    try:
        _read_scores(results)
        _read_runs(results)
    except OSError as problem:
        raise StageError(
            f"cannot read the study `{path}`: {problem}", hint="check its permissions"
        ) from None
    results.notes += _gaps(results)
    _list_without_value(results)
    return results


def _read_plan(path: Path) -> StudyPlan:
    file = path / "study.json"
    if not file.is_file():
        raise StageError(
            f"`{path}` is not a study directory: it has no study.json",
            hint="name the directory that `stagecli study` wrote to",
        )
    try:
        return _plan(read_json(file))
    except KeyError as problem:
        reason = f"it has no {problem}"
    except (OSError, TypeError, ValueError, AttributeError) as problem:
        reason = str(problem)
    raise StageError(
        f"{file} cannot be used: {reason}",
        hint="run `stagecli study` with the study file again: it writes study.json anew",
    )


def _plan(document: Any) -> StudyPlan:
    """The plan in study.json. Raises KeyError, TypeError, ValueError or AttributeError."""
    # Arms and scores, and what must be one of them.
    arms = {
        name: Arm(
            name=name,
            summary=str(entry.get("summary") or ""),
            seeds=tuple(map(int, entry["seeds"])),
            adaptive=bool(entry.get("adaptive")),
            settings=tuple(f"{key} = {value}" for key, value in (entry.get("set") or {}).items()),
        )
        for name, entry in document["arms"].items()
    }
    metrics = {
        name: ScoredMetric(name, str(entry.get("title") or name), entry["direction"] == "lower")
        for name, entry in document["metrics"].items()
    }
    baseline = document["baseline"]
    primary = document["primary"]
    if baseline not in arms:
        raise ValueError(f"its baseline {baseline!r} is none of its arms")
    if primary not in metrics:
        raise ValueError(f"its primary score {primary!r} is none of its metrics")

    # What is scored.
    steps = tuple(sorted(map(int, document["score_steps"])))
    if not steps:
        raise ValueError("it has no steps to score")
    strengths: tuple[float | None, ...] = (None,)
    if document["task"] != "sr" and document.get("strengths"):
        strengths = tuple(map(float, document["strengths"]))
    return StudyPlan(
        name=str(document["name"]),
        recipe=str(document["recipe"]),
        task=str(document["task"]),
        steps=int(document["steps"]),
        baseline=baseline,
        against=tuple(name for name in document.get("against") or () if name in arms),
        primary=primary,
        score_steps=steps,
        strengths=strengths,
        metrics=metrics,
        arms=arms,
    )


def _read_scores(results: StudyResults) -> None:
    """Fill `rows`; a row that repeats a key replaces the one before."""
    known = {key for arm in results.plan.arms.values() for key in results.expected(arm)}
    foreign = 0
    for row in read_rows(results.path / "scores.jsonl", results.notes, expected=True):
        strength = None if results.plan.strengths == (None,) else number(row.get("strength"))
        seed = row["seed"] if type(row.get("seed")) is int else -1
        key = ScoreKey(str(row.get("arm")), seed, row["step"], strength)
        if key in known:
            results.rows[key] = row
        else:
            foreign += 1
    if foreign:
        results.notes.append(
            f"scores.jsonl: {counted(foreign, 'row')} of arms, seeds, steps or strengths that the"
            " study no longer has; not used"
        )


def _read_runs(results: StudyResults) -> None:
    for arm in results.plan.arms.values():
        for seed in arm.seeds:
            path = results.path / "runs" / f"{arm.name}-{seed}"
            if not path.is_dir():
                continue
            try:
                report = read_run(path)
            except StageError as problem:
                results.notes.append(problem.message)
                continue
            results.runs[arm.name, seed] = report
            results.notes += [f"{path.name}: {problem}" for problem in report.damage]


def _gaps(results: StudyResults) -> Iterator[str]:
    """Seeds that have not all of their scores, by arm."""
    steps = len(results.plan.score_steps)
    for arm in results.plan.arms.values():
        missing: dict[int, set[int]] = {}
        for key in results.expected(arm):
            if key not in results.rows:
                missing.setdefault(key.seed, set()).add(key.step)
        alike: dict[str, list[int]] = {}
        for seed, unscored in missing.items():
            run = results.runs.get((arm.name, seed))
            state = "not begun" if run is None else str(run.info.get("status") or "unknown")
            scored = f"{steps - len(unscored)} of {counted(steps, 'step')} scored in full"
            alike.setdefault(f"{scored} (run: {state})", []).append(seed)
        for text, seeds in alike.items():
            yield f"`{arm.name}`, {_seeds_text(seeds)}: {text}"


def _list_without_value(results: StudyResults) -> None:
    """Scores that are not finite numbers: single ones by arm, and arms that never have one."""
    plan = results.plan
    scored = {
        arm.name: [key for key in results.expected(arm) if key in results.rows]
        for arm in plan.arms.values()
    }
    for name in plan.metrics:
        never = []
        for arm, keys in scored.items():
            empty = [key for key in keys if results.value(key, name) is None]
            if empty and len(empty) == len(keys) and name != plan.primary:
                never.append(arm)
            elif empty:
                seeds = _seeds_text(sorted({key.seed for key in empty}))
                results.notes.append(
                    f"`{arm}`: {name} is not a finite number in {len(empty)} of"
                    f" {counted(len(keys), 'row')} ({seeds}); left out"
                )
        if never:
            results.unmeasured.append(f"{name}: in no row of {', '.join(never)}")


def _seeds_text(seeds: Sequence[int]) -> str:
    """`seed 1`, `seeds 0, 1, 2`."""
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"
