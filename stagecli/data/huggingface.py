"""Clips of a Hugging Face data set, from the hub or from a folder; needs the extra `datasets`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stagecli.data.file_index import Stamp
from stagecli.data.file_source import FileSource
from stagecli.data.rows import (
    SPLITS,
    Clip,
    Entry,
    Split,
    caption_columns,
    read_captions,
    split_names,
)
from stagecli.data.text_files import text_problem
from stagecli.errors import Problem, StageError, causes
from stagecli.schema import Data


class HuggingFaceSource(FileSource):
    """A data set of the hub (`data.path` = "owner/name") or one saved to a folder.

    Audio is decoded with soundfile from the bytes or the file of the audio column, so that no other
    decoder is needed. Columns other than audio and caption are labels. Key: "split/row".

    tables: of the audio column alone, not decoded.
    """

    workers = 1  # an Arrow table is read by one thread at a time

    def __init__(self, data: Data, tables: Mapping[Split, Any], entries: Sequence[Entry]) -> None:
        super().__init__(data, data.path, entries)
        self._tables = tables

    def _identity(self, clip: Clip) -> tuple[str, Stamp]:
        # The fingerprint depends on the content, which a stamp could add nothing to.
        return f"huggingface/{self._tables[clip.split]._fingerprint}/{clip.key}", (0, 0)

    def _audio(self, clip: Clip) -> Path | bytes:
        row = self._tables[clip.split][int(clip.key.rsplit("/", 1)[1])]
        audio = row[self.data.audio_column] or {}
        content = audio.get("bytes")
        path = audio.get("path")
        if content is None and path:
            return Path(path)
        return content or b""


def read_dataset(
    data: Data, path: Path, need_captions: bool, splits: Sequence[Split]
) -> HuggingFaceSource:
    """The data set with its tables loaded, not checked yet.

    Raises StageError: `datasets` not installed, data set out of reach, a split or column missing.
    """
    datasets = _package()
    names = dict(zip(SPLITS, split_names(data), strict=True))
    tables = {}
    entries: list[Entry] = []
    with _cause_printed(data.path):
        loaded = _load_splits(datasets, data.path, path)
        for split in splits:
            table = _table(datasets, loaded, data, names[split])
            tables[split] = table.select_columns([data.audio_column])
            entries += _table_entries(data, table, split, names[split], need_captions)
    return HuggingFaceSource(data, tables, entries)


def _package() -> Any:
    """The package `datasets`. Raises StageError where it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise StageError(
            'data.source = "huggingface" needs the package `datasets`',
            problems=[Problem("cause", text) for text in causes(error)],
            hint="pip install 'stagecli[datasets]'",
        ) from error
    return datasets


def dataset_splits(data: Data, path: Path) -> list[str]:
    """The names of the splits of a data set. Raises StageError as `read_dataset`."""
    with _cause_printed(data.path):
        return list(map(str, _load_splits(_package(), data.path, path)))


@contextmanager
def _cause_printed(name: str) -> Iterator[None]:
    """Whatever the hub, the network, data files and decoders raise, as one StageError."""
    try:
        yield
    except StageError:
        raise
    except Exception as error:
        chain = causes(error)
        hint = "check data.path"
        if any(text.startswith(("ImportError", "ModuleNotFoundError")) for text in chain):
            hint = (
                "install the package that it names; files in a folder are read without it by "
                'data.source = "manifest" or "folder"'
            )
        problems = [Problem(name, text) for text in chain]
        raise StageError("cannot load the data set", problems=problems, hint=hint) from error


def _load_splits(datasets: Any, name: str, path: Path) -> Any:
    """Tables by split name, from a `save_to_disk` folder, a folder of files or the hub."""
    if (path / "dataset_dict.json").is_file():
        return datasets.load_from_disk(str(path))
    if (path / "state.json").is_file():
        raise StageError(
            "the data set has no splits",
            problems=[Problem(name, "is one table, written by Dataset.save_to_disk")],
            hint="divide it (Dataset.train_test_split) and save a DatasetDict",
        )
    return datasets.load_dataset(str(path) if path.is_dir() else name)


def _table(datasets: Any, loaded: Any, data: Data, name: str) -> Any:
    """The table of one split, its audio left undecoded."""
    if name not in loaded:
        available = ", ".join(map(str, loaded))
        raise StageError(
            "the data set lacks a split",
            problems=[Problem(data.path, f"no split {name!r}; it has {available}")],
            hint="set data.train_split, data.valid_split, data.test_split",
        )
    table = loaded[name]
    if data.audio_column not in table.column_names:
        available = ", ".join(table.column_names)
        raise StageError(
            "the data set lacks its audio",
            problems=[Problem(data.path, f"no column {data.audio_column!r}; it has {available}")],
            hint="set data.audio_column",
        )
    others = [
        column
        for column, feature in table.features.items()
        if isinstance(feature, datasets.Audio) and column != data.audio_column
    ]  # no labels, and reading them would decode them
    return table.remove_columns(others).cast_column(data.audio_column, datasets.Audio(decode=False))


def _table_entries(
    data: Data, table: Any, split: Split, name: str, need_captions: bool
) -> Iterator[Entry]:
    for number, row in enumerate(table.remove_columns([data.audio_column])):
        where = f"{data.path}:{name}/{number}"
        texts = caption_columns(row, data.caption_column)
        labels = {key: value for key, value in row.items() if key not in texts}
        captions, problem = read_captions(row, data.caption_column, need_captions)
        problem = problem or text_problem(labels)
        if problem:
            yield Entry(where, problem=problem)
            continue
        key = f"{name}/{number}"
        yield Entry(where, Clip(key, captions[0], split, labels, more_captions=tuple(captions[1:])))
