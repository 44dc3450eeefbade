"""Training loss by noise level: the rows of bins.jsonl, added up."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from stagecli.files import JsonRow, number


class BinRow(NamedTuple):
    """One row of bins.jsonl: loss and number of samples of every noise bin."""

    step: int
    losses: list[Any]
    counts: list[Any]


def bin_rows(rows: Sequence[JsonRow]) -> tuple[list[float], list[BinRow]]:
    """The newest edges of the noise bins, and the rows that have those edges."""
    edges: list[float] = []
    for row in reversed(rows):
        candidate = row.get("edges")
        if isinstance(candidate, list) and len(candidate) > 1:
            if all(number(edge) is not None for edge in candidate):
                edges = candidate
                break
    return edges, [
        BinRow(row["step"], row["loss"], row["count"])
        for row in rows
        if edges and row.get("edges") == edges and _fits(row, len(edges) - 1)
    ]


def _fits(row: JsonRow, bins: int) -> bool:
    loss = row.get("loss")
    count = row.get("count")
    return isinstance(loss, list) and isinstance(count, list) and len(loss) == len(count) == bins


def summarize_bins(rows: Sequence[JsonRow], points: int) -> list[JsonRow]:
    """Per noise bin: mean loss over the first and last tenth of the rows, its curve and its share.

    points: per curve. share: of the loss over the last tenth that falls into the bin.
    """
    edges, usable = bin_rows(rows)
    tenth = max(1, len(usable) // 10)
    cuts = [i * len(usable) // points for i in range(points + 1)]
    buckets = [usable[a:b] for a, b in zip(cuts, cuts[1:], strict=False) if b > a]
    steps = [round(statistics.fmean(row.step for row in bucket)) for bucket in buckets]
    bins: list[JsonRow] = []
    total = 0.0
    for index in range(len(edges) - 1):
        first, _ = _mean_loss(usable[:tenth], index)
        last, count = _mean_loss(usable[-tenth:], index)
        total += (last or 0.0) * count
        bins.append(
            {
                "t_low": edges[index],
                "t_high": edges[index + 1],
                "first": first,
                "last": last,
                "count": count,
                "change": last / first - 1 if first and last is not None else None,
                "step": steps,
                "series": [_mean_loss(bucket, index)[0] for bucket in buckets],
            }
        )
    for entry in bins:
        entry["share"] = (entry["last"] or 0.0) * entry["count"] / total if total > 0 else None
    return bins


def _mean_loss(rows: Sequence[BinRow], index: int) -> tuple[float | None, float]:
    """Mean loss of one bin weighted by its samples (None without any), and their number."""
    total = 0.0
    weight = 0.0
    for row in rows:
        loss = number(row.losses[index])
        count = number(row.counts[index])
        if loss is not None and count:
            total += loss * count
            weight += count
    return (total / weight if weight else None), weight
