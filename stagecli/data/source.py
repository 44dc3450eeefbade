"""Where clips come from: the interface of a source, and the source of recorded audio.

A source is checked as a whole before any training: every line, every caption, every file. All
problems are reported together. No torch.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stagecli.data.audio import read_mono
from stagecli.data.audio_checks import check_content, too_low, wrong_scale
from stagecli.data.bandwidth import file_bandwidth
from stagecli.data.cache import Count
from stagecli.data.decoding import AudioInfo, file_problem
from stagecli.data.file_index import FileIndex, Stamp, content_hash, open_index, stamp_of
from stagecli.data.rows import (
    SPLITS,
    Clip,
    Entry,
    Split,
    split_names,
    valid_share_for,
)
from stagecli.errors import Problem, StageError, counted
from stagecli.schema import Data

LISTED = 50  # problems printed one by one
CHECKS = 5  # version of the checks of `check_content`; raise it when they change
BANDWIDTHS = 2  # version of `file_bandwidth`, likewise
WRITE_EVERY = 256  # results of checks that are stored with one write

Check = tuple[AudioInfo | None, str | None]
"""Format of a clip's audio, and why it is unusable."""


class Source(Protocol):
    """Clips of one data set.

    sample_rate: Hz of the audio that `read` returns; skipped: entries left out, and why;
    passed_over: files that look like audio and are no entries, in sentences with counts; notices:
    what else the check found, such as a damaged cache that was made again.
    """

    sample_rate: int
    skipped: list[Problem]
    passed_over: list[str]
    notices: list[str]

    def clips(self, split: Split) -> list[Clip]:
        """The clips of a split, in an order that does not change."""
        ...

    def read(self, clip: Clip) -> np.ndarray:
        """The whole clip: float32 [N] mono at `sample_rate`."""
        ...

    def content_hash(self, clip: Clip) -> str:
        """Hex digest of the audio content, unchanged when a file is moved or touched."""
        ...

    def content_hashes(self, clips: Sequence[Clip], progress: Count | None = None) -> list[str]:
        """`content_hash` of many clips, at once. progress: (clips done, clips)."""
        ...

    def info(self, clip: Clip) -> AudioInfo | None:
        """Format and peak of a clip's audio; None where no file holds it."""
        ...

    def bandwidth(self, clip: Clip) -> float | None:
        """Hz up to which a clip's audio has content; None where no file holds it."""
        ...


