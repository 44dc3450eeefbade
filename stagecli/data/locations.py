"""Files by their location: how they are stamped and read in part. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from stagecli.data.file_index import Stamp, stamp_of
from stagecli.errors import EXIT_FAILED, Problem, StageError


def stamp_at(location: str) -> Stamp:
    """Size and time of the file at a location. Raises OSError if it is missing."""
    return stamp_of(Path(location))


@contextmanager
def open_at(location: str) -> Iterator[BinaryIO]:
    """The file at a location, open to be read from any place in it. Raises OSError."""
    with open(location, "rb") as file:
        yield file


def read_at(location: str, start: int, size: int, stamp: Stamp) -> bytes:
    """`size` bytes from `start` of a file that must still have the stamp that it had.

    Raises StageError where it has changed since, OSError.
    """
    with open(location, "rb") as file:
        status = os.fstat(file.fileno())
        if (status.st_size, status.st_mtime_ns) != stamp:
            raise changed(location)
        return os.pread(file.fileno(), size, start)


def changed(location: str) -> StageError:
    """The error of a file that is replaced while it is in use."""
    return StageError(
        "the data have changed while they are in use",
        problems=[Problem(location, "has another size or modification time than at the start")],
        hint="start again",
        exit_code=EXIT_FAILED,
    )
