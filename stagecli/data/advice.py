"""Recipe keys that fit a data set, each with its reason. No torch, and no audio is opened."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from stagecli.data.decoding import AudioInfo
from stagecli.data.report import MOST, rate_that_holds, spread
from stagecli.data.rows import (
    SPLITS,
    Split,
    fewest_valid,
    hash_split,
    split_names,
    valid_share_for,
)
from stagecli.errors import among, counted, significant
from stagecli.schema import Data

CLIP_SECONDS = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 8.0, 10.0)  # of text-to-audio
TOLERANCE = 1.05  # clips may last this much longer than a round length
CROP_SECONDS = 2.0  # of super-resolution, at most
LENGTHS = 16  # `condition.max_length` is a multiple of it
LONGEST_CAPTION = 512  # bytes that are advised at most
CAPTION_NAMES = ("caption", "captions", "text", "description", "prompt", "sentence", "transcript")
OTHER_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training", "development"),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test", "testing", "evaluation", "eval"),
}


class Advice(NamedTuple):
    """One recipe key that fits the data."""

    key: str
    value: Any
    why: str


def split_name_advice(data: Data, names: Collection[str]) -> list[Advice]:
    """Names of splits that the data set uses instead of those in `data`."""
    advice = []
    for split, known in zip(SPLITS, split_names(data), strict=True):
        others = [name for name in OTHER_NAMES[split] if name in names]
        if known not in names and others:
            why = f"the data set calls its {split} split so"
            advice.append(Advice(f"data.{split}_split", others[0], why))
    return advice


def valid_share_advice(data: Data, keys: Collection[str]) -> list[Advice]:
    """A share that leaves some clips to validate on, of data without splits of their own."""
    count = sum(hash_split(key, data.valid_share) == "valid" for key in keys)
    share = valid_share_for(keys)
    if count >= fewest_valid(len(keys)) or share <= data.valid_share:
        return []
    why = (
        f"the data have no splits, and {data.valid_share:g} of {counted(len(keys), 'clip')} "
        f"would leave {count} to validate on"
    )
    return [Advice("data.valid_share", share, why)]


def sample_rate_advice(infos: Sequence[AudioInfo], hertz: Sequence[float]) -> list[Advice]:
    """The rate that nearly all clips have and fill. hertz: bandwidths of some clips."""
    if not infos:
        return []
    ordered = sorted((info.sample_rate for info in infos), reverse=True)
    rate = ordered[math.ceil(MOST * len(ordered)) - 1]
    why = "every clip has this rate"
    if ordered[0] != ordered[-1]:
        why = "every clip has at least this rate"
    lower = rate_that_holds(hertz, rate)
    if lower is not None:
        rate = lower
        why = (
            f"nearly all clips hold nothing above {rate / 2:.0f} Hz: a higher rate would only "
            "teach silence there"
        )
    below = sum(other < rate for other in ordered)
    if not below:
        return [Advice("data.sample_rate", rate, why)]
    why = f"{among(len(ordered) - below, len(ordered), 'clip')} have at least this rate"
    skip = f"{counted(below, 'clip has', 'clips have')} a lower rate, down to {ordered[-1]} Hz"
    return [
        Advice("data.sample_rate", rate, why),
        Advice("data.on_bad_file", "skip", f"{skip}: they are left out"),
    ]


def seconds_advice(seconds: Sequence[float], task: str) -> list[Advice]:
    """Length of a crop. seconds: lengths of the training clips."""
    if not seconds:
        return []
    _, short, _, long, _ = spread(seconds, 3)
    if task == "sr":
        length = CROP_SECONDS if short >= CROP_SECONDS else max(0.1, math.floor(10 * short) / 10)
        why = (
            "the crop that is trained on: 90 % of the clips are as long; audio of any length can "
            "be restored"
        )
        return [Advice("data.seconds", length, why)]
    lengths = (length for length in CLIP_SECONDS if TOLERANCE * length >= long)
    length = next(lengths, CLIP_SECONDS[-1])
    why = (
        f"90 % of the clips last {significant(long, 3)} s or less; longer ones are cropped, "
        "shorter ones end in silence, which is learned too"
    )
    if long > TOLERANCE * length:
        why = f"longer than is trained easily: of longer clips (up to {long:.0f} s), crops are used"
    return [Advice("data.seconds", length, why)]


def max_length_advice(captions: Collection[str], max_length: int) -> list[Advice]:
    """The length of the longest caption, for the byte encoder, if `max_length` cuts some."""
    lengths = [len(caption.encode()) + 1 for caption in captions]
    cut = sum(length > max_length for length in lengths)
    if not cut:
        return []
    value = min(LONGEST_CAPTION, LENGTHS * math.ceil(max(lengths) / LENGTHS))
    if value <= max_length:
        return []
    why = (
        f"{among(cut, len(lengths), 'different caption')} would be cut at {max_length}; the "
        f"longest needs {max(lengths)}"
    )
    return [Advice("condition.max_length", value, why)]


def caption_column_advice(labels: Mapping[str, Any]) -> list[Advice]:
    """The column that may hold captions, of a data set without any. labels: of one clip."""
    several = [name for name in labels if re.fullmatch(r"captions?_?\d+", name)]
    names = [name for name in CAPTION_NAMES if isinstance(labels.get(name), str)]
    if several:
        names = [several[0].rstrip("0123456789") + "*"]
    if not names:
        return []
    why = "it may describe the sound; without captions, only super-resolution can be trained"
    return [Advice("data.caption_column", names[0], why)]


def narrow_advice(data: Data, narrow_clips: int, rate: int) -> list[Advice]:
    """What super-resolution does with clips whose content ends below the band."""
    if not narrow_clips or data.narrow == "mask":
        return []
    why = (
        f"the content of {counted(narrow_clips, 'measured clip')} ends below the band of "
        f"{rate} Hz: what is missing there is not learned as silence"
    )
    return [Advice("data.narrow", "mask", why)]
