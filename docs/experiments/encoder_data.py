"""Settings, clips, crops and augmented views that `train_encoders.py` trains on.

Log-mel power of all clips is computed once and kept in memory; every augmentation acts on it.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecli.data.open import open_source
from stagecli.dsp.resample import resample
from stagecli.schema import Data
from stagecli.ssl.bundled import RATE, BandMel

SYNTH_SECONDS = 2.0
MEL = BandMel()
EMPTY = float(MEL.compress(torch.zeros(())))  # log-mel of silence


@dataclass(frozen=True)
class Views:
    """How far two views of a sound differ."""

    gain: float = 3.0  # dB, either way
    tilt: float = 1.0  # dB, either way at both ends of the band
    mix: float = 0.6  # share of clips that another clip is mixed into
    shift: int = 2  # mel bands up or down


@dataclass(frozen=True)
class Settings:
    """Settings of one encoder; DEFAULTS are those of the shipped weights."""

    views: Views
    width: int
    depth: int
    clip: float  # weight of the term between two crops of a recording
    batch: int  # recordings per step, of each group
    frames: int  # per crop of environmental and synthetic sound; digits have 44
    synth_clips: int = 4000
    temperature: float = 0.15  # of the contrastive term (judge)

    def groups(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(recordings, frames) of environmental and synthetic sound, and of digits."""
        return (self.batch, self.frames), (self.batch, 44)


DEFAULTS = {
    "teacher": Settings(Views(), width=256, depth=6, clip=1.0, batch=64, frames=128),
    "judge": Settings(Views(), width=128, depth=4, clip=0.3, batch=64, frames=100),
}


def open_clips(name: str, split: Any, synth_clips: int = 10) -> tuple[Any, int]:
    """The source of one data set (esc10, fsdd, synth) and its sample rate in Hz."""
    rate = 8000 if name == "fsdd" else RATE
    if name == "synth":
        data = Data(source="synth", sample_rate=RATE, seconds=SYNTH_SECONDS, clips=synth_clips)
    else:
        path = Path(os.environ["STAGECLI_DATA"]) / name / "manifest.jsonl"
        data = Data(source="manifest", path=str(path), sample_rate=rate, seconds=5.0)
    return open_source(data, need_captions=False, base=Path.cwd(), splits=(split,), seed=0), rate


def read_clips(name: str, split: Any) -> list[tuple[np.ndarray, Any]]:
    """(audio at 44.1 kHz, clip) for each clip of one split; `name`: esc10 or fsdd (resampled)."""
    source, rate = open_clips(name, split)
    return [(resample(source.read(clip), rate, RATE), clip) for clip in source.clips(split)]


def mel_powers(name: str, synth_clips: int, first: int = 0, step: int = 1) -> list[Tensor]:
    """Mel power [T, 80] of every `step`-th training clip from `first` on."""
    source, rate = open_clips(name, "train", synth_clips)
    audio = [resample(source.read(clip), rate, RATE) for clip in source.clips("train")[first::step]]
    long_enough = [clip for clip in audio if len(clip) >= MEL.length]
    return [MEL.power(torch.from_numpy(clip)[None])[0] for clip in long_enough]


def load_bank(name: str, synth_clips: int, device: torch.device, cache: Path | None) -> Bank:
    """The bank of one data set, computed or read from the cache folder."""
    path = cache / f"{name}_{synth_clips}.pt" if cache else None
    if path and path.exists():
        return Bank(torch.load(path), device)
    if name == "synth":  # synthesis is slow: use all cores
        workers = os.cpu_count() or 1
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            jobs = [pool.submit(mel_powers, name, synth_clips, k, workers) for k in range(workers)]
            clips = [clip for job in jobs for clip in job.result()]
    else:
        clips = mel_powers(name, synth_clips)
    if path:
        torch.save(clips, path)
    return Bank(clips, device)


