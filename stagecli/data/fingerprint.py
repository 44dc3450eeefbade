"""The identity of the clips a run is trained on, and the difference from those it finds later.

No torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, overload

import numpy as np

from stagecli.data.cache import Count
from stagecli.data.clip_table import ClipView
from stagecli.data.rows import DIGITS, Split, caption_hash, text_hash
from stagecli.data.source import Source
from stagecli.errors import Problem, counted
from stagecli.files import JsonRow

SHOWN = 5  # clips named per kind of difference


class ClipPrint(NamedTuple):
    """key: of the clip; caption, content: hashes of its text (empty if unused) and its audio."""

    key: str
    caption: str
    content: str


Fingerprint = Mapping[Split, Sequence[ClipPrint]]
"""The clips of each split in their order, on which the order of training depends."""


class TablePrints(Sequence[ClipPrint]):
    """The prints of clips of a table, made where one is taken out."""

    def __init__(self, clips: ClipView, *, with_captions: bool) -> None:
        self.clips = clips
        self.with_captions = with_captions

    def __len__(self) -> int:
        return len(self.clips)

    @overload
    def __getitem__(self, index: int) -> ClipPrint: ...

    @overload
    def __getitem__(self, index: slice) -> TablePrints: ...

    def __getitem__(self, index: int | slice) -> ClipPrint | TablePrints:
        if isinstance(index, slice):
            return TablePrints(self.clips[index], with_captions=self.with_captions)
        clip = self.clips[index]
        columns = self.clips.table.columns
        caption = columns["caption"][clip.row].tobytes().decode() if self.with_captions else ""
        digest = columns["digest"][clip.row, : DIGITS // 2].tobytes().hex()
        return ClipPrint(clip.key, caption, digest)

    def __iter__(self) -> Iterator[ClipPrint]:
        return map(self.__getitem__, range(len(self)))

    def text(self) -> bytes:
        """What `split_hash` hashes."""
        columns = self.clips.table.columns
        rows = self.clips.rows
        digits = np.frombuffer(b"0123456789abcdef", np.uint8)
        content = columns["digest"][rows, : DIGITS // 2]
        parts = [
            columns["caption"][rows, : DIGITS if self.with_captions else 0],
            np.full((len(rows), 1), ord(" "), np.uint8),
            digits[np.stack([content >> 4, content & 15], axis=-1)].reshape(len(rows), DIGITS),
            np.full((len(rows), 1), ord("\n"), np.uint8),
        ]
        return np.concatenate(parts, axis=1).tobytes()[:-1]


class Difference(NamedTuple):
    """One way in which the clips of a split differ from those before; keys: of all such clips."""

    split: Split
    change: str
    keys: list[str]

    def text(self) -> str:
        """The change with its count and first clips, such as "2 clips removed: a.wav, b.wav"."""
        named = ", ".join(self.keys[:SHOWN])
        more = f" and {len(self.keys) - SHOWN} more" if len(self.keys) > SHOWN else ""
        clips = counted(len(self.keys), "clip")
        return f"{clips} {self.change}: {named}{more}"

    def problem(self) -> Problem:
        """The difference as part of an error."""
        return Problem(self.split, self.text())


def fingerprint(
    source: Source,
    splits: Sequence[Split],
    *,
    with_captions: bool,
    progress: Count | None = None,
) -> Fingerprint:
    """The fingerprint of a source; with_captions: False where training reads none.

    Reads every file once; a later call reads only those that changed. Raises StageError where a
    file cannot be read. progress: (clips done, clips).
    """
    by_split = {split: source.clips(split) for split in splits}
    views = [clips for clips in by_split.values() if isinstance(clips, ClipView)]
    if views and len(views) == len(by_split):
        together = ClipView(views[0].table, np.concatenate([view.rows for view in views]))
        if not together.table.knows_digests(together.rows):
            source.content_hashes(together, progress)
        return {
            split: TablePrints(view, with_captions=with_captions)
            for split, view in zip(by_split, views, strict=True)
        }
    clips = [clip for of_split in by_split.values() for clip in of_split]
    hashes = source.content_hashes(clips, progress)
    prints: dict[Split, list[ClipPrint]] = {split: [] for split in splits}
    for clip, digest in zip(clips, hashes, strict=True):
        caption = caption_hash(clip) if with_captions else ""
        prints[clip.split].append(ClipPrint(clip.key, caption, digest[:DIGITS]))
    return prints


def differences(before: Fingerprint, now: Fingerprint) -> list[Difference]:
    """How the clips of the splits of `before` have changed; empty where training sees the same.

    Keys alone do not matter: a data set may be moved, and its files renamed.
    """
    changes = []
    for split, old in before.items():
        changes += _split_differences(split, old, now.get(split, ()))
    return changes


def split_hash(prints: Sequence[ClipPrint]) -> str:
    """One hash of captions and content in their order."""
    if isinstance(prints, TablePrints):
        return hashlib.sha256(prints.text()).hexdigest()[:DIGITS]
    return text_hash("\n".join(f"{clip.caption} {clip.content}" for clip in prints))


def as_json(prints: Fingerprint) -> JsonRow:
    """The form in which a run stores its fingerprint; `from_json` reads it."""
    return {
        split: {"clips": len(clips), "hash": split_hash(clips), "prints": [list(c) for c in clips]}
        for split, clips in prints.items()
    }


def from_json(stored: object) -> Fingerprint:
    """The fingerprint that `as_json` made. Raises ValueError where it is damaged."""
    if not isinstance(stored, dict) or not stored:
        raise ValueError("holds no fingerprint of the data")
    prints: dict[Split, list[ClipPrint]] = {}
    for split, entry in stored.items():
        rows = entry.get("prints") if isinstance(entry, dict) else None
        if split not in ("train", "valid", "test") or not isinstance(rows, list):
            raise ValueError("holds no clips of a split")
        if not all(_is_print(row) for row in rows):
            raise ValueError(f"holds a damaged clip of split {split}")
        prints[split] = [ClipPrint(*row) for row in rows]
        if entry.get("hash") != split_hash(prints[split]):
            raise ValueError(f"its hash of split {split} does not fit the clips")
    return prints


def _split_differences(
    split: Split, old: Sequence[ClipPrint], new: Sequence[ClipPrint]
) -> list[Difference]:
    if len(old) == len(new) and split_hash(old) == split_hash(new):
        return []

    # Clips of one key are one clip; of the others, equal ones have been renamed.
    before = {clip.key: clip for clip in old}
    now = {clip.key: clip for clip in new}
    both = [key for key in before if key in now]
    gone = [clip for key, clip in before.items() if key not in now]
    fresh = [clip for key, clip in now.items() if key not in before]
    renamed = {clip[1:] for clip in gone} & {clip[1:] for clip in fresh}

    changes = {
        "removed": [clip.key for clip in gone if clip[1:] not in renamed],
        "added": [clip.key for clip in fresh if clip[1:] not in renamed],
        "with another caption": [k for k in both if before[k].caption != now[k].caption],
        "with other audio": [k for k in both if before[k].content != now[k].content],
    }
    listed = [Difference(split, change, keys) for change, keys in changes.items() if keys]
    return listed or [Difference(split, "in another order", [clip.key for clip in new])]


def _is_print(row: object) -> bool:
    return isinstance(row, list) and len(row) == 3 and all(isinstance(part, str) for part in row)
