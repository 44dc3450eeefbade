"""Clips, and the entries of a data set: a clip each, or its problem. No audio is opened."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from stagecli.data.text_files import text_problem
from stagecli.schema import Data

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
DIGITS = 16  # hexadecimal digits of a hash: 64 bits, so that millions of clips stay apart
VALID_SHARE = 0.05  # of `hash_split`, as of `data.valid_share`
TEST_SHARE = 0.05
PROBED = 10  # clips to validate on: as many as the probes of `[stage.regime]` take


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


def hash_split(key: str, valid_share: float = VALID_SHARE) -> Split:
    """Split by the SHA-256 of a key: test (5 %), valid (`valid_share`) or train (the rest).

    Adding files moves no file to another split.
    """
    place = _place(key)
    if place >= 1 - TEST_SHARE:
        return "test"
    return "valid" if place >= 1 - (valid_share + TEST_SHARE) else "train"


def fewest_valid(count: int) -> int:
    """How many of `count` clips should at least be validated on."""
    return max(1, min(PROBED, count // 4))


def valid_share_for(keys: Collection[str]) -> float:
    """The smallest share, in hundredths, with which `hash_split` gives valid `fewest_valid`."""
    places = sorted(place for key in keys if (place := _place(key)) < 1 - TEST_SHARE)
    place = places[-fewest_valid(len(keys)) :][0] if places else 1 - TEST_SHARE
    return max(1, math.ceil(100 * (1 - TEST_SHARE - place))) / 100


def _place(key: str) -> float:
    """Where the hash of a key lies between 0 and 1."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def caption_columns(names: Iterable[str], column: str) -> list[str]:
    """The columns that `data.caption_column` means: of that name, or else of that pattern.

    A `*` stands for any text, so that "caption_*" means "caption_1" to "caption_5".
    """
    known = list(names)
    if column in known or "*" not in column:
        return [column] if column in known else []
    pattern = re.compile(".*".join(map(re.escape, column.split("*"))), re.DOTALL)
    return [name for name in known if pattern.fullmatch(name)]


def read_captions(
    columns: Mapping[str, Any], column: str, needed: bool
) -> tuple[list[str], str | None]:
    """The captions of a row, and why they cannot be used (or None).

    They are in the columns that `column` means; each cell is a text or a list of texts. Equal ones
    count once. Where captions are not needed, missing ones are no problem: [""]; and where several
    columns may hold them, one is enough.
    """
    name = f'caption (key "{column}")'
    cells = [columns[key] for key in caption_columns(columns, column)]
    if len(cells) > 1:
        cells = [cell for cell in cells if cell not in (None, "")]
    values = []
    for cell in cells:
        values += cell if isinstance(cell, list) and cell else [cell]
    return _read_texts(values or [None], name, needed)


def _read_texts(values: list[Any], name: str, needed: bool) -> tuple[list[str], str | None]:
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
