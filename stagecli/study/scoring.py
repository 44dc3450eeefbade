"""Scores of the checkpoints of a run, as cheap as they may be: one load of the pipeline for all.

t2a: samples of the captions of a split against its real clips (KAD, Frechet distances), and the
share whose label a classifier of real clips recognises. sr: LSD and SI-SDR of crops, by cutoff.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from stagecli.data.cache import Progress
from stagecli.data.examples import evenly
from stagecli.data.open import open_source
from stagecli.data.rows import Clip, Split
from stagecli.errors import Problem, StageError
from stagecli.evaluate.embed import ClipEmbeddings, ClipSet, open_embedder
from stagecli.evaluate.samples import real_clips
from stagecli.files import JsonRow
from stagecli.generate.pipeline import Pipeline, SamplerSettings
from stagecli.metrics.distance import frechet_distance
from stagecli.metrics.in_training import described, rows
from stagecli.metrics.kernel import kernel_audio_distance
from stagecli.metrics.mel import log_mel_statistics
from stagecli.metrics.registry import METRICS
from stagecli.schema import Recipe
from stagecli.ssl import open_encoder
from stagecli.ssl.base import Encoder
from stagecli.study.labels import RequestedLabels, open_labels
from stagecli.study.schema import Score
from stagecli.train.scorer import finite_mean, low_passed, pair_scores

AT_ONCE = 32  # clips that go through the judge together
ACCURACY = "prompt_accuracy"
TITLES = {
    "kad": "KAD",
    "fd_judge": "Frechet distance (judge)",
    "fd_log_mel": "Frechet distance (log-mel)",
    "lsd": "LSD",
    "lsd_hf": "LSD above the cutoff",
    "lsd_lf": "LSD below the cutoff",
    "si_sdr": "SI-SDR",
}
FROM_ROWS: dict[str, JsonRow] = {
    "Dn": {"direction": "lower", "title": "Dn, mean over noise levels"},
    "valid_loss_high_t": {"direction": "lower", "title": "validation loss at t >= 0.5"},
}
"""Measured while training; read from the rows of the run."""


@dataclass(frozen=True, kw_only=True)
class Clips:
    """The clips that a study is scored on, and the task's way to score samples of them.

    captions: one for each clip; names: of the scores.
    """

    recipe: Recipe
    captions: list[str]

    @property
    def names(self) -> tuple[str, ...]:
        raise NotImplementedError

    def scores(
        self, pipeline: Pipeline, settings: SamplerSettings, progress: Progress
    ) -> dict[str, float]:
        """Scores by name; NaN where the audio generated is not finite."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Captions(Clips):
    """Text to audio. real: embeddings of the clips; labels: what can be recognised."""

    judge: Encoder
    real: ClipEmbeddings
    labels: list[RequestedLabels]

    @property
    def names(self) -> tuple[str, ...]:
        return ("kad", "fd_judge", "fd_log_mel", *(f"{ACCURACY}:{x.column}" for x in self.labels))

    def scores(
        self, pipeline: Pipeline, settings: SamplerSettings, progress: Progress
    ) -> dict[str, float]:
        audio = pipeline.generate(
            self.captions,
            seed=self.recipe.evaluate.seed,
            settings=settings,
            progress=partial(progress, "sampling"),
        )
        audio_BN = torch.from_numpy(np.stack(audio))
        if not bool(audio_BN.isfinite().all()):
            return dict.fromkeys(self.names, math.nan)
        generated = embed(self.judge, audio_BN, pipeline.sample_rate, pipeline.device)
        accuracies = {
            f"{ACCURACY}:{labels.column}": labels.accuracy(audio_BN, generated)
            for labels in self.labels
        }
        return self.distances(generated) | accuracies

    def distances(self, generated: ClipEmbeddings) -> dict[str, float]:
        """Distances of clips by their embeddings. Raises ValueError for too few clips."""
        return {
            "kad": kernel_audio_distance(self.real.mean, generated.mean).value,
            "fd_judge": frechet_distance(self.real.mean, generated.mean).value,
            "fd_log_mel": frechet_distance(self.real.log_mel, generated.log_mel).value,
        }


