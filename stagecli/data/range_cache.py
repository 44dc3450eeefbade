"""Ranges of remote files on the local disk, up to a limit; the least recently used go first."""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path

from stagecli.data.file_index import Stamp, unusable
from stagecli.files import write_atomic

SUM_BYTES = 4
KEPT = 0.9  # of the limit, after space has been made
LOOK_AGAIN = 0.05  # of the limit: bytes written until the folder is looked at again


class RangeCache:
    """Bytes by (location, stamp, start, size). Several processes may share a folder.

    limit: in bytes; 0 keeps nothing. Damaged files count as absent.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._unseen = limit  # so that the first write looks at the folder

    def get(self, location: str, stamp: Stamp, start: int, size: int) -> bytes | None:
        """The bytes of a range, None where they are not kept."""
        if not self.limit:
            return None
        path = self._file(location, stamp, start, size)
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        body = content[:-SUM_BYTES]
        return body if len(body) == size and content[-SUM_BYTES:] == _sum(body) else None

    def put(self, location: str, stamp: Stamp, start: int, content: bytes) -> None:
        """Keep a range. Raises StageError where the disk refuses."""
        if len(content) > self.limit * (1 - KEPT):
            return
        path = self._file(location, stamp, start, len(content))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content + _sum(content))
        except OSError as error:
            raise unusable(path, error) from error
        self._unseen += len(content)
        if self._unseen > self.limit * LOOK_AGAIN:
            self._unseen = 0
            self._make_space()

    def _file(self, location: str, stamp: Stamp, start: int, size: int) -> Path:
        name = hashlib.sha256(f"{location}|{stamp[0]}|{stamp[1]}|{start}|{size}".encode())
        digest = name.hexdigest()
        return self.folder / digest[:2] / digest[2:34]

    def _make_space(self) -> None:
        """Remove what was used longest ago, if there is more than the limit."""
        files = []
        for path in self.folder.glob("??/*"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process made space too
                continue
            files.append((status.st_mtime_ns, status.st_size, path))
        used = sum(size for _, size, _ in files)
        if used <= self.limit:
            return
        for _, size, path in sorted(files):
            path.unlink(missing_ok=True)
            used -= size
            if used <= KEPT * self.limit:
                return


def _sum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(SUM_BYTES, "little")
