"""Train the bundled SSL encoders on the train splits of ESC-10 and FSDD and on the built-in synthetic sound.

    export STAGECLI_DATA=...  OMP_NUM_THREADS=1
    python docs/experiments/train_encoders.py teacher --out DIR [--seed 0 --steps N]
    python docs/experiments/train_encoders.py judge --out DIR

No label is read. Log-mels of all clips are computed once and kept in memory; everything that is done to a clip is
done to its log-mel. `teacher`: bootstrap (BYOL-A, arXiv 2103.06695): frames agree between two views of a crop, clips
between two crops of a recording; the online network sees its view with stretches of time masked (as data2vec, arXiv
2202.03555, and M2D, 2210.14648), its features are kept from repeating each other (covariance term of VICReg, arXiv
2105.04906). `judge`: masked autoencoder (Audio-MAE, arXiv 2207.06405) that also has to tell which crops are of one
recording (contrastive, as COLA, arXiv 2010.10915).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from stagecli.data.open import open_source
from stagecli.dsp.resample import resample
from stagecli.schema import Data
from stagecli.ssl.bundled import (
    NETWORKS,
    RATE,
    AttentionBlock,
    BandMel,
    JudgeNetwork,
    TeacherNetwork,
    positions,
)

# of the learning rate's schedule; taken before its end, where the machine's time was up
STEPS = 3000
STOP = 2000
SYNTH_SECONDS = 2.0
MEL = BandMel()
EMPTY = float(MEL.compress(torch.zeros(())))  # silence
OBJECTIVES = {
    "teacher": "BYOL-A (arXiv 2103.06695) per frame and between crops of a recording, masked in time; decorrelated",
    "judge": "masked autoencoder (arXiv 2207.06405), and crops of one recording told from others (2010.10915)",
}


@dataclass(frozen=True)
class Views:
    """How far two views of a sound differ; dB, and a share of clips for `mix`."""

    gain: float = 3.0  # either way
    tilt: float = 1.0  # either way at both ends of the band
    mix: float = 0.6
    shift: int = 2  # mel bands up or down


@dataclass(frozen=True)
class Settings:
    """Of one encoder; the defaults made the weights that ship."""

    views: Views
    width: int
    depth: int
    clip: float  # weight of what two crops of a recording have in common
    batch: int  # recordings a step, of either group
    frames: int  # of environmental and synthetic sound; digits have 44
    synth_clips: int = 4000
    temperature: float = 0.15  # judge

    def groups(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(recordings, frames) of environmental and synthetic sound, of digits."""
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
    """Audio at 44.1 kHz and clip of one split; `name`: esc10 or fsdd (8 kHz, resampled)."""
    source, rate = open_clips(name, split)
    return [(resample(source.read(clip), rate, RATE), clip) for clip in source.clips(split)]


def powers(name: str, synth_clips: int, first: int = 0, parts: int = 1) -> list[Tensor]:
    """Mel power [T, 80] of every `parts`-th training clip from `first` on."""
    source, rate = open_clips(name, "train", synth_clips)
    audio = [
        resample(source.read(clip), rate, RATE) for clip in source.clips("train")[first::parts]
    ]
    return [MEL.power(torch.from_numpy(a)[None])[0] for a in audio if len(a) >= MEL.length]


class Bank:
    """Mel power of the train split of one data set, in memory on the device that trains."""

    def __init__(
        self, name: str, synth_clips: int, device: torch.device, cache: Path | None = None
    ) -> None:
        path = cache / f"{name}_{synth_clips}.pt" if cache else None
        if path and path.exists():
            clips = torch.load(path)
        elif name == "synth":  # made, not read: worth all cores
            parts = os.cpu_count() or 1
            with ProcessPoolExecutor(parts, multiprocessing.get_context("spawn")) as pool:
                jobs = [pool.submit(powers, name, synth_clips, k, parts) for k in range(parts)]
                clips = [clip for job in jobs for clip in job.result()]
        else:
            clips = powers(name, synth_clips)
        if path and not path.exists():
            torch.save(clips, path)
        self.clips_NTC = nn.utils.rnn.pad_sequence(clips, batch_first=True).to(device)
        self.length_N = torch.tensor([len(clip) for clip in clips], device=device)

    def crops(self, batch: int, frames: int) -> tuple[Tensor, Tensor]:
        """Two crops [B, T, 80] of each of `batch` recordings, each the louder of two random ones, as many clips are
        mostly silence; a short clip gets silence behind."""
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
    """Several banks, of which shares are given."""

    def __init__(self, banks: list[Bank], shares: list[float]) -> None:
        self.banks = banks
        self.shares = shares

    def draw(self, batch: int, frames: int) -> tuple[Tensor, Tensor]:
        """Crops as in `Bank.crops`, the shares of the banks as near to `shares` as whole numbers are."""
        counts = [round(batch * share) for share in self.shares]
        parts = [bank.crops(n, frames) for bank, n in zip(self.banks, counts, strict=True) if n]
        return torch.cat([one for one, _ in parts]), torch.cat([two for _, two in parts])


