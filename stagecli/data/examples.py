"""What is trained at which step: order, crops, padding masks, low-pass filters, dropped captions and noise.

Everything is a function of (seed, global sample index), so that neither loader workers nor the
number of processes nor a resume change what is trained.
"""

from __future__ import annotations

import math
import signal
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stagecli.condition.low import level_gain
from stagecli.condition.text import byte_ids
from stagecli.data.cache import FeatureCache
from stagecli.data.degrade import degrade, draw_low_pass
from stagecli.data.rows import Clip
from stagecli.data.source import Source
from stagecli.schema import Recipe

T = TypeVar("T")
# Independent random streams per (seed, sample); a new use gets a new number.
ORDER, CROP, DROP, NOISE, VALID_NOISE, TIME, VALID, PROBE_NOISE = range(8)
LINGER = 20  # seconds that a loader process outlives a SIGTERM: the trainer has to end its step
VALID_SEED = 0  # of everything that is measured on the valid split: runs of different seeds are measured alike


def stream(seed: int, name: int, *index: int) -> np.random.Generator:
    """The generator of one stream at one index: a pure function of its arguments."""
    return np.random.default_rng([seed, name, *index])


@lru_cache(maxsize=2)
def _permutation(seed: int, clips: int, epoch: int) -> np.ndarray:
    return stream(seed, ORDER, epoch).permutation(clips)


def clip_at(seed: int, clips: int, sample: int) -> int:
    """Which clip the global sample `sample` is: a fresh permutation for each pass over the data."""
    epoch, position = divmod(sample, clips)
    return int(_permutation(seed, clips, epoch)[position])


def stratified(seed: int, step: int, batch_size: int) -> Tensor:
    """Uniform numbers [batch_size] in (0, 1), one in each of batch_size strata, in random order."""
    rng = stream(seed, TIME, step)
    u = (rng.permutation(batch_size) + rng.random(batch_size)) / batch_size
    return torch.from_numpy(np.clip(u, 1e-5, 1 - 1e-5).astype(np.float32))


class Memory:
    """Arrays of clips, such as decoded audio, least recently used out first, up to a number of megabytes."""

    def __init__(self, load: Callable[[Clip], np.ndarray], megabytes: int) -> None:
        self.load = load
        self.budget = megabytes * 2**20
        self.used = 0
        self.held: OrderedDict[str, np.ndarray] = OrderedDict()

    def read(self, clip: Clip) -> np.ndarray:
        array = self.held.pop(clip.key, None)
        if array is None:
            array = self.load(clip)
            self.used += array.nbytes
        self.held[clip.key] = array
        while self.used > self.budget and len(self.held) > 1:
            self.used -= self.held.popitem(last=False)[1].nbytes
        return array


def crop_start(length: int, samples: int, rng: np.random.Generator) -> int:
    """Where a random crop of `samples` samples starts in a clip of `length`."""
    return int(rng.integers(0, max(0, length - samples) + 1))


