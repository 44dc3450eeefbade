"""Scores of each arm at its best strength, by step: mean and spread over seeds. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stagecli.files import JsonRow
from stagecli.study.results import ScoredMetric, StudyResults

SECONDS = "seconds"  # of training up to a step, as a column of scores.jsonl


@dataclass(frozen=True)
class BestStrength:
    """The strength that an arm is judged at.

    value: None also where the task has no strengths; step: at which it was chosen, None without any
    score; by_step: the best strength at each scored step.
    """

    value: float | None
    step: int | None
    by_step: dict[int, float | None]

    def at_step(self, step: int, each: bool) -> float | None:
        """The strength at a step; each: the best at that step instead of the chosen one."""
        return self.by_step.get(step, self.value) if each else self.value


def best_strength(results: StudyResults, arm: str) -> BestStrength:
    """By the mean of the primary score over seeds, at the last step that has scores."""
    by_step: dict[int, float | None] = {}
    for step in results.plan.score_steps:
        means = _means(results, arm, step)
        if means:
            pick = min if results.plan.metrics[results.plan.primary].lower else max
            by_step[step] = pick(means, key=lambda strength: means[strength])
    last = max(by_step, default=None)
    return BestStrength(None if last is None else by_step[last], last, by_step)


def _means(results: StudyResults, arm: str, step: int) -> dict[float | None, float]:
    """Strength -> mean of the primary score over the seeds that have it at every strength; where no
    seed has, over those that have it.
    """
    plan = results.plan
    by_strength = {
        strength: results.values(arm, plan.primary, step, strength) for strength in plan.strengths
    }
    scored = {strength: by_seed for strength, by_seed in by_strength.items() if by_seed}
    shared = set.intersection(*map(set, by_strength.values()))
    return {
        strength: statistics.fmean(
            value for seed, value in by_seed.items() if not shared or seed in shared
        )
        for strength, by_seed in scored.items()
    }


def best_strengths(results: StudyResults) -> dict[str, BestStrength]:
    return {arm: best_strength(results, arm) for arm in results.plan.arms}


@dataclass(frozen=True)
class SeedCurve:
    """One score of one run over the scored steps that have it, at the strengths of its arm."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    def at_last(self, step: int) -> float | None:
        """The value if the curve has one at `step`, the study's last."""
        return self.values[-1] if self.steps and self.steps[-1] == step else None


def seed_curves(
    results: StudyResults, arm: str, metric: str, strength: BestStrength, *, each: bool = False
) -> dict[int, SeedCurve]:
    """Seed -> curve, for the seeds with a score; each: the best strength at each step."""
    points: dict[int, list[tuple[int, float]]] = {}
    for step in results.plan.score_steps:
        values = results.values(arm, metric, step, strength.at_step(step, each))
        for seed, value in values.items():
            points.setdefault(seed, []).append((step, value))
    return {
        seed: SeedCurve(tuple(step for step, _ in pairs), tuple(value for _, value in pairs))
        for seed, pairs in points.items()
    }


def uses_log(metric: ScoredMetric, curves: Sequence[SeedCurve]) -> bool:
    """Whether a score is drawn and interpolated by its logarithm: lower is better, all positive."""
    values = [value for curve in curves for value in curve.values]
    return metric.lower and bool(values) and min(values) > 0


def mean_and_spread(by_seed: Mapping[int, float]) -> JsonRow | None:
    """{"mean", "sd", "n", "by_seed"} of values by seed; sd is None for one, the whole for none."""
    values = list(by_seed.values())
    if not values:
        return None
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
        "by_seed": {str(seed): value for seed, value in by_seed.items()},
    }


def score_summary(results: StudyResults, strengths: Mapping[str, BestStrength]) -> JsonRow:
    """Arm -> {"strength", "chosen_at", "strength_by_step", "scores", "scores_best_at_each_step",
    "seconds"}; scores: metric -> step -> `mean_and_spread`; seconds: step -> the same.
    """
    plan = results.plan
    document: JsonRow = {}
    for arm, strength in strengths.items():
        scores: dict[bool, JsonRow] = {}
        for each in (False, True):
            scores[each] = {
                metric: {
                    str(step): mean_and_spread(
                        results.values(arm, metric, step, strength.at_step(step, each))
                    )
                    for step in plan.score_steps
                }
                for metric in plan.metrics
            }
        document[arm] = {
            "strength": strength.value,
            "chosen_at": strength.step,
            "strength_by_step": {str(step): value for step, value in strength.by_step.items()},
            "scores": scores[False],
            "scores_best_at_each_step": scores[True],
            "seconds": {
                str(step): mean_and_spread(results.values(arm, SECONDS, step, strength.value))
                for step in plan.score_steps
            },
        }
    return document
