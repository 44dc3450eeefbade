"""Results computed once: features of frozen networks, content hashes, checks of files. No torch.

Every write replaces a whole file or appends one line, so that several processes may share a cache
and a killed process leaves nothing behind that would be taken for a result.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stagecli.errors import Problem, StageError
from stagecli.files import append_json_lines, atomic_path, read_json_lines, write_atomic

FORMAT = 1  # part of every cache's name: raise it when the meaning of the files changes
Stamp = tuple[int, int]
"""(size in bytes, modification time in ns) of a file; another stamp means another content."""
Progress = Callable[[str, int, int], None]
"""Called with (activity, done, total)."""
Count = Callable[[int, int], None]
"""Called with (done, total)."""


def stamp_of(path: Path) -> Stamp:
    """Size and modification time of `path`. Raises OSError if it is missing."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


class FileIndex:
    """JSON values about files, kept in a JSONL file by (name, size, mtime_ns, version).

    Made by `open_index`. Appending is safe from several processes; the last line about a name wins.
    """

    def __init__(
        self,
        path: Path,
        version: int,
        entries: dict[str, tuple[Stamp, Any]] | None = None,
        damaged: int = 0,
    ) -> None:
        """damaged: number of names whose stored value is not one, so that it is made again."""
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
            lines.append([name, *stamp, self.version, value])
        try:
            append_json_lines(self.path, lines)
        except OSError as error:
            raise _unusable(self.path, error) from error


def open_index(
    path: Path, version: int = 1, valid: Callable[[Any], bool] = lambda value: True
) -> FileIndex:
    """The index stored at `path`, empty if there is no such file.

    version: values that another version stored are ignored, as are torn and foreign lines; valid:
    whether a stored value is one. Raises StageError if the file cannot be read.
    """
    entries: dict[str, tuple[Stamp, Any]] = {}
    damaged: set[str] = set()
    try:
        for _, line in read_json_lines(path):
            if not (isinstance(line, list) and len(line) == 5):
                continue
            name, size, mtime_ns, line_version, value = line
            if not isinstance(name, str) or line_version != version:
                continue
            entries.pop(name, None)
            damaged.discard(name)
            if type(size) is int and type(mtime_ns) is int and valid(value):
                entries[name] = ((size, mtime_ns), value)
            else:
                damaged.add(name)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _unusable(path, error) from error
    return FileIndex(path, version, entries, len(damaged))


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
    and nothing is ever deleted but files that cannot be read. Damage that keeps the size of a file
    goes unnoticed. A key is any string. damaged: number of files that could not be read and were
    removed, to be computed again.
    """

    def __init__(self, root: Path, kind: str, config: Mapping[str, Any]) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._]+", kind):
            raise ValueError(f"cache kind {kind!r} must be letters, digits, dots and underscores")
        self._identity = canonical({"format": FORMAT, "kind": kind, "config": config})
        digest = hashlib.sha256(self._identity.encode()).hexdigest()
        self.path = Path(root) / f"{kind}-{digest[:16]}"
        self.damaged = 0

    def file_of(self, key: str) -> Path:
        """Path of the array of `key`, whether it exists or not."""
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self.path / digest[:2] / f"{digest[2:]}.npy"

    def has(self, key: str) -> bool:
        """Whether `get` returns an array."""
        return self.get(key) is not None

    def get(self, key: str) -> np.ndarray | None:
        """The array of `key`, read-only and memory-mapped; None if absent.

        A truncated or damaged file is removed and counts as absent.
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
                if dtype.hasobject or file.tell() + count * dtype.itemsize != status.st_size:
                    raise ValueError("size of the file and shape of its array differ")
                if not count:
                    return np.zeros(shape, dtype)
                order: Literal["C", "F"] = "F" if by_column else "C"
                return np.memmap(file, dtype, "r", file.tell(), shape, order)
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
            with atomic_path(path) as partial, partial.open("wb") as file:
                np.save(file, array, allow_pickle=False)
        except OSError as error:
            raise _unusable(path, error) from error

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
        missing = [key for key in wanted if not self.has(key)]
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

    def _write_config(self) -> None:
        """For people who look into the folder; nothing reads it."""
        path = self.path / "config.json"
        if not path.exists():
            config = json.dumps(json.loads(self._identity), indent=2, sort_keys=True)
            write_atomic(path, config + "\n")


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


def _unusable(path: Path, error: OSError) -> StageError:
    problem = Problem(str(path), error.strerror or str(error))
    return StageError(
        "the cache cannot be used", problems=[problem], hint="set data.cache_dir to another folder"
    )