@dataclass(frozen=True, kw_only=True)
class Pairs(Clips):
    """Super-resolution. target_BN: the clips; low: the same, low-passed, by cutoff in Hz."""

    target_BN: Tensor
    low: dict[float, np.ndarray]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(row.partition("/")[2] for row in rows(self.recipe))

    def scores(
        self, pipeline: Pipeline, settings: SamplerSettings, progress: Progress
    ) -> dict[str, float]:
        plain = len(self.names) // (1 + len(self.low))
        by_cutoff: list[list[float]] = []
        for cutoff, low_BN in self.low.items():
            restored_BN = self.restore(pipeline, settings, cutoff, low_BN, progress)
            values_BK = pair_scores(self.target_BN, restored_BN, pipeline, cutoff)
            defined = bool(values_BK[:, -1].isfinite().all())
            means = [finite_mean(values_BK[:, k]) if defined else math.nan for k in range(plain)]
            by_cutoff.append(means)
        means = [sum(values) / len(values) for values in zip(*by_cutoff, strict=True)]
        values = [*means, *(value for values in by_cutoff for value in values)]
        return dict(zip(self.names, values, strict=True))

    def restore(
        self,
        pipeline: Pipeline,
        settings: SamplerSettings,
        cutoff: float,
        low_BN: np.ndarray,
        progress: Progress,
    ) -> Tensor:
        """All clips, restored from `low_BN`."""
        restored: list[np.ndarray] = []
        for first in range(0, len(low_BN), settings.batch_size):
            part = list(low_BN[first : first + settings.batch_size])
            indices = range(first, first + len(part))
            restored += pipeline.restore_many(
                part,
                cutoff,
                seed=self.recipe.evaluate.seed,
                settings=settings,
                indices=indices,
                prompts=[self.captions[index] for index in indices],
            )
            progress(f"restoring at {cutoff:g} Hz", len(restored), len(low_BN))
        return torch.from_numpy(np.stack(restored))


@torch.no_grad()
def embed(
    judge: Encoder, audio_BN: Tensor, sample_rate: int, device: torch.device
) -> ClipEmbeddings:
    """Embeddings of clips of one length [B, N], several at once."""
    parts: list[tuple[Tensor, ...]] = []
    for part_BN in audio_BN.split(AT_ONCE):
        features_BLD = judge(part_BN.to(device), sample_rate)
        mean_BD = features_BLD.mean(1).cpu()
        deviation_BD = features_BLD.std(1, correction=0).cpu()
        parts.append((mean_BD, deviation_BD, log_mel_statistics(part_BN, sample_rate)))
    mean, deviation, log_mel = (torch.cat(values).double() for values in zip(*parts, strict=True))
    return ClipEmbeddings(mean, deviation, log_mel)


def open_clips(
    recipe: Recipe,
    score: Score,
    device: torch.device,
    *,
    progress: Progress,
    note: Callable[[str], None],
) -> Clips:
    """Open the clips of a study, embed what is embedded once, and try the scores on real audio.

    note: receives a line if some of the embeddings' cache was damaged. Raises StageError where
    the data, the judge or the clips do not allow the scores.
    """
    # The clips, evenly spaced over their split.
    split = cast(Split, score.split)
    splits: list[Split] = [split] if recipe.task.kind == "sr" else ["train", "valid", split]
    source = open_source(
        recipe.data,
        need_captions=recipe.condition.text != "none",
        base=Path.cwd(),
        splits=list(dict.fromkeys(splits)),
        seed=0,
        progress=partial(progress, "checking audio"),
    )
    clips = evenly(source.clips(split), score.clips)
    num_samples = round(recipe.data.seconds * recipe.data.sample_rate)

    def real(part: list[Clip], title: str) -> ClipSet:
        return real_clips(source, part, title, num_samples=num_samples, seed=recipe.evaluate.seed)

    captions = [clip.caption for clip in clips]
    if recipe.task.kind == "sr":
        target = real(clips, "clips")
        target_BN = np.stack([target.read(index) for index in range(target.count)])
        return Pairs(
            recipe=recipe,
            captions=captions,
            target_BN=torch.from_numpy(target_BN),
            low=low_passed(target_BN, recipe),
        )

    # Embeddings of real clips, which are in the cache from the second time on.
    judge = open_encoder(recipe.evaluate.judge)
    cache = Path(recipe.data.cache_dir)
    embedder = open_embedder(judge, recipe.data.sample_rate, cache, device, note=note)
    opened = Captions(
        recipe=recipe,
        captions=captions,
        judge=judge,
        real=embedder.embed(real(clips, "reference"), progress),
        labels=open_labels(
            recipe, source, clips, embedder, read=real, progress=progress, note=note
        ),
    )
    _try_scores(opened, score)
    return opened


def _try_scores(clips: Captions, score: Score) -> None:
    """Score real clips against themselves. Raises StageError where that is impossible."""
    try:
        clips.distances(clips.real)
    except ValueError as error:
        raise StageError(
            f"the clips of the {score.split} split cannot be scored",
            problems=[Problem("score.clips", str(error))],
            hint="choose more clips, or another split",
        ) from error


def metrics_of(names: tuple[str, ...]) -> dict[str, JsonRow]:
    """Name -> direction and title of every score, those read from rows included."""
    metrics: dict[str, JsonRow] = {}
    for name in names:
        head, _, column = name.partition(":")
        if column:
            metrics[name] = {"direction": METRICS[head].better, "title": f"{column} recognised"}
            continue
        match = described(f"eval/{name}")
        assert match is not None
        metric, hertz = match
        title = TITLES.get(metric.name, metric.name) + (f" at {hertz} Hz" if hertz else "")
        metrics[name] = {"direction": metric.better, "title": title}
    return metrics | FROM_ROWS
