"""Clips of a Hugging Face data set, from the hub or from a folder; needs the extra `datasets`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stagecli.data.cache import Stamp, content_hash
from stagecli.data.rows import SPLITS, Clip, Entry, Split, caption_problem, split_names
from stagecli.data.source import FileSource
from stagecli.errors import Problem, StageError
from stagecli.schema import Data


class HuggingFaceSource(FileSource):
    """A data set of the hub (`data.path` = "owner/name") or one saved to a folder.

    Audio is decoded with soundfile from the bytes or the file of the audio column, so that no other
    decoder is needed. Columns other than audio and caption are labels. Key: "split/row".
    """

    workers = 1  # an Arrow table is read by one thread at a time

    def __init__(
        self, data: Data, path: Path, need_captions: bool, splits: Sequence[Split]
    ) -> None:
        try:
            import datasets
        except ImportError as error:
            raise StageError(
                'data.source = "huggingface" needs the package `datasets`',
                hint="pip install 'stagecli[datasets]'",
            ) from error
        loaded = _load(datasets, data.path, path)
        names = dict(zip(SPLITS, split_names(data), strict=True))
        self._tables = {
            split: self._table(datasets, loaded, data, names[split]) for split in splits
        }
        rows = (
            row
            for split in splits
            for row in self._rows_of(data, split, names[split], need_captions)
        )
        super().__init__(data, data.path, rows)

    def content_hash(self, clip: Clip) -> str:
        audio = self._audio(clip)
        return (
            hashlib.sha256(audio).hexdigest()
            if isinstance(audio, bytes)
            else content_hash(audio, self._hashes)
        )

    @staticmethod
    def _table(datasets: Any, loaded: Any, data: Data, name: str) -> Any:
        if name not in loaded:
            problem = Problem(data.path, f"no split {name!r}; it has {', '.join(map(str, loaded))}")
            hint = "set data.train_split, data.valid_split, data.test_split"
            raise StageError("the data set lacks a split", problems=[problem], hint=hint)
        table = loaded[name]
        if data.audio_column not in table.column_names:
            problem = Problem(
                data.path,
                f"no column {data.audio_column!r}; it has {', '.join(table.column_names)}",
            )
            raise StageError(
                "the data set lacks its audio", problems=[problem], hint="set data.audio_column"
            )
        return table.cast_column(data.audio_column, datasets.Audio(decode=False))

    def _rows_of(self, data: Data, split: Split, name: str, need_captions: bool) -> Iterator[Entry]:
        for number, entry in enumerate(self._tables[split].remove_columns([data.audio_column])):
            caption = entry.get(data.caption_column)
            where = f"{data.path}:{name}/{number}"
            key = f"{name}/{number}"
            problem = caption_problem(caption, data.caption_column) if need_captions else None
            labels = {k: v for k, v in entry.items() if k != data.caption_column}
            text = caption.strip() if isinstance(caption, str) else ""
            yield (
                Entry(where, problem=problem)
                if problem
                else Entry(where, Clip(key, text, split, labels))
            )

    def _identity(self, clip: Clip) -> tuple[str, Stamp]:
        table = self._tables[clip.split]
        return f"huggingface/{table._fingerprint}/{clip.key}", (
            0,
            0,
        )  # the fingerprint is of the content

    def _audio(self, clip: Clip) -> Path | bytes:
        entry = (
            self._tables[clip.split][int(clip.key.rsplit("/", 1)[1])][self.data.audio_column] or {}
        )
        content = entry.get("bytes")
        path = entry.get("path")
        if content is None and path:
            return Path(path)
        return content or b""


def _load(datasets: Any, name: str, path: Path) -> Any:
    """A mapping from split names to tables: a folder of `save_to_disk`, a folder of files, or the hub."""
    try:
        if (path / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(path))
        return datasets.load_dataset(str(path) if path.is_dir() else name)
    except Exception as error:  # whatever the hub, the network or a data file can raise
        text = (str(error).splitlines() or [""])[0]
        problem = Problem(name, f"{type(error).__name__}: {text}")
        raise StageError(
            "cannot load the data set", problems=[problem], hint="check data.path"
        ) from error