def uniform(low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape)


def band_limited(power_BTC: Tensor, share: float = 0.3) -> Tensor:
    """Some clips without what is above a random band. Both views get the same: bandwidth is to be heard."""
    cut_B = torch.where(
        torch.rand(len(power_BTC)) < share, uniform(36, 80, len(power_BTC)), torch.tensor(99.0)
    )
    fall_BC = 10 ** -(torch.arange(power_BTC.shape[2]) - cut_B[:, None]).clamp(0, 8)
    return power_BTC * fall_BC[:, None]


def view(power_BTC: Tensor, how: Views) -> Tensor:
    """One augmented view, as log-mel: mix with another clip, a little noise, gain and its drift, up or down a band."""
    batch, frames, bands = power_BTC.shape
    level_B = power_BTC.mean((1, 2)).clamp_min(1e-9)
    other = torch.randperm(batch)
    ratio_B = 10 ** uniform(-3.0, -0.5, batch) * level_B / level_B[other]
    x = power_BTC + (ratio_B * (torch.rand(batch) < how.mix))[:, None, None] * power_BTC[
        other
    ].roll(frames // 2, 1)
    noise_C = MEL.filters_FC.sum(0) / MEL.filters_FC.sum()
    noise_B = 10 ** uniform(-6.0, -3.0, batch) * level_B * bands * (torch.rand(batch) < 0.5)
    x = x + noise_B[:, None, None] * noise_C * -torch.rand(x.shape).clamp_min(1e-6).log()
    gain_B2 = how.gain / 10 * uniform(-1, 1, batch, 1) + how.gain / 40 * uniform(-1, 1, batch, 2)
    fade_T = torch.linspace(0, 1, frames)
    gain_BT = gain_B2[:, :1] * (1 - fade_T) + gain_B2[:, 1:] * fade_T
    tilt_BC = how.tilt / 10 * uniform(-1, 1, batch, 1) * torch.linspace(-1, 1, bands)
    x = MEL.compress(x * 10 ** (gain_BT[:, :, None] + tilt_BC[:, None]))
    shift_B = torch.randint(-how.shift, how.shift + 1, (batch,))
    index_BC = (torch.arange(bands) + shift_B[:, None]).clamp(0, bands - 1)
    return x.gather(2, index_BC[:, None].expand_as(x))


def masked(mel_BTC: Tensor, share: float, length: int) -> Tensor:
    """Stretches of `length` frames set to silence, about `share` of the time."""
    batch, frames, _ = mel_BTC.shape
    starts_BT = torch.rand(batch, frames) < share / length
    hidden_BT = (
        F.max_pool1d(F.pad(starts_BT.float(), (length - 1, 0))[:, None], length, stride=1)[:, 0] > 0
    )
    return torch.where(hidden_BT[:, :, None], torch.tensor(EMPTY), mel_BTC)


def head(width: int, out: int, hidden: int = 512) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out)
    )


