"""Files that a killed process cannot spoil: whole by rename, or JSON lines that end a torn one.

No torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LARGEST = 1e100  # sums of larger numbers overflow
NAME_BYTES = 200  # file systems allow 255, and a renamed run is longer than its name
LEFTOVER = re.compile(r"\..+\.\d+\.tmp")  # a name of `atomic_path`, left by a killed process
DEEPEST = 100  # levels of JSON; what is nested further is damage, and few functions can walk it
_DECODE = json.JSONDecoder(parse_constant=lambda _: None).decode
LONGEST_STEM = 200  # bytes of a file's name that the name of its temporary file repeats
JsonRow = dict[str, Any]
"""One line of a JSONL file, or one JSON object."""
SEAL = "checksum"  # the field of a sealed document
CHANGED = "has changed since it was written"


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


def parse_json(text: str | bytes, *, keep_nan: bool = False) -> Any:
    """The value of a JSON text (bytes: UTF-8); NaN and infinity become None unless they are kept.

    Raises ValueError for anything else, deep nesting and numbers of thousands of digits included.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(text) if keep_nan else _DECODE(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if text.count("[") + text.count("{") > DEEPEST and _deeper_than(value, DEEPEST):
        raise ValueError("nested too deeply")
    return value


def _deeper_than(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested in more than so many levels; without recursion."""
    level = [value]
    for _ in range(levels + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises OSError, and ValueError as `parse_json` does."""
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("not a regular file")
    return parse_json(path.read_bytes())


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of every line that holds JSON; other lines are skipped.

    Lines end at "\\n" only: U+2028 inside a string is no line break. Raises OSError.
    """
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, parse_json(line)
        except ValueError:
            continue


# -- checksums: JSON stays valid when a digit of it flips ----------------------------------------


def checksum(value: Any) -> str:
    """16 hex digits for a JSON value, whatever the order of its keys."""
    text = json.dumps(finite(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sealed(document: Mapping[str, Any]) -> JsonRow:
    """A document with the checksum of its other fields as the last one."""
    content = {key: value for key, value in document.items() if key != SEAL}
    return {**content, SEAL: checksum(content)}


def opened(document: Mapping[str, Any]) -> tuple[JsonRow, str | None]:
    """(a document without its checksum, what is wrong with it or None).

    A document without a checksum, which earlier versions wrote, passes.
    """
    content = dict(document)
    stated = content.pop(SEAL, None)
    return content, None if stated in (None, checksum(content)) else CHANGED


def sealed_line(*values: Any) -> list[Any]:
    """Values of a line in a cache, followed by their checksum."""
    return [*values, checksum(values)]


def opened_line(line: Any, count: int) -> list[Any] | None:
    """The `count` values of a line that `sealed_line` made, or an earlier version without checksum.

    None for any other line. Raises ValueError where the values have changed.
    """
    if not isinstance(line, list) or len(line) not in (count, count + 1):
        return None
    values = line[:count]
    if len(line) > count and line[count] != checksum(values):
        raise ValueError(CHANGED)
    return values


def is_regular_file(path: Path) -> bool:
    """Whether `path` is a file with contents of its own: no folder, pipe or device, and no name
    that no file could have.
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


class NotTextError(ValueError):
    """A file that cannot be read as text. problem: why; line: where, None for the whole file."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(f"{problem} in line {line}" if line else problem)
        self.problem = problem
        self.line = line


def read_user_text(path: Path, largest: int) -> str:
    """The text of a UTF-8 file that a user names, without its byte order mark.

    Line ends stay as they are. Raises NotTextError, saying what is wrong, unless it is a regular
    file of at most `largest` bytes: a device or pipe might never end.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise NotTextError("is a folder")
        if not stat.S_ISREG(mode):
            raise NotTextError("is not a regular file")
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except FileNotFoundError as error:
        raise NotTextError("file is missing") from error
    except OSError as error:
        raise NotTextError(f"cannot be read: {error.strerror or error}") from error
    except NotTextError:
        raise
    except ValueError as error:  # NUL in the path
        raise NotTextError(f"cannot be read: {error}") from error
    if len(content) > largest:
        raise NotTextError(f"is larger than {largest:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise NotTextError("is UTF-16, not UTF-8", 1) from error
        raise NotTextError("is not UTF-8", content.count(b"\n", 0, error.start) + 1) from error


def number(value: object) -> float | None:
    """`value` of a JSON row as a float, or None if it is not a measurement.

    That is null, text, a truth value, NaN, or a number too large to be summed.
    """
    if type(value) is int or type(value) is float:
        return float(value) if abs(value) < LARGEST else None
    return None


def name_problem(name: str) -> str | None:
    """Why `name` cannot name something directly inside a folder; None if it can."""
    if not name or name.startswith("."):
        return "must not be empty or begin with a dot"
    if "/" in name or "\\" in name:
        return "must be a name, not a path"
    if any(unicodedata.category(character).startswith("C") for character in name):
        return "must not contain control characters"
    if len(name.encode("utf-8", "surrogatepass")) > NAME_BYTES:
        return f"must not be longer than {NAME_BYTES} bytes"
    return None


def finite(value: Any) -> Any:
    """`value` with NaN and infinity, which JSON cannot hold, replaced by None at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, (list, tuple)) else value
