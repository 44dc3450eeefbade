"""Clips, and the entries of a data set: a clip each, or its problem. No audio is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from stagecli.data.text_files import text_problem
from stagecli.schema import Data

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
DIGITS = 16  # hexadecimal digits of a hash: 64 bits, so that millions of clips stay apart


class Place(NamedTuple):
    """Where the bytes of a clip's audio lie: in which shard, from which byte, how many."""

    shard: int
    start: int
    size: int


@dataclass(frozen=True)
class Clip:
    """One piece of audio with its caption.

    key: stable identity within its source; seconds: length of the whole file; more_captions:
    further captions of the same audio, of which training draws one at each visit; place: within the
    shards of its source, if it has any; row: in the table of its source, if it is from one.
    """

    key: str
    caption: str
    split: Split
    labels: Mapping[str, Any] = field(default_factory=dict, hash=False)
    seconds: float = 0.0
    path: Path | None = None
    more_captions: tuple[str, ...] = ()
    place: Place | None = field(default=None, compare=False)
    row: int = field(default=-1, compare=False, repr=False)

    @property
    def captions(self) -> tuple[str, ...]:
        """Every caption; validation, probes and evaluation use the first."""
        return (self.caption, *self.more_captions)


def is_synthesised(clip: Clip) -> bool:
    """Whether a clip is one of `SynthSource`, and not of recordings beside it."""
    return clip.path is None and clip.place is None and clip.key.startswith("synth/")


def caption_hash(clip: Clip) -> str:
    """Hash of everything that training may read as the caption of a clip."""
    return text_hash("\n".join(clip.captions))


def text_hash(text: str) -> str:
    """The first `DIGITS` digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]


@dataclass(frozen=True)
class Entry:
    """One entry of a data set before its audio is opened: a clip, or its problem.

    where: file and line; excerpt: the offending line; drawn: its split is drawn by `hash_split`,
    because the data set divides nothing.
    """

    where: str
    clip: Clip | None = None
    problem: str | None = None
    excerpt: str | None = None
    drawn: bool = False


def hash_split(key: str) -> Split:
    """Split by the SHA-256 of a key: train (90 %), valid (5 %) or test (5 %).

    Adding files moves no file to another split.
    """
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    if share < 0.90:
        return "train"
    return "valid" if share < 0.95 else "test"


def read_captions(value: Any, column: str, needed: bool) -> tuple[list[str], str | None]:
    """The captions in one cell, a text or a list of texts, and why they cannot be used (or None).

    Equal ones count once. Where captions are not needed, missing ones are no problem: [""].
    """
    name = f'caption (key "{column}")'
    values = value if isinstance(value, list) and value else [value]
    captions = []
    for text in values:
        problem = None
        if text is None:
            problem = f"no {name}"
        elif not isinstance(text, str):
            problem = f"{name} is not text: {text!r:.80}"
        elif not text.strip():
            problem = f"{name} is empty"
        elif reason := text_problem(text):
            return [], f"{name} {reason}"
        if problem is None:
            captions.append(text.strip())
        elif needed:
            return [], problem
    return list(dict.fromkeys(captions)) or [""], None


def split_names(data: Data) -> tuple[str, str, str]:
    """The recipe's names for train, valid and test."""
    return data.train_split, data.valid_split, data.test_split


def split_named(name: Any, data: Data) -> Split | None:
    """The split to which the recipe gives a name, or None."""
    for split, known in zip(SPLITS, split_names(data), strict=True):
        if name == known:
            return split
    return None