class Bank:
    """Mel power of the train split of one data set, in memory on the training device."""

    def __init__(self, clips: list[Tensor], device: torch.device) -> None:
        """clips: mel power [T, 80] each."""
        self.clips_NTC = nn.utils.rnn.pad_sequence(clips, batch_first=True).to(device)
        self.length_N = torch.tensor([len(clip) for clip in clips], device=device)

    def crops(self, batch: int, frames: int) -> tuple[Tensor, Tensor]:
        """Two crops [B, T, 80] of each of `batch` recordings; short clips are padded with silence.

        Each crop is the louder of two random ones, because many clips are mostly silent.
        """
        which_B = torch.randint(len(self.length_N), (batch,), device=self.length_N.device)
        pair = [self._louder(which_B, frames) for _ in range(2)]
        return pair[0], pair[1]

    def _louder(self, which_B: Tensor, frames: int) -> Tensor:
        room_B = (self.length_N[which_B] - frames + 1).clamp_min(1)
        start_2B = (torch.rand(2, len(which_B), device=room_B.device) * room_B).long()
        place_2BT = start_2B[..., None] + torch.arange(frames, device=room_B.device)
        inside_2BT = place_2BT < self.length_N[which_B][:, None]
        place_2BT = place_2BT.clamp_max(self.clips_NTC.shape[1] - 1)
        crops_2BTC = self.clips_NTC[which_B[:, None], place_2BT] * inside_2BT[..., None]
        louder_B = (crops_2BTC + MEL.floor).log10().mean((2, 3)).argmax(0)
        return crops_2BTC[louder_B, torch.arange(len(which_B), device=room_B.device)]


class Banks:
    """Draws crops from several banks in given shares."""

    def __init__(self, banks: list[Bank], shares: list[float]) -> None:
        self.banks = banks
        self.shares = shares

    def draw(self, batch: int, frames: int) -> tuple[Tensor, Tensor]:
        """Crops as in `Bank.crops`; the counts per bank are `shares` of the batch, rounded."""
        counts = [round(batch * share) for share in self.shares]
        pairs = [bank.crops(n, frames) for bank, n in zip(self.banks, counts, strict=True) if n]
        return torch.cat([one for one, _ in pairs]), torch.cat([two for _, two in pairs])


def uniform(low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape)


def band_limited(power_BTC: Tensor, share: float = 0.3) -> Tensor:
    """Low-pass some clips at a random band, both views alike: bandwidth is a feature."""
    cut_B = torch.where(
        torch.rand(len(power_BTC)) < share, uniform(36, 80, len(power_BTC)), torch.tensor(99.0)
    )
    fall_BC = 10 ** -(torch.arange(power_BTC.shape[2]) - cut_B[:, None]).clamp(0, 8)
    return power_BTC * fall_BC[:, None]


def view(power_BTC: Tensor, views: Views) -> Tensor:
    """One augmented log-mel view: another clip, noise, drifting gain, tilt, shift by some bands."""
    # Another clip mixed in, 5 to 30 dB below.
    batch, frames, bands = power_BTC.shape
    level_B = power_BTC.mean((1, 2)).clamp_min(1e-9)
    other = torch.randperm(batch)
    ratio_B = 10 ** uniform(-3.0, -0.5, batch) * level_B / level_B[other]
    x = power_BTC + (ratio_B * (torch.rand(batch) < views.mix))[:, None, None] * power_BTC[
        other
    ].roll(frames // 2, 1)
    # Noise, 30 to 60 dB below.
    noise_C = MEL.filters_FC.sum(0) / MEL.filters_FC.sum()
    noise_B = 10 ** uniform(-6.0, -3.0, batch) * level_B * bands * (torch.rand(batch) < 0.5)
    x = x + noise_B[:, None, None] * noise_C * -torch.rand(x.shape).clamp_min(1e-6).log()
    # Gain that drifts, and spectral tilt.
    gain_B2 = views.gain / 10 * uniform(-1, 1, batch, 1) + views.gain / 40 * uniform(
        -1, 1, batch, 2
    )
    fade_T = torch.linspace(0, 1, frames)
    gain_BT = gain_B2[:, :1] * (1 - fade_T) + gain_B2[:, 1:] * fade_T
    tilt_BC = views.tilt / 10 * uniform(-1, 1, batch, 1) * torch.linspace(-1, 1, bands)
    x = MEL.compress(x * 10 ** (gain_BT[:, :, None] + tilt_BC[:, None]))
    # Up or down by some mel bands.
    shift_B = torch.randint(-views.shift, views.shift + 1, (batch,))
    index_BC = (torch.arange(bands) + shift_B[:, None]).clamp(0, bands - 1)
    return x.gather(2, index_BC[:, None].expand_as(x))


def masked(mel_BTC: Tensor, share: float, length: int) -> Tensor:
    """Replace stretches of `length` frames with silence, about `share` of the time."""
    batch, frames, _ = mel_BTC.shape
    starts_BT = torch.rand(batch, frames) < share / length
    hidden_BT = (
        F.max_pool1d(F.pad(starts_BT.float(), (length - 1, 0))[:, None], length, stride=1)[:, 0] > 0
    )
    return torch.where(hidden_BT[:, :, None], torch.tensor(EMPTY), mel_BTC)
