"""The conditions of --fail-if."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from stagecli.errors import StageError, significant
from stagecli.evaluate.titles import row_title
from stagecli.files import JsonRow
from stagecli.metrics.registry import METRICS

# Kinds of rows that --fail-if applies to: outputs of a model, neither baselines nor bounds.
MODEL_KINDS = ("model", "samples", "generated")
_COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Limit:
    """A condition that makes an evaluation fail, such as "lsd > 1.2"."""

    metric: str
    sign: str
    number: float

    def __str__(self) -> str:
        return f"{self.metric} {self.sign} {self.number:g}"

    def holds(self, value: float) -> bool:
        return bool(_COMPARISONS[self.sign](value, self.number))

    def applies_to(self, name: str) -> bool:
        """Whether `name` is this metric; "prompt_accuracy" covers "prompt_accuracy:label"."""
        return self.metric in (name, name.partition(":")[0])


def parse_limits(texts: Iterable[str], computed: Sequence[str]) -> list[Limit]:
    """The conditions of `--fail-if`; computed: names of the metrics that will be computed.

    Raises StageError: not a condition, or its metric will not be computed.
    """
    return [_parse_limit(text, computed) for text in texts]


def _parse_limit(text: str, computed: Sequence[str]) -> Limit:
    match = re.fullmatch(r"\s*([\w:. -]*\w)\s*(<=|>=|<|>)\s*([-+\d.eE]+)\s*", text)
    try:
        limit = Limit(match[1], match[2], float(match[3])) if match else None
    except ValueError:
        limit = None
    if limit is None:
        raise StageError(
            f"--fail-if: cannot parse {text!r} as a condition",
            hint='write it like --fail-if "lsd > 1.2", with <, <=, > or >=',
        )
    base, colon, _ = limit.metric.partition(":")
    if base not in computed or (colon and base != "prompt_accuracy"):
        hint = f"metrics computed here: {', '.join(computed)}"
        if limit.metric in METRICS:
            hint = f"it is not computed by this command; {hint}"
        raise StageError(f"--fail-if {text!r}: there is no metric {limit.metric!r}", hint=hint)
    return limit


def broken_limits(limits: Sequence[Limit], documents: Sequence[JsonRow]) -> list[str]:
    """One line for every condition that a row of a model meets; a metric without a value counts."""
    lines = []
    for limit in limits:
        matches = 0
        for document, row, name in _model_metrics(documents):
            if not limit.applies_to(name):
                continue
            matches += 1
            value = row["metrics"][name]["value"]
            title = row_title(document, row)
            if value is None:
                lines.append(f"{limit}: {name} has no value for {title}")
            elif limit.holds(value):
                lines.append(f"{limit}: {name} is {significant(value, 4)} for {title}")
        if not matches:
            lines.append(f"{limit}: {limit.metric} was not computed")
    return lines


def _model_metrics(documents: Sequence[JsonRow]) -> Iterator[tuple[JsonRow, JsonRow, str]]:
    """(document, row, metric name) of everything that a model produced."""
    for document in documents:
        for row in document["rows"]:
            if row["kind"] in MODEL_KINDS:
                for name in row["metrics"]:
                    yield document, row, name
