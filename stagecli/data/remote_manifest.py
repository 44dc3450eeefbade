"""A manifest at an address, whose files lie beside it or at addresses of their own. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from stagecli.data import remote
from stagecli.data.audio import read_mono
from stagecli.data.file_index import Stamp, unusable
from stagecli.data.file_source import FileSource
from stagecli.data.locations import range_cache, read_at
from stagecli.data.manifest import manifest_entries
from stagecli.data.remote import is_remote
from stagecli.data.rows import Clip, Entry
from stagecli.errors import Problem, StageError
from stagecli.files import write_atomic
from stagecli.schema import Data


class RemoteSource(FileSource):
    """The clips of a manifest at an address: each is fetched whole, and kept if it fits."""

    workers = 16  # requests at once

    def __init__(self, data: Data, entries: Sequence[Entry]) -> None:
        super().__init__(data, data.path, entries)
        self._ranges = range_cache(data)
        self._stamps: dict[str, Stamp] = {}

    def read(self, clip: Clip) -> np.ndarray:
        return read_mono(self.content(clip), self.sample_rate, clip.key)

    def _file_of(self, clip: Clip) -> str:
        folder = self.data.path.rsplit("/", 1)[0]
        return clip.key if is_remote(clip.key) else f"{folder}/{clip.key}"

    def _identity(self, clip: Clip) -> tuple[str, Stamp]:
        url = self._file_of(clip)
        if url not in self._stamps:
            self._stamps[url] = remote.stamp(url)
        return url, self._stamps[url]

    def _audio(self, clip: Clip) -> Path | bytes:
        url, stamp = self._identity(clip)
        return read_at(url, 0, stamp[0], stamp, self._ranges)


def read_manifest(data: Data, cache_dir: Path, need_captions: bool) -> list[Entry]:
    """The entries of a manifest at an address. Raises StageError as `manifest_entries`."""
    path = fetched(data, cache_dir)
    return [
        replace(entry, where=entry.where.replace(str(path), data.path, 1))
        for entry in manifest_entries(data, path, need_captions)
    ]


def fetched(data: Data, cache_dir: Path) -> Path:
    """A copy of the manifest at an address, made anew. Raises StageError."""
    folder = cache_dir / "manifests" / hashlib.sha256(data.path.encode()).hexdigest()[:16]
    path = folder / data.path.rsplit("/", 1)[1]
    try:
        content = remote.read(data.path)
    except FileNotFoundError as error:
        raise StageError(
            "cannot read the manifest",
            problems=[Problem(data.path, "file is missing")],
            hint="check data.path",
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except OSError as error:
        raise unusable(path, error) from error
    return path
