"""Facts about files, found out once: content hashes, checks, bandwidths. No torch.

Every write appends whole lines, so that several processes may share an index and a killed process
leaves nothing behind that would be taken for a result.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from stagecli.errors import Problem, StageError
from stagecli.files import (
    append_json_lines,
    json_line,
    opened_line,
    read_json_lines,
    sealed_line,
    write_atomic,
)

Stamp = tuple[int, int]
"""(size in bytes, modification time in ns) of a file; another stamp means another content."""


def stamp_of(path: Path) -> Stamp:
    """Size and modification time of `path`. Raises OSError if it is missing."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


class FileIndex:
    """JSON values about files, kept in a JSONL file by (name, size, mtime_ns, version).

    Made by `open_index`. Appending is safe from several processes; the last line about a name wins.
    Every line ends with its checksum.
    """

    def __init__(
        self,
        path: Path,
        version: int,
        entries: dict[str, tuple[Stamp, Any]] | None = None,
        damaged: int = 0,
    ) -> None:
        """damaged: number of lines that have changed or hold no value, which is made again."""
        self.path = path
        self.version = version
        self.damaged = damaged
        self._entries = entries or {}

    def get(self, name: str, stamp: Stamp) -> Any | None:
        """The value for `name`; None if there is none or the file has changed since."""
        entry = self._entries.get(name)
        return entry[1] if entry is not None and entry[0] == stamp else None

    def put(self, name: str, stamp: Stamp, value: Any) -> None:
        """Store a value. Take `stamp` before reading the file, so that a later change is noticed.

        Raises StageError if the cache cannot be written.
        """
        self.put_all([(name, stamp, value)])

    def put_all(self, entries: Iterable[tuple[str, Stamp, Any]]) -> None:
        """Store several values with one write. Raises StageError if that fails."""
        lines = []
        for name, stamp, value in entries:
            self._entries[name] = (stamp, value)
            lines.append(sealed_line(name, *stamp, self.version, value))
        try:
            append_json_lines(self.path, lines)
        except OSError as error:
            raise unusable(self.path, error) from error


def open_index(
    path: Path, version: int = 1, valid: Callable[[Any], bool] = lambda value: True
) -> FileIndex:
    """The index stored at `path`, empty if there is no such file.

    version: values that another version stored are ignored, as are torn and foreign lines; valid:
    whether a stored value is one. Damaged lines are removed from the file. Raises StageError if the
    file cannot be read, or not be written where it is damaged.
    """
    entries: dict[str, tuple[Stamp, Any]] = {}
    kept: list[Any] = []
    damaged = 0
    try:
        for _, line in read_json_lines(path):
            try:
                name, stamp, value = _entry(line, version, valid)
            except ValueError:
                damaged += 1
                continue
            kept.append(line)
            if name is not None:
                entries[name] = (stamp, value)
        if damaged:
            write_atomic(path, "".join(map(json_line, kept)))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise unusable(path, error) from error
    return FileIndex(path, version, entries, damaged)


def _entry(line: Any, version: int, valid: Callable[[Any], bool]) -> tuple[str | None, Stamp, Any]:
    """(name, stamp, value) of a line; the name is None where it is foreign or of another version.

    Raises ValueError where it is damaged.
    """
    values = opened_line(line, 5)
    if values is None or not isinstance(values[0], str) or values[3] != version:
        return None, (0, 0), None
    name, size, mtime_ns, _, value = values
    if not (type(size) is int and type(mtime_ns) is int and valid(value)):
        raise ValueError("holds no value")
    return name, (size, mtime_ns), value


def content_hash(path: Path, index: FileIndex | None = None) -> str:
    """SHA-256 (hex) of the bytes of a file, looked up in `index` for an unchanged file.

    It depends on the content alone: a moved or touched file keeps it. Raises StageError if the file
    cannot be read.
    """
    try:
        stamp = stamp_of(path)
        name = os.path.abspath(path)
        stored = index.get(name, stamp) if index else None
        if isinstance(stored, str):
            return stored
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StageError(
            "cannot read a file", problems=[Problem(str(path), str(error.strerror))]
        ) from error
    if index:
        index.put(name, stamp, digest)
    return digest


def is_hash(value: Any) -> bool:
    """Whether a stored value is what `content_hash` returns."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def unusable(path: Path, error: OSError) -> StageError:
    """The error about a cache that the system lets nobody read or write."""
    problem = Problem(str(path), error.strerror or str(error))
    return StageError(
        "the cache cannot be used", problems=[problem], hint="set data.cache_dir to another folder"
    )
