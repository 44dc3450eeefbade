"""The entries of a manifest: JSONL or CSV with a line per clip, or per caption of a clip."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from stagecli.data.csv_rows import Columns, CsvRow, audio_column, csv_rows
from stagecli.data.finding import existing_name, folder_problem
from stagecli.data.rows import (
    Clip,
    Entry,
    caption_columns,
    hash_split,
    read_captions,
    split_named,
    split_names,
)
from stagecli.data.text_files import json_lines, require_text, text_problem
from stagecli.errors import StageError
from stagecli.files import JsonRow
from stagecli.schema import Data


def manifest_entries(data: Data, path: Path, need_captions: bool) -> list[Entry]:
    """Entries of a JSONL or CSV (TSV) file: path, caption or list of captions, split and labels.

    Paths are relative to the manifest. Every other column is kept as a label. A manifest without
    any split is split by `hash_split` of its paths. Lines of the same path give one clip several
    captions; with the same caption, another split or another spelling, they are a problem. Raises
    StageError when the manifest itself cannot be read.
    """
    lines = list(_lines(data, path, need_captions))
    has_split = any(line.columns and data.split_column in line.columns for line in lines)
    entries: list[Entry] = []
    places: dict[str, int] = {}  # of the first entry with a path
    for number, columns, problem, excerpt in lines:
        where = f"{path}:{number}"
        if columns is None:
            entries.append(Entry(where, problem=problem, excerpt=excerpt))
            continue
        entry = _entry(data, path, where, columns, need_captions=need_captions, has_split=has_split)
        file = _file_of(path, columns.get(data.path_column))
        place = places.setdefault(file, len(entries)) if file else len(entries)
        if place == len(entries):
            entries.append(entry)
        elif problem := _clash(entries[place], entry, f"{columns[data.path_column]} is on line"):
            entries.append(Entry(where, problem=problem))
        else:
            entries[place] = replace(entries[place], clip=_merged(entries[place], entry))
    return entries


def manifest_splits(data: Data, path: Path) -> list[str]:
    """The names that the lines of a manifest give to splits. Raises StageError as before."""
    names = (
        line.columns.get(data.split_column) for line in _lines(data, path, False) if line.columns
    )
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))


def _lines(data: Data, path: Path, need_captions: bool) -> Iterator[CsvRow]:
    """Every line as columns, or its problem."""
    if folder_problem(path) is None:
        raise StageError(
            f"{path} is a folder", hint='name the manifest file, or set data.source = "folder"'
        )
    text = require_text(path, "cannot read the manifest", "check data.path")
    if path.suffix.lower() in (".csv", ".tsv"):
        caption = data.caption_column if need_captions else None
        yield from csv_rows(path, text, Columns(data.path_column, caption))
        return
    for number, value, problem, excerpt in json_lines(text):
        if problem is None and not isinstance(value, dict):
            problem = "is not a JSON object"
            excerpt = text.split("\n")[number - 1].strip()[:200]
        yield CsvRow(number, None if problem else value, problem, excerpt)


def _entry(
    data: Data,
    path: Path,
    where: str,
    columns: JsonRow,
    *,
    need_captions: bool,
    has_split: bool,
) -> Entry:
    """The clip of one line, or its problem."""
    key = columns.get(data.path_column)
    if not isinstance(key, str) or not key:
        audio = audio_column(columns)
        instead = f"; `{audio}` names a file: set data.path_column" if audio else ""
        return Entry(where, problem=f'no path (key "{data.path_column}"){instead}')
    reason = text_problem(key) or text_problem(_labels(data, columns))
    if reason:
        return Entry(where, problem=reason)
    name = columns.get(data.split_column)
    split = split_named(name, data) if has_split else hash_split(key, data.valid_share)
    if split is None:
        return Entry(where, problem=_unknown_split(name, data))
    captions, problem = read_captions(columns, data.caption_column, need_captions)
    if problem:
        return Entry(where, problem=problem)
    clip = Clip(
        key,
        captions[0],
        split,
        _labels(data, columns),
        path=existing_name(path.parent, key),
        more_captions=tuple(captions[1:]),
    )
    return Entry(where, clip, drawn=not has_split)


def _file_of(path: Path, key: Any) -> str | None:
    """The file that a line names under one spelling, whether it exists or not."""
    if not isinstance(key, str) or not key or text_problem(key):
        return None
    return os.path.normpath(existing_name(path.parent, key))


def _labels(data: Data, columns: JsonRow) -> JsonRow:
    captions = caption_columns(columns, data.caption_column)
    reserved = (data.path_column, data.split_column, *captions)
    return {name: value for name, value in columns.items() if name not in reserved}


def _clash(first: Entry, entry: Entry, is_on_line: str) -> str | None:
    """Why a second line of the same path does not add captions to the first; None if it does."""
    line = first.where.rsplit(":", 1)[1]
    if first.clip is None or entry.clip is None:
        return f"{is_on_line} {line} already" + (f"; {entry.problem}" if entry.problem else "")
    if entry.clip.split != first.clip.split:
        return f"{is_on_line} {line} already, in split {first.clip.split}"
    repeats = set(entry.clip.captions) & set(first.clip.captions)
    if entry.clip.key != first.clip.key or repeats:
        return f"{is_on_line} {line} already"
    return None


def _merged(first: Entry, entry: Entry) -> Clip:
    """The clip of both lines; a label on which they differ belongs to neither."""
    assert first.clip is not None
    assert entry.clip is not None
    labels = {
        name: value
        for name, value in first.clip.labels.items()
        if name in entry.clip.labels and entry.clip.labels[name] == value
    }
    captions = (*first.clip.more_captions, *entry.clip.captions)
    return replace(first.clip, labels=labels, more_captions=captions)


def _unknown_split(name: Any, data: Data) -> str:
    if not name:
        return "no split"
    return f"unknown split {name!r:.80} (the recipe has {', '.join(split_names(data))})"
