"""Evaluations during training: first, best and newest value of each metric, and plateaus."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from stagecli.files import JsonRow
from stagecli.metrics.in_training import LOSS, PREFIX, described, higher_is_better, meaning
from stagecli.metrics.theil_sen import kendall_z
from stagecli.report.formats import significant
from stagecli.report.losses import Columns

MINIMUM_ROWS = 8  # rows before a plateau is reported
# A plateau needs so many rows since the last real improvement, and so large a share of all rows:
# with few rows, slow progress cannot be told from none.
MINIMUM_SINCE = 5
MINIMUM_SHARE = 1 / 3
IMPROVING_Z = -1.5  # Kendall's z below which the rows since then are still improving
SCATTERS = 2.0  # an improvement counts from so many standard deviations of the scatter


def evaluation_names(rows: Sequence[JsonRow]) -> list[str]:
    """The metrics `eval/...` of a run, in the order written, without the cost of evaluating."""
    keys = dict.fromkeys(key for row in rows if "eval/seconds" in row for key in row)
    return [key for key in keys if described(key) is not None]


def evaluation_label(name: str) -> str:
    """`eval/lsd_4000` -> `lsd, 4000 Hz`."""
    description = described(name)
    if description is None:
        return "validation loss" if name == LOSS else name
    metric, cutoff = description
    return f"{metric.name}, {cutoff} Hz" if cutoff else metric.name


def score_words(names: Iterable[str]) -> list[str]:
    """`kad: kernel audio distance ...`, a line for each score among these columns."""
    lines: dict[str, None] = {}
    for name in names:
        if meaning(name):
            description = described(name)
            assert description is not None
            metric = description[0]
            unit = f", {metric.unit}" if metric.unit else ""
            lines[f"{metric.name}: {meaning(name)}{unit}; {metric.better} is better"] = None
    return list(lines)


def summarize_evaluations(rows: Sequence[JsonRow], columns: Columns, chosen: str) -> JsonRow | None:
    """Evaluations of a run, ready for JSON; None if it has neither any nor the metric `chosen`.

    chosen: `train.best`. metrics: name -> {"better", "first", "last", "last_step", "best",
    "best_step"}.
    """
    names = evaluation_names(rows)
    if not names and not columns(chosen)[1]:
        return None
    metrics = {}
    for name in names:
        steps, values = columns(name)
        if values:
            costs = _costs(name, values)
            best = costs.index(min(costs))
            metrics[name] = {
                "better": "higher" if higher_is_better(name) else "lower",
                "first": values[0],
                "last": values[-1],
                "last_step": steps[-1],
                "best": values[best],
                "best_step": steps[best],
            }
    seconds = columns(PREFIX + "seconds")[1]
    return {
        "chosen": chosen,
        "metrics": metrics,
        "plateau": plateau(chosen, *columns(chosen)),
        "seconds": statistics.median(seconds) if seconds else None,
    }


def _costs(name: str, values: Sequence[float]) -> list[float]:
    """`values` with their sign chosen so that lower is better."""
    return [-value for value in values] if higher_is_better(name) else list(values)


def scatter(values: Sequence[float]) -> float:
    """Standard deviation of the row-to-row noise, from second differences.

    A smooth curve adds little to second differences, and their median absolute value, over
    0.6745 sqrt(6), is insensitive to single jumps.
    """
    bends = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return statistics.median(bends) / (0.6745 * math.sqrt(6)) if bends else 0.0


def plateau(name: str, steps: Sequence[int], values: Sequence[float]) -> JsonRow | None:
    """Since when a metric has not improved beyond its noise; None if it has, or with too few rows.

    margin: `SCATTERS` standard deviations of the scatter over the last half of the rows.
    since_step: of the first row that no later one improves on by more than the margin. The rows
    after it must be enough (`MINIMUM_SINCE`, `MINIMUM_SHARE`) and show no trend to the better, as
    slow progress under the noise would.
    """
    count = len(values)
    if count < MINIMUM_ROWS:
        return None
    costs = _costs(name, values)
    margin = SCATTERS * scatter(values[-max(MINIMUM_ROWS, count // 2) :])
    lowest = min(costs)
    since = next(i for i in range(count) if costs[i] <= lowest + margin)
    rows_after = count - 1 - since
    if rows_after < max(MINIMUM_SINCE, MINIMUM_SHARE * count):
        return None
    if kendall_z(costs[since + 1 :]) < IMPROVING_Z:
        return None
    best = costs.index(lowest)
    return {
        "since_step": steps[since],
        "evaluations": rows_after,
        "margin": margin,
        "best": values[best],
        "best_step": steps[best],
        "last": values[-1],
        "last_step": steps[-1],
        "worse": costs[-1] > lowest + margin,
    }


def evaluation_sentences(evaluation: JsonRow | None, rates: Sequence[float]) -> list[str]:
    """The evaluations in words; rates: learning rates so far. Advice only: nothing stops by it."""
    if evaluation is None:
        return []
    chosen = evaluation["chosen"]
    sentences = []
    metric = evaluation["metrics"].get(chosen)
    if metric:
        sentences.append(_best_sentence(chosen, metric))
    if evaluation["plateau"]:
        sentences.append(_plateau_sentence(chosen, evaluation["plateau"], rates))
    return sentences


def _best_sentence(name: str, metric: JsonRow) -> str:
    what = f"{meaning(name)}; " if meaning(name) else ""
    best = (
        f"best {name} ({what}{metric['better']} is better): {significant(metric['best'])}"
        f" at step {metric['best_step']:,}"
    )
    if metric["best_step"] == metric["last_step"]:
        return f"{best}, the newest evaluation"
    return f"{best}; the newest is {significant(metric['last'])} at step {metric['last_step']:,}"


def _plateau_sentence(name: str, flat: JsonRow, rates: Sequence[float]) -> str:
    beyond = ""
    if flat["margin"]:
        beyond = f"by more than {significant(flat['margin'], 2)} ({SCATTERS:g} times its scatter) "
    text = (
        f"{name} has not improved {beyond}since step {flat['since_step']:,}"
        f" ({flat['evaluations']} evaluations)"
    )
    if flat["worse"]:
        return (
            f"{text} and is now worse than at its best, step {flat['best_step']:,}: more steps are"
            " unlikely to help; `--checkpoint best` uses the best checkpoint kept"
        )
    if not rates or max(rates) <= 0:
        return f"{text}: more steps at these settings are unlikely to help"
    share = rates[-1] / max(rates)
    text += f", with the learning rate at {100 * share:.0f} % of its peak"
    if share > 0.5:
        return f"{text}: lower it before adding steps"
    return f"{text}: more steps are unlikely to help"
