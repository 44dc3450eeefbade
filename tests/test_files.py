"""Whole files by rename, JSON lines with a torn end, and numbers that JSON cannot hold."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecli.files import (
    append_json_lines,
    atomic_path,
    finite,
    read_json_lines,
    write_atomic,
    write_json,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    write_atomic(target, "old")

    def fails_half_way() -> None:
        with atomic_path(target) as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails_half_way()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_text_is_utf8_and_bytes_are_kept(tmp_path: Path) -> None:
    write_atomic(tmp_path / "text", "é\n")
    assert (tmp_path / "text").read_bytes() == b"\xc3\xa9\n"
    write_atomic(tmp_path / "bytes", b"\xff\r\n")
    assert (tmp_path / "bytes").read_bytes() == b"\xff\r\n"


@pytest.mark.parametrize("torn", ['{"a": 1', '{"a": "\\u20', "[1, 2"])
def test_a_torn_last_line_is_ended_before_the_next_row(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "rows.jsonl"
    append_json_lines(path, [{"a": 0}])
    with path.open("a") as file:
        file.write(torn)
    append_json_lines(path, [{"a": 2}, {"a": 3}])
    assert list(read_json_lines(path)) == [(1, {"a": 0}), (3, {"a": 2}), (4, {"a": 3})]


def test_a_line_separator_inside_a_string_is_no_line_break(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"caption": "one\u2028two\x85three"}\n', encoding="utf-8")
    assert [row["caption"] for _, row in read_json_lines(path)] == ["one\u2028two\x85three"]


def test_deeply_nested_json_is_a_foreign_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("[" * 100_000 + "\n1\n")
    assert list(read_json_lines(path)) == [(2, 1)]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
def test_finite_gives_strict_json_and_keeps_the_rest(value: object) -> None:
    json.dumps(finite(value), allow_nan=False)
    assert finite(finite(value)) == finite(value)


def test_nan_and_infinity_become_null(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [math.nan, (math.inf, 1.0)], 2: -math.inf})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, [None, 1.0]], "2": None}


def test_the_data_are_on_the_disk_before_the_name_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    sync = os.fsync
    replace = os.replace

    def synced(descriptor: int) -> None:
        calls.append(("fsync", os.fstat(descriptor).st_ino))
        sync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        calls.append(("replace", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_atomic(tmp_path / "a", "b")
    inode = (tmp_path / "a").stat().st_ino
    assert calls == [("fsync", inode), ("replace", inode)]
