"""Distances and shares of whole sets of clips by their embeddings, and differences of two sets."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from torch import Tensor

from stagecli.errors import counted
from stagecli.evaluate.embed import ClipEmbeddings
from stagecli.files import JsonRow
from stagecli.metrics.bootstrap import Interval
from stagecli.metrics.distance import frechet_difference, frechet_distance, frechet_infinity
from stagecli.metrics.kernel import (
    kernel_audio_distance,
    kernel_difference,
    kernel_interval,
)
from stagecli.metrics.neighbours import Memorisation, memorisation, precision_recall

DISTANCES = ("kad", "fd_judge", "fd_log_mel")
MANIFOLD = ("precision", "recall", "density", "coverage")
SET_METRICS = (*DISTANCES, "fad_infinity", *MANIFOLD)
PAIRED = "paired with the reference: lower than for independent clips"


def add_or_explain(
    metrics: JsonRow, names: Sequence[str], compute: Callable[[], Sequence[JsonRow]]
) -> None:
    """Add a value of `compute` under each name; on ValueError no value, and its message as note."""
    try:
        metrics.update(zip(names, compute(), strict=True))
    except ValueError as error:
        metrics.update({name: {"value": None, "note": str(error)} for name in names})


def set_metrics(
    reference: ClipEmbeddings,
    generated: ClipEmbeddings,
    seed: int,
    *,
    names: Collection[str],
    paired: bool = False,
) -> JsonRow:
    """{metric: {"value", ...}} of a generated set against the reference.

    names: metrics to compute; those that are not of `SET_METRICS` are passed over. paired: clip i
    is an altered version of clip i of the reference, so metrics that assume independent sets (KAD,
    FAD-infinity, neighbours) are left out and the others are marked.
    """
    # How each is computed.
    metrics: JsonRow = {}

    def kernel() -> list[JsonRow]:
        try:
            return [_with_interval(kernel_interval(reference.mean, generated.mean, seed))]
        except ValueError as error:  # too few clips for the interval, if there is a value
            value = kernel_audio_distance(reference.mean, generated.mean).value
            return [{"value": value, "note": str(error)}]

    def infinity() -> list[JsonRow]:
        limit = frechet_infinity(reference.mean, generated.mean, seed)
        return [{"value": limit.value, "r2": limit.r2}]

    def manifold(shares: Sequence[str]) -> list[JsonRow]:
        values = asdict(precision_recall(reference.mean, generated.mean))
        return [{"value": values[name]} for name in shares]

    def frechet(of_x: Tensor, of_y: Tensor) -> list[JsonRow]:
        return [_frechet(of_x, of_y, paired)]

    # Those that are wanted and mean something for these sets.
    if "kad" in names and not paired:
        add_or_explain(metrics, ["kad"], kernel)
    if "fd_judge" in names:
        add_or_explain(metrics, ["fd_judge"], partial(frechet, reference.mean, generated.mean))
    if "fd_log_mel" in names:
        add_or_explain(
            metrics, ["fd_log_mel"], partial(frechet, reference.log_mel, generated.log_mel)
        )
    if "fad_infinity" in names and not paired:
        add_or_explain(metrics, ["fad_infinity"], infinity)
    shares = [name for name in MANIFOLD if name in names]
    if shares and not paired:
        add_or_explain(metrics, shares, partial(manifold, shares))
    return metrics


def _frechet(reference: Tensor, generated: Tensor, paired: bool) -> JsonRow:
    distance = frechet_distance(reference, generated)
    metric: JsonRow = {
        "value": distance.value,
        "biased": distance.biased,
        "dimensions": distance.dim,
    }
    if paired:
        metric["note"] = PAIRED
    return metric


def _with_interval(interval: Interval) -> JsonRow:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def set_differences(
    reference: ClipEmbeddings,
    a: ClipEmbeddings,
    b: ClipEmbeddings,
    seed: int,
    names: Collection[str] = DISTANCES,
) -> JsonRow:
    """{distance: b - a, with its interval}; clip i of a and of b have the same prompt.

    names: the distances to compare. {} if a and b differ in size.
    """
    metrics: JsonRow = {}
    if len(a) != len(b):
        return metrics

    def difference(compute: Callable[[], Interval]) -> list[JsonRow]:
        interval = compute()
        decided = interval.low > 0 or interval.high < 0
        return [{**_with_interval(interval), "n": len(a), "decided": decided}]

    differences = {
        "kad": partial(kernel_difference, reference.mean, a.mean, b.mean, seed),
        "fd_judge": partial(frechet_difference, reference.mean, a.mean, b.mean, seed),
        "fd_log_mel": partial(frechet_difference, reference.log_mel, a.log_mel, b.log_mel, seed),
    }
    for name, compute in differences.items():
        if name in names:
            add_or_explain(metrics, [name], partial(difference, compute))
    return metrics


def memorised_share(
    samples: ClipEmbeddings,
    training: ClipEmbeddings,
    real: ClipEmbeddings,
    *,
    sample_names: Sequence[str],
    training_names: Sequence[str],
) -> tuple[JsonRow, JsonRow]:
    """(the metric, its details): distances of samples and of real clips to the training set.

    The details list the nearest pairs by name, so that one can listen to them.
    """
    result = memorisation(samples.mean, training.mean, real.mean)
    metric: JsonRow = asdict(result.nearer) | {"copies": result.copies}
    notes = []
    if result.coarse:
        notes.append(
            f"{counted(len(real), 'real test clip')}: the threshold is little more than the "
            "nearest of them"
        )
    if result.leaked:
        notes.append("a real test clip is itself a copy of a training clip")
    if notes:
        metric["note"] = "; ".join(notes)
    details = {
        "samples": {f"{share:g}": value for share, value in result.samples.items()},
        "real": {f"{share:g}": value for share, value in result.real.items()},
        "threshold": result.threshold,
        "copies": result.copies,
        "training_clips": len(training),
        "pairs": _nearest_pairs(result, sample_names, training_names),
    }
    return metric, details


def _nearest_pairs(
    result: Memorisation, sample_names: Sequence[str], training_names: Sequence[str]
) -> list[dict[str, Any]]:
    return [
        {
            "sample": sample_names[pair.sample],
            "training": training_names[pair.training],
            "distance": pair.distance,
            "rank": pair.rank,
        }
        for pair in result.pairs
    ]
