"""Distances and shares of whole sets, from what a judge heard in them, and differences of two sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from stagecli.evaluate.hear import Heard
from stagecli.evaluate.summary import JsonRow
from stagecli.metrics.bootstrap import Interval
from stagecli.metrics.distance import frechet_difference, frechet_distance, frechet_infinity
from stagecli.metrics.kernel import kernel_difference, kernel_interval
from stagecli.metrics.neighbours import memorisation, precision_recall

DISTANCES = ("kad", "fd_judge", "fd_log_mel")
MANIFOLD = ("precision", "recall", "density", "coverage")
PAIRED = "paired with the reference: lower than other clips would be"


def attempt(metrics: JsonRow, names: Sequence[str], work: Callable[[], Sequence[JsonRow]]) -> None:
    """Adds what `work` gives under the names; where it says that it cannot, no number but the reason."""
    try:
        metrics.update(zip(names, work(), strict=True))
    except ValueError as error:
        metrics.update({name: {"value": None, "note": str(error)} for name in names})


def set_metrics(
    reference: Heard, made: Heard, seed: int, *, full: bool, paired: bool = False
) -> JsonRow:
    """{metric: {"value", ...}} of a set against the reference.

    full: FAD-infinity, precision, recall, density and coverage too; paired: clip i is clip i of the reference, changed:
    estimates that assume independent sets (KAD, FAD-infinity, neighbours) are left out, and the rest is marked.
    """
    metrics: JsonRow = {}

    def frechet(name: str) -> list[JsonRow]:
        found = frechet_distance(getattr(reference, name), getattr(made, name))
        row: JsonRow = {"value": found.value, "biased": found.biased, "dimensions": found.dim}
        return [{**row, "note": PAIRED} if paired else row]

    def kernel() -> list[JsonRow]:
        return [_interval(kernel_interval(reference.mean, made.mean, seed))]

    def infinity() -> list[JsonRow]:
        found = frechet_infinity(reference.mean, made.mean, seed)
        return [{"value": found.value, "r2": found.r2}]

    def manifold() -> list[JsonRow]:
        found = precision_recall(reference.mean, made.mean)
        return [{"value": getattr(found, name)} for name in MANIFOLD]

    if not paired:
        attempt(metrics, ["kad"], kernel)
    attempt(metrics, ["fd_judge"], lambda: frechet("mean"))
    attempt(metrics, ["fd_log_mel"], lambda: frechet("log_mel"))
    if full and not paired:
        attempt(metrics, ["fad_infinity"], infinity)
        attempt(metrics, MANIFOLD, manifold)
    return metrics


def _interval(found: Interval) -> JsonRow:
    return {"value": found.value, "low": found.low, "high": found.high}


def set_difference(reference: Heard, a: Heard, b: Heard, seed: int) -> JsonRow:
    """b - a of the distances, over the same prompts in the same order; {} where the sets differ in size."""
    metrics: JsonRow = {}
    if len(a) != len(b):
        return metrics

    def row(found: Interval) -> list[JsonRow]:
        return [{**_interval(found), "n": len(a), "decided": found.low > 0 or found.high < 0}]

    attempt(metrics, ["kad"], lambda: row(kernel_difference(reference.mean, a.mean, b.mean, seed)))
    attempt(
        metrics, ["fd_judge"], lambda: row(frechet_difference(reference.mean, a.mean, b.mean, seed))
    )
    attempt(
        metrics,
        ["fd_log_mel"],
        lambda: row(frechet_difference(reference.log_mel, a.log_mel, b.log_mel, seed)),
    )
    return metrics


def memorised(
    samples: Heard, training: Heard, real: Heard, names: Sequence[str], keys: Sequence[str]
) -> tuple[JsonRow, JsonRow]:
    """(the metric, what it is made of): samples against the nearest training clips, and `real` clips likewise.

    names: of the samples; keys: of the training clips; nearest pairs are listed to be listened to.
    """
    found = memorisation(samples.mean, training.mean, real.mean)
    share: JsonRow = asdict(found.nearer) | {"copies": found.copies}
    notes = []
    if found.coarse:
        notes.append(
            f"{len(real)} real test clips: the threshold is little more than the nearest of them"
        )
    if found.leaked:
        notes.append("a real test clip is itself a copy of a training clip")
    if notes:
        share["note"] = "; ".join(notes)
    details: dict[str, Any] = {
        "samples": {f"{q:g}": value for q, value in found.samples.items()},
        "real": {f"{q:g}": value for q, value in found.real.items()},
        "threshold": found.threshold,
        "copies": found.copies,
        "training_clips": len(training),
        "pairs": [
            {
                "sample": names[p.sample],
                "training": keys[p.training],
                "distance": p.distance,
                "rank": p.rank,
            }
            for p in found.pairs
        ],
    }
    return share, details
