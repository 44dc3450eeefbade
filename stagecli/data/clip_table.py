"""Checked clips in a few arrays: a million of them take 250 MB, not gigabytes of objects. No torch.

A clip is made anew wherever one is taken out, so that loader processes share the arrays.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, overload

import numpy as np

from stagecli.data.decoding import AudioInfo
from stagecli.data.file_index import Stamp
from stagecli.data.rows import DIGITS, SPLITS, Clip, Place, Split, caption_hash

DIGEST = 32  # bytes of a SHA-256
NUMBERS = {"split": "b", "end": "q", "size": "q", "mtime": "q"}
"""Columns of numbers and their types. end: of the clip's text within the column `text`."""


class ClipTable:
    """Clips with the format of their audio and the stamp of their files, by number of their row.

    columns: `NUMBERS`; `text`, the clips as JSON one after the other; `info`, the fields of their
    `AudioInfo` [n, fields]; `caption`, hashes of their captions [n, DIGITS]; `digest`, SHA-256 of
    their audio [n, DIGEST], zeros until it is known. labels: by row, where JSON cannot hold them.
    """

    def __init__(
        self,
        columns: dict[str, np.ndarray],
        folder: Path | None = None,
        labels: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> None:
        """folder: that of most files, whose paths are kept as their names below it."""
        self.columns = {name: np.asarray(column) for name, column in columns.items()}
        self.folder = folder
        self._labels = labels or {}

    def __len__(self) -> int:
        return len(self.columns["split"])

    def __iter__(self) -> Iterator[Clip]:
        return map(self.clip, range(len(self)))

    @property
    def fits_json(self) -> bool:
        """Whether the columns hold everything."""
        return not self._labels

    def identity(self) -> str:
        """One hash of all clips, without when and where their files lie."""
        digest = hashlib.sha256()
        for name in sorted(set(self.columns) - {"size", "mtime"}):
            digest.update(np.ascontiguousarray(self.columns[name]).data)
        return digest.hexdigest()

    def clip(self, row: int) -> Clip:
        """The clip of a row."""
        columns = self.columns
        begin = int(columns["end"][row - 1]) if row else 0
        text = columns["text"][begin : int(columns["end"][row])].tobytes()
        key, captions, labels, path, place = json.loads(text)
        return Clip(
            key,
            captions[0],
            SPLITS[columns["split"][row]],
            self._labels.get(row, labels),
            seconds=self.info(row).seconds,
            path=self._path(key, path),
            more_captions=tuple(captions[1:]),
            place=Place(*place) if place else None,
            row=row,
        )

    def info(self, row: int) -> AudioInfo:
        """The format and peak of a clip's audio."""
        assert row >= 0
        rate, frames, channels, *levels = self.columns["info"][row].tolist()
        return AudioInfo(int(rate), int(frames), int(channels), *levels)

    def stamp(self, row: int) -> Stamp:
        """The stamp of a clip's file when it was checked."""
        return int(self.columns["size"][row]), int(self.columns["mtime"][row])

    def digest(self, row: int) -> str | None:
        """SHA-256 (hex) of a clip's audio; None where it is not known, or for a row below 0."""
        digest = self.columns["digest"][row] if row >= 0 else None
        return digest.tobytes().hex() if digest is not None and digest.any() else None

    def knows_digests(self, rows: np.ndarray | slice = slice(None)) -> bool:
        """Whether the SHA-256 of the audio of these rows, or of all, is known."""
        return bool(self.columns["digest"][rows].any(axis=1).all())

    def put_digest(self, row: int, digest: str) -> None:
        """Note the SHA-256 (hex) of a clip's audio."""
        assert row >= 0
        self.columns["digest"][row] = np.frombuffer(bytes.fromhex(digest), np.uint8)

    def view(self, split: Split) -> ClipView:
        """The clips of a split, in order."""
        return ClipView(self, np.flatnonzero(self.columns["split"] == SPLITS.index(split)))

    def _path(self, key: str, path: str | bool | None) -> Path | None:
        if path is True:
            assert self.folder is not None
            return self.folder / key
        return Path(path) if path else None


class ClipView(Sequence[Clip]):
    """Some clips of a table; equal to a list of equal clips."""

    def __init__(self, table: ClipTable, rows: np.ndarray) -> None:
        self.table = table
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Clip: ...

    @overload
    def __getitem__(self, index: slice) -> ClipView: ...

    def __getitem__(self, index: int | slice) -> Clip | ClipView:
        if isinstance(index, slice):
            return ClipView(self.table, self.rows[index])
        return self.table.clip(int(self.rows[index]))

    def __iter__(self) -> Iterator[Clip]:
        for row in self.rows:
            yield self.table.clip(int(row))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(other) != len(self):
            return False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))


class TableBuilder:
    """Makes a table, clip by clip. folder: see `ClipTable`."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._numbers = {name: array(code) for name, code in NUMBERS.items()}
        self._text = bytearray()
        self._captions = bytearray()
        self._infos = array("d")
        self._labels: dict[int, Mapping[str, Any]] = {}

    def add(self, clip: Clip, info: AudioInfo, stamp: Stamp) -> None:
        """Add a clip as the last row. stamp: of its file, taken before the check."""
        row = len(self._numbers["split"])
        path: str | bool | None = None
        if clip.path is not None:
            is_below = self.folder is not None and clip.path == self.folder / clip.key
            path = True if is_below else str(clip.path)
        labels: Any = dict(clip.labels)
        if labels and not _survives_json(labels):
            self._labels[row] = labels
            labels = None
        content = [clip.key, clip.captions, labels, path, clip.place]
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        self._text += text.encode("utf-8", "surrogatepass")
        self._captions += caption_hash(clip).encode()
        numbers = (
            SPLITS.index(clip.split),
            len(self._text),
            *stamp,
        )
        self._infos.extend(astuple(info))
        for column, number in zip(self._numbers.values(), numbers, strict=True):
            column.append(number)

    def table(self) -> ClipTable:
        """The table of all rows."""
        columns = {
            name: np.frombuffer(column, dtype=column.typecode)
            for name, column in self._numbers.items()
        }
        columns["text"] = np.frombuffer(bytes(self._text), np.uint8)
        columns["info"] = np.frombuffer(self._infos).reshape(-1, len(fields(AudioInfo)))
        captions = np.frombuffer(bytes(self._captions), np.uint8)
        columns["caption"] = captions.reshape(-1, DIGITS)
        columns["digest"] = np.zeros((len(captions) // DIGITS, DIGEST), np.uint8)
        return ClipTable(columns, self.folder, self._labels)


def _survives_json(labels: Any) -> bool:
    """Whether labels are the same after they were JSON; those of a manifest always are."""
    try:
        return json.loads(json.dumps(labels)) == labels
    except (TypeError, ValueError):
        return False
