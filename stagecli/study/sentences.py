"""What a study shows, in sentences made from its numbers. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from stagecli.errors import counted
from stagecli.files import JsonRow
from stagecli.report.formats import significant
from stagecli.study.comparisons import BETTER, TOO_FEW, UNCORRECTED, UNDECIDED, WORSE
from stagecli.study.results import StudyPlan
from stagecli.study.words import interval, p_text, percent, percents, signed


def conclusions(plan: StudyPlan, document: JsonRow) -> list[str]:
    """Steps to the baseline's score, differences, the smallest effect, densities, r."""
    lines = []
    if document["missing"]:
        count = len(document["missing"])
        lines.append(f"The study is not complete: {counted(count, 'gap')}, listed under Missing.")
    lines += _arrival_sentences(plan, document)
    lines += _difference_sentences(plan, document)
    lines += _sensitivity(plan, document)
    lines += _density_sentences(document)
    lines += _r_sentences(document)
    return lines


def _arrival_sentences(plan: StudyPlan, document: JsonRow) -> Iterator[str]:
    for arm in plan.others:
        summary = document["steps_to_baseline"]["arms"][arm.name]
        if summary and summary["n"]:
            yield arrival_sentence(plan, arm.name, summary)


def arrival_sentence(plan: StudyPlan, arm: str, summary: JsonRow) -> str:
    """How much of the budget an arm needs for the baseline's final score."""
    # The goal, and whether it is reached at all.
    title = plan.metrics[plan.primary].title
    goal = f"the final {title} of `{plan.baseline}` ({significant(summary['target'])})"
    n = summary["n"]
    never = n - summary["reached"]
    if never == n:
        return f"`{arm}` never reaches {goal} within {plan.steps:,} steps ({counted(n, 'seed')})."

    # Bounds, where some seeds never arrive or had arrived by the first score.
    share = summary["share"]["mean"]
    bound = ""
    if never:
        bound = "at least "
    elif summary["by_first"]:
        bound = "at most "
    if never and summary["by_first"]:
        bound = "about "
    sentence = (
        f"`{arm}` reaches {goal} after {bound}{share * plan.steps:,.0f} of {plan.steps:,} steps"
        f" ({percent(share)}"
    )
    kind = "bootstrap" if never or summary["by_first"] else "t"
    bounds = summary["share"][kind]
    if bounds:
        sentence += f", 95 % {kind} interval {percents(bounds)}"
    sentence += f", {counted(n, 'seed')})"
    details = []
    if never:
        details.append(f"{counted(never, 'seed')} of {n} never, counted as the whole budget")
    if summary["by_first"]:
        details.append(
            f"{counted(summary['by_first'], 'seed')} of {n} by the first score, counted as that"
            f" step ({plan.score_steps[0]:,})"
        )
    times = summary["seconds_share"]
    if times:
        details.append(f"in {percent(times['mean'])} of the baseline's training time")
    return "; ".join([sentence, *details]) + "."


def _difference_sentences(plan: StudyPlan, document: JsonRow) -> Iterator[str]:
    title = plan.metrics[plan.primary].title
    for row in document["differences"][plan.primary]["rows"]:
        yield difference_sentence(title, row)


def difference_sentence(title: str, row: JsonRow) -> str:
    """The final score of an arm beside another's."""
    arm = f"`{row['arm']}`"
    reference = f"`{row['reference']}`"
    size = f"difference {signed(row['mean'])}"
    if row["verdict"] == TOO_FEW:
        return f"{title} at the end, {arm} and {reference}: {size} in the one seed that both have."
    facts = (
        f"{size}, 95 % t interval {interval(row['t'])}, Holm p {p_text(row['p_holm'])},"
        f" {row['n']} seeds"
    )
    verdicts = {
        BETTER: f"{arm} is better than {reference}",
        WORSE: f"{arm} is worse than {reference}",
        UNDECIDED: f"{arm} is not distinguishable from {reference}",
        UNCORRECTED: (
            f"{arm} differs from {reference} by its own interval, but not after correction for"
            f" {row['family']} comparisons"
        ),
    }
    return f"{title} at the end: {verdicts[row['verdict']]} ({facts})."


def _sensitivity(plan: StudyPlan, document: JsonRow) -> Iterator[str]:
    """The smallest effects that could have been seen."""
    title = plan.metrics[plan.primary].title
    base = document["differences"][plan.primary]["baseline"]
    if base:
        yield (
            f"The {base['n']} seeds of `{plan.baseline}` scatter by {significant(base['sd'], 2)} in"
            f" {title}: with as many seeds in each arm, unpaired, a true difference"
            f" below {significant(base['smallest_effect'], 2)} would be missed more than once in"
            " five times."
        )
    rows = document["differences"][plan.primary]["rows"]
    effects = [row["smallest_effect"] for row in rows if row["smallest_effect"]]
    if effects:
        yield (
            "Paired by seed, as compared here, the smallest effects that could have been shown are"
            f" {significant(min(effects), 2)} to {significant(max(effects), 2)}"
            " (last column of the differences)."
        )


def _density_sentences(document: JsonRow) -> Iterator[str]:
    for arm, summary in document["density"].items():
        if summary is None:
            yield f"`{arm}`: no run has recorded its density of t."
            continue
        first = summary["first"]["q50"]
        last = summary["last"]["q50"]
        yield (
            f"The density of `{arm}` went {summary['distance']['mean']:.2f} from its start (total"
            f" variation; 0: nowhere, 1: all of it moved), its median t from {first:.2f} to"
            f" {last:.2f} ({counted(summary['n'], 'seed')})."
        )


def _r_sentences(document: JsonRow) -> Iterator[str]:
    for arm, summary in document["r"].items():
        half = summary["half"]
        never = counted(len(summary["never"]), "seed") if summary["never"] else ""
        if half is None:
            if never:
                yield f"r of `{arm}` never reaches 0.5 ({never})."
            continue
        shares = list(half["by_seed"].values())
        spread = "" if half["n"] == 1 else f", {percents((min(shares), max(shares)))} over seeds"
        also = f"; never in {never}" if never else ""
        yield (
            f"r of `{arm}` reaches 0.5 at {percent(half['mean'])} of the budget"
            f" ({counted(half['n'], 'seed')}{spread}){also}."
        )
