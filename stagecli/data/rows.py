"""The entries of a manifest or a folder: a clip each, or its problem. No audio is opened."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from stagecli.data.audio import SUFFIXES
from stagecli.data.audio_checks import file_problem
from stagecli.errors import Problem, StageError
from stagecli.files import JsonRow
from stagecli.schema import Data

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


@dataclass(frozen=True)
class Clip:
    """One piece of audio with its caption.

    key: stable identity within its source; seconds: length of the whole file.
    """

    key: str
    caption: str
    split: Split
    labels: Mapping[str, Any] = field(default_factory=dict, hash=False)
    seconds: float = 0.0
    path: Path | None = None


@dataclass(frozen=True)
class Entry:
    """One entry of a data set before its audio is opened: a clip, or its problem.

    where: file and line; excerpt: the offending line.
    """

    where: str
    clip: Clip | None = None
    problem: str | None = None
    excerpt: str | None = None


class ManifestLine(NamedTuple):
    """One line of a manifest: its columns, or its problem with the offending text."""

    number: int
    columns: JsonRow | None
    problem: str | None = None
    excerpt: str | None = None


def hash_split(key: str) -> Split:
    """Split by the SHA-256 of a key: train (90 %), valid (5 %) or test (5 %).

    Adding files moves no file to another split.
    """
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    if share < 0.90:
        return "train"
    return "valid" if share < 0.95 else "test"


def caption_problem(caption: Any, column: str) -> str | None:
    """Why a caption cannot be used, or None."""
    if caption is None:
        return f'no caption (key "{column}")'
    if not isinstance(caption, str):
        return f'caption (key "{column}") is not text: {caption!r}'
    return None if caption.strip() else f'caption (key "{column}") is empty'


def split_names(data: Data) -> tuple[str, str, str]:
    """The recipe's names for train, valid and test."""
    return data.train_split, data.valid_split, data.test_split


# --- manifests ------------------------------------------------------------------------------------


def manifest_entries(data: Data, path: Path, need_captions: bool) -> Iterator[Entry]:
    """Entries of a JSONL or CSV (TSV) file with a line per clip: path, caption, split and labels.

    Paths are relative to the manifest. Every other column is kept as a label. A manifest without
    any split is split by `hash_split` of its paths. The same file on two lines is a problem. Raises
    StageError when the manifest itself cannot be read.
    """
    # Lines, and whether any of them names a split.
    if path.is_dir():
        raise StageError(
            f"{path} is a folder", hint='name the manifest file, or set data.source = "folder"'
        )
    is_csv = path.suffix.lower() in (".csv", ".tsv")
    lines = list(_csv_lines(path) if is_csv else _json_lines(path))
    has_split = any(line.columns and "split" in line.columns for line in lines)
    first_lines: dict[str, int] = {}
    for number, columns, problem, excerpt in lines:
        where = f"{path}:{number}"
        if columns is None:
            yield Entry(where, problem=problem, excerpt=excerpt)
            continue
        key = columns.get("path")
        if not isinstance(key, str) or not key:
            yield Entry(where, problem='no path (key "path")')
            continue

        # The last problem wins: an unknown split before a duplicate before a bad caption.
        caption = columns.get(data.caption_column)
        problem = caption_problem(caption, data.caption_column) if need_captions else None
        file = path.parent / key
        normal = os.path.normpath(file)
        if normal in first_lines:
            problem = f"{key} is on line {first_lines[normal]} already"
        first_lines.setdefault(normal, number)
        split = _split_named(columns.get("split"), data) if has_split else hash_split(key)
        if split is None:
            problem = _unknown_split(columns.get("split"), data)
        if problem or split is None:
            yield Entry(where, problem=problem)
            continue

        reserved = ("path", "split", data.caption_column)
        labels = {name: value for name, value in columns.items() if name not in reserved}
        text = caption.strip() if isinstance(caption, str) else ""
        yield Entry(where, Clip(key, text, split, labels, path=file))


def _json_lines(path: Path) -> Iterator[ManifestLine]:
    # Split at "\n" only: JSON strings may hold other line separators, such as U+2028.
    for number, text in enumerate(_read_manifest(path).split("\n"), 1):
        if not text.strip():
            continue
        excerpt = text.strip()[:200]
        try:
            columns = json.loads(text)
        except json.JSONDecodeError as error:
            yield ManifestLine(number, None, f"is not JSON: {error.msg}", excerpt)
            continue
        except ValueError as error:  # an integer of too many digits
            yield ManifestLine(number, None, f"is not JSON: {error}", excerpt)
            continue
        if isinstance(columns, dict):
            yield ManifestLine(number, columns)
        else:
            yield ManifestLine(number, None, "is not a JSON object", excerpt)


