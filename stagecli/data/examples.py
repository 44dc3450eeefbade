"""Training examples: order, crops, padding masks, low-pass filters, dropped captions and noise.

Everything is a function of (seed, global sample index), so that neither loader workers nor the
number of processes nor a resume change the training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from stagecli.condition.low import level_gain
from stagecli.condition.text import byte_ids
from stagecli.data.augment import Alteration, alter, draw_alteration, is_active, make_low
from stagecli.data.bandwidth import content_end
from stagecli.data.cache import FeatureCache
from stagecli.data.degrade import LowPass, draw_low_pass
from stagecli.data.memory import Memory
from stagecli.data.mixed import places
from stagecli.data.rows import Clip, is_synthesised
from stagecli.data.source import Source
from stagecli.schema import Recipe

T = TypeVar("T")
# Independent random streams per (seed, sample); a new use gets a new number.
ORDER, CROP, DROP, NOISE, VALID_NOISE, TIME, VALID, PROBE_NOISE, CAPTION, ALTER = range(10)
LEAST_BAND = 0.9  # cutoffs stay below this share of the end of a narrow clip's content
# Seed of all measurements on the valid split, so that runs of different seeds are comparable.
VALID_SEED = 0


def stream(seed: int, name: int, *index: int) -> np.random.Generator:
    """The generator of one stream at one index: a pure function of its arguments."""
    return np.random.default_rng([seed, name, *index])


@lru_cache(maxsize=4)  # two kinds of clips, each at the end of one pass and the start of another
def _permutation(seed: int, clips: int, epoch: int) -> np.ndarray:
    return stream(seed, ORDER, epoch).permutation(clips)


def clip_at(seed: int, clips: int, index: int) -> int:
    """Number of the clip at a global sample index: a fresh permutation for each pass over them."""
    epoch, position = divmod(index, clips)
    return int(_permutation(seed, clips, epoch)[position])


def caption_at(seed: int, clip: Clip, index: int) -> str:
    """The caption of a clip at a global sample index: each of several is equally likely."""
    if not clip.more_captions:
        return clip.caption
    return clip.captions[int(stream(seed, CAPTION, index).integers(len(clip.captions)))]


def stratified(seed: int, step: int, batch_size: int) -> Tensor:
    """Uniform numbers [batch_size] in (0, 1), one per stratum of width 1 / batch_size, shuffled."""
    rng = stream(seed, TIME, step)
    u = (rng.permutation(batch_size) + rng.random(batch_size)) / batch_size
    return torch.from_numpy(np.clip(u, 1e-5, 1 - 1e-5).astype(np.float32))


def crop_start(length: int, crop_length: int, rng: np.random.Generator) -> int:
    """First sample of a random crop of `crop_length` samples of a clip of `length`."""
    return int(rng.integers(0, max(0, length - crop_length) + 1))


def cut(audio_N: np.ndarray, start: int, length: int) -> tuple[np.ndarray, int]:
    """`length` samples from `start`, zero-padded at the end, and how many are not padding."""
    piece_N = audio_N[start : start + length]
    return np.pad(piece_N, (0, length - len(piece_N))).astype(np.float32), len(piece_N)


def crop(audio_N: np.ndarray, length: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """`cut` at a random start."""
    return cut(audio_N, crop_start(len(audio_N), length, rng), length)


class CropFeatures(Protocol):
    """Features of a crop's audio, such as a teacher's."""

    def samples_of(self, clip: Clip) -> int:
        """Length of the clip's audio in samples, as `Source.read` returns it."""
        ...

    def crop(self, clip: Clip, start: int) -> Tensor:
        """[L, D] of the crop of `clip` that starts at sample `start`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The random choices behind one example, drawn once and shared by all its tensors.

    caption: empty where it was dropped; cached_crop: number of the crop in the feature cache, None
    without one; start: first sample of the crop, None where `cached_crop` decides it (see
    `Examples.start_of`); low_pass: filter of the low-resolution input (sr); alteration: what else
    training changes (sr), None for a plain example.
    """

    clip: Clip
    caption: str
    cached_crop: int | None
    start: int | None
    low_pass: LowPass | None
    alteration: Alteration | None = None


