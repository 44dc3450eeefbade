"""The source of recorded audio, which is checked as a whole: a manifest, a folder. No torch."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from stagecli.data import snapshot
from stagecli.data.audio import read_mono
from stagecli.data.audio_checks import too_low, wrong_scale
from stagecli.data.bandwidth import file_bandwidth
from stagecli.data.cache import Count
from stagecli.data.checking import CHECKS, WRITE_EVERY, Check, Checker, is_check
from stagecli.data.clip_table import ClipView, TableBuilder
from stagecli.data.decoding import AudioInfo
from stagecli.data.file_index import FileIndex, Stamp, content_hash, is_hash, open_index, stamp_of
from stagecli.data.rows import (
    SPLITS,
    Clip,
    Entry,
    Split,
    split_names,
    valid_share_for,
)
from stagecli.data.snapshot import MISSING, UNREADABLE, Kept, Snapshot, stamp_or_missing
from stagecli.errors import Problem, StageError, counted
from stagecli.schema import Data

LISTED = 50  # problems printed one by one
BANDWIDTHS = 2  # version of `file_bandwidth`, likewise
BLOCK = 4096  # entries that are checked at once


class FileSource:
    """Recorded audio: the entries of a manifest or a folder. `check` turns entries into clips.

    name: the data set in messages; divided: whether it has splits of its own. A subclass may hold
    its audio elsewhere (`_audio`, `_identity`, `_file_of`). folder: that of most files, if there is
    one; snapshot: where it is kept once its checks and hashes are known.
    """

    workers = min(8, os.cpu_count() or 1)

    def __init__(
        self,
        data: Data,
        name: str,
        entries: Sequence[Entry],
        passed_over: Sequence[str] = (),
        folder: Path | None = None,
    ) -> None:
        self.data = data
        self.name = name
        self.sample_rate = data.sample_rate
        self.skipped: list[Problem] = []
        self.passed_over = list(passed_over)
        self.notices: list[str] = []
        self.divided = not all(entry.drawn for entry in entries if entry.clip)
        self._entries = list(entries)
        self._folder = folder
        self.snapshot: Snapshot | None = None
        self._table = TableBuilder(folder).table()
        self._splits: tuple[Split, ...] = ()
        self._hashes: FileIndex | None = None
        self._bandwidths: FileIndex | None = None

    def keys(self) -> list[str]:
        """Keys of all clips, before the check."""
        return [entry.clip.key for entry in self._entries if entry.clip]

    def clips(self, split: Split) -> ClipView:
        return self._table.view(split)

    def read(self, clip: Clip) -> np.ndarray:
        return read_mono(self._audio(clip), self.sample_rate, clip.key)

    def content(self, clip: Clip) -> bytes:
        """The bytes of a clip's audio file. Raises OSError."""
        audio = self._audio(clip)
        return audio.read_bytes() if isinstance(audio, Path) else audio

    def content_hash(self, clip: Clip) -> str:
        digest, fresh = self._digest(clip)
        if self._hashes is not None and fresh is not None:
            self._hashes.put_all([fresh])
        return digest

    def content_hashes(self, clips: Sequence[Clip], progress: Count | None = None) -> list[str]:
        hashes = []
        with ThreadPoolExecutor(self.workers) as pool:
            for first in range(0, len(clips), WRITE_EVERY):
                block = clips[first : first + WRITE_EVERY]
                fresh = []
                for clip, (digest, note) in zip(block, pool.map(self._digest, block), strict=True):
                    hashes.append(digest)
                    self._table.put_digest(clip.row, digest)
                    fresh += [note] if note is not None else []
                    if progress:
                        progress(len(hashes), len(clips))
                if self._hashes is not None:
                    self._hashes.put_all(fresh)
        self._keep()
        return hashes

    def info(self, clip: Clip) -> AudioInfo | None:
        return self._table.info(clip.row)

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
        self._hashes = self._open_index(cache_dir / "hashes.jsonl", 1, is_hash)
        self._open_bandwidths(cache_dir)
        index = self._open_index(cache_dir / "checks.jsonl", CHECKS, is_check)
        self._note_known(index, self._hashes)
        checker = Checker(index, self._identity, self._audio, self.workers)
        builder = TableBuilder(self._folder)
        problems = []
        entries = self._entries
        self._entries = []
        total = sum(_is_in(entry, splits) for entry in entries)
        done = 0
        while entries:
            block = entries[:BLOCK]
            del entries[:BLOCK]
            clips = [entry.clip for entry in block if entry.clip and _is_in(entry, splits)]
            results = iter(checker.check(clips, _counting(progress, done, total)))
            done += len(clips)
            for entry in block:
                problem = entry.problem
                if entry.clip is not None and _is_in(entry, splits):
                    problem = self._add(builder, entry, *next(results))
                if problem:
                    problems.append(Problem(entry.where, problem, entry.excerpt))
        self._table = builder.table()
        self._splits = tuple(splits)
        return problems

    def _add(
        self, builder: TableBuilder, entry: Entry, check: Check, stamp: Stamp | None
    ) -> str | None:
        """Add a checked clip to a table, or return its problem."""
        clip = entry.clip
        assert clip is not None
        info, problem = check
        problem = problem or too_low(info, self.sample_rate) or wrong_scale(info)
        if problem is None and info is not None and stamp is not None:
            builder.add(clip, info, stamp)
            return None
        if self.snapshot is not None:
            name = self._file_of(clip)
            if stamp is None:
                stamp = MISSING if stamp_or_missing(name) == MISSING else UNREADABLE
            self.snapshot.watched[name] = stamp
        return problem if entry.where.endswith(clip.key) else f"{clip.key}: {problem}"

    def _refuse_or_skip(self, problems: list[Problem]) -> None:
        if problems and self.data.on_bad_file == "error":
            raise StageError(
                f"{self.name}: {len(problems)} of its entries cannot be used",
                problems=_listed(problems, self.name),
                hint="""correct them, or leave them out: --set 'data.on_bad_file="skip"'""",
            )
        names = dict(zip(SPLITS, split_names(self.data), strict=True))
        empty = [split for split in self._splits if not len(self.clips(split))]
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
        keys = [clip.key for clip in self._table]
        if "valid" not in empty and "train" not in empty:
            return "chance gave it none of the files: score another split with --split valid"
        share = valid_share_for(keys)
        return (
            f"chance gave it none of {counted(len(keys), 'file')}: "
            f"--set data.valid_share={share}, or divide them into folders or by a column"
        )

    def restore(self, cache_dir: Path) -> bool:
        """Be what the snapshot holds, if no file has changed since; otherwise `check` is needed."""
        assert self.snapshot is not None
        kept = self.snapshot.load(self._folder)
        if kept is None:
            return False
        self._table = kept.table
        self.skipped = kept.skipped
        self.passed_over = kept.passed_over
        self.divided = kept.divided
        self._open_bandwidths(cache_dir)
        self.snapshot = None
        return True

    def _keep(self) -> None:
        """Keep what is known now, if it is worth that and complete."""
        table = self._table
        is_large = len(table) >= snapshot.SMALLEST and table.fits_json
        if self.snapshot is None or not is_large or not table.knows_digests():
            return
        files = {self._file_of(clip): table.stamp(clip.row) for clip in table}
        kept = Kept(table, self.skipped, self.passed_over, self.divided)
        self.snapshot.save(kept, files)
        self.snapshot = None

    def _open_bandwidths(self, cache_dir: Path) -> None:
        path = cache_dir / "bandwidths.jsonl"
        self._bandwidths = self._open_index(path, BANDWIDTHS, _is_frequency)

    def _open_index(self, path: Path, version: int, valid: Callable[[Any], bool]) -> FileIndex:
        index = open_index(path, version, valid)
        if index.damaged:
            self.notices.append(
                f"{path}: {counted(index.damaged, 'damaged entry is', 'damaged entries are')} "
                "made again"
            )
        return index

    def _digest(self, clip: Clip) -> tuple[str, tuple[str, Stamp, Any] | None]:
        """The SHA-256 of a clip's audio, and what to note where it has not been noted."""
        known = self._table.digest(clip.row)
        try:
            name, stamp = self._identity(clip)
            if known and stamp == self._table.stamp(clip.row):
                return known, None
            digest = self._hashes.get(name, stamp) if self._hashes else None
            if isinstance(digest, str):
                return digest, None
            audio = self._audio(clip)
        except OSError as error:
            problem = Problem(self._file_of(clip), str(error.strerror))
            raise StageError("cannot read a file", problems=[problem]) from error
        if isinstance(audio, Path):
            digest = content_hash(audio)
        else:
            digest = hashlib.sha256(audio).hexdigest()
        return digest, (name, stamp, digest)

    def _note_known(self, checks: FileIndex, hashes: FileIndex) -> None:
        """Note checks and hashes that come with the data."""

    def _identity(self, clip: Clip) -> tuple[str, Stamp]:
        """Name and stamp under which a check of the clip is remembered."""
        assert clip.path is not None
        return os.path.abspath(clip.path), stamp_of(clip.path)

    def _file_of(self, clip: Clip) -> str:
        """The file whose stamp is that of the clip."""
        assert clip.path is not None
        return os.path.abspath(clip.path)

    def _audio(self, clip: Clip) -> Path | bytes:
        """The clip's audio: a file or its bytes."""
        assert clip.path is not None
        return clip.path


def _counting(progress: Count | None, before: int, total: int) -> Callable[[int], None]:
    """Reports a number of clips, after those before them."""
    return lambda count: progress(before + count, total) if progress else None


def _is_in(entry: Entry, splits: Sequence[Split]) -> bool:
    return entry.clip is not None and entry.clip.split in splits


def _is_frequency(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value < math.inf


def _listed(problems: list[Problem], name: str) -> list[Problem]:
    more = len(problems) - LISTED
    if more <= 0:
        return problems
    return [*problems[:LISTED], Problem(name, f"and {more} more")]
