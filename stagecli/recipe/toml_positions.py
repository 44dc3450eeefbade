"""The line and column of every key of a TOML file, which `tomllib` does not report."""

from __future__ import annotations

import re
from dataclasses import dataclass

Key = tuple[str, ...]
"""A key path: ("train", "lr")."""

_KEY_PART = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*""")
_HEADER = re.compile(r"""\[\[?((?:"[^"]*"|'[^']*'|[^]"'#])*)\]""")


@dataclass(frozen=True)
class Position:
    """Where a key is first mentioned; line and column count from 1, `text` is the whole line."""

    line: int
    column: int
    text: str


def split_key(text: str) -> Key:
    """`a."b.c".d` -> ("a", "b.c", "d"). Raises ValueError if `text` is not a TOML key."""
    parts: list[str] = []
    start = 0
    while True:
        match = _KEY_PART.match(text, start)
        if not match:
            raise ValueError(f"not a TOML key: {text!r}")
        parts.append(next(group for group in match.groups() if group is not None))
        start = match.end()
        if start == len(text):
            return tuple(parts)
        if text[start] != ".":
            raise ValueError(f"not a TOML key: {text!r}")
        start += 1


def find_positions(source: str) -> dict[Key, Position]:
    """Key path -> position of its first mention, for tables and keys.

    Keys inside inline tables have no entry of their own. `source` must be valid TOML.
    """
    positions: dict[Key, Position] = {}
    table: Key = ()
    depth = 0
    fence = ""
    # TOML ends lines at \n and \r\n only, so `splitlines` would cut at too many characters.
    for number, line in enumerate(source.replace("\r\n", "\n").split("\n"), 1):
        # Inside a value that spans lines: look for its end.
        if depth or fence:
            depth, fence = _open_after(line, depth, fence)
            continue

        # A header such as [stage.regime] mentions the table and its parents.
        stripped = line.strip()
        column = len(line) - len(line.lstrip()) + 1
        if stripped.startswith("["):
            header = _HEADER.match(stripped)
            try:
                table = split_key(header[1] if header else "")
            except ValueError:
                continue
            for length in range(1, len(table) + 1):
                positions.setdefault(table[:length], Position(number, column, line))
            continue

        # A line `key = value`.
        equals = _equals_sign(line)
        if equals < 0:
            continue
        try:
            key = table + split_key(line[:equals])
        except ValueError:
            continue
        for length in range(len(table) + 1, len(key) + 1):
            positions.setdefault(key[:length], Position(number, column, line))
        depth, fence = _open_after(line[equals + 1 :], 0, "")
    return positions


def _equals_sign(line: str) -> int:
    """Index of the first `=` outside quotes, or -1."""
    quote = ""
    for index, char in enumerate(line):
        if quote:
            if char == quote:
                quote = ""
        elif char in "\"'":
            quote = char
        elif char == "#":
            return -1
        elif char == "=":
            return index
    return -1


def _open_after(text: str, depth: int, fence: str) -> tuple[int, str]:
    """Bracket depth, and fence of the multi-line string that is still open, after `text`."""
    index = 0
    while index < len(text):
        # Inside a multi-line string only its closing fence counts.
        if fence:
            if text.startswith(fence, index):
                index += 3
                while text[index : index + 1] == fence[0]:  # a string may end in quotes itself
                    index += 1
                fence = ""
            elif text[index] == "\\" and fence == '"""':
                index += 2
            else:
                index += 1
            continue
        if text.startswith(('"""', "'''"), index):
            fence = text[index : index + 3]
            index += 3
            continue

        # Skip one-line strings, stop at a comment, count brackets.
        char = text[index]
        if char in "\"'":
            index += 1
            while index < len(text) and text[index] != char:
                index += 2 if text[index] == "\\" and char == '"' else 1
        elif char == "#":
            break
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        index += 1
    return depth, fence
