"""Label networks trained on the real clips of a run's data, once for all evaluations of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stagecli.data.cache import FeatureCache, Progress, canonical
from stagecli.data.examples import evenly, stream
from stagecli.data.rows import Clip
from stagecli.data.source import Source
from stagecli.errors import counted
from stagecli.evaluate.classifier import label_text
from stagecli.evaluate.embed import ClipSet, cached_rows
from stagecli.evaluate.label_limits import (
    FEW_CLIPS,
    MIN_CLIPS_PER_CLASS,
    MOST_CROPS,
    MOST_FRAMES,
    MOST_PASSES,
    MOST_SAMPLES,
    VERSION,
)
from stagecli.evaluate.label_network import LabelNetwork
from stagecli.evaluate.samples import real_clips

SEED = 0
BATCH = 64
AT_ONCE = 50  # clips that are classified together
LR = 4e-3
UNLABELLED = -100  # the target that cross-entropy leaves out


@dataclass(frozen=True, kw_only=True)
class LabelClassifier:
    """A trained network with the classes of each label column, whose logits lie side by side.

    clips: it was trained on; digest: of its weights.
    """

    network: LabelNetwork
    classes: Mapping[str, tuple[str, ...]]
    clips: int
    digest: str

    @torch.no_grad()
    def logits(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, N] at the network's rate -> logits [B, classes of all columns]."""
        return torch.cat([self.network(part_BN) for part_BN in audio_BN.split(AT_ONCE)])

    def predict(self, logits_BC: Tensor, column: str) -> list[str]:
        """The most likely class of each clip."""
        classes = self.classes[column]
        chosen = _columns(logits_BC, self.classes)[column].argmax(1).tolist()
        return [classes[index] for index in chosen]

    def convention(self, column: str) -> str:
        """The classifier as printed with every accuracy."""
        return (
            f"small CNN of {column!r} ({len(self.classes[column])} classes) on linear "
            f"spectrograms, independent of judge and codec, trained on "
            f"{counted(self.clips, 'clip')} of the train split (weights {self.digest[:12]})"
        )


def open_label_network(
    source: Source,
    columns: Sequence[str],
    *,
    num_samples: int,
    cache_dir: Path,
    progress: Progress,
    note: Callable[[str], None],
) -> LabelClassifier | None:
    """The classifier of those columns that have training clips enough; None if none has.

    num_samples: of a crop. note: receives a line if some of the cache was damaged.
    """
    train = source.clips("train")
    learnable = [
        column
        for column in columns
        if sum(bool(label_text(clip, column)) for clip in train)
        >= MIN_CLIPS_PER_CLASS * len(_classes(column, train))
    ]
    if not learnable:
        return None
    return open_label_classifier(
        source,
        learnable,
        num_samples=num_samples,
        cache_dir=cache_dir,
        progress=progress,
        note=note,
    )


