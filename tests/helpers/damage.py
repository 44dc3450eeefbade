"""Damages files the way disks, editors and interrupted copies do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

DEEP = 2000  # levels, more than a recursive reader survives
DIGITS = 5000  # of an integer, more than Python converts

Damage = Callable[[bytes], bytes]

ANY_FILE: dict[str, Damage] = {
    "empty": lambda content: b"",
    "cut in half": lambda content: content[: len(content) // 2],
    "without its last byte": lambda content: content[:-1],
    "with a flipped bit": lambda content: flipped(content, len(content) // 2),
    "zeros": lambda content: bytes(len(content)),
}
TEXT_FILE: dict[str, Damage] = {
    "a list": lambda content: b"[1, 2, 3]",
    "null": lambda content: b"null",
    "an empty object": lambda content: b"{}",
    "Latin-1": lambda content: b'{"status": "caf\xe9"}',
    "nested": lambda content: b"[" * DEEP + b"]" * DEEP,
    "nested objects": lambda content: b'{"a":' * 900 + b"1" + b"}" * 900,
    "a huge number": lambda content: b'{"step": ' + b"9" * DIGITS + b"}",
    "step 10^30": lambda content: b'{"step": 1' + b"0" * 30 + b', "steps": 1e999}',
    "every value null": lambda content: replaced_values(content, b"null"),
    "every value a list": lambda content: replaced_values(content, b"[[]]"),
    "every value text": lambda content: replaced_values(content, b'"x"'),
    "every value 1e400": lambda content: replaced_values(content, b"1e400"),
    "every value -1": lambda content: replaced_values(content, b"-1"),
}


def flipped(content: bytes, position: int) -> bytes:
    """The content with one bit changed at a byte."""
    if not content:
        return content
    return content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]


def replaced_values(content: bytes, value: bytes) -> bytes:
    """JSON lines, or one JSON object, whose top-level values are all the same."""
    import json

    try:
        rows = [json.loads(content)]
    except ValueError:
        try:
            rows = [json.loads(line) for line in content.splitlines()]
        except ValueError:
            return b"key = " + value
    lines = [
        b"{" + b", ".join(json.dumps(key).encode() + b": " + value for key in row) + b"}"
        for row in rows
        if isinstance(row, dict)
    ]
    return b"\n".join(lines) + b"\n"


def damages(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """(name, damaged content) of everything that may happen to a file; None: it is missing."""
    content = path.read_bytes()
    kinds = ANY_FILE if path.suffix == ".safetensors" else {**ANY_FILE, **TEXT_FILE}
    yield "missing", None
    for name, damage in kinds.items():
        yield name, damage(content)
