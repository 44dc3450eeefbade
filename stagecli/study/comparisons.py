"""Differences between arms at the last step, over the seeds that both have. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict

from stagecli.files import JsonRow
from stagecli.study.results import StudyPlan, StudyResults
from stagecli.study.scores import BestStrength
from stagecli.study.statistics import ALPHA, holm, paired_test, smallest_group_effect

BETTER = "better"
WORSE = "worse"
UNCORRECTED = "undecided (Holm)"
UNDECIDED = "undecided"
TOO_FEW = "one seed"


def pairs(plan: StudyPlan) -> list[tuple[str, str]]:
    """(arm, reference): every arm with the baseline, then adaptive arms with each of `against`, no
    two arms twice.
    """
    compared = [(arm.name, plan.baseline) for arm in plan.others]
    for reference in plan.against:
        if reference != plan.baseline:
            compared += [
                (arm.name, reference)
                for arm in plan.others
                if arm.adaptive and arm.name != reference and (reference, arm.name) not in compared
            ]
    return compared


def comparison_summary(results: StudyResults, strengths: Mapping[str, BestStrength]) -> JsonRow:
    """Metric -> {"rows", "baseline"}; rows: a comparison each, arm minus reference, each arm at its
    best strength, p corrected over the rows of that metric; baseline: see `_baseline`.
    """
    return {
        metric: {
            "rows": _rows(results, metric, strengths),
            "baseline": _baseline(results, metric, strengths),
        }
        for metric in results.plan.metrics
    }


def _rows(
    results: StudyResults, metric: str, strengths: Mapping[str, BestStrength]
) -> list[JsonRow]:
    """One row per pair that shares a seed at the last step."""
    last = results.plan.score_steps[-1]
    rows = []
    for arm, reference in pairs(results.plan):
        own = results.values(arm, metric, last, strengths[arm].value)
        other = results.values(reference, metric, last, strengths[reference].value)
        shared = [seed for seed in own if seed in other]
        if not shared:
            continue
        test = paired_test([own[seed] - other[seed] for seed in shared])
        rows.append(
            {
                "arm": arm,
                "reference": reference,
                "seeds": shared,
                "arm_mean": statistics.fmean(own[seed] for seed in shared),
                "reference_mean": statistics.fmean(other[seed] for seed in shared),
                **asdict(test),
            }
        )
    tested = [row for row in rows if row["p_t"] is not None]
    for row, p in zip(tested, holm([row["p_t"] for row in tested]), strict=True):
        row["p_holm"] = p
        row["family"] = len(tested)
    lower = results.plan.metrics[metric].lower
    for row in rows:
        row.setdefault("p_holm", None)
        row.setdefault("family", len(tested))
        row["verdict"] = _verdict(row, lower)
    return rows


def _verdict(row: JsonRow, lower: bool) -> str:
    """In a word, by Student's t and Holm's correction."""
    if row["t"] is None:
        return TOO_FEW
    low, high = row["t"]
    if low <= 0 <= high:
        return UNDECIDED
    if row["p_holm"] >= ALPHA:
        return UNCORRECTED
    return BETTER if (row["mean"] < 0) == lower else WORSE


def _baseline(
    results: StudyResults, metric: str, strengths: Mapping[str, BestStrength]
) -> JsonRow | None:
    """{"n", "mean", "sd", "smallest_effect"} of the baseline's seeds at the last step; the effect
    is that of two unpaired groups that scatter as they do. None with fewer than two seeds.
    """
    plan = results.plan
    by_seed = results.values(
        plan.baseline, metric, plan.score_steps[-1], strengths[plan.baseline].value
    )
    values = list(by_seed.values())
    if len(values) < 2:
        return None
    sd = statistics.stdev(values)
    return {
        "n": len(values),
        "mean": statistics.fmean(values),
        "sd": sd,
        "smallest_effect": smallest_group_effect(sd, len(values)),
    }
