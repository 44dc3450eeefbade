"""Clips in tar shards of the layout of WebDataset, read at random through an index. No torch."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from stagecli.data.audio import read_mono
from stagecli.data.cache import Count
from stagecli.data.checking import is_check
from stagecli.data.decoding import file_problem
from stagecli.data.file_index import FileIndex, Stamp, is_hash
from stagecli.data.file_source import FileSource
from stagecli.data.locations import range_cache, read_at
from stagecli.data.rows import (
    Clip,
    Entry,
    Place,
    Split,
    caption_columns,
    hash_split,
    read_captions,
    split_named,
    split_names,
)
from stagecli.data.shard_index import Shard, open_shard
from stagecli.data.shard_names import shard_paths
from stagecli.data.tar_index import ShardClip, ShardError
from stagecli.data.text_files import parse_json, text_problem
from stagecli.errors import Problem, StageError, counted
from stagecli.files import JsonRow
from stagecli.schema import Data

OPENED_AT_ONCE = 8


class ShardSource(FileSource):
    """The clips of tar shards: each is read by itself, so their order is free.

    shards: location and stamp of each; indexes: theirs, if they were read now. Key of a clip: "name
    of its shard/its key there".
    """

    def __init__(
        self,
        data: Data,
        shards: Sequence[tuple[str, Stamp]],
        entries: Sequence[Entry],
        passed_over: Sequence[str],
        indexes: Sequence[Shard] = (),
    ) -> None:
        super().__init__(data, data.path, entries, passed_over)
        self.shards = list(shards)
        self._indexes = list(indexes)
        self._ranges = range_cache(data)

    def read(self, clip: Clip) -> np.ndarray:
        audio = self.content(clip)
        digest = self._table.digest(clip.row)
        if digest is not None and hashlib.sha256(audio).hexdigest() != digest:
            raise StageError(
                "a shard holds other audio than its index says",
                problems=[Problem(clip.key, "its SHA-256 differs")],
                hint="copy the shard again, or remove the .idx file beside it",
            )
        return read_mono(audio, self.sample_rate, clip.key)

    def _identity(self, clip: Clip) -> tuple[str, Stamp]:
        assert clip.place is not None
        location, stamp = self.shards[clip.place.shard]
        return f"{location}:{clip.place.start}", stamp

    def _note_known(self, checks: FileIndex, hashes: FileIndex) -> None:
        for shard in self._indexes:
            facts: list[tuple[str, Stamp, Any]] = []
            digests: list[tuple[str, Stamp, Any]] = []
            for clip in shard.index.clips:
                name = f"{shard.location}:{clip.start}"
                if is_check(clip.facts) and checks.get(name, shard.stamp) is None:
                    facts.append((name, shard.stamp, clip.facts))
                if is_hash(clip.digest) and hashes.get(name, shard.stamp) is None:
                    digests.append((name, shard.stamp, clip.digest))
            checks.put_all(facts)
            hashes.put_all(digests)
        self._indexes = []

    def _file_of(self, clip: Clip) -> str:
        assert clip.place is not None
        return self.shards[clip.place.shard][0]

    def _audio(self, clip: Clip) -> Path | bytes:
        assert clip.place is not None
        location, stamp = self.shards[clip.place.shard]
        return read_at(location, clip.place.start, clip.place.size, stamp, self._ranges)


def read_shards(
    data: Data,
    base: Path,
    need_captions: bool,
    cache_dir: Path,
    progress: Count | None = None,
) -> tuple[list[Shard], list[Entry], list[str]]:
    """The shards of `data.path`, the entries of their clips in order, and what was passed over.

    Each shard is indexed once; the index is kept in `cache_dir`. A clip's caption is its `.txt`, or
    under `data.caption_column` in its `.json`, whose other keys are labels. Its split is that of
    its `.json`; where no clip has one, that after which its shard is named; else `hash_split` of
    its key. Raises StageError with the problems of all shards.
    """
    paths = shard_paths(data.path, base)
    shards = _open_shards(paths, cache_dir, progress)
    names = shard_prefixes(paths)
    by_shard = [_split_of_name(Path(name), data) for name in names]
    rows = [
        _Row(number, f"{names[number]}/{clip.key}", clip)
        for number, shard in enumerate(shards)
        for clip in shard.index.clips
    ]
    divide = _divider(data, rows, by_shard)
    entries = [_entry(data, row, divide, need_captions) for row in rows]
    passed_over: Counter[str] = Counter()
    for shard in shards:
        passed_over.update(shard.index.passed_over)
    lines = [
        f"{counted(count, 'member is', 'members are')} passed over ({ending}): neither audio that "
        "is read, nor .json or .txt"
        for ending, count in sorted(passed_over.items())
    ]
    return shards, entries, lines


def shard_splits(data: Data, base: Path, cache_dir: Path) -> list[str]:
    """Every name that shards may give to a split: in the JSON of clips, or in their own names."""
    paths = shard_paths(data.path, base)
    shards = _open_shards(paths, cache_dir, None)
    rows = [_Row(0, clip.key, clip) for shard in shards for clip in shard.index.clips]
    names = [str(row.labels[data.split_column]) for row in rows if data.split_column in row.labels]
    if not names:
        names = [word for name in shard_prefixes(paths) for word in _words(Path(name))]
    return list(dict.fromkeys(names))


class _Row:
    """A clip of a shard, with the labels that its JSON holds or the reason why it holds none."""

    def __init__(self, shard: int, key: str, clip: ShardClip) -> None:
        self.shard = shard
        self.key = key
        self.clip = clip
        self.problem = clip.problem
        self.labels: JsonRow = {}
        if clip.labels is None:
            return
        try:
            value = parse_json(clip.labels)
        except ValueError as error:
            self.problem = f"its .json {error}"
            return
        if not isinstance(value, dict):
            self.problem = "its .json is not a JSON object"
        elif reason := text_problem(value):
            self.problem = f"its .json {reason}"
        else:
            self.labels = value


def shard_prefixes(paths: Sequence[str]) -> list[str]:
    """Names of shards that tell them apart: their paths below the folder that all are in."""
    parts = [path.split("/") for path in paths]
    shared = 0
    while len({tuple(words[: shared + 1]) for words in parts}) == 1 and shared < len(parts[0]) - 1:
        shared += 1
    return ["/".join(words[shared:]) for words in parts]


def _open_shards(paths: Sequence[str], cache_dir: Path, progress: Count | None) -> list[Shard]:
    """The shards with their indexes. Raises StageError with every problem."""

    def open_one(path: str) -> Shard | Problem:
        try:
            return open_shard(path, cache_dir)
        except ShardError as error:
            return Problem(path, str(error))
        except OSError as error:
            return Problem(path, file_problem(error))

    opened: list[Shard | Problem] = []
    with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
        for result in pool.map(open_one, paths):
            opened.append(result)
            if progress:
                progress(len(opened), len(paths))
    problems = [result for result in opened if isinstance(result, Problem)]
    if problems:
        raise StageError(
            f"{len(problems)} of {counted(len(paths), 'shard')} cannot be used",
            problems=problems,
            hint="copy or pack them again (stagecli data pack), or leave them out of data.path",
        )
    return [result for result in opened if isinstance(result, Shard)]


def _split_of_name(name: Path, data: Data) -> Split | None:
    """The split after which a shard is named (`train-000.tar`), or a folder that it is in."""
    for word in _words(name):
        split = split_named(word, data)
        if split is not None:
            return split
    return None


def _words(name: Path) -> list[str]:
    """The words of a shard's name that may be that of a split, the outermost folder first."""
    stem = name.name.removesuffix(".tar")
    first_word = re.split(r"[^A-Za-z]", stem, maxsplit=1)[0]
    return [*name.parts[:-1], stem, stem.rstrip("0123456789").rstrip("-_."), first_word]


