"""Small recipes as text, and what the tests of recipes share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from stagecli.errors import EXIT_USAGE, StageError
from stagecli.recipe.load import load_recipe

T2A = """\
[task]
kind = "t2a"

[data]
sample_rate = 16000
seconds = 1.0

[codec]
kind = "mel"

[condition]
text = "bytes"

[train]
steps = 10
"""
SR = """\
[task]
kind = "sr"
[data]
sample_rate = 16000
seconds = 1.0
[codec]
kind = "mdct"
[condition]
cutoff = [1000, 4000]
[train]
steps = 10
"""


def write(folder: Path, text: str, name: str = "recipe.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refuse(reference: Path | str, overrides: Sequence[str] = ()) -> StageError:
    """The error that loading the recipe raises."""
    with pytest.raises(StageError) as caught:
        load_recipe(reference, overrides)
    assert caught.value.exit_code == EXIT_USAGE
    return caught.value


def by_place(error: StageError) -> dict[str, str]:
    """Place -> problem; fails if two problems share a place."""
    problems = {problem.where: problem.what for problem in error.problems}
    assert len(problems) == len(error.problems)
    return problems
