"""The rows of a t2a document while they are filled, and what they are computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stagecli.data.rows import Clip
from stagecli.evaluate.embed import ClipEmbeddings, ClipSet, Embedder
from stagecli.evaluate.job import Job, ScoresByClip
from stagecli.evaluate.samples import SampleFile
from stagecli.files import JsonRow


@dataclass(frozen=True, kw_only=True)
class Material:
    """What the rows are computed from.

    clips, embeddings: of "reference", "samples", "training" and "round trip"; train: all clips of
    the train split; files: of the samples.
    """

    job: Job
    clips: Mapping[str, ClipSet]
    embeddings: Mapping[str, ClipEmbeddings]
    embedder: Embedder
    train: Sequence[Clip]
    files: Sequence[SampleFile]


@dataclass(kw_only=True)
class T2ARows:
    """Rows, conventions and scores of single samples.

    by_system: rows of the document, by the names of the sets in `Material`, in order;
    conventions: by metric; by_sample: {sample: {metric: value}}, samples in order.
    """

    by_sample: ScoresByClip
    by_system: dict[str, JsonRow] = field(default_factory=dict)
    conventions: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, *, system: str, kind: str, n: int, metrics: JsonRow) -> None:
        """Append a row; system: its title in tables."""
        self.by_system[name] = {"system": system, "kind": kind, "n": n, "metrics": metrics}

    def metrics(self, name: str) -> JsonRow:
        """The metrics of a row, to be added to."""
        metrics: JsonRow = self.by_system[name]["metrics"]
        return metrics

    def add_sample_scores(self, metric: str, values: Mapping[int, float]) -> None:
        """Add the scores of single samples, by index."""
        samples = list(self.by_sample.values())
        for i, value in values.items():
            samples[i][metric] = value