def _csv_lines(path: Path) -> Iterator[ManifestLine]:
    stream = io.StringIO(_read_manifest(path), newline="")
    reader = csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        if "path" not in (reader.fieldnames or ()):
            raise StageError(
                "the manifest has no column `path`",
                problems=[Problem(f"{path}:1", "is its header")],
            )
        for row in reader:
            number = reader.line_num
            if None in row:
                yield ManifestLine(number, None, "has more fields than the header")
            else:
                columns = {name: value for name, value in row.items() if value is not None}
                yield ManifestLine(number, columns)
    except csv.Error as error:
        problem = Problem(f"{path}:{reader.line_num}", str(error))
        raise StageError("cannot read the manifest", problems=[problem]) from error


def _read_manifest(path: Path) -> str:
    """A UTF-8 file without its byte order mark.

    Raises StageError, with the line that is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        problem = Problem(str(path), file_problem(error))
        raise StageError(
            "cannot read the manifest", problems=[problem], hint="check data.path"
        ) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problem = Problem(f"{path}:{line}", "is not UTF-8")
        raise StageError("cannot read the manifest", problems=[problem]) from error


def _split_named(name: Any, data: Data) -> Split | None:
    for split, known in zip(SPLITS, split_names(data), strict=True):
        if name == known:
            return split
    return None


def _unknown_split(name: Any, data: Data) -> str:
    if not name:
        return "no split"
    return f"unknown split {name!r} (the recipe has {', '.join(split_names(data))})"


# --- folders --------------------------------------------------------------------------------------


def folder_entries(data: Data, root: Path, need_captions: bool) -> Iterator[Entry]:
    """Entries of the audio files in a folder and its subfolders, with captions beside them.

    `a.wav` has its caption in `a.txt`, or under `data.caption_column` in `a.json`, whose other keys
    are labels. A folder in the path named like a split decides the split (then every file must be
    in one); without such folders `hash_split` of the path decides. Hidden files are ignored. Raises
    StageError without any audio file.
    """
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "is missing"
        raise StageError(
            "cannot read the folder", problems=[Problem(str(root), problem)], hint="check data.path"
        )
    files = list(_audio_files(root))
    if not files:
        raise StageError(
            f"{root}: no audio files", hint=f"known endings: {' '.join(sorted(SUFFIXES))}"
        )
    splits = [_split_of_folder(file, data) for file in files]
    for file, split in zip(files, splits, strict=True):
        path = root / file
        key = file.as_posix()
        caption, labels, entry_problem = _read_beside(path, data.caption_column)
        if entry_problem is None and need_captions:
            if caption is None:
                entry_problem = f"no caption: neither {file.stem}.txt nor {file.stem}.json has one"
            else:
                entry_problem = caption_problem(caption, data.caption_column)
        if any(splits) and split is None:
            names = ", ".join(split_names(data))
            entry_problem = f"is not in a folder named {names}, as others are"
        if entry_problem:
            yield Entry(str(path), problem=entry_problem)
        else:
            text = caption.strip() if isinstance(caption, str) else ""
            yield Entry(str(path), Clip(key, text, split or hash_split(key), labels, path=path))


def _audio_files(root: Path) -> Iterator[Path]:
    """Audio files under `root`, sorted, relative to it; linked folders are followed once."""
    visited = set()
    for folder, children, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            children.clear()
            continue
        visited.add(real)
        children[:] = sorted(name for name in children if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(folder, name).relative_to(root)


def _split_of_folder(file: Path, data: Data) -> Split | None:
    """The split after which the outermost such folder in the path is named."""
    for name in file.parts[:-1]:
        split = _split_named(name, data)
        if split is not None:
            return split
    return None


def _read_beside(file: Path, column: str) -> tuple[Any, JsonRow, str | None]:
    """(caption or None, labels, problem) from the .json and .txt of an audio file; .txt wins."""
    caption: Any = None
    labels: Any = {}
    beside = file.with_suffix(".json")
    try:
        if beside.is_file():
            labels = json.loads(beside.read_text(encoding="utf-8-sig"))
            if not isinstance(labels, dict):
                return None, {}, f"{beside.name} is not a JSON object"
            caption = labels.pop(column, None)
        beside = file.with_suffix(".txt")
        if beside.is_file():
            caption = beside.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        return None, {}, f"{beside.name} cannot be read: {error}"
    return caption, labels, None
