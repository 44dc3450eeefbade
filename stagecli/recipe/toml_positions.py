"""Where each key of a TOML file stands: `tomllib` parses but keeps no line numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass

_KEY_PART = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*""")
_HEADER = re.compile(r"""\[\[?((?:"[^"]*"|'[^']*'|[^]"'#])*)\]""")


@dataclass(frozen=True)
class Position:
    line: int  # from 1
    column: int  # from 1
    text: str


def split_key(text: str) -> tuple[str, ...]:
    """`a."b.c".d` -> ("a", "b.c", "d"); raises ValueError for what is no TOML key."""
    parts: list[str] = []
    at = 0
    while True:
        match = _KEY_PART.match(text, at)
        if not match:
            raise ValueError(f"not a TOML key: {text!r}")
        parts.append(next(g for g in match.groups() if g is not None))
        at = match.end()
        if at == len(text):
            return tuple(parts)
        if text[at] != ".":
            raise ValueError(f"not a TOML key: {text!r}")
        at += 1


def _equals_sign(line: str) -> int:
    """Index of the first `=` outside quotes, or -1."""
    quote = ""
    for i, char in enumerate(line):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char == "#":
            return -1
        elif char == "=":
            return i
    return -1


def _open_after(text: str, depth: int, fence: str) -> tuple[int, str]:
    """Bracket depth and open multi-line string fence after `text`."""
    i = 0
    while i < len(text):
        if fence:
            if text.startswith(fence, i):
                i += 3
                while text[i : i + 1] == fence[0]:  # its last characters may be quotes too
                    i += 1
                fence = ""
            else:
                i += 2 if text[i] == "\\" and fence == '"""' else 1
            continue
        if text.startswith(('"""', "'''"), i):
            fence = text[i : i + 3]
            i = i + 3
            continue
        char = text[i]
        if char in "\"'":
            i += 1
            while i < len(text) and text[i] != char:
                i += 2 if text[i] == "\\" and char == '"' else 1
        elif char == "#":
            break
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        i += 1
    return depth, fence


def positions(source: str) -> dict[tuple[str, ...], Position]:
    """Key path -> position of its first mention. Tables and keys; inline tables stand at their parent."""
    found: dict[tuple[str, ...], Position] = {}
    table: tuple[str, ...] = ()
    depth = 0
    fence = ""
    for number, line in enumerate(
        source.replace("\r\n", "\n").split("\n"), 1
    ):  # no other character ends a line in TOML
        if depth or fence:
            depth, fence = _open_after(line, depth, fence)
            continue
        stripped = line.strip()
        column = len(line) - len(line.lstrip()) + 1
        if stripped.startswith("["):
            header = _HEADER.match(stripped)
            try:
                table = split_key(header[1] if header else "")
            except ValueError:
                continue
            for length in range(1, len(table) + 1):
                found.setdefault(table[:length], Position(number, column, line))
            continue
        equals = _equals_sign(line)
        if equals < 0:
            continue
        try:
            key = table + split_key(line[:equals])
        except ValueError:
            continue
        for length in range(len(table) + 1, len(key) + 1):
            found.setdefault(key[:length], Position(number, column, line))
        depth, fence = _open_after(line[equals + 1 :], 0, "")
    return found
