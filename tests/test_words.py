"""What people read: every term is explained, and numbers and stages do not contradict them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import read_rows
from helpers.source import SOURCES, room, text_of

from stagecli.errors import significant
from stagecli.metrics import in_training
from stagecli.recipe.load import load_recipe
from stagecli.report.evaluation import score_words
from stagecli.report.mechanisms import figure_words, names
from stagecli.report.regime_sentences import regime_sentences
from stagecli.report.regime_text import legend, legend_in_short, stage_text
from stagecli.terminal.regime_board import RegimeBoard

PROBE: dict[str, Any] = {
    "step": 80,
    "Dn": 0.4,
    "stage": "acquisition",
    "r": 1.0,
    "r_now": 1.0,
    "G_t0.50": 0.5,
    "R_t0.50": 0.0,
    "slope": -0.1,
    "slope_se": 0.01,
    "tau": 60.0,
    "tau_end": 60.0,
}


def test_the_stage_never_contradicts_r() -> None:
    """r may be at 1 before the probes in a row that refinement takes."""
    rows = [{**PROBE, "step": step} for step in (20, 40, 60, 80)]
    board = RegimeBoard()
    for row in rows:
        board.add(row)
    live = "\n".join("".join(text for text, _ in line) for line in board.lines(100, 20, False))
    for text in (live, "\n".join(regime_sentences(rows, steps=70)), stage_text(PROBE)):
        assert "1.00" not in text or "acquisition (" not in text
        assert not re.search(r"semantic acquisition|regime  acquisition", text), text
        assert "3 probes in a row" in text
    assert stage_text({**PROBE, "r": 0.2}) == "acquisition"
    assert stage_text({**PROBE, "stage": "refinement"}) == "refinement"


def test_the_words_of_the_regime_are_explained() -> None:
    for lines in (legend("another clip"), legend_in_short("another clip")):
        text = "\n".join(lines)
        for term in ("r:", "Dn:", "acquisition", "refinement", "probe:", "t:", "to come"):
            assert term in text, term
    assert all(len(line) <= 76 for line in legend_in_short("another clip"))  # 80 with the frame


@pytest.mark.parametrize(("width", "room"), [(76, 8), (76, 11), (116, 30)])
def test_the_live_view_keeps_what_r_and_dn_are(width: int, room: int) -> None:
    board = RegimeBoard()
    board.add(PROBE)
    lines = ["".join(text for text, _ in line) for line in board.lines(width, room, False)]
    assert sum(line.startswith("r: progress made; Dn: distance, 0") for line in lines) == 1
    assert all(len(line) <= width for line in lines)


@pytest.mark.parametrize("kind", ["t2a", "sr"])
def test_every_score_of_training_is_explained(
    kind: str, t2a_recipe: Callable[..., Path], sr_recipe: Callable[..., Path]
) -> None:
    recipe = load_recipe(t2a_recipe() if kind == "t2a" else sr_recipe())
    rows = in_training.rows(recipe)
    assert [row for row in rows if not in_training.meaning(row)] == []
    lines = score_words(rows)
    assert len(lines) == len(in_training.computed(recipe))
    assert all(line.endswith("is better") for line in lines)


def test_every_figure_of_the_mechanisms_is_explained(
    cli: Callable[..., Any], t2a_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = t2a_recipe(
        train__steps=6,
        model__depth=4,
        stage__regime__every=2,
        stage__regime__clips=4,
        stage__guidance__hidden=16,
        stage__guidance__schedule="constant",
        stage__guidance__conflict_every=2,
        stage__timesteps__kind="progress",
        stage__structure__when="always",
    )
    result = cli("train", recipe)
    assert result.code == 0, result.stderr
    assert "Dn: distance, 0 the codec" in result.stderr
    keys = names(read_rows(tmp_path / "runs" / "t2a"))
    explained = figure_words(keys)
    mechanisms = {key.split("/")[1] for key in keys}
    assert len(mechanisms) == 3
    assert [key for key in keys if not figure_words([key])] == []

    # Each is in the report, once.
    shown = " ".join(cli("inspect-regime", "runs/t2a").stdout.split())
    assert all(shown.count(line) == 1 for line in explained)


def test_numbers_that_people_read_have_no_exponent() -> None:
    assert significant(11025.0, 3) == "11025"
    assert significant(-49540.2, signed=True) == "-49540"
    assert significant(350.2, 2) == "350"
    assert significant(0.25, signed=True) == "+0.25"
    assert significant(None, signed=True) == "-"


def test_values_of_any_size_are_not_printed_by_their_digits_alone() -> None:
    """`{x:.3g}` prints 11025 as 1.1e+04; `significant(x, 3)` does not."""
    rooms = ("evaluate", "generate", "train", "study")
    broken = [
        f"{module}: {match[0]}"
        for module, path in SOURCES.items()
        if room(module) in rooms
        for match in re.finditer(r"\{[^{}]*:\+?\.\dg\}", text_of(path))
        if not match[0].startswith("{p:")  # a share of chance, at most 1
    ]
    assert broken == []
