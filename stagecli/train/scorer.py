"""Evaluation while a run trains: scores of fixed valid clips with fixed noise, as flat numbers.

A cheap relative of `evaluate`: crops of the training length, without baselines or intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stagecli.data.cache import Progress
from stagecli.data.degrade import degrade, test_low_pass
from stagecli.data.examples import evenly
from stagecli.errors import Problem, StageError
from stagecli.generate.pipeline import Pipeline, SamplerSettings
from stagecli.metrics.distance import frechet_distance
from stagecli.metrics.in_training import PREFIX, at_cutoff, computed
from stagecli.metrics.kernel import kernel_audio_distance
from stagecli.metrics.mel import log_mel_distance, log_mel_statistics
from stagecli.metrics.spectral import lsd_bands, si_sdr
from stagecli.schema import Recipe
from stagecli.ssl import open_encoder
from stagecli.train.prepare import Prepared

if TYPE_CHECKING:
    from accelerate import Accelerator

    from stagecli.ssl.base import Encoder

AT_ONCE = 32  # clips that go through the judge together


@dataclass(kw_only=True)
class Scorer:
    """Fixed clips, and what is computed of them once; `measure` scores the network's weights.

    The clips are shared out over the processes, and every process gets the same numbers.
    `build_scorer` makes the one of the recipe's task.

    captions: of all clips, on every process; settings: of the sampler.
    """

    pipeline: Pipeline
    accelerator: Accelerator
    captions: list[str]
    settings: SamplerSettings
    progress: Progress

    @property
    def mine(self) -> list[int]:
        """Indices of the clips that this process scores."""
        return own_indices(len(self.captions), self.accelerator)

    @property
    def generated(self) -> list[int]:
        """Indices of the clips that this process generates: its own, and perhaps one for nothing.

        All processes generate equally many: others may need its part of the weights.
        """
        return equal_indices(len(self.captions), self.accelerator)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the metrics."""
        return computed(self.pipeline.recipe)

    @property
    def seed(self) -> int:
        """Seed of the sampling noise."""
        return self.pipeline.recipe.evaluate.seed

    def measure(self) -> dict[str, float]:
        """Scores by the names of their rows; NaN where the audio generated is not finite."""
        return {PREFIX + name: value for name, value in self.scores().items()}

    def scores(self) -> dict[str, float]:
        """Scores by the names of the metrics."""
        raise NotImplementedError

    def gather(self, own: Tensor) -> Tensor:
        """Rows [len(self.mine), K] of this process's clips -> all rows [clips, K], fp64, CPU."""
        rows = torch.zeros(len(self.captions), own.shape[1], dtype=torch.float64)
        rows[self.mine] = own.double().cpu()
        if self.accelerator.num_processes == 1:
            return rows
        return self.accelerator.reduce(rows.to(self.accelerator.device), "sum").cpu()


@dataclass(kw_only=True)
class PairScorer(Scorer):
    """Super-resolution: metrics of each restored clip against its target, at each cutoff.

    target_BN: this process's clips; low: those it generates, low-passed, by cutoff in Hz.
    """

    target_BN: Tensor
    low: dict[float, np.ndarray]

    def scores(self) -> dict[str, float]:
        """Means over the clips at each cutoff, and over the cutoffs."""
        by_cutoff: dict[str, list[float]] = {name: [] for name in self.names}
        scores: dict[str, float] = {}
        for cutoff, low_BN in self.low.items():
            own = torch.zeros(0, len(self.names) + 1)
            restored_BN = torch.from_numpy(self.restore(low_BN, cutoff))[: len(self.mine)]
            if self.mine:
                own = pair_scores(self.target_BN, restored_BN, self.pipeline, cutoff)
            rows = self.gather(own)
            defined = bool(rows[:, -1].isfinite().all())
            for k, name in enumerate(self.names):
                value = finite_mean(rows[:, k]) if defined else float("nan")
                by_cutoff[name].append(value)
                scores[at_cutoff(name, cutoff)] = value
        means = {name: sum(values) / len(values) for name, values in by_cutoff.items()}
        return {**means, **scores}

    def restore(self, low_BN: np.ndarray, cutoff: float) -> np.ndarray:
        """The clips [B, N] that this process generates, restored from `low_BN`."""
        restored: list[np.ndarray] = []
        size = self.settings.batch_size
        for first in range(0, len(low_BN), size):
            indices = self.generated[first : first + size]
            restored += self.pipeline.restore_many(
                list(low_BN[first : first + size]),
                cutoff,
                seed=self.seed,
                settings=self.settings,
                indices=indices,
                prompts=[self.captions[index] for index in indices],
            )
            self.progress(f"evaluating at {cutoff:g} Hz", len(restored), len(low_BN))
        return np.stack(restored)


