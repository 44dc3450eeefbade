"""Evaluation while a run trains: fixed clips of the valid split, fixed noise, scores as flat numbers.

The quick relation of `evaluate`: crops of the training length, batched, and no baselines or intervals.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

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
from stagecli.metrics.mel import log_mel_statistics
from stagecli.metrics.spectral import lsd_bands, si_sdr
from stagecli.ssl import open_encoder
from stagecli.train.prepare import Prepared

if TYPE_CHECKING:
    from accelerate import Accelerator

AT_ONCE = 32  # clips that go through the judge together


class Scorer:
    """Holds the clips and what is computed of them once; `measure` scores the weights that the network holds.

    The clips are shared out over the processes, and every process gets the same numbers.
    """

    def __init__(
        self, prepared: Prepared, pipeline: Pipeline, accelerator: Accelerator, progress: Progress
    ) -> None:
        """Raises StageError where the clips, the judge or the crop length do not allow the metrics."""
        self.pipeline = pipeline
        self.accelerator = accelerator
        self.recipe = prepared.recipe
        steps = self.recipe.train.evaluate_steps or None
        self.settings = SamplerSettings.of(self.recipe.evaluate, steps=steps)
        self.seed = self.recipe.evaluate.seed
        self.progress = progress
        examples = prepared.examples(evenly(prepared.valid, self.recipe.train.evaluate_clips))
        self.captions = [clip.caption for clip in examples.clips]
        self.mine = list(range(accelerator.process_index, len(examples), accelerator.num_processes))
        real = np.stack([examples.valid_audio(i)[0] for i in range(len(examples))])
        progress("evaluation set", 0, 1)
        try:
            if self.recipe.task.kind == "sr":
                self._keep_pairs(real)
            else:
                self._keep_embeddings(real)
        except ValueError as error:
            raise StageError(
                "the clips of the valid split cannot be evaluated while training",
                problems=[Problem("train.evaluate_every", str(error))],
                hint="change train.evaluate_clips, data.seconds or evaluate.cutoffs, or set train.evaluate_every = 0",
            ) from error
        progress("evaluation set", 1, 1)

    def measure(self) -> dict[str, float]:
        """Scores by the names of their rows; nan where the network gives audio that is not finite."""
        scores = self._pairs() if self.recipe.task.kind == "sr" else self._sets()
        return {PREFIX + name: value for name, value in scores.items()}

    def _shared(self, mine: Tensor) -> Tensor:
        """Rows [len(self.mine), K] of this process's clips -> those of all clips [clips, K] in float64, on the CPU."""
        found = torch.zeros(len(self.captions), mine.shape[1], dtype=torch.float64)
        found[self.mine] = mine.double().cpu()
        if self.accelerator.num_processes == 1:
            return found
        return self.accelerator.reduce(found.to(self.accelerator.device), "sum").cpu()

    # -- sr: pairs -----------------------------------------------------------------------------------

    def _keep_pairs(self, real: np.ndarray) -> None:
        table = self.recipe.evaluate
        rate = self.pipeline.sample_rate
        self.target = torch.from_numpy(real[self.mine])
        self.low = {
            hz: np.stack(
                [degrade(audio, rate, test_low_pass(table, hz)) for audio in real[self.mine]]
            )
            if self.mine
            else real[:0]
            for hz in table.cutoffs
        }
        for hz in (
            table.cutoffs
        ):  # a crop too short or a cutoff without bins shows now, not after the first steps
            self._score(torch.from_numpy(real[:1]), torch.from_numpy(real[:1]), hz)

    def _score(self, target_BN: Tensor, made_BN: Tensor, hz: float) -> Tensor:
        """[B, metrics] in the order of `computed`; nan for a clip that was made with values that are not finite."""
        defined_B = made_BN.isfinite().all(1)
        made_BN = made_BN.nan_to_num(0.0, 0.0, 0.0)
        bands = lsd_bands(
            target_BN, made_BN, self.pipeline.sample_rate, hz, self.recipe.evaluate.preset
        )
        scores = torch.stack([*bands.values(), si_sdr(target_BN, made_BN)], dim=1)
        return torch.cat([scores, torch.where(defined_B, 1.0, float("nan"))[:, None]], dim=1)

    def _pairs(self) -> dict[str, float]:
        names = computed(self.recipe)
        by_cutoff: dict[str, list[float]] = {name: [] for name in names}
        scores: dict[str, float] = {}
        for hz, low_BN in self.low.items():
            found = torch.zeros(0, len(names) + 1)
            if self.mine:
                found = self._score(self.target, torch.from_numpy(self._restored(low_BN, hz)), hz)
            table = self._shared(found)
            for k, name in enumerate(names):
                value = _mean(table[:, k]) if bool(table[:, -1].isfinite().all()) else float("nan")
                by_cutoff[name].append(value)
                scores[at_cutoff(name, hz)] = value
        return {**{name: sum(values) / len(values) for name, values in by_cutoff.items()}, **scores}

    def _restored(self, low_BN: np.ndarray, hz: float) -> np.ndarray:
        made: list[np.ndarray] = []
        for first in range(0, len(low_BN), self.settings.batch_size):
            part = slice(first, first + self.settings.batch_size)
            indices = self.mine[part]
            prompts = [self.captions[i] for i in indices]
            made += self.pipeline.restore_many(
                list(low_BN[part]),
                hz,
                seed=self.seed,
                settings=self.settings,
                indices=indices,
                prompts=prompts,
            )
            self.progress(f"evaluating at {hz:g} Hz", len(made), len(low_BN))
        return np.stack(made)

    # -- t2a: sets -----------------------------------------------------------------------------------

    def _keep_embeddings(self, real: np.ndarray) -> None:
        self.judge = open_encoder(self.recipe.evaluate.judge).to(self.pipeline.device)
        self.real = self._embed(torch.from_numpy(real))
        self._distances(self.real)

    @torch.no_grad()
    def _embed(self, audio_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Judge's features, mean over frames, and log-mel statistics of audio [B, N]: [B, D] each, nan if undefined."""
        rate = self.pipeline.sample_rate
        parts = []
        for part_BN in audio_BN.split(AT_ONCE):
            undefined_B1 = ~part_BN.isfinite().all(1, keepdim=True)
            part_BN = part_BN.nan_to_num(0.0, 0.0, 0.0)
            judged = self.judge(part_BN.to(self.pipeline.device), rate).mean(1).cpu()
            found = (judged, log_mel_statistics(part_BN, rate))
            parts.append([embedded.masked_fill(undefined_B1, float("nan")) for embedded in found])
        by_judge, by_log_mel = (torch.cat(column) for column in zip(*parts, strict=True))
        return by_judge, by_log_mel

    def _distances(self, made: tuple[Tensor, Tensor]) -> dict[str, float]:
        values = (
            kernel_audio_distance(self.real[0], made[0]).value,
            frechet_distance(self.real[0], made[0]).value,
            frechet_distance(self.real[1], made[1]).value,
        )
        return dict(zip(computed(self.recipe), values, strict=True))

    def _sets(self) -> dict[str, float]:
        found = [embedded[:0] for embedded in self.real]
        if self.mine:
            prompts = [self.captions[i] for i in self.mine]
            made = self.pipeline.generate(
                prompts,
                seed=self.seed,
                settings=self.settings,
                indices=self.mine,
                progress=partial(self.progress, "evaluating"),
            )
            found = list(self._embed(torch.from_numpy(np.stack(made))))
        by_judge, by_log_mel = (self._shared(embedded) for embedded in found)
        if not bool(by_judge.isfinite().all() and by_log_mel.isfinite().all()):
            return dict.fromkeys(computed(self.recipe), float("nan"))
        return self._distances((by_judge, by_log_mel))


def _mean(values: Tensor) -> float:
    """Over the clips where the metric is a finite number, as in `evaluate`: a silent target has no SI-SDR."""
    known = values[values.isfinite()]
    return float(known.mean()) if len(known) else float("nan")
