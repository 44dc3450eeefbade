"""The evaluations while a run trained: first, best and newest value of each number, and whether one is at a plateau."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from stagecli.files import JsonRow
from stagecli.metrics.in_training import LOSS, PREFIX, described, higher_is_better
from stagecli.metrics.theil_sen import kendall_z

LEAST = 8  # rows before a plateau is spoken of
STILL = 5  # of them since the last real improvement, at least ...
STILL_SHARE = (
    1 / 3
)  # ... and this share of all: with few rows slow progress could not be told from none
TREND = -1.5  # Kendall's z below which the rows since then still improve
SCATTERS = 2.0  # an improvement by less than this many standard deviations of the scatter is none

Columns = Callable[[str], tuple[list[int], list[float]]]


def names(rows: Sequence[JsonRow]) -> list[str]:
    """Rows `eval/...` that a run has, in the order written; what the evaluation cost is none of them."""
    found = dict.fromkeys(key for row in rows if "eval/seconds" in row for key in row)
    return [key for key in found if described(key) is not None]


def label(row: str) -> str:
    """`eval/lsd_4000` -> `lsd, 4000 Hz`."""
    found = described(row)
    if found is None:
        return {LOSS: "validation loss"}.get(row, row)
    return found[0].name + (f", {found[1]} Hz" if found[1] else "")


def summary(rows: Sequence[JsonRow], columns: Columns, chosen: str) -> JsonRow | None:
    """What the evaluations gave, ready for JSON; None where there is neither one nor the row that chooses the best.

    chosen: `train.best`. metrics: row -> {"better", "first", "last", "last_step", "best", "best_step"}.
    """
    found = names(rows)
    if not found and not columns(chosen)[1]:
        return None
    metrics = {}
    for name in found:
        steps, values = columns(name)
        if values:
            k = min(range(len(values)), key=lambda i: _cost(name, values)[i])
            metrics[name] = {
                "better": "higher" if higher_is_better(name) else "lower",
                "first": values[0],
                "last": values[-1],
                "last_step": steps[-1],
                "best": values[k],
                "best_step": steps[k],
            }
    seconds = columns(PREFIX + "seconds")[1]
    return {
        "chosen": chosen,
        "metrics": metrics,
        "plateau": plateau(chosen, *columns(chosen)),
        "seconds": statistics.median(seconds) if seconds else None,
    }


def _cost(name: str, values: Sequence[float]) -> list[float]:
    return [-v for v in values] if higher_is_better(name) else list(values)


def scatter(values: Sequence[float]) -> float:
    """Standard deviation of the row-to-row noise: from second differences, to which a smooth course adds little.

    Their median absolute value over 0.6745 sqrt(6), so that single jumps count little.
    """
    bends = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return statistics.median(bends) / (0.6745 * math.sqrt(6)) if bends else 0.0


def plateau(name: str, steps: Sequence[int], values: Sequence[float]) -> JsonRow | None:
    """Since when a number has not improved beyond its noise, or None: it has, or there are too few rows to tell.

    margin: SCATTERS standard deviations of the scatter over the last half of the rows. since_step: of the first row
    that no later one improves on by more than the margin. The rows after it are enough (STILL, STILL_SHARE) and show
    no trend to the better, as slow progress under the noise would.
    """
    count = len(values)
    costs = _cost(name, values)
    if count < LEAST:
        return None
    margin = SCATTERS * scatter(values[-max(LEAST, count // 2) :])
    lowest = min(costs)
    since = next(i for i in range(count) if costs[i] <= lowest + margin)
    after = count - 1 - since
    if after < max(STILL, STILL_SHARE * count) or kendall_z(costs[since + 1 :]) < TREND:
        return None
    k = costs.index(lowest)
    return {
        "since_step": steps[since],
        "evaluations": after,
        "margin": margin,
        "best": values[k],
        "best_step": steps[k],
        "last": values[-1],
        "last_step": steps[-1],
        "worse": costs[-1] > lowest + margin,
    }


def sentences(found: JsonRow | None, rate: Sequence[float]) -> list[str]:
    """In words, for the reading; rate: learning rates of the run so far. Advice only: nothing stops by it."""
    if found is None:
        return []
    chosen = found["chosen"]
    out = []
    one = found["metrics"].get(chosen)
    if one:
        better = f" ({one['better']} is better)"
        out.append(
            f"best {chosen}{better} {one['best']:.4g} at step {one['best_step']:,}"
            + (
                ", the newest evaluation"
                if one["best_step"] == one["last_step"]
                else f"; {one['last']:.4g} at step {one['last_step']:,}, the newest"
            )
        )
    flat = found["plateau"]
    if flat is None:
        return out
    by = (
        f"by more than {flat['margin']:.2g} ({SCATTERS:g} x its scatter) " if flat["margin"] else ""
    )
    text = f"{chosen} has not improved {by}since step {flat['since_step']:,} ({flat['evaluations']} evaluations)"
    if flat["worse"]:
        text += f" and is worse now than at its best, step {flat['best_step']:,}"
        return [
            *out,
            text
            + ": more steps promise no better one; `--checkpoint best` is the best of those kept",
        ]
    share = rate[-1] / max(rate) if rate and max(rate) > 0 else None
    if share is None:
        return [*out, text + ": more steps as they are promise little"]
    text += f", with the learning rate at {100 * share:.0f} % of its highest: "
    return [
        *out,
        text + ("lower it before adding steps" if share > 0.5 else "more steps promise little"),
    ]