def crop(audio_N: np.ndarray, samples: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """A random crop of exactly `samples` samples, zero-padded at the end, and how many are real."""
    start = crop_start(len(audio_N), samples, rng)
    part = audio_N[start : start + samples]
    return np.pad(part, (0, samples - len(part))).astype(np.float32), len(part)


class CropFeatures(Protocol):
    """Features of a crop's audio; `features.TargetFeatures` in a run."""

    def samples_of(self, clip: Clip) -> int:
        """Length of the clip's audio as it is read."""
        ...

    def crop(self, clip: Clip, start: int) -> Tensor:
        """[L, D] of the crop of `clip` that starts at sample `start`."""
        ...


class Examples(Dataset):
    """Global sample index -> one example, as named tensors.

    audio [N] (or raw frames [T, C] from the feature cache), noise [T, C], mask [T] where padding is masked
    out; `caption` (str) or `text` [L, D]; low [N] and cutoff (share of Nyquist) for sr; features [L, D] of the
    target where a mechanism wants them.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        clips: Sequence[Clip],
        *,
        shape: tuple[int, int],
        samples: int,
        hop: int,
        frames_cache: FeatureCache | None = None,
        text_cache: FeatureCache | None = None,
        features: CropFeatures | None = None,
    ) -> None:
        self.recipe = recipe
        self.clips = list(clips)
        self.shape = shape
        self.samples = samples
        self.hop = hop
        self.seed = recipe.train.seed
        self.frames_cache = frames_cache
        self.text_cache = text_cache
        self.features = features
        self.source = source
        self.memory = Memory(source.read, recipe.data.memory_mb)

    def __getitem__(self, sample: int) -> dict[str, Any]:
        clip = self.clips[clip_at(self.seed, len(self.clips), sample)]
        noise = stream(self.seed, NOISE, sample).standard_normal(self.shape, dtype=np.float32)
        dropped = stream(self.seed, DROP, sample).random() < self.recipe.condition.dropout
        item = {
            "sample": sample,
            "noise": torch.from_numpy(noise),
            **self.content(clip, stream(self.seed, CROP, sample), dropped),
        }
        if self.features is not None:
            item["features"] = self._features_of(clip, stream(self.seed, CROP, sample))
        return item

    def _features_of(self, clip: Clip, rng: np.random.Generator) -> Tensor:
        """Features [L, D] of the crop that `content` takes with the same stream."""
        assert self.features is not None
        if self.frames_cache is not None:
            rng = stream(self.seed, CROP, int(rng.integers(self.recipe.data.crops)))
        return self.features.crop(
            clip, crop_start(self.features.samples_of(clip), self.samples, rng)
        )

    def valid_item(self, index: int) -> dict[str, Any]:
        """The validation example of clip `index`: the same crop and filter in every run, caption kept."""
        return self.content(self.clips[index], stream(VALID_SEED, VALID, index), False)

    def valid_audio(self, index: int) -> tuple[np.ndarray, int]:
        """The audio [N] behind `valid_item(index)`, before its level is brought to the input's (sr), and how many
        of its samples are the clip's, not padding."""
        clip = self.clips[index]
        rng = stream(VALID_SEED, VALID, index)
        if self.frames_cache is not None:
            rng = stream(self.seed, CROP, int(rng.integers(self.recipe.data.crops)))
        return crop(self.memory.read(clip), self.samples, rng)

    def content(self, clip: Clip, rng: np.random.Generator, dropped: bool) -> dict[str, Any]:
        item: dict[str, Any] = {}
        if self.frames_cache is not None:
            number = int(rng.integers(self.recipe.data.crops))
            stack = self.frames_cache.get(self.source.content_hash(clip))
            if stack is None:
                raise RuntimeError(
                    f"{clip.key} left the feature cache while training; start again to refill it"
                )
            item["raw"] = torch.from_numpy(np.array(stack[number]))
            real = min(round(clip.seconds * self.recipe.data.sample_rate), self.samples)
        else:
            audio, real = crop(self.memory.read(clip), self.samples, rng)
            if self.recipe.task.kind == "sr":
                condition = self.recipe.condition
                assert condition.cutoff is not None
                low_pass = draw_low_pass(rng, condition.cutoff, condition.filters, condition.orders)
                low = degrade(audio, self.recipe.data.sample_rate, low_pass)
                gain = level_gain(low)
                item["low"] = torch.from_numpy((low * gain).astype(np.float32))
                item["level"] = torch.tensor(math.log10(gain))
                item["cutoff"] = torch.tensor(2 * low_pass.cutoff / self.recipe.data.sample_rate)
                audio = (audio * gain).astype(np.float32)
            item["audio"] = torch.from_numpy(audio)
        if self.recipe.data.padding == "mask":
            item["mask"] = torch.arange(self.shape[0]) * self.hop < real
        if self.recipe.condition.text == "bytes":
            item["caption"] = "" if dropped else clip.caption
        elif self.text_cache is not None:
            item["text"] = torch.from_numpy(
                np.array(self.text_cache.get("" if dropped else clip.caption))
            )
        return item

    def __len__(self) -> int:
        return len(self.clips)


class Collate:
    """List of examples -> batch of tensors [B, ...]; texts are padded to the longest."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = {}
        for name in items[0]:
            values = [item[name] for item in items]
            if name == "caption":
                batch["text_ids"] = byte_ids(values, self.max_length)
            elif name == "text":
                batch["text"], batch["text_mask"] = pad_texts(values)
            elif name == "sample":
                batch["sample"] = torch.tensor(values)
            else:
                batch[name] = torch.stack(values)
        return batch


def pad_texts(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Embeddings [L_i, D] -> [B, L, D] padded with zeros, and their mask [B, L]."""
    length = max(text.shape[0] for text in texts)
    mask = torch.stack([torch.arange(length) < text.shape[0] for text in texts])
    return torch.stack(
        [torch.nn.functional.pad(t, (0, 0, 0, length - t.shape[0])) for t in texts]
    ), mask


class MicroBatches:
    """Sample indices of every micro-batch of one process, from a step on.

    Step s holds the global samples [s B, (s + 1) B); process r of W takes rows r, r + 1, ... of each
    micro-batch, so that the union over processes is the same for any W and any accumulation.
    """

    def __init__(
        self, batch_size: int, accumulate: int, rank: int, world: int, start: int, stop: int
    ) -> None:
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.rank = rank
        self.world = world
        self.start = start
        self.stop = stop
        self.size = batch_size // (accumulate * world)

    def since(self, step: int) -> MicroBatches:
        """The same batches from another step on."""
        later = copy(self)
        later.start = step
        return later

    def rows(self, micro: int) -> slice:
        """Rows of the global batch that this process trains in micro-batch `micro`."""
        first = (micro * self.world + self.rank) * self.size
        return slice(first, first + self.size)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            for micro in range(self.accumulate):
                rows = self.rows(micro)
                yield list(
                    range(step * self.batch_size + rows.start, step * self.batch_size + rows.stop)
                )

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulate


def _start_worker(_: int) -> None:
    """One thread each; Ctrl-C, and SIGTERM of `timeout` or a scheduler, reach the whole process group, and it is the
    trainer that answers them: it still needs this step's examples. A worker that is ended alone goes a little later.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LINGER))


def loader(examples: Examples, batches: MicroBatches, *, pin: bool = False) -> DataLoader:
    """The micro-batches in order, from `data.workers` processes."""
    workers = examples.recipe.data.workers
    return DataLoader(
        examples,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=Collate(examples.recipe.condition.max_length),
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # seeds workers, which never draw; else the global one is used
    )


def evenly(clips: Sequence[T], count: int) -> list[T]:
    """At most `count` clips, evenly spaced, so that a sorted manifest gives all its labels."""
    if len(clips) <= count:
        return list(clips)
    return [clips[i * len(clips) // count] for i in range(count)]
