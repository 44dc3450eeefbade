"""Positions of TOML keys, compared with `tomllib` and with the generator of the documents."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecli.recipe.toml_positions import find_positions, split_key

Key = tuple[str, ...]

bare = st.text("abcdefgh-_0123", min_size=1, max_size=4)
quoted = st.text("ab .#=[]'\u2028\x85", max_size=4).map(lambda text: f'"{text}"')
key_parts = bare | quoted
# Values that resemble something else to a line-based reader: headers, keys, comments, brackets.
values = st.sampled_from(
    [
        "1",
        '"a = # [b]"',
        "'c:\\'",
        '"quote \\" inside # no comment"',
        '["a", "#b"] # [x]',
        "[\n  1, # one ]\n  [2,\n  3],\n]",
        '"""\n[not.a.table]\nkey = 1 # no\n"""',
        "'''one ' line''' # then a comment '''",
        '[\n"""\n]\nk = "2\n""", "]"\n]',
        '{ x = 1, y = "}" }',
        "1979-05-27T07:32:00Z # = [",
        '"a\u2028b\x85c"',
        '"""a \\""" b\n[no]\n"""',
        '"""four""""',
        '["""five""""", 1]',
        "['''x'''', ]",
    ]
)
fillers = st.sampled_from(["", "# [comment]", "   # key = [", "\t"])


def unquoted(part: str) -> str:
    return part.strip('"') if part.startswith('"') else part


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[Key, tuple[int, int]]]:
    """A TOML text, and the line and column where the generator put each of its tables and keys."""
    lines: list[str] = []
    expected: dict[Key, tuple[int, int]] = {}

    def put(prefix: Key, parts: Sequence[str], indent: str, text: str) -> None:
        key = prefix + tuple(unquoted(part) for part in parts)
        for length in range(len(prefix) + 1, len(key) + 1):
            expected.setdefault(key[:length], (len(lines) + 1, len(indent) + 1))
        lines.extend((indent + text).split("\n"))

    headers = [[], *draw(st.lists(st.lists(key_parts, min_size=1, max_size=3), max_size=3))]
    for header in headers:
        table: Key = ()
        if header:
            indent = draw(st.sampled_from(["", "  "]))
            dot = draw(st.sampled_from([".", " . "]))
            comment = draw(st.sampled_from(["", " # ] = ["]))
            put((), header, indent, f"[{dot.join(header)}]{comment}")
            table = tuple(unquoted(part) for part in header)
        for parts in draw(st.lists(st.lists(key_parts, min_size=1, max_size=2), max_size=3)):
            lines.append(draw(fillers))
            equals = draw(st.sampled_from(["=", " = "]))
            indent = draw(st.sampled_from(["", " ", "\t"]))
            put(table, parts, indent, ".".join(parts) + equals + draw(values))
    return draw(st.sampled_from(["\n", "\r\n"])).join(lines) + "\n", expected


def key_paths(tree: dict[str, Any], prefix: Key = ()) -> set[Key]:
    paths = set()
    for name, value in tree.items():
        path = (*prefix, name)
        paths.add(path)
        if isinstance(value, dict):
            paths |= key_paths(value, path)
    return paths


@settings(max_examples=150, deadline=None)
@given(documents())
def test_positions_agree_with_the_parser(
    document: tuple[str, dict[Key, tuple[int, int]]],
) -> None:
    source, expected = document
    try:
        tree = tomllib.loads(source)
    except tomllib.TOMLDecodeError:  # the same key twice
        return
    positions = find_positions(source)
    places = {key: (position.line, position.column) for key, position in positions.items()}
    assert places == expected
    paths = key_paths(tree)
    inline = {key for key in paths if key[:-1] in places and key[-1] in "xy" and key not in places}
    assert paths - inline == set(places)
    lines = source.split("\n")
    for position in positions.values():
        assert position.text == lines[position.line - 1].removesuffix("\r")


def test_split_key() -> None:
    assert split_key("a . \"b.c\" .'d'") == ("a", "b.c", "d")
    for bad in ("", "a.", ".a", "a b", 'a."b', "a=b"):
        with pytest.raises(ValueError, match="not a TOML key"):
            split_key(bad)