class Branch(nn.Module):
    """Network and projectors of one side of the bootstrap."""

    def __init__(self, network: TeacherNetwork, width: int) -> None:
        super().__init__()
        self.network = network
        self.frame = head(width, 128)
        self.clip = head(width, 128)

    def forward(self, mel_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-mel -> features [B * L, D], projected features [B * L, 128], projected clips [B, 128]."""
        x_BLD = self.network(mel_BTC)
        return (
            x_BLD.flatten(0, 1),
            self.frame(x_BLD.flatten(0, 1)),
            self.clip(x_BLD.mean(1) + x_BLD.amax(1)),
        )


class Teacher(nn.Module):
    """The bootstrap: predict from one view what the slow average of the network says of the other."""

    def __init__(self, network: TeacherNetwork, how: Settings) -> None:
        super().__init__()
        self.how = how
        self.online = Branch(network, int(network.norm.normalized_shape[0]))
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.frame = head(128, 128)
        self.clip = head(128, 128)

    def loss(self, crops: list[Banks]) -> Tensor:
        """Frames agree between two views of one crop; clips agree between crops of one recording."""
        total = torch.zeros(())
        for source, (batch, frames) in zip(crops, self.how.groups(), strict=True):
            one, two = source.draw(batch, frames)
            both = torch.cat(
                band_limited(torch.cat([one, two], 1)).split(one.shape[1], 1)
            )  # of one bandwidth
            with torch.no_grad():
                _, frame_goal, clip_goal = self.target(view(both, self.how.views))
            x, frame, clip = self.online(masked(view(both, self.how.views), 0.25, 12))
            total = total + distance(self.frame(frame), frame_goal)
            total = total + self.how.clip * distance(self.clip(clip), clip_goal.roll(batch, 0))
            total = total + 0.04 * correlation(x)
        return total / 2

    def after(self, progress: float) -> None:
        keep = 1 - 0.01 * (math.cos(math.pi * progress) + 1) / 2 - 1e-4
        for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
            slow.lerp_(fast.detach(), 1 - keep)

    def result(self) -> nn.Module:
        return self.target.network


def distance(one: Tensor, other: Tensor) -> Tensor:
    return 2 - 2 * F.cosine_similarity(one.float(), other.float(), dim=-1).mean()


def correlation(x_ND: Tensor) -> Tensor:
    """Squared correlations between different features, per feature: few directions must not say it all (VICReg)."""
    with torch.autocast(x_ND.device.type, enabled=False):
        x_ND = x_ND.float() - x_ND.float().mean(0)
        x_ND = x_ND / (x_ND.square().mean(0) + 1e-4).sqrt()
        return (x_ND.T @ x_ND / len(x_ND)).fill_diagonal_(0).square().sum() / x_ND.shape[1]


class Judge(nn.Module):
    """A small decoder restores the patches that the encoder has not seen; crops of a recording are told from others."""

    places_PD: Tensor

    def __init__(self, network: JudgeNetwork, how: Settings, width: int = 64) -> None:
        super().__init__()
        self.how = how
        self.network = network
        self.slow = copy.deepcopy(network).requires_grad_(False)
        self.enter = nn.Linear(int(network.norm.normalized_shape[0]), width)
        self.hole = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(AttentionBlock(width, 2) for _ in range(1))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, network.STRIDE * network.BANDS)
        self.register_buffer("places_PD", positions(network.COLUMNS, network.ROWS, width))
        width = int(network.norm.normalized_shape[0])
        self.head = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 64))

    def loss(self, crops: list[Banks]) -> Tensor:
        total = torch.zeros(())
        for source, (batch, frames) in zip(crops, self.how.groups(), strict=True):
            one, two = source.draw(batch, frames)
            both = torch.cat(band_limited(torch.cat([one, two], 1)).split(one.shape[1], 1))
            patches = self.network.patches(view(both, self.how.views))
            total = total + self.restore(patches) + self.how.clip * self.contrast(patches)
        return total / 2

    def contrast(self, patches_BPK: Tensor, kept: float = 0.5) -> Tensor:
        """Which of the other crops is of the same recording? From half of the patches (InfoNCE; COLA, 2010.10915)."""
        batch, count, _ = patches_BPK.shape
        seen_BQ = torch.rand(batch, count).argsort(1)[:, : round(count * kept)]
        x_BPD = self.network.enter(patches_BPK) + self.network.places_PD[:count]
        x_BQD = x_BPD.gather(1, seen_BQ[..., None].expand(-1, -1, x_BPD.shape[2]))
        for block in self.network.blocks:
            x_BQD = block(x_BQD)
        z_BD = F.normalize(self.head(self.network.norm(x_BQD).mean(1)).float(), dim=-1)
        scores_BB = (z_BD @ z_BD.T / self.how.temperature).fill_diagonal_(-1e4)
        return F.cross_entropy(scores_BB, torch.arange(batch).roll(batch // 2))

    def restore(self, patches_BPK: Tensor, hidden: float = 0.75) -> Tensor:
        """Squared error on hidden patches, each normalised by its own mean and deviation."""
        batch, count, _ = patches_BPK.shape
        order_BP = torch.rand(batch, count).argsort(1)
        seen_BQ = order_BP[:, : round(count * (1 - hidden))]
        x_BPD = self.network.enter(patches_BPK) + self.network.places_PD[:count]
        x_BQD = x_BPD.gather(1, seen_BQ[..., None].expand(-1, -1, x_BPD.shape[2]))
        for block in self.network.blocks:
            x_BQD = block(x_BQD)
        known_BQD = self.enter(self.network.norm(x_BQD))
        full_BPD = self.hole.expand(batch, count, -1).to(known_BQD.dtype)
        full_BPD = (
            full_BPD.scatter(1, seen_BQ[..., None].expand_as(known_BQD), known_BQD)
            + self.places_PD[:count]
        )
        for block in self.blocks:
            full_BPD = block(full_BPD)
        error_BP = (
            (self.out(self.norm(full_BPD)).float() - standardised(patches_BPK)).square().mean(2)
        )
        weight_BP = torch.ones(batch, count).scatter(1, seen_BQ, 0.0)
        return (error_BP * weight_BP).sum() / weight_BP.sum()

    def after(self, progress: float) -> None:
        for slow, fast in zip(self.slow.parameters(), self.network.parameters(), strict=True):
            slow.lerp_(fast.detach(), 0.01)

    def result(self) -> nn.Module:
        return self.slow


def standardised(patches_BPK: Tensor) -> Tensor:
    centred = patches_BPK - patches_BPK.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt()


def train(
    model: str,
    out: Path,
    seed: int,
    steps: int,
    stop: int,
    lr: float,
    how: Settings,
    cache: Path | None,
) -> None:
    """Train and save DIR/MODEL.safetensors (fp16, also every 500 steps)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started = time.monotonic()
    names = ("esc10", "synth", "fsdd")
    esc10, synth, fsdd = (Bank(name, how.synth_clips, device, cache) for name in names)
    crops = [Banks([esc10, synth], [0.7, 0.3]), Banks([fsdd], [1.0])]
    print(f"data ready after {time.monotonic() - started:.0f} s", flush=True)
    torch.manual_seed(seed)
    torch.set_default_device(device)
    MEL.to(device)
    network: Any = NETWORKS[model](width=how.width, depth=how.depth)
    learner = (Teacher(network, how) if model == "teacher" else Judge(network, how)).to(device)
    weights = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.03, betas=(0.9, 0.98), fused=True)
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    recent = torch.zeros(())
    for step in range(stop):
        progress = step / steps
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * progress))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = learner.loss(crops)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        with torch.no_grad():
            learner.after(progress)
        recent = recent + loss.detach()
        done = step + 1
        if done % 100 == 0:
            print(
                f"{done:6d} loss {recent.item() / 100:.4f} {time.monotonic() - started:6.0f} s",
                flush=True,
            )
            recent = torch.zeros(())
        if done % 500 == 0 or done == stop:
            save(learner.result(), out / f"{model}.safetensors", model, seed, (done, steps), how)


