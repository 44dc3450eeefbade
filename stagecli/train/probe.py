"""The probe set: the SSL-space discrepancy D of the weights on fixed clips, noise levels and noise.

The idea is that of arXiv 2605.04547, of which only the abstract is public; the formulas are this
project's own. D never reads the t that training sampled: the density of t depends on D, so the two
would chase each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stagecli.codec.base import Codec
from stagecli.data.examples import PROBE_NOISE, VALID_SEED, stream
from stagecli.errors import counted
from stagecli.flow.objective import interpolate
from stagecli.model.ema import EMA
from stagecli.model.network import Network
from stagecli.stage.base import LEVELS_PER_CLIP, Probe, ProbeSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

    from stagecli.ssl.base import Encoder

CLIPS_PER_LEVEL = 3  # that a noise level is measured on, at least
AT_ONCE = 16  # clips that go through network, codec and monitor together


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Features of the true audio of some clips.

    features_BLD: centred and of length 1; lengths_B: how many of the L features are not padding.
    """

    features_BLD: Tensor
    lengths_B: Tensor

    @property
    def inside_BL(self) -> Tensor:
        """Which features are not padding."""
        positions_L = torch.arange(self.features_BLD.shape[1], device=self.features_BLD.device)
        return positions_L < self.lengths_B[:, None]

    def rows(self, rows: Sequence[int]) -> Targets:
        """The targets of some of the clips."""
        chosen = list(rows)
        return Targets(features_BLD=self.features_BLD[chosen], lengths_B=self.lengths_B[chosen])


