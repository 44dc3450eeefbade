"""Numbers in sentences: one file is, two files are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from stagecli.errors import among, counted
from stagecli.generate.listening import loudness_note

SOURCE = Path(__file__).resolve().parents[1] / "stagecli"
NOUNS = "files|clips|captions|pairs|prompts|entries|scores|GPUs|checkpoints"
# Pairs of two or more by nature, and sentences whose count cannot be one.
ALLOWED = {
    "classes.py",  # "at least N clips are needed"
    "prompts.py",  # several prompts do not fit one file
    "moments.py",  # has its own words for one and two
    "distance.py",  # subsets have ten clips or more
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (counted(0, "file"), "0 files"),
        (counted(1, "file"), "1 file"),
        (counted(1200, "entry", "entries"), "1,200 entries"),
        (among(1, 1, "file", "was", "were"), "1 of 1 file was"),
        (among(1, 3, "file", "was", "were"), "1 of 3 files was"),
        (among(2, 3, "file", "was", "were"), "2 of 3 files were"),
        (among(1, 2, "pair"), "1 of 2 pairs"),
    ],
)
def test_nouns_and_verbs_follow_their_number(text: str, expected: str) -> None:
    assert text == expected


def test_one_file_was_turned_down() -> None:
    rows = [{"peak": 2.0, "gain_db": -7.0}, {"peak": 0.5, "gain_db": 0.0}]
    assert (loudness_note(rows) or "").startswith("1 of 2 files was turned down")
    assert (loudness_note(rows[:1]) or "").startswith("1 of 1 file was turned down")


def test_no_sentence_puts_a_plural_after_any_number() -> None:
    """A value in an f-string that is followed by a noun in the plural may be 1."""
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        if path.name in ALLOWED:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.JoinedStr):
                continue
            for value, text in zip(node.values, node.values[1:], strict=False):
                if isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant):
                    counts = ast.unparse(value.value).startswith(("len(", "count", "sum("))
                    plural = re.match(rf" (?:[a-z]+ )?(?:{NOUNS})\b", str(text.value))
                    if counts and plural:
                        wrong.append(f"{path.name}:{node.lineno}: ...{text.value}")
    assert not wrong, "\n".join(wrong)
