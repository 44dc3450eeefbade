"""Steps, and seconds, that each arm needs for the final score of the baseline. No torch.

Pairs are of one seed: the baseline's final score with a seed is the target of the other arms with
that seed. A run that never reaches it counts as the whole budget, so that means over it are lower
bounds, and is counted; so is a run that had reached it by the first scored step.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from stagecli.files import JsonRow
from stagecli.metrics.bootstrap import bootstrap_interval
from stagecli.study.results import ScoreKey, StudyResults
from stagecli.study.scores import SECONDS, BestStrength, SeedCurve, seed_curves, uses_log
from stagecli.study.statistics import DRAWS, LEVEL, Arrival, arrival, t_interval

REACHED = "reached"
BY_FIRST = "by the first scored step"
NEVER = "not reached"


@dataclass(frozen=True, kw_only=True)
class SeedArrival:
    """When the run of one seed reaches its target.

    state: one of the three above. steps, seconds: None if never, an upper bound if by the first
    step. share, seconds_share: of the budget, and of the baseline's whole training time; the whole
    if never.
    """

    seed: int
    target: float
    state: str
    steps: float | None
    share: float
    seconds: float | None
    seconds_share: float | None


def arrival_summary(results: StudyResults, strengths: Mapping[str, BestStrength]) -> JsonRow:
    """{"log", "arms", "arms_best_at_each_step"}; arms: arm -> `_summary` or None without a pair.

    log: whether curves are interpolated by their logarithm.
    """
    plan = results.plan
    metric = plan.metrics[plan.primary]
    tables: dict[bool, dict[str, dict[int, SeedCurve]]] = {
        each: {
            arm: seed_curves(results, arm, metric.name, strengths[arm], each=each)
            for arm in plan.arms
        }
        for each in (False, True)
    }
    curves = [curve for table in tables[False].values() for curve in table.values()]
    curves += [curve for table in tables[True].values() for curve in table.values()]
    log = uses_log(metric, curves)

    def of_arms(each: bool) -> JsonRow:
        return {arm: _of_arm(results, arm, tables[each], strengths, log=log) for arm in plan.arms}

    return {"log": log, "arms": of_arms(False), "arms_best_at_each_step": of_arms(True)}


def _of_arm(
    results: StudyResults,
    arm: str,
    curves: Mapping[str, Mapping[int, SeedCurve]],
    strengths: Mapping[str, BestStrength],
    *,
    log: bool,
) -> JsonRow | None:
    """The arrivals of an arm over the seeds that it shares with the baseline."""
    plan = results.plan
    last = plan.score_steps[-1]
    arrivals = []
    unfinished = []
    for seed in plan.arms[arm].seeds:
        base = curves[plan.baseline].get(seed)
        target = None if base is None else base.at_last(last)
        own = curves[arm].get(seed)
        if target is None or own is None:
            continue
        lower = plan.metrics[plan.primary].lower
        first = arrival(own.steps, own.values, target, lower=lower, log=log)
        if first is None and own.at_last(last) is None:
            unfinished.append(seed)
            continue
        seconds = _Seconds(results, arm, seed, strengths[arm].value)
        of_base = _Seconds(results, plan.baseline, seed, strengths[plan.baseline].value)
        arrivals.append(_seed_arrival(seed, target, first, plan.steps, (seconds, of_base)))
    return _summary(arrivals, unfinished)


class _Seconds:
    """Training time of one run by step; linear between scored steps, from 0 at step 0."""

    def __init__(self, results: StudyResults, arm: str, seed: int, strength: float | None) -> None:
        rows = (
            (step, results.value(ScoreKey(arm, seed, step, strength), SECONDS))
            for step in results.plan.score_steps
        )
        self._points = [(0, 0.0), *((step, value) for step, value in rows if value is not None)]
        self.last = results.plan.score_steps[-1]

    def by_step(self, step: float) -> float | None:
        """Seconds up to a step; None beyond the last known one."""
        for (before, low), (after, high) in zip(self._points, self._points[1:], strict=False):
            if before <= step <= after:
                return low + (high - low) * (step - before) / (after - before)
        return None


def _seed_arrival(
    seed: int,
    target: float,
    first: Arrival | None,
    budget: int,
    seconds: tuple[_Seconds, _Seconds],
) -> SeedArrival:
    """seconds: of the run, and of the baseline's with the same seed."""
    own, base = seconds
    step = first.step if first else budget
    spent = own.by_step(min(step, own.last))
    whole = base.by_step(base.last)
    state = NEVER if first is None else BY_FIRST if first.by_first else REACHED
    return SeedArrival(
        seed=seed,
        target=target,
        state=state,
        steps=first.step if first else None,
        share=step / budget,
        seconds=spent if first else None,
        seconds_share=spent / whole if spent is not None and whole else None,
    )


def _summary(arrivals: Sequence[SeedArrival], unfinished: Sequence[int]) -> JsonRow | None:
    """Means, medians and intervals over seeds; None without a seed.

    "share": see `_over_seeds`; "seconds_share": the same, None unless every seed has it; "median":
    None if half of the seeds or more never arrive.
    """
    if not arrivals:
        return {"n": 0, "unfinished": list(unfinished)} if unfinished else None
    shares = [one.share for one in arrivals]
    times = [one.seconds_share for one in arrivals if one.seconds_share is not None]
    states = [one.state for one in arrivals]
    ranks = [one.share if one.state != NEVER else math.inf for one in arrivals]
    median = statistics.median(ranks)
    seconds = [one.seconds for one in arrivals if one.seconds is not None]
    return {
        "n": len(arrivals),
        "reached": len(arrivals) - states.count(NEVER),
        "by_first": states.count(BY_FIRST),
        "target": statistics.fmean(one.target for one in arrivals),
        "share": _over_seeds(shares, highest=1.0),
        "median": median if median < math.inf else None,
        "median_bootstrap": _bootstrap(shares, median=True),
        "seconds_share": _over_seeds(times) if len(times) == len(arrivals) else None,
        "seconds": statistics.fmean(seconds) if len(seconds) == len(arrivals) else None,
        "unfinished": list(unfinished),
        "by_seed": [asdict(one) for one in arrivals],
    }


def _over_seeds(values: Sequence[float], highest: float = math.inf) -> JsonRow:
    """{"mean", "bootstrap", "t"}: intervals are None for one seed; that by t is cut to what a mean
    can be, from 0 to `highest`.
    """
    t = None
    if len(values) > 1:
        low, high = t_interval(values)
        t = (max(0.0, low), min(highest, high))
    return {"mean": statistics.fmean(values), "bootstrap": _bootstrap(values), "t": t}


def _bootstrap(values: Sequence[float], median: bool = False) -> tuple[float, float] | None:
    if len(values) < 2:
        return None
    return bootstrap_interval(values, 0, LEVEL, DRAWS, median=median)
