"""Reads TOML text in bounded time and memory, whatever it holds.

`tomllib` takes minutes for long dotted keys, exceeds Python's stack for deep arrays, and refuses
integers of thousands of digits with an error of another type.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stagecli.files import read_user_text

MAX_BYTES = 1_000_000  # of a recipe; the largest that ships has two thousand
MAX_DEPTH = 16  # tables and arrays within each other
_NAME = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
# A dotted key of more parts than that. It must not start in the middle of one.
_LONG_KEY = re.compile(rf"(?<![\w.-]){_NAME}(?:[ \t]*\.[ \t]*{_NAME}){{{MAX_DEPTH},}}?")
_LONG_NUMBER = re.compile(r"(?<!\d)\d[\d_]{1000,}")


def read_toml_text(path: Path) -> str:
    """The text of a TOML file. Raises ValueError if it is no regular, small UTF-8 file."""
    return read_user_text(path, MAX_BYTES)


def parse_toml(text: str) -> dict[str, Any]:
    """The tree of a TOML text. Raises ValueError; `tomllib.TOMLDecodeError` for its syntax."""
    if match := _LONG_KEY.search(text):
        raise ValueError(f"has a key of more than {MAX_DEPTH} parts{_place(text, match.start())}")
    try:
        tree = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"nests values more than {MAX_DEPTH} deep") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # the only one that is left
        match = _LONG_NUMBER.search(text)
        place = _place(text, match.start()) if match else ""
        raise ValueError(f"has an integer of thousands of digits{place}") from None
    if any(depth > MAX_DEPTH for depth in _depths(tree)):
        raise ValueError(f"nests values more than {MAX_DEPTH} deep")
    return tree


def _place(text: str, index: int) -> str:
    """Line and column of a character, as `tomllib` words them."""
    line_start = text.rfind("\n", 0, index) + 1
    return f" (at line {text.count(chr(10), 0, index) + 1}, column {index - line_start + 1})"


def _depths(tree: dict[str, Any]) -> Iterator[int]:
    """The depth of every table and array, outer ones first."""
    pending: list[tuple[int, Any]] = [(1, tree)]
    while pending:
        depth, node = pending.pop()
        yield depth
        inner = node.values() if isinstance(node, dict) else node
        pending += [(depth + 1, value) for value in inner if isinstance(value, dict | list)]