@dataclass(kw_only=True)
class SetScorer(Scorer):
    """Text-to-audio: distances between the set of generated clips and the set of real ones.

    real: embeddings of all real clips, as `embed` gives them.
    """

    judge: Encoder
    real: tuple[Tensor, Tensor]

    def scores(self) -> dict[str, float]:
        """Distances between the generated clips of all processes and the real ones."""
        audio = self.pipeline.generate(
            [self.captions[index] for index in self.generated],
            seed=self.seed,
            settings=self.settings,
            indices=self.generated,
            progress=partial(self.progress, "evaluating"),
        )
        own = [embedding[:0] for embedding in self.real]
        if self.mine:
            audio_BN = torch.from_numpy(np.stack(audio[: len(self.mine)]))
            own = list(embed(audio_BN, self.judge, self.pipeline))
        by_judge, by_log_mel = (self.gather(embedding) for embedding in own)
        if not bool(by_judge.isfinite().all() and by_log_mel.isfinite().all()):
            return dict.fromkeys(self.names, float("nan"))
        values = set_distances(self.real, (by_judge, by_log_mel))
        return dict(zip(self.names, values, strict=True))


# -- building ------------------------------------------------------------------------------------


def build_scorer(
    prepared: Prepared, pipeline: Pipeline, accelerator: Accelerator, progress: Progress
) -> Scorer:
    """Choose the clips, and compute what is computed of them once.

    Raises StageError where the clips, the judge or the length of a crop do not allow the metrics.
    """
    # The clips, evenly spaced over the valid split.
    recipe = prepared.recipe
    examples = prepared.examples(evenly(prepared.valid, recipe.train.evaluate_clips))
    real_BN = np.stack([examples.valid_audio(index)[0] for index in range(len(examples))])
    steps = recipe.train.evaluate_steps or None
    common: dict[str, Any] = {
        "pipeline": pipeline,
        "accelerator": accelerator,
        "captions": [clip.caption for clip in examples.clips],
        "settings": SamplerSettings.of(recipe.evaluate, steps=steps),
        "progress": progress,
    }

    # Metrics are tried on real audio now, so that they do not fail after the first steps.
    progress("evaluation set", 0, 1)
    scorer: Scorer
    try:
        if recipe.task.kind == "sr":
            mine = own_indices(len(examples), accelerator)
            generated = equal_indices(len(examples), accelerator)
            scorer = PairScorer(
                target_BN=torch.from_numpy(real_BN[mine]),
                low=low_passed(real_BN[generated], recipe),
                **common,
            )
            try_pairs(torch.from_numpy(real_BN[:1]), pipeline)
        else:
            # Not loaded yet where only others than the trainer evaluate.
            judge = prepared.frozen.judge or open_encoder(recipe.evaluate.judge)
            judge = judge.to(pipeline.device)
            real = embed(torch.from_numpy(real_BN), judge, pipeline)
            set_distances(real, real)
            scorer = SetScorer(judge=judge, real=real, **common)
    except ValueError as error:
        raise StageError(
            "the clips of the valid split cannot be evaluated while training",
            problems=[Problem("train.evaluate_every", str(error))],
            hint="change train.evaluate_clips, data.seconds or evaluate.cutoffs, "
            "or set train.evaluate_every = 0",
        ) from error
    progress("evaluation set", 1, 1)
    return scorer


