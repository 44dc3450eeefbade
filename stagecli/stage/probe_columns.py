"""Reading a mechanism's own columns of probes.jsonl in a form that a report can draw. No torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from stagecli.files import JsonRow


@dataclass(frozen=True)
class GroupedMatrix:
    """A similarity of every block of the network with every other one.

    title: what is compared; step: of the probe; values: [L][L]; labels: group of each block from 0,
    empty where no groups are known.
    """

    title: str
    step: int
    values: list[list[float]]
    labels: tuple[int, ...] = ()

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest similarity of two different blocks."""
        blocks = range(len(self.values))
        others = [self.values[i][j] for i in blocks for j in blocks if i != j]
        return min(others), max(others)

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Numbers of the blocks, from 1, after which a group ends."""
        labels = self.labels
        return tuple(k for k in range(1, len(labels)) if labels[k] != labels[k - 1])

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of the groups in order of depth; a group in pieces is named once per piece."""
        if not self.labels:
            return ()
        return tuple(group_letter(self.labels[start]) for start in (0, *self.boundaries))


@dataclass(frozen=True, kw_only=True)
class DensityCourse:
    """The density of t at the probes of a run.

    steps: of the probes, ascending; shares: [probes][bins], of the training in equal bins of t from
    0 to 1; quantiles: name -> t at each probe.
    """

    title: str
    steps: tuple[int, ...]
    shares: tuple[tuple[float, ...], ...]
    quantiles: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class ProbeCurve:
    """A column of probes.jsonl that a report draws over the steps.

    name: key in a summary's "series"; column: in probes.jsonl; label: of the axis; panel: title of
    the panel that shows it, empty where only `--json` holds it.
    """

    name: str
    column: str
    label: str
    panel: str = ""


class ProbeColumns(ABC):
    """Reads the columns of one mechanism. A summary is a JSON object; None where a run has none of
    them.

    title: heading of the section in a report; words: what its facts mean, a line each; curves:
    columns to follow over the steps.
    """

    title: str
    words: tuple[str, ...] = ()
    curves: tuple[ProbeCurve, ...] = ()

    @abstractmethod
    def summary(self, rows: Sequence[JsonRow]) -> JsonRow | None:
        """The newest values of a run's probes, in order; damaged values are None."""

    @abstractmethod
    def facts(self, summary: JsonRow | None) -> dict[str, str]:
        """Name -> value as text; every name is present, with `-` for an unknown value."""

    @abstractmethod
    def matrix(self, summary: JsonRow | None) -> GroupedMatrix | None:
        """The matrix to draw, or None."""

    def density(self, rows: Sequence[JsonRow]) -> DensityCourse | None:
        """The density of t over the probes, or None."""
        return None

    @abstractmethod
    def sentences(self, summary: JsonRow, events: Sequence[JsonRow]) -> list[str]:
        """Conclusions in words. events: those of the mechanism."""


def group_letter(label: int) -> str:
    """Name of a group: A to Z, then numbers."""
    return chr(ord("A") + label) if label < 26 else str(label)


def group_spans(labels: Sequence[int]) -> str:
    """`A 1-4, B 5-8`, blocks counted from 1; a group in pieces lists every piece."""
    texts = []
    for label in sorted(set(labels)):
        spans: list[tuple[int, int]] = []
        for block in (k for k, other in enumerate(labels, 1) if other == label):
            if spans and spans[-1][1] == block - 1:
                spans[-1] = (spans[-1][0], block)
            else:
                spans.append((block, block))
        pieces = "+".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
        texts.append(f"{group_letter(label)} {pieces}")
    return ", ".join(texts)