class Examples(Dataset):
    """Global sample index -> one example, as named tensors.

    index; audio [N] (or raw frames [T, C] from the feature cache); noise [T, C]; mask [T] where
    padding is masked out; `caption` (str) or `text` [L, D]; for sr low [N], level and cutoff (share
    of Nyquist), and content (likewise) where what lies above the clip's content does not count;
    features [L, D] of the target where a mechanism uses them, which are those of the clip as it was
    recorded.

    shape: (T, C) of a crop; crop_samples: its length N; hop: audio samples per frame.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        clips: Sequence[Clip],
        *,
        shape: tuple[int, int],
        crop_samples: int,
        hop: int,
        frames_cache: FeatureCache | None = None,
        text_cache: FeatureCache | None = None,
        features: CropFeatures | None = None,
    ) -> None:
        self.recipe = recipe
        self.source = source
        self.clips = clips
        self.shape = shape
        self.crop_samples = crop_samples
        self.hop = hop
        self.seed = recipe.train.seed
        self.frames_cache = frames_cache
        self.text_cache = text_cache
        self.features = features
        self.memory = Memory(source.read, recipe.data.memory_mb)
        self.recordings: Sequence[Clip] = clips
        self.synthesised: Sequence[Clip] = []
        if recipe.data.synth_share > 0:
            self.recordings = [clip for clip in clips if not is_synthesised(clip)]
            self.synthesised = [clip for clip in clips if is_synthesised(clip)]
        self.content_ends: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The training example of a global sample index, which may exceed the number of clips."""
        clip = self.clip_of(index)
        noise = stream(self.seed, NOISE, index).standard_normal(self.shape, dtype=np.float32)
        dropped = stream(self.seed, DROP, index).random() < self.recipe.condition.dropout
        caption = "" if dropped else caption_at(self.seed, clip, index)
        draw = self._draw(clip, stream(self.seed, CROP, index), caption)
        if is_active(self.recipe.augment):
            draw = replace(draw, alteration=self._alteration(clip, index))
        item = {"index": index, "noise": torch.from_numpy(noise), **self._tensors(draw)}
        if self.features is not None:
            start = self.start_of(draw, self.features.samples_of(clip))
            item["features"] = self.features.crop(clip, start)
        return item

    def clip_of(self, index: int) -> Clip:
        """The clip of the training example at a global sample index."""
        clips = self.clips
        share = self.recipe.data.synth_share
        if share > 0:
            is_synthetic, index = places(index, share)
            clips = self.synthesised if is_synthetic else self.recordings
        return clips[clip_at(self.seed, len(clips), index)]

    def valid_item(self, index: int) -> dict[str, Any]:
        """The validation example of clip `index`, the same in every run: with its first caption."""
        return self._tensors(self._valid_draw(index))

    def valid_audio(self, index: int) -> tuple[np.ndarray, int]:
        """The audio [N] behind `valid_item(index)`, and how many samples are not padding.

        For sr, before its level is adjusted to the input's.
        """
        draw = self._valid_draw(index)
        audio_N = self.memory.read(draw.clip)
        return cut(audio_N, self.start_of(draw, len(audio_N)), self.crop_samples)

    def start_of(self, draw: Draw, length: int) -> int:
        """First sample of the crop in a clip of `length` samples."""
        if draw.start is not None:
            return draw.start
        # The crops in the feature cache were cut with these streams.
        assert draw.cached_crop is not None
        return crop_start(length, self.crop_samples, stream(self.seed, CROP, draw.cached_crop))

    def _valid_draw(self, index: int) -> Draw:
        rng = stream(VALID_SEED, VALID, index)
        return self._draw(self.clips[index], rng, self.clips[index].caption)

    def _draw(self, clip: Clip, rng: np.random.Generator, caption: str) -> Draw:
        """Draw the crop, then the filter (sr): the order of draws decides every stored result."""
        if self.frames_cache is not None:
            cached_crop = int(rng.integers(self.recipe.data.crops))
            return Draw(
                clip=clip, caption=caption, cached_crop=cached_crop, start=None, low_pass=None
            )
        start = crop_start(len(self.memory.read(clip)), self.crop_samples, rng)
        low_pass = None
        if self.recipe.task.kind == "sr":
            condition = self.recipe.condition
            cutoffs = self._cutoffs(clip)
            low_pass = draw_low_pass(rng, cutoffs, condition.filters, condition.orders)
        return Draw(clip=clip, caption=caption, cached_crop=None, start=start, low_pass=low_pass)

    def _alteration(self, clip: Clip, index: int) -> Alteration:
        rng = stream(self.seed, ALTER, index)
        rate = self.recipe.data.sample_rate
        return draw_alteration(rng, self.recipe.augment, self._cutoffs(clip), rate)

    def _cutoffs(self, clip: Clip) -> tuple[float, float]:
        """Range of the cutoff in Hz, within the content of a clip whose end is known."""
        assert self.recipe.condition.cutoff is not None
        low, high = self.recipe.condition.cutoff
        if self.recipe.data.narrow == "mask":
            high = max(low, min(high, LEAST_BAND * self._content_end(clip)))
        return low, high

    def _content_end(self, clip: Clip) -> float:
        """Hz at which a clip's content ends, measured when it is first read."""
        if clip.key not in self.content_ends:
            audio_N = self.memory.read(clip)
            self.content_ends[clip.key] = content_end(audio_N, self.recipe.data.sample_rate)
        return self.content_ends[clip.key]

    def _tensors(self, draw: Draw) -> dict[str, Any]:
        """Everything of an example but index, noise and features."""
        item: dict[str, Any] = {}

        # Audio, or its frames.
        if draw.cached_crop is not None:
            item["raw"] = torch.from_numpy(self._cached_frames(draw.clip, draw.cached_crop))
            clip_samples = round(draw.clip.seconds * self.recipe.data.sample_rate)
            unpadded = min(clip_samples, self.crop_samples)
        else:
            audio_N = self.memory.read(draw.clip)
            start = self.start_of(draw, len(audio_N))
            audio_N, unpadded = cut(audio_N, start, self.crop_samples)
            if draw.low_pass is not None:
                audio_N = self._add_low(item, audio_N, draw.low_pass, draw.alteration)
                if self.recipe.data.narrow == "mask":
                    end = self._content_end(draw.clip)
                    item["content"] = torch.tensor(2 * end / self.recipe.data.sample_rate)
            item["audio"] = torch.from_numpy(audio_N)
        if self.recipe.data.padding == "mask":
            item["mask"] = torch.arange(self.shape[0]) * self.hop < unpadded

        # Text.
        if self.recipe.condition.text == "bytes":
            item["caption"] = draw.caption
        elif self.text_cache is not None:
            item["text"] = torch.from_numpy(np.array(self.text_cache.get(draw.caption)))
        return item

    def _cached_frames(self, clip: Clip, number: int) -> np.ndarray:
        assert self.frames_cache is not None
        crops_KTC = self.frames_cache.get(self.source.content_hash(clip))
        if crops_KTC is None:
            raise RuntimeError(
                f"{clip.key} left the feature cache while training; start again to refill it"
            )
        return np.array(crops_KTC[number])

    def _add_low(
        self,
        item: dict[str, Any],
        audio_N: np.ndarray,
        low_pass: LowPass,
        alteration: Alteration | None,
    ) -> np.ndarray:
        """Add the low-resolution input to `item`; return the audio at the input's level."""
        sample_rate = self.recipe.data.sample_rate
        if alteration is not None:
            audio_N = alter(audio_N, sample_rate, alteration)
        low_N, cutoff = make_low(audio_N, sample_rate, low_pass, alteration)
        gain = level_gain(low_N)
        item["low"] = torch.from_numpy((low_N * gain).astype(np.float32))
        item["level"] = torch.tensor(math.log10(gain))
        item["cutoff"] = torch.tensor(2 * cutoff / sample_rate)
        return (audio_N * gain).astype(np.float32)


class Collate:
    """List of examples -> batch of tensors [B, ...]; texts are padded to the longest.

    max_length: of a caption's bytes, BEGIN included.
    """

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
            elif name == "index":
                batch["index"] = torch.tensor(values)
            else:
                batch[name] = torch.stack(values)
        return batch


def pad_texts(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Embeddings [L_i, D] -> [B, L, D] padded with zeros, and their mask [B, L]."""
    length = max(text.shape[0] for text in texts)
    padded = [torch.nn.functional.pad(text, (0, 0, 0, length - text.shape[0])) for text in texts]
    mask = torch.stack([torch.arange(length) < text.shape[0] for text in texts])
    return torch.stack(padded), mask


def evenly(clips: Sequence[T], count: int) -> list[T]:
    """At most `count` clips, evenly spaced, so that a sorted manifest gives all its labels."""
    if len(clips) <= count:
        return list(clips)
    return [clips[i * len(clips) // count] for i in range(count)]
