"""What a start found out about a large data set, so that the next one only looks for changes.

No torch. A small data set is read again at every start: its caches tell more about damage.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stagecli.data.cache import FeatureCache
from stagecli.data.clip_table import ClipTable
from stagecli.data.file_index import Stamp
from stagecli.data.locations import stamp_at
from stagecli.data.remote import is_remote
from stagecli.errors import Problem
from stagecli.files import JsonRow, parse_json

SMALLEST = 10_000  # clips of a data set that is kept
VERSION = 1  # of what is kept
THREADS = 8  # that look for changes: a network file system answers each slowly
AT_ONCE = 8192  # files that one thread looks at
MISSING: Stamp = (-1, -1)
UNREADABLE: Stamp = (-2, -2)  # no file has it, so that one that is there is read at every start


@dataclass(frozen=True)
class Kept:
    """A checked data set: its clips, and what else its source tells about it."""

    table: ClipTable
    skipped: list[Problem]
    passed_over: list[str]
    divided: bool


class Snapshot:
    """Where a data set is kept.

    identity: all that decides what its entries mean; watched: the files that it depends on besides
    those of its clips, with the stamps that they had before they were read.
    """

    def __init__(
        self, cache_dir: Path, identity: Mapping[str, Any], watched: Mapping[str, Stamp]
    ) -> None:
        self._cache = FeatureCache(cache_dir, "data", {"version": VERSION, **identity})
        self.watched = dict(watched)

    @property
    def notices(self) -> list[str]:
        """Damage that was found by `load`."""
        return self._cache.damage_notice()

    def load(self, folder: Path | None) -> Kept | None:
        """The data set if it is kept and none of its files has changed. folder: of the table."""
        document = self._document()
        if document is None:
            return None
        columns = {}
        for name, stated in document["sums"].items():
            column = self._cache.get(name)
            if column is None or _sum(column) != stated:
                return None
            columns[name] = column
        if self._is_changed(columns.pop("paths"), columns.pop("stamps")):
            return None
        columns["digest"] = np.array(columns["digest"])
        return Kept(
            ClipTable(columns, folder),
            [Problem(*problem) for problem in document["skipped"]],
            document["passed_over"],
            document["divided"],
        )

    def save(self, kept: Kept, files: Mapping[str, Stamp]) -> None:
        """Keep a data set. files: those of its clips, with their stamps."""
        watched = {**self.watched, **files}
        columns = {
            **kept.table.columns,
            "paths": np.frombuffer("\0".join(watched).encode("utf-8", "surrogateescape"), np.uint8),
            "stamps": np.array(list(watched.values()), np.int64).reshape(-1, 2),
        }
        for name, column in columns.items():
            self._cache.put(name, column)
        document = {
            "sums": {name: _sum(column) for name, column in columns.items()},
            "skipped": [[p.where, p.what, p.excerpt] for p in kept.skipped],
            "passed_over": kept.passed_over,
            "divided": kept.divided,
        }
        self._cache.put("document", np.frombuffer(json.dumps(document).encode(), np.uint8))

    def _is_changed(self, paths: np.ndarray, stamps: np.ndarray) -> bool:
        """Whether any of the files, whose names are separated by NUL, has another stamp."""
        names = paths.tobytes().decode("utf-8", "surrogateescape").split("\0")

        def is_same(first: int) -> bool:
            some = names[first : first + AT_ONCE]
            now = [self.watched.get(name) or stamp_or_missing(name) for name in some]
            return bool(np.array_equal(np.array(now, np.int64), stamps[first : first + AT_ONCE]))

        with ThreadPoolExecutor(THREADS) as pool:
            return not all(pool.map(is_same, range(0, len(names), AT_ONCE)))

    def _document(self) -> JsonRow | None:
        content = self._cache.get("document")
        return parse_json(content.tobytes()) if content is not None else None


def stamp_or_missing(location: str) -> Stamp:
    """Size and modification time of a file, `MISSING` where there is none to be seen.

    Raises StageError for an address that cannot be read.
    """
    try:
        if is_remote(location):
            return stamp_at(location)
        status = os.stat(location)  # without the detour, as there may be a million of them
    except OSError:
        return MISSING
    return status.st_size, status.st_mtime_ns


def _sum(column: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(column).view(np.uint8).reshape(-1).data)
