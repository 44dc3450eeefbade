"""The entries of a manifest or a folder: a clip each, or what is wrong with it. Audio is not looked at."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stagecli.data.audio import SUFFIXES, absent
from stagecli.errors import Problem, StageError
from stagecli.schema import Data

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


@dataclass(frozen=True)
class Clip:
    """One piece of audio. key: stable identity inside its source; seconds: length of the whole file."""

    key: str
    caption: str
    split: Split
    labels: Mapping[str, Any] = field(default_factory=dict, hash=False)
    seconds: float = 0.0
    path: Path | None = None


@dataclass(frozen=True)
class Entry:
    """One entry of a data set before its audio is looked at: a clip, or what is wrong with it."""

    where: str
    clip: Clip | None = None
    problem: str | None = None
    excerpt: str | None = None


def hash_split(key: str) -> Split:
    """train (90 %), valid (5 %) or test (5 %) by the SHA-256 of a key: more files move none."""
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.90 else "valid" if share < 0.95 else "test"


def caption_problem(value: Any, column: str) -> str | None:
    """What is wrong with a caption, if anything."""
    if value is None:
        return f'no caption (key "{column}")'
    if not isinstance(value, str):
        return f'caption (key "{column}") is not text: {value!r}'
    return None if value.strip() else f'caption (key "{column}") is empty'


def split_names(data: Data) -> tuple[str, str, str]:
    """What the recipe calls train, valid and test."""
    return data.train_split, data.valid_split, data.test_split


def _text(path: Path, what: str) -> str:
    """A UTF-8 file (a byte order mark is dropped); StageError with the line that is not UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        problem = Problem(str(path), absent(error))
        raise StageError(
            f"cannot read the {what}", problems=[problem], hint="check data.path"
        ) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problem = Problem(f"{path}:{line}", "is not UTF-8")
        raise StageError(f"cannot read the {what}", problems=[problem]) from error


Record = tuple[int, dict[str, Any] | None, str | None, str | None]  # line, entry, problem, excerpt


def _jsonl(path: Path) -> Iterator[Record]:
    for number, line in enumerate(_text(path, "manifest").split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            message = getattr(error, "msg", str(error))
            yield number, None, f"is not JSON: {message}", line.strip()[:200]
            continue
        if isinstance(entry, dict):
            yield number, entry, None, None
        else:
            yield number, None, "is not a JSON object", line.strip()[:200]


def _csv(path: Path) -> Iterator[Record]:
    stream = io.StringIO(_text(path, "manifest"), newline="")
    reader = csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        if "path" not in (reader.fieldnames or ()):
            raise StageError(
                "the manifest has no column `path`",
                problems=[Problem(f"{path}:1", "is its header")],
            )
        for entry in reader:
            number = reader.line_num
            if None in entry:
                yield number, None, "has more fields than the header", None
            else:
                yield (
                    number,
                    {key: value for key, value in entry.items() if value is not None},
                    None,
                    None,
                )
    except csv.Error as error:
        problem = Problem(f"{path}:{reader.line_num}", str(error))
        raise StageError("cannot read the manifest", problems=[problem]) from error


def manifest_rows(data: Data, path: Path, need_captions: bool) -> Iterator[Entry]:
    if path.is_dir():
        raise StageError(
            f"{path} is a folder", hint='name the manifest file, or set data.source = "folder"'
        )
    records = list((_csv if path.suffix.lower() in (".csv", ".tsv") else _jsonl)(path))
    has_split = any(entry and "split" in entry for _, entry, _, _ in records)
    first: dict[str, int] = {}
    for line, entry, problem, excerpt in records:
        where = f"{path}:{line}"
        if entry is None:
            yield Entry(where, problem=problem, excerpt=excerpt)
            continue
        key = entry.get("path")
        caption = entry.get(data.caption_column)
        if not isinstance(key, str) or not key:
            yield Entry(where, problem='no path (key "path")')
            continue
        file = path.parent / key
        normal = os.path.normpath(file)
        problem = caption_problem(caption, data.caption_column) if need_captions else None
        if normal in first:
            problem = f"{key} is on line {first[normal]} already"
        first.setdefault(normal, line)
        split = _split_of(entry.get("split"), data) if has_split else hash_split(key)
        if split is None:
            problem = _unknown_split(entry.get("split"), data)
        labels = {k: v for k, v in entry.items() if k not in ("path", "split", data.caption_column)}
        if problem or split is None:
            yield Entry(where, problem=problem)
        else:
            text = caption.strip() if isinstance(caption, str) else ""
            yield Entry(where, Clip(key, text, split, labels, path=file))


def _split_of(name: Any, data: Data) -> Split | None:
    return next(
        (split for split, known in zip(SPLITS, split_names(data), strict=True) if name == known),
        None,
    )


def _unknown_split(name: Any, data: Data) -> str:
    return (
        f"unknown split {name!r} (the recipe has {', '.join(split_names(data))})"
        if name
        else "no split"
    )


def _walk(root: Path) -> Iterator[Path]:
    """Audio files under `root`, sorted, relative to it; linked folders are followed once."""
    seen = set()
    for folder, children, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        children[:] = (
            sorted(c for c in children if not c.startswith(".")) if real not in seen else []
        )
        if real not in seen:
            names = (
                n
                for n in sorted(files)
                if not n.startswith(".") and Path(n).suffix.lower() in SUFFIXES
            )
            yield from (Path(folder, name).relative_to(root) for name in names)
        seen.add(real)


def folder_rows(data: Data, root: Path, need_captions: bool) -> Iterator[Entry]:
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "is missing"
        raise StageError(
            "cannot read the folder", problems=[Problem(str(root), what)], hint="check data.path"
        )
    files = list(_walk(root))
    if not files:
        raise StageError(
            f"{root}: no audio files", hint=f"known endings: {' '.join(sorted(SUFFIXES))}"
        )
    named = [next((s for p in f.parts[:-1] if (s := _split_of(p, data))), None) for f in files]
    for file, by_folder in zip(files, named, strict=True):
        where = str(root / file)
        key = file.as_posix()
        caption, labels, problem = _beside(root / file, data.caption_column)
        if problem is None and need_captions:
            problem = caption_problem(caption, data.caption_column) if caption is not None else None
            if caption is None:
                problem = f"no caption: neither {file.stem}.txt nor {file.stem}.json has one"
        if any(named) and by_folder is None:
            problem = f"lies in no folder named {', '.join(split_names(data))}, as others do"
        if problem:
            yield Entry(where, problem=problem)
        else:
            text = caption.strip() if isinstance(caption, str) else ""
            yield Entry(
                where, Clip(key, text, by_folder or hash_split(key), labels, path=root / file)
            )


def _beside(file: Path, column: str) -> tuple[Any, dict[str, Any], str | None]:
    """(caption or None, labels, problem) from the .json and .txt beside an audio file; .txt wins."""
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
