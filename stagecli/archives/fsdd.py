"""FSDD: `recordings/{digit}_{speaker}_{index}.wav`."""

from __future__ import annotations

import re
from pathlib import Path

from stagecli.archives.contents import Contents, Row, audio_under, root_of
from stagecli.data.rows import Split

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAME = re.compile(r"(\d)_([^_]+)_(\d+)")
FIRST_VALID = 5  # lower indices are the official test split
FIRST_TRAIN = 8


def read_fsdd(folder: Path) -> Contents:
    """Captions are like "george says zero"."""
    contents = Contents()
    recordings = root_of(folder, "recordings") / "recordings"
    others = []
    files = audio_under(contents, recordings)
    for file in files:
        match = NAME.fullmatch(file.stem)
        if match is None:
            others.append(file.name)
            continue
        digit, speaker, index = DIGITS[int(match[1])], match[2], int(match[3])
        contents.rows.append(
            Row(
                path=file,
                split=_split(index),
                captions=[f"{speaker} says {digit}"],
                labels={"label": digit, "speaker": speaker},
            )
        )
    contents.lacks(recordings, others, len(files), "file", "not named {digit}_{speaker}_{index}")
    return contents


def _split(index: int) -> Split:
    if index < FIRST_VALID:
        return "test"
    return "valid" if index < FIRST_TRAIN else "train"
