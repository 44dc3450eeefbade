"""Checks of the audio of many clips, by threads, remembered for files that have not changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import Any

from stagecli.data.audio_checks import check_content
from stagecli.data.decoding import AudioInfo, file_problem
from stagecli.data.file_index import FileIndex, Stamp
from stagecli.data.rows import Clip

CHECKS = 5  # version of the checks of `check_content`; raise it when they change
WRITE_EVERY = 256  # results of checks that are stored with one write

Check = tuple[AudioInfo | None, str | None]
"""Format of a clip's audio, and why it is unusable."""


class Checker:
    """Checks clips. index: of earlier results; identity: name and stamp of a clip's file; audio:
    the file or its bytes.
    """

    def __init__(
        self,
        index: FileIndex,
        identity: Callable[[Clip], tuple[str, Stamp]],
        audio: Callable[[Clip], Path | bytes],
        workers: int,
    ) -> None:
        self.index = index
        self.identity = identity
        self.audio = audio
        self.workers = workers

    def check(
        self, clips: Sequence[Clip], progress: Callable[[int], None]
    ) -> list[tuple[Check, Stamp | None]]:
        """One check per clip, and the stamp of its file; None where the file could not be read.

        progress: called with the number of clips done.
        """
        # Look up what is known; a missing file is never remembered.
        checks: dict[int, tuple[Check, Stamp | None]] = {}
        pending: list[tuple[int, str, Stamp]] = []
        for position, clip in enumerate(clips):
            try:
                name, stamp = self.identity(clip)
            except OSError as error:
                checks[position] = (None, file_problem(error)), None
                continue
            stored = self.index.get(name, stamp)
            if stored:
                numbers, problem = stored
                checks[position] = (AudioInfo(*numbers) if numbers else None, problem), stamp
            else:
                pending.append((position, name, stamp))

        # Check the rest in threads; an interrupted check keeps its results.
        progress(len(clips) - len(pending))
        fresh: list[tuple[str, Stamp, Any]] = []
        try:
            with ThreadPoolExecutor(self.workers) as pool:
                results = pool.map(self._check_one, (clips[place] for place, _, _ in pending))
                for (position, name, stamp), (check, lasting) in zip(pending, results, strict=True):
                    checks[position] = check, stamp if lasting else None
                    if lasting:
                        fresh.append((name, stamp, as_json(check)))
                    if len(fresh) >= WRITE_EVERY:
                        self.index.put_all(fresh)
                        fresh = []
                    progress(len(checks))
        finally:
            self.index.put_all(fresh)
        return [checks[position] for position in range(len(clips))]

    def _check_one(self, clip: Clip) -> tuple[Check, bool]:
        """The check of one clip, and whether it depends on the content alone."""
        try:
            return check_content(self.audio(clip)), True
        except OSError as error:
            return (None, file_problem(error)), False


def is_check(value: Any) -> bool:
    """Whether a stored value is the result of a check."""
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


def as_json(check: Check) -> list[Any]:
    """The form in which a check is stored."""
    info, problem = check
    return [list(astuple(info)) if info else None, problem]
