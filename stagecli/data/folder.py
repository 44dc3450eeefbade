"""The entries of a folder of audio files, with captions and labels in files beside them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from stagecli.data.finding import existing_name, list_audio
from stagecli.data.rows import (
    Clip,
    Entry,
    Split,
    caption_columns,
    hash_split,
    read_captions,
    split_named,
    split_names,
)
from stagecli.data.text_files import parse_json, text_problem
from stagecli.files import JsonRow, read_user_text
from stagecli.schema import Data

LARGEST = 1 << 20  # bytes of a file that holds one caption
FOLDER = "folder"  # the caption column that means the name of a file's folder
NUMBER = re.compile(r"\d+[\s._-]+")  # before a name, as in "001 - Dog bark"


def folder_entries(data: Data, root: Path, need_captions: bool) -> tuple[list[Entry], list[str]]:
    """Entries of the audio files in a folder and its subfolders, and what was passed over.

    `a.wav` has its caption in `a.txt`, or under `data.caption_column` in `a.json`, whose other keys
    are labels. With "folder" as the caption column, it is the name of the file's folder. A folder
    in the path named like a split decides the split (then every file must be in one); without such
    folders `hash_split` of the path decides. Raises StageError without any audio file.
    """
    folder = list_audio(root)
    splits = [_split_of_folder(file, data) for file in folder.files]
    entries = []
    for file, split in zip(folder.files, splits, strict=True):
        clip, problem = _clip(data, root, file, split, need_captions)
        if any(splits) and split is None:
            names = ", ".join(split_names(data))
            problem = f"is not in a folder named {names}, as others are"
        entries.append(
            Entry(str(root / file), None if problem else clip, problem, drawn=split is None)
        )
    return entries, folder.passed_over


def _clip(
    data: Data, root: Path, file: Path, split: Split | None, need_captions: bool
) -> tuple[Clip | None, str | None]:
    """The clip of one file, or why there is none."""
    key = file.as_posix()
    reason = text_problem(key)
    if reason:
        return None, f"its name {reason}: rename it"
    path = root / file
    text, labels, problem = _read_beside(path)
    if problem:
        return None, problem
    words = _folder_words(data, file)
    if data.caption_column == FOLDER and words:
        labels.setdefault(FOLDER, words)
    columns = {name: labels.pop(name) for name in caption_columns(labels, data.caption_column)}
    if text is not None:
        columns = {data.caption_column: text}
    if need_captions and not columns:
        return None, f"no caption: neither {file.stem}.txt nor {file.stem}.json has one"
    captions, problem = read_captions(columns, data.caption_column, need_captions)
    if problem:
        return None, problem
    clip = Clip(
        key,
        captions[0],
        split or hash_split(key, data.valid_share),
        labels,
        path=path,
        more_captions=tuple(captions[1:]),
    )
    return clip, None


def _folder_words(data: Data, file: Path) -> str:
    """The name of the innermost folder that is not a split, in words; empty if there is none."""
    names = [name for name in file.parts[:-1] if split_named(name, data) is None]
    name = names[-1] if names else ""
    return NUMBER.sub("", name, count=1).replace("_", " ").strip()


def _split_of_folder(file: Path, data: Data) -> Split | None:
    """The split after which the outermost such folder in the path is named."""
    for name in file.parts[:-1]:
        split = split_named(name, data)
        if split is not None:
            return split
    return None


def _read_beside(file: Path) -> tuple[str | None, JsonRow, str | None]:
    """(text of the .txt or None, content of the .json, problem) of the files beside audio."""
    caption = None
    labels: Any = {}
    beside = existing_name(file.parent, f"{file.stem}.json")
    try:
        if beside.exists():
            labels = parse_json(read_user_text(beside, LARGEST))
            if not isinstance(labels, dict):
                return None, {}, f"{beside.name} is not a JSON object"
            if reason := text_problem(labels):
                return None, {}, f"{beside.name} {reason}"
        beside = existing_name(file.parent, f"{file.stem}.txt")
        if beside.exists():
            caption = read_user_text(beside, LARGEST)
    except ValueError as error:
        return None, {}, f"{beside.name} cannot be read: it {error}"
    return caption, labels, None
