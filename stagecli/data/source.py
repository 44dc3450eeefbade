"""Where clips come from: a manifest, a folder, a Hugging Face data set, or synthesis.

`open_source` looks at everything before any training: every line, every caption, every file. What is
wrong is reported together. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stagecli.data.audio import AudioInfo, absent, examine, read_mono, too_low
from stagecli.data.cache import Count, FileIndex, Stamp, content_hash, stamp_of
from stagecli.data.rows import SPLITS, Clip, Entry, Split, split_names
from stagecli.errors import Problem, StageError
from stagecli.schema import Data

LISTED = 50  # problems printed one by one
Fact = tuple[str, Stamp, Any]  # what `FileIndex` remembers
Found = tuple[AudioInfo | None, str | None]  # what the audio is, why it is unusable
CHECKS = 1  # version of the checks of `examine`; raise it when they change


class Source(Protocol):
    """Clips of one data set. sample_rate: Hz of what `read` gives; skipped: what was left out, and why."""

    sample_rate: int
    skipped: list[Problem]

    def clips(self, split: Split) -> list[Clip]:
        """The clips of a split, in an order that does not change."""
        ...

    def read(self, clip: Clip) -> np.ndarray:
        """The whole clip: float32 [N] mono at `sample_rate`."""
        ...

    def content_hash(self, clip: Clip) -> str:
        """Hex digest of the audio content; the same when a file is moved or touched."""
        ...


class FileSource:
    """What the sources of recorded audio share. A subclass gives `rows`; `check` makes clips of them."""

    workers = min(8, os.cpu_count() or 1)

    def __init__(self, data: Data, name: str, rows: Iterable[Entry]) -> None:
        self.data = data
        self.name = name
        self.sample_rate = data.sample_rate
        self.skipped: list[Problem] = []
        self._rows = list(rows)
        self._clips: dict[Split, list[Clip]] = {}
        self._hashes: FileIndex | None = None

    def clips(self, split: Split) -> list[Clip]:
        return list(self._clips[split])

    def read(self, clip: Clip) -> np.ndarray:
        return read_mono(self._audio(clip), self.sample_rate, clip.key)

    def content_hash(self, clip: Clip) -> str:
        assert clip.path is not None
        return content_hash(clip.path, self._hashes)

    def check(
        self, splits: Sequence[Split], cache_dir: Path, progress: Count | None = None
    ) -> None:
        """Look at the audio of `splits`; StageError with everything that is wrong."""
        self._hashes = FileIndex(cache_dir / "hashes.jsonl")
        wanted = [
            row.clip for row in self._rows if row.clip is not None and row.clip.split in splits
        ]
        examined = self._examine(wanted, cache_dir, progress)
        found = {clip.key: result for clip, result in zip(wanted, examined, strict=True)}
        self._clips = {split: [] for split in splits}
        problems = []
        for row in self._rows:
            reason = row.problem
            excerpt = row.excerpt
            if row.clip is not None and row.clip.key in found:
                info, reason = found[row.clip.key]
                reason = reason or too_low(info, self.sample_rate)
                if reason is None and info is not None:
                    self._clips[row.clip.split].append(replace(row.clip, seconds=info.seconds))
                elif not row.where.endswith(row.clip.key):
                    reason = f"{row.clip.key}: {reason}"
            if reason:
                problems.append(Problem(row.where, reason, excerpt))
        self._rows = []
        self._settle(problems)

    def _settle(self, problems: list[Problem]) -> None:
        if problems and self.data.on_bad_file == "error":
            raise StageError(
                f"{self.name}: {len(problems)} of its entries cannot be used",
                problems=_listed(problems, self.name),
                hint="""correct them, or leave them out: --set 'data.on_bad_file="skip"'""",
            )
        names = dict(zip(SPLITS, split_names(self.data), strict=True))
        empty = [names[split] for split, clips in self._clips.items() if not clips]
        if empty:
            raise StageError(
                f"{self.name}: no usable clips in split {', '.join(empty)}",
                problems=_listed(problems, self.name),
                hint="give every split clips, or name them in data.train_split, valid_split and test_split",
            )
        self.skipped = problems

    def _examine(self, clips: list[Clip], cache_dir: Path, progress: Count | None) -> list[Found]:
        """What each clip's audio is: remembered where the file has not changed."""
        index = FileIndex(cache_dir / "checks.jsonl", CHECKS)
        results: list[Found | None] = []
        fresh: list[tuple[int, str, Stamp]] = []
        for clip in clips:
            try:
                name, stamp = self._identity(clip)
            except OSError as error:  # never remembered: it says nothing about the content
                results.append((None, absent(error)))
                continue
            known = index.get(name, stamp)
            results.append(
                (AudioInfo(*known[0]) if known[0] else None, known[1]) if known else None
            )
            if not known:
                fresh.append((len(results) - 1, name, stamp))

        def one(row: tuple[int, str, Stamp]) -> tuple[Fact | None, Found]:
            try:
                info, reason = examine(self._audio(clips[row[0]]))
            except OSError as error:
                return None, (None, absent(error))
            numbers = [info.sample_rate, info.frames, info.channels] if info else None
            return (row[1], row[2], [numbers, reason]), (info, reason)

        done = len(clips) - len(fresh)
        facts = []
        if progress:
            progress(done, len(clips))
        try:
            with ThreadPoolExecutor(self.workers) as pool:
                for (position, *_), (fact, found) in zip(fresh, pool.map(one, fresh), strict=True):
                    results[position] = found
                    done += 1
                    if fact:
                        facts.append(fact)
                    if len(facts) >= 256:
                        index.put_all(facts)
                        facts = []
                    if progress:
                        progress(done, len(clips))
        finally:  # an interrupted check keeps what it has found
            index.put_all(facts)
        return [found for found in results if found is not None]

    def _identity(self, clip: Clip) -> tuple[str, Stamp]:
        """Name and stamp that a check of the clip is remembered by."""
        assert clip.path is not None
        return os.path.abspath(clip.path), stamp_of(clip.path)

    def _audio(self, clip: Clip) -> Path | bytes:
        assert clip.path is not None
        return clip.path


def _listed(problems: list[Problem], name: str) -> list[Problem]:
    more = len(problems) - LISTED
    return problems if more <= 0 else [*problems[:LISTED], Problem(name, f"and {more} more")]
