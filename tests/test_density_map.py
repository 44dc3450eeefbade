"""The density of t over a run: recorded in bins by the mechanism, and drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.run_directories import make_run, probe_rows, write_rows
from helpers.studies import BINS, density

from stagecli.report.density_map import DensityMap, density_course
from stagecli.report.panels import run_panels
from stagecli.report.pictures.sheet import draw_file, draw_inline
from stagecli.report.run_report import read_run
from stagecli.stage.probe_columns import DensityCourse


def moving_run(path: Path, count: int = 24) -> Path:
    """A run whose density moves from t = 0.3 to 0.8."""
    make_run(path, steps=600)
    rows, _ = probe_rows(600, count)
    for k, row in enumerate(rows):
        row |= density(0.3 + 0.5 * k / max(1, count - 1))
    write_rows(path / "probes.jsonl", rows)
    return path


def only_map(path: Path) -> DensityMap:
    (panel,) = [one for one in run_panels([read_run(path)]) if isinstance(one, DensityMap)]
    return panel


def test_each_probe_has_a_column_up_to_its_step(tmp_path: Path) -> None:
    panel = only_map(moving_run(tmp_path / "run"))
    assert panel.edges == tuple(range(0, 601, 25))
    assert len(panel.heights) == 24
    for column in panel.heights:
        assert sum(column) / BINS == pytest.approx(1.0)
    peaks = [(column.index(max(column)) + 0.5) / BINS for column in panel.heights]
    assert peaks[0] == pytest.approx(0.3, abs=0.02)
    assert peaks[-1] == pytest.approx(0.8, abs=0.02)
    assert list(panel.quantiles) == ["10 %", "50 %", "90 %"]


def test_many_probes_are_averaged(tmp_path: Path) -> None:
    panel = only_map(moving_run(tmp_path / "run", 200))
    assert len(panel.heights) == len(panel.edges) - 1 == 40
    assert (panel.edges[0], panel.edges[-1]) == (0, 600)
    assert sum(panel.heights[7]) / BINS == pytest.approx(1.0)


@pytest.mark.parametrize("step", [0, 1, 25])
def test_one_probe_is_drawn(step: int) -> None:
    shares = tuple(density(0.5)["density_shares"])
    quantiles = {"q10": (0.3,), "q50": (0.5,), "q90": (0.7,)}
    course = DensityCourse(title="t", steps=(step,), shares=(shares,), quantiles=quantiles)
    panel = DensityMap.of(course)
    assert panel.edges[0] < panel.edges[1] == step
    assert draw_file([panel], "png")


def test_the_picture_is_in_the_page_and_in_files(tmp_path: Path) -> None:
    panel = only_map(moving_run(tmp_path / "run"))
    svg = draw_inline(panel)
    assert "<title>50 % of t below</title>" in svg
    assert ">Density of t (1 is noise)</text>" in svg
    assert len(svg) < 300_000
    assert draw_file([panel, panel], "svg") == draw_file([panel, panel], "svg")


@pytest.mark.parametrize("shares", [None, 3, [0.5, 0.5], ["x"] * BINS, [None] * BINS])
def test_rows_without_shares_are_passed_over(tmp_path: Path, shares: Any) -> None:
    run = moving_run(tmp_path / "run")
    rows = [json.loads(line) for line in (run / "probes.jsonl").read_text().splitlines()]
    rows[3]["density_shares"] = shares
    write_rows(run / "probes.jsonl", rows)
    course = density_course(read_run(run))
    assert course is not None
    assert len(course.steps) == 23
    write_rows(run / "probes.jsonl", [{**row, "density_shares": shares} for row in rows])
    assert density_course(read_run(run)) is None
    assert not [one for one in run_panels([read_run(run)]) if isinstance(one, DensityMap)]
