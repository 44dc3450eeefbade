"""The identity of the clips a run is trained on, and the difference from those it finds later.

No torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stagecli.data.cache import Count
from stagecli.data.rows import Clip, Split
from stagecli.data.source import Source
from stagecli.errors import Problem, counted
from stagecli.files import JsonRow

DIGITS = 16  # hexadecimal digits of a hash: 64 bits, so that millions of clips stay apart
SHOWN = 5  # clips named per kind of difference


class ClipPrint(NamedTuple):
    """key: of the clip; caption, content: hashes of its text (empty if unused) and its audio."""

    key: str
    caption: str
    content: str


Fingerprint = Mapping[Split, Sequence[ClipPrint]]
"""The clips of each split in their order, on which the order of training depends."""


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
    clips = [clip for split in splits for clip in source.clips(split)]
    hashes = source.content_hashes(clips, progress)
    prints: dict[Split, list[ClipPrint]] = {split: [] for split in splits}
    for clip, digest in zip(clips, hashes, strict=True):
        caption = _hash(_text_of(clip)) if with_captions else ""
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
    return _hash("\n".join(f"{clip.caption} {clip.content}" for clip in prints))


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
    if [clip[1:] for clip in old] == [clip[1:] for clip in new]:
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


def _text_of(clip: Clip) -> str:
    """Everything that training may read as the caption of a clip."""
    return "\n".join(clip.captions)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]