class FeatureDistance:
    """Distance between audio and targets in the monitor's feature space."""

    def __init__(self, monitor: Encoder, centre_D: Tensor, sample_rate: int) -> None:
        """centre_D: mean feature of the training set; sample_rate: of the audio, in Hz."""
        self.monitor = monitor
        self.centre_D = centre_D
        self.sample_rate = sample_rate
        self.device = centre_D.device

    @torch.no_grad()
    def features(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, N] -> centred features of length 1 [B, L, D], fp32."""
        parts = [
            self.monitor(part_BN.to(self.device), self.sample_rate)
            for part_BN in audio_BN.split(AT_ONCE)
        ]
        return F.normalize(torch.cat(parts) - self.centre_D, dim=-1)

    def targets(self, audio_BN: Tensor, lengths: Sequence[int]) -> Targets:
        """Targets from audio [B, N] of which the first `lengths` samples are not padding."""
        counts = [feature_count(self.monitor, length, self.sample_rate) for length in lengths]
        return Targets(
            features_BLD=self.features(audio_BN),
            lengths_B=torch.tensor(counts, device=self.device),
        )

    def to_targets(self, audio_BN: Tensor, targets: Targets) -> Tensor:
        """1 - mean cosine [B] over the features that are not padding."""
        cosine_BL = (self.features(audio_BN) * targets.features_BLD).sum(-1)
        inside_BL = targets.inside_BL
        return 1 - torch.where(inside_BL, cosine_BL, 0).sum(1) / inside_BL.sum(1)


def shortage(count: int, asked: int) -> str | None:
    """A sentence if a probe set of `count` clips is smaller than was asked for."""
    if count >= asked:
        return None
    return (
        f"the probe set holds {count} of the {counted(asked, 'clip')} asked for: "
        "the valid split has no more that can be measured"
    )


def feature_count(monitor: Encoder, length: int, sample_rate: int) -> int:
    """Features that lie in the first `length` samples of a clip at `sample_rate` Hz, at least 1."""
    return max(1, monitor.frames(int(length * (monitor.sample_rate / sample_rate))))


@dataclass(kw_only=True)
class ProbeSet:
    """Fixed clips of the valid split; `measure` gives D of the weights that it follows.

    The weights are an EMA whose half-life is half the interval between probes: the EMA that is
    sampled lags too far behind. The clips are shared out over the processes, and every process gets
    the same numbers. `probe_setup.build_probes` makes one.

    clips: a number for each clip, which its noise depends on; frames: what the network needs of
    them, x0 [B, T, C] and the conditions; num_samples: audio samples per clip;
    ceiling_B, reference_B: d of the codec's round trip of each clip, and of what holds no
    information beyond the condition; ema: the weights followed, updated every `hold` steps.
    """

    settings: ProbeSettings
    clips: Sequence[int]
    frames: dict[str, Tensor]
    targets: Targets
    distance: FeatureDistance
    codec: Codec
    num_samples: int
    ceiling_B: Tensor
    reference_B: Tensor
    ema: EMA
    hold: int
    accelerator: Accelerator

    def shortage(self) -> str | None:
        """A sentence if the probe set holds fewer clips than were asked for."""
        return shortage(len(self.clips), self.settings.clips)

    def follow(self, network: Network, step: int, skip: Tensor | None = None) -> None:
        """Update the EMA with the weights after `step` steps; skip: as in `EMA.update`."""
        if step % self.hold == 0:
            self.ema.update(network, skip)

    def due(self, step: int) -> bool:
        """Whether a probe is due after `step` steps."""
        return step % self.settings.every == 0

    def measure(self, network: Network) -> Probe:
        """The discrepancy of the followed weights."""
        return Probe(
            D_t=self.by_level(self.distances(network)),
            ceiling_t=self.by_level(self.measured(self.ceiling_B)),
            reference_t=self.by_level(self.measured(self.reference_B)),
            monitor=self.distance.monitor.label,
        )

    def by_level(self, d_TB: Tensor) -> dict[float, float]:
        """Mean of d [t, clips] over the clips of each noise level."""
        return dict(zip(self.settings.t, d_TB.nanmean(1).tolist(), strict=True))

    def measured(self, d_B: Tensor) -> Tensor:
        """d [clips] or [t, clips] as [t, clips], NaN where a clip is not measured."""
        d_TB = d_B.double().expand(len(self.settings.t), -1).clone()
        for row in range(len(self.clips)):
            left_out = sorted({*range(len(self.settings.t))} - {*self.levels_of(row)})
            d_TB[left_out, row] = torch.nan
        return d_TB

    @torch.no_grad()
    def distances(self, network: Network, noise: int = 0) -> Tensor:
        """d [t, clips] of the followed weights, float64; NaN where a clip is not measured.

        network: lends its modules and gets its own weights back; noise: which of the fixed draws of
        eps to use (training uses 0).
        """
        shares = [self.pairs_of(rank) for rank in range(self.accelerator.num_processes)]
        pairs = shares[self.accelerator.process_index]
        shape = (len(self.settings.t), len(self.clips))
        d_TB = torch.zeros(shape, dtype=torch.float64, device=self.accelerator.device)
        training = network.training
        with self.ema.applied(network):
            network.eval()
            # A process without a pair left keeps step with the others, as in validation.
            for first in range(0, max(map(len, shares)), AT_ONCE):
                part = pairs[first : first + AT_ONCE]
                rows = [row for row, _ in part]
                audio_BN = self.predictions(network, part or shares[0][:1], noise)
                if not part:
                    continue
                d_B = self.distance.to_targets(audio_BN, self.targets.rows(rows)).double()
                d_TB[[k for _, k in part], rows] = d_B
        network.train(training)
        return self.measured(self.accelerator.reduce(d_TB, "sum"))

    def pairs_of(self, rank: int) -> list[tuple[int, int]]:
        """(number of a clip, number of a noise level) that a process measures."""
        mine = range(rank, len(self.clips), self.accelerator.num_processes)
        return [(row, k) for row in mine for k in self.levels_of(row)]

    def levels_of(self, row: int) -> range:
        """Numbers of the noise levels at which a clip is measured: two of six, in turn, or more
        where a level would have fewer than CLIPS_PER_LEVEL clips.

        For the same cost three times as many clips count, which leaves less noise in D than every
        clip at every level (`docs/regime.md`).
        """
        turns = min(len(self.settings.t) // LEVELS_PER_CLIP, len(self.clips) // CLIPS_PER_LEVEL)
        turns = max(1, turns)
        return range(row % turns, len(self.settings.t), turns)

    def predictions(self, network: Network, pairs: Sequence[tuple[int, int]], noise: int) -> Tensor:
        """Audio [B, N] of the x0 that the network predicts; pairs: number of a clip, of a t."""
        # The clips, and their conditions.
        device = self.accelerator.device
        rows = [row for row, _ in pairs]
        frames = {name: value[rows] for name, value in self.frames.items()}
        x0_BTC = frames["x0"]
        with self.accelerator.autocast():
            condition = network.encode_condition(frames)

        # x0_hat = x_t - t v_hat from one evaluation of the network, without a sampler.
        draws = [self.noise(self.clips[row], k, noise) for row, k in pairs]
        t_B = torch.tensor([self.settings.t[k] for _, k in pairs], device=device)
        x_BTC = interpolate(x0_BTC, torch.from_numpy(np.stack(draws)).to(device), t_B)
        with self.accelerator.autocast():
            velocity_BTC = network(x_BTC, t_B, condition).velocity_BTC
        x0_hat_BTC = x_BTC - t_B[:, None, None] * velocity_BTC.float()

        # As in sampling, the band that the input holds is kept; the padding was never trained.
        if "band" in frames:
            x0_hat_BTC = torch.where(frames["band"][:, None, :], frames["low"], x0_hat_BTC)
        if "mask" in frames:
            x0_hat_BTC = torch.where(frames["mask"][..., None], x0_hat_BTC, x0_BTC)
        return self.codec.decode(x0_hat_BTC, self.num_samples, draft=True)

    def noise(self, clip: int, k: int, draw: int) -> np.ndarray:
        """eps [T, C] of a clip at the k-th t."""
        rng = stream(VALID_SEED, PROBE_NOISE, clip, k, draw)
        return rng.standard_normal(tuple(self.frames["x0"].shape[1:]), dtype=np.float32)

    def state_dict(self) -> dict[str, Any]:
        """The followed weights; the rest is a function of recipe and data."""
        return {"ema_weights": self.ema.weights, "ema_updates": self.ema.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue to follow from a checkpoint."""
        self.ema.load(state["ema_weights"], state["ema_updates"])