def _divider(
    data: Data, rows: Iterable[_Row], by_shard: Sequence[Split | None]
) -> Callable[[_Row], tuple[Split | None, str, bool]]:
    """How clips get their split: a function to (split, the problem without one, whether drawn)."""
    column = data.split_column
    if any(column in row.labels for row in rows):
        return lambda row: (
            split_named(row.labels.get(column), data),
            _unknown_split(row.labels.get(column), data),
            False,
        )
    if any(by_shard):
        names = ", ".join(split_names(data))
        problem = f"its shard is not named after {names}, as others are"
        return lambda row: (by_shard[row.shard], problem, False)
    return lambda row: (hash_split(row.clip.key, data.valid_share), "", True)


def _unknown_split(name: Any, data: Data) -> str:
    known = ", ".join(split_names(data))
    return f"unknown split {name!r:.80} (the recipe has {known})" if name else "no split"


def _entry(
    data: Data,
    row: _Row,
    divide: Callable[[_Row], tuple[Split | None, str, bool]],
    need_captions: bool,
) -> Entry:
    """The clip of one row, or its problem."""
    if row.problem:
        return Entry(row.key, problem=row.problem)
    split, problem, drawn = divide(row)
    if split is None:
        return Entry(row.key, problem=problem)
    labels = {name: value for name, value in row.labels.items() if name != data.split_column}
    columns = {name: labels.pop(name) for name in caption_columns(labels, data.caption_column)}
    if row.clip.caption is not None:
        columns = {data.caption_column: row.clip.caption}
    if need_captions and not columns:
        name = os.path.splitext(row.clip.name)[0]
        return Entry(row.key, problem=f"no caption: neither {name}.txt nor {name}.json has one")
    captions, reason = read_captions(columns, data.caption_column, need_captions)
    if reason:
        return Entry(row.key, problem=reason)
    clip = Clip(
        row.key,
        captions[0],
        split,
        labels,
        more_captions=tuple(captions[1:]),
        place=Place(row.shard, row.clip.start, row.clip.size),
    )
    return Entry(row.key, clip, drawn=drawn)
