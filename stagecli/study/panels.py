"""The pictures of a study: scores against steps and against seconds, r, densities. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from stagecli.report.curves import Point, series
from stagecli.report.density_map import DensityMap, density_course
from stagecli.report.drawing import Drawing
from stagecli.report.panel import DASHES, RUN_COLOURS, Panel, Trace
from stagecli.study.results import ScoredMetric, ScoreKey, StudyResults
from stagecli.study.scores import SECONDS, BestStrength, SeedCurve, seed_curves, uses_log

ARMS_TOGETHER = 7  # arms in one picture beside the baseline; further ones get another
LOG_RATIO = 4.0  # of the highest to the lowest score, above which the axis is logarithmic

Curve = dict[int, tuple[float, float]]  # step -> (x, score)


def study_panels(results: StudyResults, strengths: Mapping[str, BestStrength]) -> list[Drawing]:
    """The primary score first, each score against steps and against seconds; then r; then the
    densities of adaptive arms, of the first seed that recorded one.
    """
    plan = results.plan
    metrics = [plan.metrics[plan.primary]]
    metrics += [metric for metric in plan.metrics.values() if metric.name != plan.primary]
    groups = _groups(results)
    panels: list[Drawing] = []
    for metric in metrics:
        for group in groups:
            panels += _score_panels(results, metric, strengths, group)
    for group in groups:
        panels += _regime_panels(results, group)
    return panels + _density_maps(results)


def _groups(results: StudyResults) -> list[list[str]]:
    """Arms of one picture each: the baseline with at most so many others."""
    others = [arm.name for arm in results.plan.others]
    count = max(1, -(-len(others) // ARMS_TOGETHER))
    size = -(-len(others) // count) or 1
    return [
        [results.plan.baseline, *others[start : start + size]]
        for start in range(0, max(1, len(others)), size)
    ]


def _score_panels(
    results: StudyResults,
    metric: ScoredMetric,
    strengths: Mapping[str, BestStrength],
    group: Sequence[str],
) -> list[Drawing]:
    """A score of a group of arms: against steps, then against seconds where they are known."""
    # Whether there is anything to draw, and how.
    curves = {arm: seed_curves(results, arm, metric.name, strengths[arm]) for arm in group}
    together = [curve for by_seed in curves.values() for curve in by_seed.values()]
    values = [value for curve in together for value in curve.values]
    if not values:
        return []
    log = uses_log(metric, together) and max(values) > LOG_RATIO * min(values)

    # The same curves over two axes.
    by_step = {
        arm: {seed: _points(curve) for seed, curve in by_seed.items()}
        for arm, by_seed in curves.items()
    }
    by_second = {
        arm: {
            seed: _over_seconds(results, arm, seed, curve, strengths[arm])
            for seed, curve in by_seed.items()
        }
        for arm, by_seed in curves.items()
    }
    better = "lower" if metric.lower else "higher"
    panels: list[Drawing] = []
    for x_label, data in (("step", by_step), ("seconds of training", by_second)):
        traces = _traces(group, data)
        if traces:
            panels.append(
                Panel(
                    title=f"{metric.title}, {better} is better",
                    traces=traces,
                    log=log,
                    x_label=x_label,
                )
            )
    return panels


def _points(curve: SeedCurve) -> Curve:
    pairs = zip(curve.steps, curve.values, strict=True)
    return {step: (float(step), value) for step, value in pairs}


def _over_seconds(
    results: StudyResults, arm: str, seed: int, curve: SeedCurve, strength: BestStrength
) -> Curve:
    return {
        step: (seconds, value)
        for step, value in zip(curve.steps, curve.values, strict=True)
        if (seconds := results.value(ScoreKey(arm, seed, step, strength.value), SECONDS))
        is not None
    }


def _traces(group: Sequence[str], data: Mapping[str, Mapping[int, Curve]]) -> list[Trace]:
    """Seeds of each arm as faint lines, and their mean on top; an arm's place in its group gives
    its colour.
    """
    faint = []
    means = []
    for index, arm in enumerate(group):
        curves = {seed: curve for seed, curve in data.get(arm, {}).items() if curve}
        if not curves:
            continue
        colour = RUN_COLOURS[index % len(RUN_COLOURS)]
        dash = DASHES[index % len(DASHES)]
        if len(curves) > 1:
            faint += [
                Trace(
                    label=f"{arm}, seed {seed}",
                    points=_drawn(curve),
                    colour=colour,
                    band=False,
                    faint=True,
                )
                for seed, curve in curves.items()
            ]
        mean = Trace(label=arm, points=_drawn(_mean(curves)), colour=colour, dash=dash, band=False)
        if mean.points:
            means.append(mean)
    return [*faint, *means]


def _mean(curves: Mapping[int, Curve]) -> Curve:
    """Mean x and score at the steps that every curve has."""
    shared = sorted(set.intersection(*map(set, curves.values())))
    points = {step: [curve[step] for curve in curves.values()] for step in shared}
    return {
        step: (statistics.fmean(x for x, _ in pairs), statistics.fmean(y for _, y in pairs))
        for step, pairs in points.items()
    }


def _drawn(curve: Curve) -> list[Point]:
    return [Point(x, value, value, value) for x, value in curve.values()]


def _regime_panels(results: StudyResults, group: Sequence[str]) -> list[Drawing]:
    data: dict[str, dict[int, Curve]] = {}
    for arm in group:
        for seed in results.plan.arms[arm].seeds:
            report = results.runs.get((arm, seed))
            steps, values = series(report.probes, "r") if report else ([], [])
            if steps:
                points = zip(steps, values, strict=True)
                data.setdefault(arm, {})[seed] = {step: (step, r) for step, r in points}
    traces = _traces(group, data)
    if not traces:
        return []
    only = f", {next(iter(data))}" if len(data) == 1 else ""
    return [Panel(title=f"Regime variable r{only}", traces=traces, bounds=(0.0, 1.05))]


def _density_maps(results: StudyResults) -> list[Drawing]:
    maps: list[Drawing] = []
    for arm in results.plan.arms.values():
        for seed in arm.seeds if arm.adaptive else ():
            report = results.runs.get((arm.name, seed))
            course = density_course(report) if report else None
            if course is not None:
                maps.append(DensityMap.of(course, f", {arm.name}, seed {seed}"))
                break
    return maps
