"""Figures of mechanisms are shown whatever their names: terminal, pictures, live board."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import run_cli

from stagecli.report import mechanisms
from stagecli.report.panel import Panel
from stagecli.report.panels import run_panels
from stagecli.report.run_report import read_run
from stagecli.runs.opening import open_run
from stagecli.terminal.board import Board
from stagecli.terminal.board_lines import board_lines

ROWS = [
    {
        "train/loss": 1.0 / k,
        "stage/regime/r": 0.1 * k,
        "stage/guidance/lambda": 0.5 - 0.01 * k,
        "stage/timesteps/t_q10": 0.1,
        "stage/guidance/cosine_block1": 0.01 * k,
        "stage/guidance/cosine_block12": 0.02 * k,
        "stage/new/thing": float(k),
    }
    for k in range(1, 9)
]


def run_with_figures(tmp_path: Path) -> Path:
    from stagecli.recipe.load import load_recipe

    run = open_run(load_recipe("quickstart"), tmp_path / "runs" / "a", argv=[], overrides=[])
    run.begin_attempt(0, "")
    for k, row in enumerate(ROWS, 1):
        run.append("metrics", {"step": 10 * k, **row})
    run.end_attempt("finished", None)
    return tmp_path / "runs" / "a"


def test_names_are_in_order_without_the_regime() -> None:
    assert mechanisms.names(ROWS) == [
        "stage/guidance/lambda",
        "stage/guidance/cosine_block1",
        "stage/guidance/cosine_block12",
        "stage/timesteps/t_q10",
        "stage/new/thing",
    ]
    groups = mechanisms.together(mechanisms.names(ROWS))
    assert list(groups) == [
        ("guidance", "lambda"),
        ("guidance", "cosine"),
        ("timesteps", "t"),
        ("new", "thing"),
    ]
    assert len(groups["guidance", "cosine"]) == 2


def test_inspect_regime_shows_every_figure(tmp_path: Path) -> None:
    result = run_cli("inspect-regime", run_with_figures(tmp_path), cwd=tmp_path)
    assert result.code == 0
    for words in (
        "Mechanisms",
        "guidance lambda",
        "guidance cosine_block12",
        "timesteps t_q10",
        "new thing",
    ):
        assert words in result.stdout, words
    assert "regime r" not in result.stdout


def test_figures_are_drawn_one_panel_a_kind(tmp_path: Path) -> None:
    drawn = {
        panel.title: panel
        for panel in run_panels([read_run(run_with_figures(tmp_path))])
        if isinstance(panel, Panel)
    }
    assert [line.label for line in drawn["guidance: cosine"].traces] == [
        "cosine_block1",
        "cosine_block12",
    ]
    assert drawn["new: thing"].traces[0].points[-1].mean == 8.0


def test_the_live_board_has_a_line_for_each_mechanism() -> None:
    board = Board()
    board.step = 80
    row: dict[str, Any] = {"step": 80, **ROWS[-1]}
    board.add_row(row)
    text = ["".join(part for part, _ in line) for line in board_lines(board, 100, 30, plain=True)]
    assert any(
        line.startswith("guidance") and "lambda 0.42" in line and "cosine_block12 0.16" in line
        for line in text
    )
    assert any(line.startswith("new") and "thing 8" in line for line in text)
    assert all(len(line) <= 100 for line in text)
