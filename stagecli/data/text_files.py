"""Text from the user's files: UTF-8 without a byte order mark, JSON of a sane depth, and lines.

Text that a tokenizer, a terminal or a file name could not take is refused here, where it enters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stagecli.errors import Problem, StageError
from stagecli.files import NotTextError, read_user_text

LARGEST = 1 << 31  # bytes of a text file
DEEPEST = 32  # levels of JSON; deeper values would overflow the stack where they are written
EXCERPT = 200  # characters of an offending line that are shown


class JsonLine(NamedTuple):
    """One line of a JSONL file: its value, or its problem with the offending text."""

    number: int
    value: Any
    problem: str | None = None
    excerpt: str | None = None


def require_text(path: Path, title: str, hint: str | None = None, *, largest: int = LARGEST) -> str:
    """The text of a UTF-8 file. Raises StageError: `title` with the place and the reason."""
    try:
        return read_user_text(path, largest)
    except NotTextError as error:
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