def own_indices(clips: int, accelerator: Accelerator) -> list[int]:
    """Indices of the clips that this process scores."""
    return list(range(accelerator.process_index, clips, accelerator.num_processes))


def equal_indices(clips: int, accelerator: Accelerator) -> list[int]:
    """The own ones, and the first clip once more where others have one more."""
    own = own_indices(clips, accelerator)
    most = -(-clips // accelerator.num_processes)
    return own + [0] * (most - len(own))


def low_passed(audio_BN: np.ndarray, recipe: Recipe) -> dict[float, np.ndarray]:
    """Clips [B, N] through the test filter of each cutoff in Hz."""
    options = recipe.evaluate
    rate = recipe.data.sample_rate
    low: dict[float, np.ndarray] = {}
    for cutoff in options.cutoffs:
        low_pass = test_low_pass(options, cutoff)
        low[cutoff] = np.empty_like(audio_BN)
        for row, audio_N in enumerate(audio_BN):
            low[cutoff][row] = degrade(audio_N, rate, low_pass)
    return low


def try_pairs(audio_BN: Tensor, pipeline: Pipeline) -> None:
    """Raises ValueError for a crop too short for the metrics, or a cutoff without bins."""
    for cutoff in pipeline.recipe.evaluate.cutoffs:
        pair_scores(audio_BN, audio_BN, pipeline, cutoff)


# -- metrics -------------------------------------------------------------------------------------


def pair_scores(
    target_BN: Tensor, restored_BN: Tensor, pipeline: Pipeline, cutoff: float
) -> Tensor:
    """Metrics [B, K + 1] in the order of `computed`; the last is NaN for non-finite audio."""
    finite_B = restored_BN.isfinite().all(1)
    restored_BN = restored_BN.nan_to_num(0.0, 0.0, 0.0)
    preset = pipeline.recipe.evaluate.preset
    rate = pipeline.sample_rate
    distances = (
        *lsd_bands(target_BN, restored_BN, rate, cutoff, preset).values(),
        log_mel_distance(target_BN, restored_BN, rate),
    )
    scores = torch.stack([*distances, si_sdr(target_BN, restored_BN)], dim=1)
    return torch.cat([scores, torch.where(finite_B, 1.0, float("nan"))[:, None]], dim=1)


@torch.no_grad()
def embed(audio_BN: Tensor, judge: Encoder, pipeline: Pipeline) -> tuple[Tensor, Tensor]:
    """Audio [B, N] -> the judge's features, averaged over frames, and log-mel statistics.

    Each [B, D] on the CPU; NaN for audio that is not finite.
    """
    rate = pipeline.sample_rate
    by_judge: list[Tensor] = []
    by_log_mel: list[Tensor] = []
    for part_BN in audio_BN.split(AT_ONCE):
        undefined_B1 = ~part_BN.isfinite().all(1, keepdim=True)
        part_BN = part_BN.nan_to_num(0.0, 0.0, 0.0)
        judged_BD = judge(part_BN.to(pipeline.device), rate).mean(1).cpu()
        by_judge.append(judged_BD.masked_fill(undefined_B1, float("nan")))
        log_mel_BD = log_mel_statistics(part_BN, rate)
        by_log_mel.append(log_mel_BD.masked_fill(undefined_B1, float("nan")))
    return torch.cat(by_judge), torch.cat(by_log_mel)


def set_distances(
    real: tuple[Tensor, Tensor], generated: tuple[Tensor, Tensor]
) -> tuple[float, float, float]:
    """KAD and Frechet distance by the judge, and Frechet distance by log-mel statistics."""
    return (
        kernel_audio_distance(real[0], generated[0]).value,
        frechet_distance(real[0], generated[0]).value,
        frechet_distance(real[1], generated[1]).value,
    )


def finite_mean(values: Tensor) -> float:
    """Mean over the clips with a finite value, as in `evaluate`: silence has no SI-SDR."""
    known = values[values.isfinite()]
    return float(known.mean()) if len(known) else float("nan")
