"""Text from the user's files: UTF-8 without a byte order mark, JSON of a sane depth, and lines.

Text that a tokenizer, a terminal or a file name could not take is refused here, where it enters.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stagecli.data.decoding import file_problem
from stagecli.errors import Problem, StageError

LARGEST = 1 << 31  # bytes of a text file
DEEPEST = 32  # levels of JSON; deeper values would overflow the stack where they are written
EXCERPT = 200  # characters of an offending line that are shown


class TextError(Exception):
    """A file that is not usable text. problem: why; line: where, None for the file as a whole."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.line = line


class JsonLine(NamedTuple):
    """One line of a JSONL file: its value, or its problem with the offending text."""

    number: int
    value: Any
    problem: str | None = None
    excerpt: str | None = None


def read_text(path: Path, largest: int = LARGEST) -> str:
    """A UTF-8 file without its byte order mark; line ends stay as they are.

    largest: bytes that are read at most. Raises TextError: missing, no regular file, too large,
    not UTF-8.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
            raise TextError(f"is not a file, but {kind}")
        if status.st_size > largest:
            raise TextError(f"has {status.st_size:,} bytes; at most {largest:,} are read")
        content = path.read_bytes()
    except OSError as error:
        raise TextError(file_problem(error)) from error
    except ValueError as error:  # NUL in the path
        raise TextError(f"cannot be read: {error}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise TextError("is UTF-16, not UTF-8", 1) from error
        raise TextError("is not UTF-8", content.count(b"\n", 0, error.start) + 1) from error


def require_text(path: Path, title: str, hint: str | None = None) -> str:
    """`read_text` with a StageError: `title` with the place and the reason."""
    try:
        return read_text(path)
    except TextError as error:
        where = f"{path}:{error.line}" if error.line else str(path)
        if error.line:
            hint = "save it as UTF-8"
        raise StageError(title, problems=[Problem(where, error.problem)], hint=hint) from error


def parse_json(text: str) -> Any:
    """The value of a JSON document. Raises ValueError with the reason in words."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg}") from error
    except RecursionError as error:
        raise ValueError(f"is nested more than {DEEPEST} levels deep") from error
    except ValueError as error:
        raise ValueError("holds an integer of thousands of digits") from error
    level = [value]
    for _ in range(DEEPEST):
        containers = [item for item in level if isinstance(item, (dict, list))]
        if not containers:
            return value
        level = [
            item
            for container in containers
            for item in (container.values() if isinstance(container, dict) else container)
        ]
    raise ValueError(f"is nested more than {DEEPEST} levels deep")


def json_lines(text: str) -> Iterator[JsonLine]:
    """Every line of JSONL but blank ones.

    Lines end at "\\n" only: JSON strings may hold other separators, such as U+2028.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield JsonLine(number, parse_json(line))
        except ValueError as error:
            yield JsonLine(number, None, str(error), line.strip()[:EXCERPT])


def text_problem(value: Any) -> str | None:
    """Why a string, or one at any depth of a JSON value, is no text; None if all are."""
    if isinstance(value, str):
        if "\0" in value:
            return "holds a NUL character"
        if any("\ud800" <= character <= "\udfff" for character in value):
            return "holds half a character (a lone surrogate, or bytes that are not UTF-8)"
        return None
    items: Any = ()
    if isinstance(value, dict):
        items = [*value, *value.values()]
    elif isinstance(value, list | tuple):
        items = value
    return next(filter(None, map(text_problem, items)), None)
