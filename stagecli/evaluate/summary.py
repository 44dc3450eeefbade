"""Scores of clips -> means with intervals, differences of systems, limits. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stagecli.errors import StageError
from stagecli.files import JsonRow
from stagecli.metrics.bootstrap import bootstrap_interval, paired_difference
from stagecli.metrics.registry import METRICS

Scores = Mapping[str, float]
SCORED = ("model", "samples", "generated")  # systems that --fail-if speaks of: what a model made


def summarise(scores: Sequence[Scores], seed: int) -> JsonRow:
    """{"n", "metrics": {name: value, low, high, left_out}}: mean over clips and its bootstrap 95 % interval.

    What is not finite is left out and counted.
    """
    result: JsonRow = {"n": len(scores), "metrics": {}}
    for name in scores[0]:
        values = [s[name] for s in scores if np.isfinite(s[name])]
        low, high = bootstrap_interval(values, seed) if len(values) > 1 else (None, None)
        mean = float(np.mean(values)) if values else None
        result["metrics"][name] = {
            "value": mean,
            "low": low,
            "high": high,
            "left_out": len(scores) - len(values),
        }
    return result


def difference(a: Mapping[str, Scores], b: Mapping[str, Scores], seed: int) -> dict[str, JsonRow]:
    """b - a per metric over the clips (by key) that both have, with a paired bootstrap 95 % interval.

    Clips where either is not finite are left out and counted; a metric with fewer than two is left out whole.
    """
    shared = [key for key in a if key in b]
    result: dict[str, JsonRow] = {}
    names = [name for name in next(iter(a.values()), {}) if all(name in b[key] for key in shared)]
    for name in names:
        pairs = [(a[key][name], b[key][name]) for key in shared]
        pairs = [pair for pair in pairs if np.isfinite(pair).all()]
        if len(pairs) < 2:
            continue
        found = paired_difference([y for _, y in pairs], [x for x, _ in pairs], seed)
        result[name] = {
            "value": found.mean,
            "low": found.low,
            "high": found.high,
            "n": found.n,
            "decided": found.decided,
            "left_out": len(shared) - found.n,
            "higher": found.a_higher,
            "lower": found.b_higher,
        }
    return result


# -- limits ----------------------------------------------------------------------------------------

_TESTS = {
    "<": lambda value, limit: value < limit,
    "<=": lambda value, limit: value <= limit,
    ">": lambda value, limit: value > limit,
    ">=": lambda value, limit: value >= limit,
}


@dataclass(frozen=True)
class Limit:
    """What makes an evaluation fail: "lsd > 1.2"."""

    metric: str
    sign: str
    number: float

    def __str__(self) -> str:
        return f"{self.metric} {self.sign} {self.number:g}"

    def holds(self, value: float) -> bool:
        return bool(_TESTS[self.sign](value, self.number))


def limits(texts: Iterable[str], known: Iterable[str]) -> list[Limit]:
    """The limits of `--fail-if`; known: metrics that will be computed. Raises StageError before any work."""
    known = list(known)
    found = []
    for text in texts:
        match = re.fullmatch(r"\s*([\w:. -]*\w)\s*(<=|>=|<|>)\s*([-+\d.eE]+)\s*", text)
        try:
            limit = Limit(match[1], match[2], float(match[3])) if match else None
        except ValueError:
            limit = None
        if limit is None:
            raise StageError(
                f"--fail-if {text!r} is no condition",
                hint='such as --fail-if "lsd > 1.2"; <, <=, >, >=',
            )
        base, colon, _ = limit.metric.partition(":")
        if base not in known or (colon and base != "prompt_accuracy"):
            hint = f"what is computed here: {', '.join(known)}"
            if limit.metric in METRICS:
                hint = f"it is not computed by this command; {hint}"
            raise StageError(f"--fail-if {text!r}: there is no metric {limit.metric!r}", hint=hint)
        found.append(limit)
    return found


def broken(wanted: Sequence[Limit], documents: Sequence[JsonRow]) -> list[str]:
    """One line for every limit that what a model made breaks; a metric without a value breaks it too."""
    lines = []
    for limit in wanted:
        seen = 0
        for document in documents:
            for row in document["rows"]:
                if row["kind"] not in SCORED:
                    continue
                for name, metric in row["metrics"].items():
                    if limit.metric not in (name, name.partition(":")[0]):
                        continue
                    seen += 1
                    value = metric["value"]
                    if value is None:
                        lines.append(f"{limit}: {name} has no value for {place(document, row)}")
                    elif limit.holds(value):
                        lines.append(f"{limit}: {name} is {value:.4g} for {place(document, row)}")
        if not seen:
            lines.append(f"{limit}: {limit.metric} was not computed")
    return lines


def name_of(document: JsonRow) -> str:
    """Run and checkpoint, or the folder."""
    return (
        f"{document.get('run') or document['generated']} {document.get('checkpoint', '')}".rstrip()
    )


def place(document: JsonRow, row: JsonRow) -> str:
    """Which row of which document, in words."""
    parts = [name_of(document), row["system"]]
    parts += [f"cutoff {row['cutoff']:g} Hz"] if "cutoff" in row else []
    return ", ".join([*parts, *([row["group"]] if "group" in row else [])])
