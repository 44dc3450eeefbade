"""What is computed once: features of frozen networks, content hashes, checks of audio files. No torch.

Every write is a whole file by rename, or one appended line, so that several processes may share a
cache and a killed process leaves nothing behind that is read as a result.
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

FORMAT = 1  # part of every cache's name: raise it when the meaning of the files changes
Stamp = tuple[int, int]
Progress = Callable[[str, int, int], None]  # what is being done, how much of it, of how much
Count = Callable[[int, int], None]  # how much is done, of how much


def stamp_of(path: Path) -> Stamp:
    """(size in bytes, modification time in ns): what tells a changed file; OSError if it is missing."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


class FileIndex:
    """Facts about files, remembered in a JSONL file by (name, size, mtime_ns).

    A fact is any JSON value. Appending is safe from several processes; a torn or foreign line is
    ignored; the last line about a name wins. `version` drops facts that older code found.
    """

    def __init__(self, path: Path, version: int = 1) -> None:
        self.path = path
        self.version = version
        self._facts: dict[str, tuple[Stamp, Any]] = {}
        self._torn = False
        if not path.exists():
            return
        try:
            content = path.read_bytes()
        except OSError as error:
            raise _unusable(path, error) from error
        self._torn = bool(content) and not content.endswith(b"\n")
        for line in content.splitlines():
            try:
                name, size, mtime_ns, of_version, fact = json.loads(line)
            except (ValueError, TypeError):
                continue
            if of_version == version:
                self._facts[name] = ((size, mtime_ns), fact)

    def get(self, name: str, stamp: Stamp) -> Any | None:
        """The fact about `name`, or None if there is none or the file has changed since."""
        known = self._facts.get(name)
        return known[1] if known is not None and known[0] == stamp else None

    def put(self, name: str, stamp: Stamp, fact: Any) -> None:
        """Remember a fact; take `stamp` before reading the file, so that a later change is noticed."""
        self.put_all([(name, stamp, fact)])

    def put_all(self, facts: Iterable[tuple[str, Stamp, Any]]) -> None:
        """Remember several facts with one write; StageError if the cache cannot be written."""
        lines = ""
        for name, stamp, fact in facts:
            self._facts[name] = (stamp, fact)
            lines += json.dumps([name, *stamp, self.version, fact]) + "\n"
        if not lines:
            return
        if self._torn:  # keep a killed writer's half line from swallowing the next one
            lines = "\n" + lines
            self._torn = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(descriptor, lines.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _unusable(self.path, error) from error


def content_hash(path: Path, index: FileIndex | None = None) -> str:
    """SHA-256 (hex) of the bytes of a file; the index spares reading an unchanged file again.

    The hash is of the content alone: a moved or touched file keeps it. StageError if it is missing.
    """
    try:
        stamp = stamp_of(path)
        name = os.path.abspath(path)
        known = index.get(name, stamp) if index else None
        if isinstance(known, str):
            return known
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
    """One text per meaning: sorted keys, tuples as lists, 2.0 as 2. TypeError for what JSON cannot hold."""

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
    """Arrays by key in `root/kind-<hash of config>/`, one .npy each.

    config must hold everything the values depend on (codec configuration, hash of the weights, sample
    rate, crop seconds, seed): another config is another folder, and nothing is ever deleted but files
    that cannot be read. Damage that keeps the size of a file is not noticed. A key is any string.
    """

    def __init__(self, root: Path, kind: str, config: Mapping[str, Any]) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._]+", kind):
            raise ValueError(f"cache kind {kind!r} must be letters, digits, dots and underscores")
        text = canonical({"format": FORMAT, "kind": kind, "config": config})
        self.path = Path(root) / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        described = self.path / "config.json"
        if not described.exists():
            pretty = json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
            _write(described, lambda file: file.write(pretty.encode()))

    def file_of(self, key: str) -> Path:
        """Where the array of `key` lies, whether it exists or not."""
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self.path / digest[:2] / f"{digest[2:]}.npy"

    def has(self, key: str) -> bool:
        """Whether `get` would give an array."""
        return self.get(key) is not None

    def get(self, key: str) -> np.ndarray | None:
        """The array of `key`, read-only and memory-mapped; None if absent.

        A file that is cut off or damaged is removed and counts as absent.
        """
        path = self.file_of(key)
        try:
            with open(path, "rb") as file:
                found = os.fstat(file.fileno())
                version = np.lib.format.read_magic(file)
                reader = np.lib.format.read_array_header_1_0
                if version != (1, 0):
                    reader = np.lib.format.read_array_header_2_0
                shape, by_column, dtype = reader(file)
                count = int(np.prod(shape, dtype=np.int64))
                if dtype.hasobject or file.tell() + count * dtype.itemsize != found.st_size:
                    raise ValueError("size of the file and shape of its array differ")
                if not count:
                    return np.zeros(shape, dtype)
                order: Literal["C", "F"] = "F" if by_column else "C"
                return np.memmap(file, dtype, "r", file.tell(), shape, order)
        except FileNotFoundError:
            return None
        except (ValueError, EOFError):
            _remove_same(path, found)
            return None

    def put(self, key: str, array: np.ndarray) -> None:
        """Write the array of `key`; readers see the old file or the new one, whole."""
        array = np.asarray(array)
        if array.dtype.hasobject:
            raise TypeError("a cache holds numbers, not objects")
        _write(self.file_of(key), lambda file: np.save(file, array, allow_pickle=False))

    def fill(
        self,
        keys: Iterable[str],
        compute: Callable[[list[str]], Iterable[np.ndarray]],
        batch: int,
        progress: Count | None = None,
    ) -> int:
        """Compute what is missing of `keys`, at most `batch` at a time; the number computed.

        compute gives one array per key, in order. What another process has written meanwhile is not
        computed again, so the make-up of a batch may vary: where values must not depend on it to the
        last bit, use batch = 1. After an interruption, what was written stays. progress: (done, total).
        """
        wanted = list(dict.fromkeys(keys))
        missing = [key for key in wanted if not self.has(key)]
        computed = 0
        done = len(wanted) - len(missing)
        if progress:
            progress(done, len(wanted))
        for start in range(0, len(missing), batch):
            group = missing[start : start + batch]
            still = [key for key in group if not self.has(key)]
            if still:
                computed += self._compute(still, compute)
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


def _write(path: Path, fill: Callable[[Any], Any]) -> None:
    """Write a file by way of a synced temporary one beside it; StageError if the disk refuses."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _unusable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _remove_same(path: Path, seen: os.stat_result) -> None:
    """Remove a damaged file, unless another process has replaced it since it was seen."""
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
