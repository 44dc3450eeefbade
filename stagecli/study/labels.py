"""The labels by which a study scores samples of captions, and what recognises them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from stagecli.data.cache import Progress
from stagecli.data.rows import Clip
from stagecli.data.source import Source
from stagecli.evaluate.classifier import Classifier, fit_classifier, label_columns, label_text
from stagecli.evaluate.embed import ClipEmbeddings, ClipSet, Embedder
from stagecli.evaluate.label_training import LabelClassifier, open_label_network
from stagecli.schema import Recipe

ReadClips = Callable[[list[Clip], str], ClipSet]


@dataclass(frozen=True, kw_only=True)
class RequestedLabels:
    """A label column, and the label that each prompt requests ("": none).

    network: recognises them; where it is None, probe does, a classifier on the judge's features.
    """

    column: str
    requested: list[str]
    network: LabelClassifier | None
    probe: Classifier | None

    def accuracy(self, audio_BN: Tensor, embeddings: ClipEmbeddings) -> float:
        """Share of the samples whose label is recognised; NaN if no prompt requests one."""
        if self.network:
            predicted = self.network.predict(self.network.logits(audio_BN), self.column)
        else:
            assert self.probe is not None
            predicted = self.probe.predict(embeddings.mean_and_deviation())
        pairs = [pair for pair in zip(predicted, self.requested, strict=True) if pair[1]]
        return sum(label == wanted for label, wanted in pairs) / len(pairs) if pairs else math.nan


def open_labels(
    recipe: Recipe,
    source: Source,
    clips: list[Clip],
    embedder: Embedder,
    *,
    read: ReadClips,
    progress: Progress,
    note: Callable[[str], None],
) -> list[RequestedLabels]:
    """The labels of the clips to be scored; trained from the cache from the second time on."""
    columns = label_columns(source.clips("train"), clips)
    network = open_label_network(
        source,
        columns,
        num_samples=round(recipe.data.seconds * recipe.data.sample_rate),
        cache_dir=Path(recipe.data.cache_dir),
        progress=progress,
        note=note,
    )
    by_network = network.classes if network else {}
    return [
        RequestedLabels(
            column=column,
            requested=[label_text(clip, column) for clip in clips],
            network=network if column in by_network else None,
            probe=None
            if column in by_network
            else _probe(column, source, embedder, read, progress),
        )
        for column in columns
    ]


def _probe(
    column: str, source: Source, embedder: Embedder, read: ReadClips, progress: Progress
) -> Classifier:
    """A classifier of a label column on the judge's features, trained on real clips."""
    train = list(source.clips("train"))
    valid = list(source.clips("valid"))
    return fit_classifier(
        embedder.embed(read(train, "training clips"), progress).mean_and_deviation(),
        [label_text(clip, column) for clip in train],
        embedder.embed(read(valid, "validation clips"), progress).mean_and_deviation(),
        [label_text(clip, column) for clip in valid],
    )