def open_label_classifier(
    source: Source,
    columns: Sequence[str],
    *,
    num_samples: int,
    cache_dir: Path,
    progress: Progress,
    note: Callable[[str], None],
    seed: int = SEED,
) -> LabelClassifier:
    """The classifier of these columns, trained on the train split unless it is in the cache."""
    # The clips, as many as fit into memory, and what is to be learnt of them.
    train = evenly(source.clips("train"), max(1, MOST_SAMPLES // num_samples))
    classes = {column: _classes(column, train) for column in columns}
    crops = _crops(source, train, num_samples)

    # Its weights, which depend on nothing but this.
    labels = [[label_text(clip, column) for column in columns] for clip in train]
    content = canonical({"clips": [list(part.keys or ()) for part in crops], "labels": labels})
    key = hashlib.sha256(content.encode()).hexdigest()
    config = {
        "version": VERSION,
        "columns": list(columns),
        "sample_rate": source.sample_rate,
        "num_samples": num_samples,
        "seed": seed,
    }
    cache = FeatureCache(cache_dir, "label_network", config)
    stored = cache.get(key)
    for line in cache.damage_notice():
        note(line)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LabelNetwork(source.sample_rate, sum(map(len, classes.values())))
        if stored is None:
            audio_BN = _read(crops, progress)
            targets_BK = _targets(train, classes).repeat(len(crops), 1)
            _train(network, audio_BN, targets_BK, classes, seed=seed, progress=progress)
            stored = _flat(network)
            cache.put(key, stored)
    _restore(network, np.array(stored))
    return LabelClassifier(
        network=network.eval(),
        classes=classes,
        clips=len(train),
        digest=hashlib.sha256(np.ascontiguousarray(stored).tobytes()).hexdigest(),
    )


def cached_logits(
    classifier: LabelClassifier,
    clips: ClipSet,
    cache_dir: Path,
    *,
    progress: Progress,
    note: Callable[[str], None],
) -> Tensor:
    """Logits of a set of clips [B, C], each from the cache or computed by itself."""
    return cached_rows(
        FeatureCache(cache_dir, "label_logits", {"weights": classifier.digest}),
        clips,
        lambda audio_N, _: classifier.logits(torch.from_numpy(audio_N)[None])[0].numpy(),
        progress=lambda done, total: progress(f"{clips.title}: label network", done, total),
        note=note,
    )


def _classes(column: str, train: Sequence[Clip]) -> tuple[str, ...]:
    return tuple(sorted({label_text(clip, column) for clip in train} - {""}))


def _crops(source: Source, train: Sequence[Clip], num_samples: int) -> list[ClipSet]:
    """The clips once, or several times where they are few and longer than a crop."""
    longer = any(clip.seconds * source.sample_rate > 1.5 * num_samples for clip in train)
    most = min(FEW_CLIPS, MOST_SAMPLES // num_samples)
    count = min(MOST_CROPS, max(1, most // len(train))) if longer else 1
    return [
        real_clips(source, train, "training clips", num_samples=num_samples, seed=seed)
        for seed in range(count)
    ]


def _read(crops: Sequence[ClipSet], progress: Progress) -> Tensor:
    """All crops [B, N]."""
    total = sum(part.count for part in crops)
    clips = []
    for part in crops:
        for i in range(part.count):
            clips.append(torch.from_numpy(part.read(i)))
            progress("label network: reading clips", len(clips), total)
    return torch.stack(clips)


def _targets(train: Sequence[Clip], classes: Mapping[str, tuple[str, ...]]) -> Tensor:
    """Class of every clip in each column [B, K]; UNLABELLED without a label."""
    rows = []
    for clip in train:
        labels = {column: label_text(clip, column) for column in classes}
        rows.append([classes[c].index(text) if text else UNLABELLED for c, text in labels.items()])
    return torch.tensor(rows)


def _columns(logits_BC: Tensor, classes: Mapping[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """The logits of each column."""
    parts = logits_BC.split([len(names) for names in classes.values()], dim=1)
    return dict(zip(classes, parts, strict=True))


def _train(
    network: LabelNetwork,
    audio_BN: Tensor,
    targets_BK: Tensor,
    classes: Mapping[str, tuple[str, ...]],
    *,
    seed: int,
    progress: Progress,
) -> None:
    """Minimise the cross-entropy of all columns by AdamW, for as long as the limits allow."""
    # The number of steps.
    batch = min(BATCH, len(audio_BN))
    per_pass = len(audio_BN) // batch
    affordable = MOST_FRAMES // (batch * network.frames(audio_BN.shape[1]))
    steps = max(1, min(MOST_PASSES * per_pass, affordable))

    # One cycle of the learning rate.
    optimiser = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=max(steps, 2))
    network.train()
    for step in range(steps):
        current_pass, position = divmod(step, per_pass)
        order = stream(seed, 0, current_pass).permutation(len(audio_BN))
        chosen = torch.from_numpy(order[position * batch : (position + 1) * batch])
        varied_BN = _varied(audio_BN[chosen], stream(seed, 1, step))
        parts = _columns(network(varied_BN), classes).values()
        losses = [
            F.cross_entropy(part_BC, targets_BK[chosen, k], label_smoothing=0.05)
            for k, part_BC in enumerate(parts)
        ]
        optimiser.zero_grad()
        torch.stack(losses).nansum().backward()  # a column without a label in the batch is NaN
        optimiser.step()
        schedule.step()
        progress("label network: training", step + 1, steps)


def _varied(audio_BN: Tensor, rng: np.random.Generator) -> Tensor:
    """Shift by up to a tenth of the length and add white noise 20 to 60 dB below: [B, N]."""
    batch, length = audio_BN.shape
    most = length // 10
    shift_B1 = torch.from_numpy(rng.integers(-most // 2, most + 1, (batch, 1)))
    index_BN = torch.arange(length) - shift_B1
    inside_BN = (index_BN >= 0) & (index_BN < length)
    moved_BN = audio_BN.gather(1, index_BN.clamp(0, length - 1)) * inside_BN
    loudness_B1 = moved_BN.square().mean(1, keepdim=True).sqrt()
    down_db_B1 = torch.from_numpy(rng.uniform(20, 60, (batch, 1)).astype(np.float32))
    noise_BN = torch.from_numpy(rng.standard_normal((batch, length), np.float32))
    return moved_BN + noise_BN * loudness_B1 * 10 ** (-down_db_B1 / 20)


def _flat(network: LabelNetwork) -> np.ndarray:
    """Weights and running statistics, one after the other."""
    return torch.cat([value.reshape(-1) for value in _tensors(network)]).numpy()


def _restore(network: LabelNetwork, flat: np.ndarray) -> None:
    values = torch.from_numpy(flat)
    tensors = _tensors(network)
    parts = values.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def _tensors(network: LabelNetwork) -> list[Tensor]:
    """What `_flat` keeps: all but BatchNorm's counters of batches, which nothing reads."""
    return [value for value in network.state_dict().values() if value.is_floating_point()]
