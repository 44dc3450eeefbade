"""Everything that the report of a study says, as one JSON document. No torch."""

from __future__ import annotations

from stagecli.files import JsonRow, finite
from stagecli.study.arrivals import arrival_summary
from stagecli.study.comparisons import comparison_summary
from stagecli.study.movement import density_summary, r_summary
from stagecli.study.results import StudyResults
from stagecli.study.scores import BestStrength, score_summary
from stagecli.study.sentences import conclusions


def analyse(results: StudyResults, strengths: dict[str, BestStrength]) -> JsonRow:
    """The document of a study as read; unknown values are None.

    strengths: of every arm, as `best_strengths` finds them.
    """
    plan = results.plan
    document: JsonRow = {
        "name": plan.name,
        "recipe": plan.recipe,
        "task": plan.task,
        "steps": plan.steps,
        "baseline": plan.baseline,
        "against": list(plan.against),
        "primary": plan.primary,
        "score_steps": list(plan.score_steps),
        "metrics": {
            name: {"title": metric.title, "better": "lower" if metric.lower else "higher"}
            for name, metric in plan.metrics.items()
        },
        "seeds": {arm.name: list(arm.seeds) for arm in plan.arms.values()},
        "missing": results.notes,
        "not_measured": results.unmeasured,
        "arms": score_summary(results, strengths),
        "steps_to_baseline": arrival_summary(results, strengths),
        "differences": comparison_summary(results, strengths),
        "r": r_summary(results),
        "density": density_summary(results),
    }
    document["conclusions"] = conclusions(plan, document)
    return finite(document)