def save(
    network: nn.Module, path: Path, model: str, seed: int, steps: tuple[int, int], how: Settings
) -> None:
    """steps: done, and of the learning rate's schedule."""
    about = {
        "encoder": model,
        "objective": OBJECTIVES[model],
        "data": f"train splits of ESC-10 and FSDD; {how.synth_clips} clips of the synth source",
        "seed": str(seed),
        "steps": str(steps[0]),
        "schedule": str(steps[1]),
        "settings": json.dumps(asdict(how)),
        "script": "docs/experiments/train_encoders.py",
    }
    save_file(
        {k: v.half().cpu().contiguous() for k, v in network.state_dict().items()},
        path,
        metadata=about,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=sorted(NETWORKS))
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument(
        "--cache", type=Path, help="folder that keeps the mel power of all clips from run to run"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS, help="of the learning rate's schedule")
    parser.add_argument(
        "--stop",
        type=int,
        help=f"steps that are trained; default: {STOP}, or --steps where it is less",
    )
    parser.add_argument("--lr", type=float, default=1e-3)
    for name, kind in (
        ("width", int),
        ("depth", int),
        ("clip", float),
        ("batch", int),
        ("frames", int),
        ("synth_clips", int),
        ("temperature", float),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="see Settings")
    for name in ("gain", "tilt", "mix"):
        parser.add_argument(f"--{name}", type=float, help="see Views")
    args = parser.parse_args()
    if "STAGECLI_DATA" not in os.environ:
        sys.exit("set STAGECLI_DATA to the folder with esc10/ and fsdd/")
    given = {name: value for name, value in vars(args).items() if value is not None}
    how = DEFAULTS[args.model]
    views = replace(how.views, **{k: v for k, v in given.items() if k in asdict(how.views)})
    how = replace(how, views=views, **{k: v for k, v in given.items() if k in asdict(how)})
    train(
        args.model,
        args.out,
        args.seed,
        args.steps,
        args.stop or min(STOP, args.steps),
        args.lr,
        how,
        args.cache,
    )


if __name__ == "__main__":
    main()
