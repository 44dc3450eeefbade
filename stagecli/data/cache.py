"""Results of frozen networks, computed once: arrays in files with checksums. No torch.

Every write replaces a whole file, so that several processes may share a cache and a killed process
leaves nothing behind that would be taken for a result.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from stagecli.data.file_index import unusable
from stagecli.files import CHANGED, atomic_path, write_atomic

# An array's file ends with a line feed and the CRC-32 of all before it. As these are five bytes, no
# other shape in the header makes up for them. Files of earlier versions end with the array.
SUM_BYTES = 5
BLOCK = 1 << 20  # bytes that are read at once to verify a file
FORMAT = 1  # part of every cache's name: raise it when the meaning of the files changes
Progress = Callable[[str, int, int], None]
"""Called with (activity, done, total)."""
Count = Callable[[int, int], None]
"""Called with (done, total)."""


def canonical(config: Mapping[str, Any]) -> str:
    """One text per meaning: sorted keys, tuples as lists, 2.0 as 2.

    Raises TypeError or ValueError for values that JSON cannot hold.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                raise TypeError("cache config keys must be strings")
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return json.dumps(plain(config), sort_keys=True, separators=(",", ":"), allow_nan=False)


class FeatureCache:
    """Arrays by key in `root/kind-<hash of config>/`, one .npy file each.

    config: everything that the values depend on (codec configuration, hash of the weights, sample
    rate, crop seconds, seed), written beside them as config.json. Another config is another folder,
    and nothing is ever deleted but damaged files. Every file carries a checksum, which is verified
    when a process first takes the array. A key is any string. damaged: number of files that were
    damaged and have been removed, to be computed again.
    """

    def __init__(self, root: Path, kind: str, config: Mapping[str, Any]) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._]+", kind):
            raise ValueError(f"cache kind {kind!r} must be letters, digits, dots and underscores")
        self._identity = canonical({"format": FORMAT, "kind": kind, "config": config})
        digest = hashlib.sha256(self._identity.encode()).hexdigest()
        self.path = Path(root) / f"{kind}-{digest[:16]}"
        self.damaged = 0
        self._verified: set[str] = set()

    def file_of(self, key: str) -> Path:
        """Path of the array of `key`, whether it exists or not."""
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self.path / digest[:2] / f"{digest[2:]}.npy"

    def has(self, key: str) -> bool:
        """Whether `get` returns an array."""
        return self.get(key) is not None

    def get(self, key: str) -> np.ndarray | None:
        """The array of `key`, read-only and memory-mapped; None if absent.

        A damaged file is removed and counts as absent.
        """
        path = self.file_of(key)
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                version = np.lib.format.read_magic(file)
                reader = np.lib.format.read_array_header_1_0
                if version != (1, 0):
                    reader = np.lib.format.read_array_header_2_0
                shape, by_column, dtype = reader(file)
                count = int(np.prod(shape, dtype=np.int64))
                begin = file.tell()
                end = begin + count * dtype.itemsize
                if dtype.hasobject or status.st_size not in (end, end + SUM_BYTES):
                    raise ValueError("size of the file and shape of its array differ")
                if key not in self._verified:
                    if status.st_size > end:
                        _verify(file, end)
                    self._verified.add(key)
                if not count:
                    return np.zeros(shape, dtype)
                order: Literal["C", "F"] = "F" if by_column else "C"
                return np.memmap(file, dtype, "r", begin, shape, order)
        except FileNotFoundError:
            return None
        except OSError:
            raise
        except Exception:  # numpy evaluates the header, which fails in as many ways as Python does
            _remove_unless_replaced(path, status)
            self.damaged += 1
            return None

    def put(self, key: str, array: np.ndarray) -> None:
        """Write the array of `key`; readers see the old file or the new one, never half of it.

        Raises TypeError for arrays of objects, StageError if the disk refuses.
        """
        array = np.asarray(array)
        if array.dtype.hasobject:
            raise TypeError("a cache holds numbers, not objects")
        path = self.file_of(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write_config()
            with atomic_path(path) as partial, partial.open("wb+") as file:
                np.save(file, array, allow_pickle=False)
                file.write(_sum_of(file, file.tell()))
        except OSError as error:
            raise unusable(path, error) from error
        self._verified.add(key)

    def fill(
        self,
        keys: Iterable[str],
        compute: Callable[[list[str]], Iterable[np.ndarray]],
        batch: int,
        progress: Count | None = None,
    ) -> int:
        """Compute the missing ones of `keys`, at most `batch` at a time; return how many.

        compute: returns one array per key, in order. Arrays that another process has written in the
        meantime are not computed again, so the make-up of a batch may vary: use batch = 1 where
        values must not depend on it to the last bit. After an interruption, the arrays already
        written stay. progress: (done, total).
        """
        wanted = list(dict.fromkeys(keys))
        missing = []
        for position, key in enumerate(wanted):
            if not self.has(key):  # which verifies it
                missing.append(key)
            if progress and position % 256 == 255:
                progress(position + 1 - len(missing), len(wanted))
        computed = 0
        done = len(wanted) - len(missing)
        if progress:
            progress(done, len(wanted))
        for start in range(0, len(missing), batch):
            group = missing[start : start + batch]
            still_missing = [key for key in group if not self.has(key)]
            if still_missing:
                computed += self._compute(still_missing, compute)
            done += len(group)
            if progress:
                progress(done, len(wanted))
        return computed

    def _compute(
        self, keys: Sequence[str], compute: Callable[[list[str]], Iterable[np.ndarray]]
    ) -> int:
        for key, array in zip(keys, compute(list(keys)), strict=True):
            self.put(key, array)
        return len(keys)

    def damage_notice(self, before: int = 0) -> list[str]:
        """What to report about damaged files, but for the first `before`: one line or none."""
        count = self.damaged - before
        return [f"{self.path}: damaged files made again: {count}"] if count else []

    def _write_config(self) -> None:
        """For people who look into the folder; nothing reads it."""
        path = self.path / "config.json"
        if not path.exists():
            config = json.dumps(json.loads(self._identity), indent=2, sort_keys=True)
            write_atomic(path, config + "\n")


def _sum_of(file: BinaryIO, size: int) -> bytes:
    """What the first `size` bytes of an open file must be followed by."""
    file.seek(0)
    value = 0
    left = size
    while left > 0 and (block := file.read(min(left, BLOCK))):
        value = zlib.crc32(block, value)
        left -= len(block)
    return b"\n" + value.to_bytes(SUM_BYTES - 1, "little")


def _verify(file: BinaryIO, size: int) -> None:
    """Raise ValueError where the first `size` bytes of a file are not what was written."""
    stated = _sum_of(file, size)
    if file.read(SUM_BYTES) != stated:
        raise ValueError(CHANGED)


def _remove_unless_replaced(path: Path, seen: os.stat_result) -> None:
    """Remove a damaged file, unless another process has replaced it since it was read."""
    try:
        now = os.stat(path)
        if (now.st_ino, now.st_size, now.st_mtime_ns) == (
            seen.st_ino,
            seen.st_size,
            seen.st_mtime_ns,
        ):
            os.unlink(path)
    except FileNotFoundError:
        pass
