"""The similarity matrix of a run's blocks, drawn: as SVG, in the HTML page, and by matplotlib."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest
from helpers.run_directories import make_run, regime_run, write_rows

from stagecli.report import heatmap, read_run
from stagecli.report import html as report_html
from stagecli.report.heatmap import HeatMap
from stagecli.report.panels import panels


def structured(path: Path, *sizes: int) -> Path:
    """A run whose last probes have similarities in groups of these sizes; the first probe has none yet."""
    run = regime_run(path, count=20)
    labels = [k for k, size in enumerate(sizes) for _ in range(size)]
    S = [
        [1.0 if i == j else 0.4 if a == b else 0.1 for j, b in enumerate(labels)]
        for i, a in enumerate(labels)
    ]
    rows = [
        {
            **row,
            "structure_state": "waiting",
            "structure_S": S if k else None,
            "structure_z": k / 4 if k else None,
            "structure_labels": labels if k else None,
        }
        for k, row in enumerate(read_run(run).probes)
    ]
    write_rows(run / "probes.jsonl", rows)
    return run


def test_the_similarities_are_drawn_with_the_borders_of_the_groups(tmp_path: Path) -> None:
    runs = [
        structured(tmp_path / "one", 4, 5, 3),
        structured(tmp_path / "two", 2, 2),
        make_run(tmp_path / "plain"),
    ]
    reports = [read_run(run) for run in runs]
    maps = [panel for panel in panels(reports) if isinstance(panel, HeatMap)]
    assert [m.title for m in maps] == [
        f"Similarity of the blocks' updates, step 20,000, {n}" for n in ("one", "two")
    ]
    assert maps[0].groups == [(0, 4, "A"), (4, 9, "B"), (9, 12, "C")]
    assert (maps[0].low, maps[0].high) == (0.1, 0.4)
    pages = report_html.html(reports), report_html.plot(reports, tmp_path / "a.svg").read_text()
    for page in pages:
        assert page.count(f'stroke="{heatmap.BORDER}" stroke-width="2.2"') == 3 + 2
        assert page.count("<title>blocks ") == 12 * 12 + 2 * 2 * 4
        assert (
            page.count(f'fill="{heatmap.SELF}"><title>') == 12 + 4
        )  # the diagonal is no similarity
        assert "<title>blocks 4 and 5: 0.100</title>" in page
    assert report_html.html([read_run(runs[2])]).count("<title>blocks ") == 0


def test_everything_of_a_heat_map_is_within_its_panel(tmp_path: Path) -> None:
    (drawn,) = [
        p
        for p in panels([read_run(structured(tmp_path / "one", 10, 8, 10))])
        if isinstance(p, HeatMap)
    ]
    root = xml.etree.ElementTree.fromstring(heatmap.svg(drawn))
    texts = [e for e in root if e.tag == "text"]
    for e in [*texts, *(e for e in root if e.tag == "rect")]:
        x = float(e.get("x", 0))
        wide = float(e.get("width") or 6.2 * len(e.text or ""))
        wide = {"end": 0, "middle": wide / 2}.get(e.get("text-anchor", ""), wide)
        assert x >= 0 and x + wide <= heatmap.WIDTH
        assert (
            0
            <= float(e.get("y", 0))
            <= float(e.get("y", 0)) + float(e.get("height") or 0)
            <= heatmap.HEIGHT
        )
    free = [e for e in texts if not e.get("text-anchor")]
    boxes = [(float(e.get("x", 0)), float(e.get("y", 0)), 6.2 * len(e.text or "")) for e in free]
    for (x, y, wide), (other_x, other_y, _) in itertools.permutations(boxes, 2):
        assert abs(y - other_y) >= 11 or other_x < x or other_x >= x + wide, (
            x,
            y,
            other_x,
            other_y,
        )


def test_colours_go_from_light_to_dark() -> None:
    grey = [sum(int(heatmap.colour(k / 50)[i : i + 2], 16) for i in (1, 3, 5)) for k in range(51)]
    assert grey == sorted(grey, reverse=True)
    assert heatmap.colour(-1) == heatmap.colour(0) == "#f7fbff"
    assert heatmap.colour(2) == heatmap.colour(1) == "#08306b"


def test_legends_are_below_the_curves_in_a_png(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside the axes they covered the words beside the marks; the map takes no room from the other panels."""
    figure_of = pytest.importorskip("matplotlib.figure").Figure
    kept: list[Any] = []
    save = figure_of.savefig
    monkeypatch.setattr(
        figure_of, "savefig", lambda self, *a, **k: (kept.append(self), save(self, *a, **k))[1]
    )
    report_html.plot([read_run(structured(tmp_path / "one", 4, 5, 3))], tmp_path / "a.png")
    curves = [axis for axis in kept[0].axes if axis.get_visible() and axis.lines]
    legends = [axis for axis in curves if axis.get_legend()]
    assert len(legends) >= 3
    for axis in legends:
        assert axis.get_legend().get_window_extent().y1 < axis.get_window_extent().y0
    assert len({round(axis.get_window_extent().width) for axis in curves}) == 1
    maps = [axis for axis in kept[0].axes if axis.images]
    assert len(maps) == 1
    assert len(maps[0].patches) == 3
