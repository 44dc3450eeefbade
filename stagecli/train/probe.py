"""The probe set: measures the SSL-space discrepancy D of the weights on fixed clips, noise levels and noise.

Design section 5; the idea is that of arXiv 2605.04547, of which only the abstract is public, so the formulas are
this project's own. D never reads the t that training sampled: sampler and regime would chase each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stagecli.data.cache import Progress
from stagecli.data.examples import PROBE_NOISE, VALID_SEED, Collate, Examples, evenly, stream
from stagecli.data.frames import to_device, to_frames
from stagecli.errors import Problem, StageError
from stagecli.flow.objective import interpolate
from stagecli.model.ema import EMA
from stagecli.model.network import Network
from stagecli.schema import Recipe
from stagecli.ssl import check_monitor, open_encoder
from stagecli.stage import registry
from stagecli.stage.base import Probe, ProbeSettings
from stagecli.train.prepare import Prepared

if TYPE_CHECKING:
    from accelerate import Accelerator

    from stagecli.ssl.base import Encoder

CENTRE_CLIPS = 128  # training clips whose mean feature is the centre
AT_ONCE = 16  # clips that go through codec and monitor together
CANDIDATES = 4  # times as many clips are looked at as are kept (sr)
LEAST_GAP = 0.02  # between ceiling and reference; under it there is nothing to normalise by
FOLLOWED = 10  # times per probe interval that the short average takes in the weights, at most


def open_monitor(recipe: Recipe, settings: ProbeSettings) -> Encoder:
    """The encoder that measures, checked against the recipe. Raises StageError before any training."""
    monitor = open_encoder(settings.monitor, settings.layer)
    nyquist = recipe.data.sample_rate / 2
    heard = (
        settings.partial_band
        and recipe.condition.cutoff
        and monitor.band > recipe.condition.cutoff[0]
    )
    top = min(nyquist, monitor.band) if heard else nyquist
    cutoff = recipe.condition.cutoff
    check_monitor(
        monitor,
        task=recipe.task.kind,
        sample_rate=recipe.data.sample_rate,
        restored_band=(cutoff[0], top) if recipe.task.kind == "sr" and cutoff else None,
        clip_seconds=recipe.data.seconds,
        judge_name=recipe.evaluate.judge,
    )
    return monitor


class ProbeSet:
    """Fixed clips of the valid split with the features of their audio; `measure` gives D of the followed weights.

    The weights are an EMA whose half-life is half the interval between probes: the one that is sampled lags too far
    behind. Clips are shared out over the processes, and every process gets the same numbers.
    """

    def __init__(
        self,
        settings: ProbeSettings,
        prepared: Prepared,
        network: Network,
        accelerator: Accelerator,
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        """Raises StageError where the monitor does not fit, or cannot tell the reference from the codec's ceiling."""
        self.settings = settings
        self.prepared = prepared
        self.accelerator = accelerator
        self.codec = prepared.codec
        self.device = accelerator.device
        self.recipe = prepared.recipe
        self.monitor = open_monitor(prepared.recipe, settings).to(self.device)
        self.hold = max(1, settings.every // FOLLOWED)  # steps between updates of the average
        self.ema = EMA(network, 0.5 ** (self.hold / (settings.every / 2)))
        self.centre_D = self._centre(progress)
        progress("probe set", 0, 1)
        if self.recipe.task.kind == "sr":
            examples = prepared.examples(evenly(prepared.valid, settings.clips * CANDIDATES))
            items = self._hear(examples, self._with_something_to_restore(examples))
            self.reference = float(self._low_distance(items).mean())
        else:
            examples = prepared.examples(evenly(prepared.valid, settings.clips))
            items = self._hear(examples, range(len(examples)))
            self.reference = self._mismatched([clip.caption for clip in examples.clips])
        batch = Collate(self.recipe.condition.max_length)(items)
        self.frames = to_frames(to_device(batch, self.device), self.codec)
        self.ceiling = float(self._distance(self._round_trip(), range(len(self.clips))).mean())
        progress("probe set", 1, 1)
        if not self.reference - self.ceiling >= LEAST_GAP:
            raise StageError(
                f"monitor {self.monitor.label} cannot measure this run: to it, what holds no information beyond the "
                f"condition (d = {self.reference:.4f}) is hardly further away than the codec's own round trip "
                f"(d = {self.ceiling:.4f})",
                problems=[
                    Problem(
                        f"stage.{registry.REGIME}.monitor", f"needs a gap of at least {LEAST_GAP}"
                    )
                ],
                hint="use another monitor or layer, or a codec that keeps more",
            )

    # -- the clips ---------------------------------------------------------------------------------

    def _hear(self, examples: Examples, chosen: Sequence[int]) -> list[dict[str, Any]]:
        """Make the probe set of some clips of `examples`: audio and features of the targets. Returns their items."""
        self.clips = list(chosen)
        items = [examples.valid_item(i) for i in self.clips]
        heard = [examples.valid_audio(i) for i in self.clips]
        # In sr the item's audio is at the level that the network sees; frames from the cache come without audio.
        targets = [
            item["audio"].numpy() if "audio" in item else audio
            for item, (audio, _) in zip(items, heard, strict=True)
        ]
        self.target_BN = torch.from_numpy(np.stack(targets))
        self.counts = [self._frames(real) for _, real in heard]
        self.target_BLD = self._features(self.target_BN)
        return items

    def _with_something_to_restore(self, examples: Examples) -> list[int]:
        """Clips whose missing band the monitor hears (sr); the others would cost as much and say nothing."""
        gaps: list[float] = []
        for first in range(0, len(examples), AT_ONCE):
            items = self._hear(examples, range(first, min(first + AT_ONCE, len(examples))))
            gaps += self._low_distance(items).tolist()
        heard = [i for i, gap in enumerate(gaps) if gap >= LEAST_GAP]
        return evenly(heard or list(range(len(gaps))), self.settings.clips)

    # -- while training --------------------------------------------------------------------------

    def follow(self, network: Network, step: int) -> None:
        """Take in the weights after `step` steps."""
        if step % self.hold == 0:
            self.ema.update(network)

    def due(self, step: int) -> bool:
        return step % self.settings.every == 0

    def measure(self, network: Network) -> Probe:
        """D now."""
        D_T = self.distances(network).mean(1).tolist()
        return Probe(
            dict(zip(self.settings.t, D_T, strict=True)),
            self.ceiling,
            self.reference,
            self.monitor.label,
        )

    @torch.no_grad()
    def distances(self, network: Network, noise: int = 0) -> Tensor:
        """d [t, clips] of the followed weights; noise: which of the fixed draws of eps (training uses 0)."""
        world = self.accelerator.num_processes
        rank = self.accelerator.process_index
        found = torch.zeros(
            len(self.settings.t), len(self.counts), dtype=torch.float64, device=self.device
        )
        mine = range(rank, len(self.counts), world)
        training = network.training
        with self.ema.applied(network):
            network.eval()
            for first in range(0, len(mine), AT_ONCE):
                part = mine[first : first + AT_ONCE]
                for k, audio_BN in enumerate(self._predictions(network, part, noise)):
                    found[k, list(part)] = self._distance(audio_BN, part).double()
        network.train(training)
        return self.accelerator.reduce(found, "sum")

    def _predictions(self, network: Network, part: range, noise: int) -> list[Tensor]:
        """Audio [B, N] of the signal that the network predicts for the clips `part`, for each t."""
        frames = {
            name: value[part.start : part.stop : part.step] for name, value in self.frames.items()
        }
        x0_BTC = frames["x0"]
        made = []
        with self.accelerator.autocast():
            condition = network.condition(frames)
        for k, t in enumerate(self.settings.t):
            draws = [self._noise(self.clips[i], k, noise) for i in part]
            t_B = torch.full((len(part),), t, device=self.device)
            x_BTC = interpolate(x0_BTC, torch.from_numpy(np.stack(draws)).to(self.device), t_B)
            with self.accelerator.autocast():
                velocity_BTC = network(x_BTC, t_B, condition).velocity_BTC
            x0_hat_BTC = x_BTC - t * velocity_BTC.float()
            if "band" in frames:  # as in sampling, the band that the input holds is the input's
                x0_hat_BTC = torch.where(frames["band"][:, None, :], frames["low"], x0_hat_BTC)
            if "mask" in frames:  # what lies in the padding was never trained
                x0_hat_BTC = torch.where(frames["mask"][..., None], x0_hat_BTC, x0_BTC)
            made.append(self.codec.decode(x0_hat_BTC, self.prepared.samples, draft=True))
        return made

    def _noise(self, clip: int, k: int, draw: int) -> np.ndarray:
        """eps [T, C] of a clip at the k-th t."""
        rng = stream(VALID_SEED, PROBE_NOISE, clip, k, draw)
        return rng.standard_normal(self.prepared.shape, dtype=np.float32)

    # -- features --------------------------------------------------------------------------------

    def _frames(self, samples: int) -> int:
        """Features that lie in the first `samples` samples of a clip: padding says nothing about meaning."""
        scale = self.monitor.sample_rate / self.recipe.data.sample_rate
        return max(1, self.monitor.frames(int(samples * scale)))

    @torch.no_grad()
    def _features(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, N] -> centred features of length 1 [B, L, D], fp32."""
        parts = [
            self.monitor(p.to(self.device), self.recipe.data.sample_rate)
            for p in audio_BN.split(AT_ONCE)
        ]
        return F.normalize(torch.cat(parts) - self.centre_D, dim=-1)

    def _distance(self, audio_BN: Tensor, part: Sequence[int]) -> Tensor:
        """1 - mean cosine [B] between audio and the targets `part`, over the frames that are not padding."""
        cosine_BL = (self._features(audio_BN) * self.target_BLD[list(part)]).sum(-1)
        lengths_B1 = torch.tensor([self.counts[i] for i in part], device=cosine_BL.device)[:, None]
        inside_BL = torch.arange(cosine_BL.shape[1], device=cosine_BL.device) < lengths_B1
        return 1 - torch.where(inside_BL, cosine_BL, 0).sum(1) / inside_BL.sum(1)

    @torch.no_grad()
    def _centre(self, progress: Progress) -> Tensor:
        """Mean feature [D] over the training set."""
        examples = self.prepared.examples(evenly(self.prepared.train, CENTRE_CLIPS))
        total = torch.zeros(self.monitor.dimension, dtype=torch.float64, device=self.device)
        count = 0
        for i in range(len(examples)):
            audio_N, real = examples.valid_audio(i)
            if self.recipe.task.kind == "sr":
                audio_N = examples.valid_item(i)["audio"].numpy()
            features_LD = self.monitor(
                torch.from_numpy(audio_N)[None].to(self.device), self.recipe.data.sample_rate
            )[0, : self._frames(real)]
            total += features_LD.double().sum(0)
            count += features_LD.shape[0]
            progress("features of the training set", i + 1, len(examples))
        return (total / count).float()

    @torch.no_grad()
    def _round_trip(self) -> Tensor:
        parts = [p.to(self.device) for p in self.target_BN.split(AT_ONCE)]
        return torch.cat(
            [self.codec.decode(self.codec.encode(p), p.shape[1], draft=True) for p in parts]
        )

    def _low_distance(self, items: Sequence[dict[str, Any]]) -> Tensor:
        """d [B] of the upsampled low-resolution input of each item: what the condition alone holds (sr)."""
        return self._distance(torch.stack([item["low"] for item in items]), range(len(items)))

    def _mismatched(self, captions: Sequence[str]) -> float:
        """d between clips of different captions (of any two, if there is one caption): what sounds right and says
        something else (t2a)."""
        count = len(captions)
        inside_BL = (
            torch.arange(self.target_BLD.shape[1])[None] < torch.tensor(self.counts)[:, None]
        )
        features_BLD = self.target_BLD * inside_BL[..., None].to(self.device)
        length_B = torch.tensor(self.counts, device=self.device)
        cosine_BB = torch.einsum("ild,jld->ij", features_BLD, features_BLD) / torch.minimum(
            length_B[:, None], length_B
        )
        differ = [[a != b for b in captions] for a in captions]
        pairs_BB = (
            torch.tensor(differ) if any(map(any, differ)) else ~torch.eye(count, dtype=torch.bool)
        )
        found = 1 - cosine_BB[pairs_BB.to(self.device)]
        if not len(found):
            raise StageError(
                "the probe set has a single clip: there is no other one to compare with",
                problems=[Problem(f"stage.{registry.REGIME}.clips", str(self.settings.clips))],
                hint="give the valid split at least two clips",
            )
        return float(found.mean())

    # -- resume ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The followed weights; all else is a function of recipe and data."""
        return {"average": self.ema.weights, "updates": self.ema.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ema.load(state["average"], state["updates"])
