"""Train the bundled SSL encoders on ESC-10, FSDD and the built-in synthetic sound.

    export STAGECLI_DATA=DIR OMP_NUM_THREADS=1
    python docs/experiments/train_encoders.py teacher --out DIR [--seed 0 --steps N]
    python docs/experiments/train_encoders.py judge --out DIR

Only train splits are used, and no labels. Data and augmentation: `encoder_data.py`.

`teacher`: bootstrap (BYOL-A, arXiv 2103.06695). Frames agree between two views of a crop, clips
between two crops of a recording. Stretches of time are masked in the view of the online network
(as in data2vec, arXiv 2202.03555, and M2D, arXiv 2210.14648), and a covariance term keeps its
features from duplicating each other (VICReg, arXiv 2105.04906).

`judge`: masked autoencoder (Audio-MAE, arXiv 2207.06405) with a contrastive term that identifies
crops of one recording (as in COLA, arXiv 2010.10915).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from encoder_data import DEFAULTS, MEL, Banks, Settings, band_limited, load_bank, masked, view
from safetensors.torch import save_file
from torch import Tensor, nn

from stagecli.ssl.bundled import (
    NETWORKS,
    AttentionBlock,
    JudgeNetwork,
    TeacherNetwork,
    positions,
)

STEPS = 3000  # length of the learning rate schedule
STOP = 2000  # steps trained; the shipped weights stop before the end of the schedule
OBJECTIVES = {
    "teacher": (
        "BYOL-A (arXiv 2103.06695) per frame and between crops of a recording, masked in time;"
        " decorrelated"
    ),
    "judge": (
        "masked autoencoder (arXiv 2207.06405), and crops of one recording told from others"
        " (2010.10915)"
    ),
}


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
        """Log-mel -> features [B * L, D], projected frames [B * L, 128] and clips [B, 128]."""
        x_BLD = self.network(mel_BTC)
        return (
            x_BLD.flatten(0, 1),
            self.frame(x_BLD.flatten(0, 1)),
            self.clip(x_BLD.mean(1) + x_BLD.amax(1)),
        )


class Teacher(nn.Module):
    """The bootstrap: from one view, predict the slow average's output for the other."""

    def __init__(self, network: TeacherNetwork, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.online = Branch(network, int(network.norm.normalized_shape[0]))
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.frame = head(128, 128)
        self.clip = head(128, 128)

    def loss(self, crops: list[Banks]) -> Tensor:
        """Frames agree between views of one crop, clips between crops of one recording."""
        total = torch.zeros(())
        for source, (batch, frames) in zip(crops, self.settings.groups(), strict=True):
            one, two = source.draw(batch, frames)
            # All views of a recording have one bandwidth.
            both = torch.cat(band_limited(torch.cat([one, two], 1)).split(one.shape[1], 1))
            with torch.no_grad():
                _, frame_goal, clip_goal = self.target(view(both, self.settings.views))
            x, frame, clip = self.online(masked(view(both, self.settings.views), 0.25, 12))
            total = total + cosine_distance(self.frame(frame), frame_goal)
            total = total + self.settings.clip * cosine_distance(
                self.clip(clip), clip_goal.roll(batch, 0)
            )
            total = total + 0.04 * correlation(x)
        return total / 2

    def after(self, progress: float) -> None:
        """Move the slow average; progress: share of the schedule."""
        keep = 1 - 0.01 * (math.cos(math.pi * progress) + 1) / 2 - 1e-4
        for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
            slow.lerp_(fast.detach(), 1 - keep)

    def result(self) -> nn.Module:
        return self.target.network


def cosine_distance(one: Tensor, other: Tensor) -> Tensor:
    return 2 - 2 * F.cosine_similarity(one.float(), other.float(), dim=-1).mean()


def correlation(x_ND: Tensor) -> Tensor:
    """Mean squared correlation between features, so that they stay distinct (VICReg)."""
    with torch.autocast(x_ND.device.type, enabled=False):
        x_ND = x_ND.float() - x_ND.float().mean(0)
        x_ND = x_ND / (x_ND.square().mean(0) + 1e-4).sqrt()
        return (x_ND.T @ x_ND / len(x_ND)).fill_diagonal_(0).square().sum() / x_ND.shape[1]


class Judge(nn.Module):
    """Masked autoencoder with a small decoder, and a contrastive term between crops."""

    places_PD: Tensor

    def __init__(self, network: JudgeNetwork, settings: Settings, width: int = 64) -> None:
        super().__init__()
        self.settings = settings
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
        for source, (batch, frames) in zip(crops, self.settings.groups(), strict=True):
            one, two = source.draw(batch, frames)
            both = torch.cat(band_limited(torch.cat([one, two], 1)).split(one.shape[1], 1))
            patches = self.network.patches(view(both, self.settings.views))
            total = total + self.restore(patches) + self.settings.clip * self.contrast(patches)
        return total / 2

    def contrast(self, patches_BPK: Tensor, kept: float = 0.5) -> Tensor:
        """InfoNCE between the crops of a recording, from half of the patches (COLA)."""
        batch, count, _ = patches_BPK.shape
        seen_BQ = torch.rand(batch, count).argsort(1)[:, : round(count * kept)]
        x_BPD = self.network.enter(patches_BPK) + self.network.places_PD[:count]
        x_BQD = x_BPD.gather(1, seen_BQ[..., None].expand(-1, -1, x_BPD.shape[2]))
        for block in self.network.blocks:
            x_BQD = block(x_BQD)
        z_BD = F.normalize(self.head(self.network.norm(x_BQD).mean(1)).float(), dim=-1)
        scores_BB = (z_BD @ z_BD.T / self.settings.temperature).fill_diagonal_(-1e4)
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
        """Move the slow average."""
        for slow, fast in zip(self.slow.parameters(), self.network.parameters(), strict=True):
            slow.lerp_(fast.detach(), 0.01)

    def result(self) -> nn.Module:
        return self.slow


def standardised(patches_BPK: Tensor) -> Tensor:
    centred = patches_BPK - patches_BPK.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt()


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Length and seed of a training run."""

    seed: int
    steps: int  # of the learning rate schedule
    stop: int  # steps trained
    lr: float

    def lr_at(self, step: int) -> float:
        """Warm-up over 100 steps, times a cosine over `steps`."""
        cosine = 0.5 + 0.5 * math.cos(math.pi * (step / self.steps))
        return self.lr * min(1, (step + 1) / 100) * cosine


def train(model: str, out: Path, budget: Budget, settings: Settings, cache: Path | None) -> None:
    """Train and save OUT/MODEL.safetensors (fp16, also every 500 steps)."""
    # Data: environmental and synthetic sound in one group, digits in the other.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started = time.monotonic()
    names = ("esc10", "synth", "fsdd")
    esc10, synth, fsdd = (load_bank(name, settings.synth_clips, device, cache) for name in names)
    crops = [Banks([esc10, synth], [0.7, 0.3]), Banks([fsdd], [1.0])]
    print(f"data ready after {time.monotonic() - started:.0f} s", flush=True)

    # Network and optimizer.
    torch.manual_seed(budget.seed)
    torch.set_default_device(device)
    MEL.to(device)
    network: Any = NETWORKS[model](width=settings.width, depth=settings.depth)
    learner = (Teacher if model == "teacher" else Judge)(network, settings).to(device)
    weights = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=budget.lr, weight_decay=0.03, betas=(0.9, 0.98), fused=True
    )
    out.mkdir(parents=True, exist_ok=True)

    started = time.monotonic()
    recent = torch.zeros(())
    for step in range(budget.stop):
        for group in optimizer.param_groups:
            group["lr"] = budget.lr_at(step)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = learner.loss(crops)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        with torch.no_grad():
            learner.after(step / budget.steps)

        # Log every 100 steps, save every 500 and at the end.
        recent = recent + loss.detach()
        done = step + 1
        if done % 100 == 0:
            seconds = time.monotonic() - started
            print(f"{done:6d} loss {recent.item() / 100:.4f} {seconds:6.0f} s", flush=True)
            recent = torch.zeros(())
        if done % 500 == 0 or done == budget.stop:
            save(
                learner.result(), out / f"{model}.safetensors", about(model, done, budget, settings)
            )


def about(model: str, done: int, budget: Budget, settings: Settings) -> dict[str, str]:
    """Header of a weights file: how the weights were made."""
    synth = f"{settings.synth_clips} clips of the synth source"
    return {
        "encoder": model,
        "objective": OBJECTIVES[model],
        "data": f"train splits of ESC-10 and FSDD; {synth}",
        "seed": str(budget.seed),
        "steps": str(done),
        "schedule": str(budget.steps),
        "settings": json.dumps(asdict(settings)),
        "script": "docs/experiments/train_encoders.py",
    }


def save(network: nn.Module, path: Path, header: dict[str, str]) -> None:
    weights = {k: v.half().cpu().contiguous() for k, v in network.state_dict().items()}
    save_file(weights, path, metadata=header)


def override(settings: Settings, given: dict[str, Any]) -> Settings:
    """Settings, and those of its views, with the given values."""
    of_views = {k: v for k, v in given.items() if k in asdict(settings.views)}
    own = {k: v for k, v in given.items() if k in asdict(settings)}
    return replace(settings, views=replace(settings.views, **of_views), **own)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=sorted(NETWORKS))
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--cache", type=Path, help="folder that keeps the mel power of all clips")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="length of the learning rate schedule"
    )
    parser.add_argument(
        "--stop", type=int, help=f"steps to train; default: {STOP}, or --steps if that is less"
    )
    parser.add_argument("--lr", type=float, default=1e-3)
    for name in ("width", "depth", "batch", "frames", "synth_clips"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="see Settings")
    for name in ("clip", "temperature"):
        parser.add_argument(f"--{name}", type=float, help="see Settings")
    for name in ("gain", "tilt", "mix"):
        parser.add_argument(f"--{name}", type=float, help="see Views")
    args = parser.parse_args()
    if "STAGECLI_DATA" not in os.environ:
        parser.error("set STAGECLI_DATA to the folder with esc10/ and fsdd/")
    given = {name: value for name, value in vars(args).items() if value is not None}
    stop = args.stop or min(STOP, args.steps)
    budget = Budget(seed=args.seed, steps=args.steps, stop=stop, lr=args.lr)
    train(args.model, args.out, budget, override(DEFAULTS[args.model], given), args.cache)


if __name__ == "__main__":
    main()
