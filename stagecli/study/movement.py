"""How r rises in each arm, and how far the density of an adaptive arm goes. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from stagecli.files import JsonRow
from stagecli.report.curves import series
from stagecli.report.density_map import density_course
from stagecli.report.run_report import RunReport
from stagecli.stage.probe_columns import DensityCourse
from stagecli.study.results import Arm, StudyResults
from stagecli.study.scores import mean_and_spread

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the budget, at which r is reported
HALF = 0.5


def r_summary(results: StudyResults) -> JsonRow:
    """Arm -> {"r", "half"} for arms with probes; r: share of the budget -> `mean_and_spread` over
    the runs that are so far; half: the shares at which r reaches 0.5, with "never": seeds.
    """
    document = {}
    for arm in results.plan.arms.values():
        courses = {
            seed: (steps, values)
            for seed, report in _runs(results, arm)
            if (steps := (columns := series(report.probes, "r"))[0]) and (values := columns[1])
        }
        if courses:
            document[arm.name] = _r_over_budget(courses, results.plan.steps)
    return document


def _r_over_budget(courses: dict[int, tuple[list[int], list[float]]], budget: int) -> JsonRow:
    r: JsonRow = {}
    for share in SHARES:
        values = {seed: r_at(*course, share * budget) for seed, course in courses.items()}
        r[f"{share:g}"] = mean_and_spread(_known(values))
    halves = {
        seed: None if (step := crossing(*course, HALF)) is None else step / budget
        for seed, course in courses.items()
    }
    finished = {seed for seed, (steps, _) in courses.items() if _is_over(steps, budget)}
    return {
        "r": r,
        "half": mean_and_spread(_known(halves)),
        "never": sorted(seed for seed in finished if halves[seed] is None),
    }


def _known(values: dict[int, float | None]) -> dict[int, float]:
    return {seed: value for seed, value in values.items() if value is not None}


def _spacing(steps: Sequence[int]) -> float:
    """Steps from probe to probe."""
    return statistics.median(b - a for a, b in zip([0, *steps], steps, strict=False))


def _is_over(steps: Sequence[int], budget: float) -> bool:
    """Whether no probe at or before `budget` is still to come."""
    return steps[-1] > budget - _spacing(steps)


def r_at(steps: Sequence[int], values: Sequence[float], step: float) -> float | None:
    """r by the last probe at or before a step; None before the first, and if the run has not got
    there.
    """
    if not _is_over(steps, step):
        return None
    before = [value for probe, value in zip(steps, values, strict=True) if probe <= step]
    return before[-1] if before else None


def crossing(steps: Sequence[int], values: Sequence[float], level: float) -> float | None:
    """The step at which a curve first reaches `level`, linear between probes; None if never."""
    last: tuple[int, float] | None = None
    for step, value in zip(steps, values, strict=True):
        if value >= level:
            if last is None:
                return float(step)
            return last[0] + (step - last[0]) * (level - last[1]) / (value - last[1])
        last = (step, value)
    return None


# -- the density -----------------------------------------------------------------------------------


def density_summary(results: StudyResults) -> JsonRow:
    """Adaptive arm that has begun -> {"n", "distance", "farthest", "first", "last"}, None if no run
    of it recorded a density.

    distance: total variation between the densities of the first and of the last probe, half of the
    summed differences over bins of t; farthest: the largest from the first to any probe; first,
    last: quantile -> its mean over seeds.
    """
    document: JsonRow = {}
    for arm in results.plan.arms.values():
        runs = _runs(results, arm)
        if not arm.adaptive or not runs:
            continue
        courses = {
            seed: course for seed, report in runs if (course := density_course(report)) is not None
        }
        document[arm.name] = _density(courses) if courses else None
    return document


def _density(courses: dict[int, DensityCourse]) -> JsonRow:
    distances = {}
    farthest = {}
    for seed, course in courses.items():
        from_first = [total_variation(course.shares[0], shares) for shares in course.shares]
        distances[seed] = from_first[-1]
        farthest[seed] = max(from_first)
    return {
        "n": len(courses),
        "distance": mean_and_spread(distances),
        "farthest": mean_and_spread(farthest),
        "first": _quantiles(courses.values(), 0),
        "last": _quantiles(courses.values(), -1),
        "first_steps": sorted({course.steps[0] for course in courses.values()}),
        "last_steps": sorted({course.steps[-1] for course in courses.values()}),
    }


def total_variation(p: Sequence[float], q: Sequence[float]) -> float:
    """Largest difference of probability between two densities, by their shares in equal bins."""
    return sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2


def _quantiles(courses: Iterable[DensityCourse], index: int) -> dict[str, float]:
    """Quantile -> mean over runs at their probe number `index`."""
    by_run = [
        {name: values[index] for name, values in course.quantiles.items()} for course in courses
    ]
    return {name: statistics.fmean(one[name] for one in by_run) for name in by_run[0]}


def _runs(results: StudyResults, arm: Arm) -> list[tuple[int, RunReport]]:
    """(seed, run) of an arm, of those that have begun."""
    return [
        (seed, results.runs[arm.name, seed])
        for seed in arm.seeds
        if (arm.name, seed) in results.runs
    ]
