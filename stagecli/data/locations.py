"""Files by their location, a path or an address: stamped, and read in part. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from stagecli.data import remote
from stagecli.data.file_index import Stamp, stamp_of
from stagecli.data.range_cache import RangeCache
from stagecli.data.remote import is_remote
from stagecli.errors import EXIT_FAILED, Problem, StageError
from stagecli.schema import Data


def range_cache(data: Data) -> RangeCache:
    """Where the ranges that a data set reads from addresses are kept."""
    return RangeCache(Path(data.cache_dir) / "remote", round(data.remote_cache_gb * 1e9))


def absolute(location: str) -> str:
    """A location that means the same from every folder."""
    return location if is_remote(location) else os.path.abspath(location)


def stamp_at(location: str) -> Stamp:
    """Size and time of the file at a location.

    Raises OSError if it is missing, StageError for an address that cannot be read.
    """
    return remote.stamp(location) if is_remote(location) else stamp_of(Path(location))


@contextmanager
def open_at(location: str) -> Iterator[BinaryIO]:
    """The file at a location, open to be read from any place in it. Raises as `stamp_at`."""
    if is_remote(location):
        yield cast(BinaryIO, remote.RangedFile(location))
        return
    with open(location, "rb") as file:
        yield file


def read_at(location: str, start: int, size: int, stamp: Stamp, cache: RangeCache) -> bytes:
    """`size` bytes from `start` of a file that must still have the stamp that it had.

    What comes from an address is kept in `cache`. Raises StageError where the file has changed
    since; OSError.
    """
    if is_remote(location):
        content = cache.get(location, stamp, start, size)
        if content is None:
            content = remote.read(location, start, size)
            cache.put(location, stamp, start, content)
        return content
    with open(location, "rb") as file:
        status = os.fstat(file.fileno())
        if (status.st_size, status.st_mtime_ns) != stamp:
            raise StageError(
                "the data have changed while they are in use",
                problems=[Problem(location, "has another size or time than at the start")],
                hint="start again",
                exit_code=EXIT_FAILED,
            )
        return os.pread(file.fileno(), size, start)