class FileSource:
    """Recorded audio: the entries of a manifest or a folder. `check` turns entries into clips.

    name: the data set in messages; divided: whether it has splits of its own. A subclass may hold
    its audio elsewhere (`_audio`, `_identity`).
    """

    workers = min(8, os.cpu_count() or 1)

    def __init__(
        self, data: Data, name: str, entries: Sequence[Entry], passed_over: Sequence[str] = ()
    ) -> None:
        self.data = data
        self.name = name
        self.sample_rate = data.sample_rate
        self.skipped: list[Problem] = []
        self.passed_over = list(passed_over)
        self.notices: list[str] = []
        self.divided = not all(entry.drawn for entry in entries if entry.clip)
        self._entries = list(entries)
        self._clips: dict[Split, list[Clip]] = {}
        self._infos: dict[str, AudioInfo] = {}
        self._hashes: FileIndex | None = None
        self._bandwidths: FileIndex | None = None

    def keys(self) -> list[str]:
        """Keys of all clips, before the check."""
        return [entry.clip.key for entry in self._entries if entry.clip]

    def clips(self, split: Split) -> list[Clip]:
        return list(self._clips.get(split, ()))

    def read(self, clip: Clip) -> np.ndarray:
        return read_mono(self._audio(clip), self.sample_rate, clip.key)

    def content_hash(self, clip: Clip) -> str:
        audio = self._audio(clip)
        if isinstance(audio, Path):
            return content_hash(audio, self._hashes)
        name, stamp = self._identity(clip)
        digest = self._hashes.get(name, stamp) if self._hashes else None
        if not isinstance(digest, str):
            digest = hashlib.sha256(audio).hexdigest()
            if self._hashes:
                self._hashes.put(name, stamp, digest)
        return digest

    def content_hashes(self, clips: Sequence[Clip], progress: Count | None = None) -> list[str]:
        hashes = []
        with ThreadPoolExecutor(self.workers) as pool:
            for digest in pool.map(self.content_hash, clips):
                hashes.append(digest)
                if progress:
                    progress(len(hashes), len(clips))
        return hashes

    def info(self, clip: Clip) -> AudioInfo | None:
        return self._infos[clip.key]

    def bandwidth(self, clip: Clip) -> float | None:
        assert self._bandwidths is not None
        name, stamp = self._identity(clip)
        hertz = self._bandwidths.get(name, stamp)
        if not isinstance(hertz, float):
            hertz = file_bandwidth(self._audio(clip))
            self._bandwidths.put(name, stamp, hertz)
        return hertz

    def check(
        self, splits: Sequence[Split], cache_dir: Path, progress: Count | None = None
    ) -> None:
        """Check the audio of `splits`, whose clips can be read afterwards.

        cache_dir: where hashes and results of checks are stored. Raises StageError with every
        problem, unless `data.on_bad_file` is "skip", and where a split has no clips.
        """
        self._refuse_or_skip(self.examine(splits, cache_dir, progress))

    def examine(
        self, splits: Sequence[Split], cache_dir: Path, progress: Count | None = None
    ) -> list[Problem]:
        """`check` that refuses nothing: every problem of the entries, which are left out."""
        self._hashes = self._open_index(cache_dir / "hashes.jsonl", 1, _is_hash)
        self._bandwidths = self._open_index(
            cache_dir / "bandwidths.jsonl", BANDWIDTHS, _is_frequency
        )
        wanted = [
            entry.clip
            for entry in self._entries
            if entry.clip is not None and entry.clip.split in splits
        ]
        results = self._check_clips(wanted, cache_dir, progress)
        checks = {clip.key: check for clip, check in zip(wanted, results, strict=True)}

        self._clips = {split: [] for split in splits}
        problems = []
        for entry in self._entries:
            problem = entry.problem
            if entry.clip is not None and entry.clip.key in checks:
                info, problem = checks[entry.clip.key]
                problem = problem or too_low(info, self.sample_rate) or wrong_scale(info)
                if problem is None and info is not None:
                    clip = replace(entry.clip, seconds=info.seconds)
                    self._clips[clip.split].append(clip)
                    self._infos[clip.key] = info
                elif not entry.where.endswith(entry.clip.key):
                    problem = f"{entry.clip.key}: {problem}"
            if problem:
                problems.append(Problem(entry.where, problem, entry.excerpt))
        self._entries = []
        return problems

    def _refuse_or_skip(self, problems: list[Problem]) -> None:
        if problems and self.data.on_bad_file == "error":
            raise StageError(
                f"{self.name}: {len(problems)} of its entries cannot be used",
                problems=_listed(problems, self.name),
                hint="""correct them, or leave them out: --set 'data.on_bad_file="skip"'""",
            )
        names = dict(zip(SPLITS, split_names(self.data), strict=True))
        empty = [split for split, clips in self._clips.items() if not clips]
        if empty:
            raise StageError(
                f"{self.name}: no usable clips in split {', '.join(names[s] for s in empty)}",
                problems=_listed(problems, self.name),
                hint=self._division_hint(empty),
            )
        self.skipped = problems

    def _division_hint(self, empty: Sequence[Split]) -> str:
        """How every split gets clips, or how to do without."""
        if self.divided:
            return (
                "give every split clips, or name the splits in data.train_split, valid_split "
                "and test_split"
            )
        keys = [clip.key for clips in self._clips.values() for clip in clips]
        if "valid" not in empty and "train" not in empty:
            return "chance gave it none of the files: score another split with --split valid"
        share = valid_share_for(keys)
        return (
            f"chance gave it none of {counted(len(keys), 'file')}: "
            f"--set data.valid_share={share}, or divide them into folders or by a column"
        )

    def _check_clips(
        self, clips: list[Clip], cache_dir: Path, progress: Count | None
    ) -> list[Check]:
        """One check per clip, remembered for files that have not changed."""
        # Look up what is known; a missing file is never remembered.
        index = self._open_index(cache_dir / "checks.jsonl", CHECKS, _is_check)
        checks: dict[int, Check] = {}
        pending: list[tuple[int, str, Stamp]] = []
        for position, clip in enumerate(clips):
            try:
                name, stamp = self._identity(clip)
            except OSError as error:
                checks[position] = (None, file_problem(error))
                continue
            stored = index.get(name, stamp)
            if stored:
                numbers, problem = stored
                checks[position] = (AudioInfo(*numbers) if numbers else None, problem)
            else:
                pending.append((position, name, stamp))

        # Check the rest in threads; an interrupted check keeps its results.
        done = len(clips) - len(pending)
        fresh: list[tuple[str, Stamp, Any]] = []
        if progress:
            progress(done, len(clips))
        try:
            with ThreadPoolExecutor(self.workers) as pool:
                audio = (clips[position] for position, _, _ in pending)
                results = pool.map(self._check_one, audio)
                for (position, name, stamp), (check, lasting) in zip(pending, results, strict=True):
                    checks[position] = check
                    done += 1
                    if lasting:
                        fresh.append((name, stamp, _as_json(check)))
                    if len(fresh) >= WRITE_EVERY:
                        index.put_all(fresh)
                        fresh = []
                    if progress:
                        progress(done, len(clips))
        finally:
            index.put_all(fresh)
        return [checks[position] for position in range(len(clips))]

    def _open_index(self, path: Path, version: int, valid: Callable[[Any], bool]) -> FileIndex:
        index = open_index(path, version, valid)
        if index.damaged:
            self.notices.append(
                f"{path}: {counted(index.damaged, 'damaged entry is', 'damaged entries are')} "
                "made again"
            )
        return index

    def _check_one(self, clip: Clip) -> tuple[Check, bool]:
        """The check of one clip, and whether it depends on the content alone."""
        try:
            return check_content(self._audio(clip)), True
        except OSError as error:
            return (None, file_problem(error)), False

    def _identity(self, clip: Clip) -> tuple[str, Stamp]:
        """Name and stamp under which a check of the clip is remembered."""
        assert clip.path is not None
        return os.path.abspath(clip.path), stamp_of(clip.path)

    def _audio(self, clip: Clip) -> Path | bytes:
        """The clip's audio: a file or its bytes."""
        assert clip.path is not None
        return clip.path


def _as_json(check: Check) -> list[Any]:
    info, problem = check
    numbers = list(astuple(info)) if info else None
    return [numbers, problem]


def _is_check(value: Any) -> bool:
    """Whether a stored value is what `_as_json` makes."""
    if not (isinstance(value, list) and len(value) == 2):
        return False
    numbers, problem = value
    good_numbers = numbers is None or (
        isinstance(numbers, list)
        and len(numbers) == 5
        and all(type(number) is int and number > 0 for number in numbers[:3])
        and all(isinstance(number, float) and 0 <= number < math.inf for number in numbers[3:])
    )
    good_problem = problem is None or isinstance(problem, str)
    return good_numbers and good_problem and not (numbers is None and problem is None)


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_frequency(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value < math.inf


def _listed(problems: list[Problem], name: str) -> list[Problem]:
    more = len(problems) - LISTED
    if more <= 0:
        return problems
    return [*problems[:LISTED], Problem(name, f"and {more} more")]
