"""Files that a killed process cannot spoil: whole by rename, or JSON lines that end a torn one.

No torch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LARGEST = 1e100  # sums of larger numbers overflow
LONGEST_STEM = 200  # bytes of a file's name that the name of its temporary file repeats
JsonRow = dict[str, Any]
"""One line of a JSONL file, or one JSON object."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it replaces `path` when the block succeeds.

    The data is on the disk before the name changes. On an exception `path` stays as it was. Raises
    OSError.
    """
    # A name of full length has no room for more.
    short = path.name.encode()[:LONGEST_STEM].decode(errors="ignore")
    partial = path.with_name(f".{short}.{os.getpid()}.tmp")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` with `content` (text as UTF-8), whole or not at all. Raises OSError."""
    with atomic_path(path) as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Replace `path` with `value` as JSON; NaN and infinity become null. Raises OSError."""
    write_atomic(path, json.dumps(finite(value), indent=indent))


def json_line(value: Any) -> str:
    """`value` as one line of JSON, ended; NaN and infinity become null."""
    return json.dumps(finite(value)) + "\n"


def append_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Append one line per value with a single write, so that several processes may share a file.

    A last line that a killed process left unfinished is ended first. Raises OSError.
    """
    lines = "".join(map(json_line, values))
    if not lines:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        content = ("\n" * torn + lines).encode()
        written = os.write(descriptor, content)
        while written < len(content):  # a full disk takes a part; the next call says so
            written += os.write(descriptor, content[written:])
    finally:
        os.close(descriptor)


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of every line that holds JSON; other lines are skipped.

    Lines end at "\\n" only: U+2028 inside a string is no line break. Raises OSError.
    """
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError):
            continue


def number(value: object) -> float | None:
    """`value` of a JSON row as a float, or None if it is not a measurement.

    That is null, text, a truth value, NaN, or a number too large to be summed.
    """
    if type(value) is int or type(value) is float:
        return float(value) if abs(value) < LARGEST else None
    return None


def finite(value: Any) -> Any:
    """`value` with NaN and infinity, which JSON cannot hold, replaced by None at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, (list, tuple)) else value
