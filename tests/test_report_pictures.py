"""Pictures of runs: what is drawn, where it stands, and that a page or file of it is sound."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest
from helpers.run_directories import MONITOR, Page, make_run, regime_run, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure

from stagecli.errors import StageError
from stagecli.report.curves import Point
from stagecli.report.heatmap import HeatMap
from stagecli.report.html import html_page
from stagecli.report.panel import Mark, Panel, Trace, scale_colour
from stagecli.report.panels import run_panels
from stagecli.report.pictures.curves import draw_curves, label_places
from stagecli.report.pictures.heatmap import HEAT_COLOURS, draw_heat_map
from stagecli.report.pictures.sheet import draw_file, draw_inline
from stagecli.report.pictures.style import AXES_HEIGHT, AXES_WIDTH, picture_settings
from stagecli.report.plot import write_plot
from stagecli.report.run_report import read_run

SVG = "{http://www.w3.org/2000/svg}"


def structured(path: Path, *sizes: int) -> Path:
    """A run whose probes but the first have similarities, in groups of these sizes."""
    run = regime_run(path, count=20)
    labels = [k for k, size in enumerate(sizes) for _ in range(size)]
    similarities = [
        [1.0 if i == j else 0.4 if a == b else 0.1 for j, b in enumerate(labels)]
        for i, a in enumerate(labels)
    ]
    rows = [
        {
            **row,
            "structure_state": "waiting",
            "structure_S": similarities if k else None,
            "structure_z": k / 4 if k else None,
            "structure_labels": labels if k else None,
        }
        for k, row in enumerate(read_run(run).probes)
    ]
    write_rows(run / "probes.jsonl", rows)
    return run


def curve(values: list[float], label: str = "run", log: bool = False, **options: Any) -> Panel:
    """A panel with one trace, a value every ten steps."""
    points = [Point(10.0 * k, value, value, value) for k, value in enumerate(values, 1)]
    trace = Trace(label=label, points=points, colour="#0072b2")
    return Panel(title="Values", traces=[trace], log=log, **options)


def drawn(panel: Panel | HeatMap) -> Any:
    """Axes of the usual size with the panel on them, laid out."""
    figure = Figure(figsize=(2 * AXES_WIDTH, 3 * AXES_HEIGHT))
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.25, 1 / 3, 0.5, 1 / 3))
    with picture_settings():
        if isinstance(panel, HeatMap):
            draw_heat_map(axes, panel, {})
        else:
            draw_curves(axes, panel, {})
        canvas.draw()
    return axes


def tooltips(page: str) -> list[str]:
    return re.findall(r"<g><title>([^<]*)</title>", page)


def overlap(a: Any, b: Any) -> bool:
    """Whether two boxes share more than a pixel."""
    return bool(min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1)


# -- the page --------------------------------------------------------------------------------------


def assert_sound(page: str) -> None:
    """Tags close in order, ids are unique, and nothing is loaded or executed."""
    parser = Page()
    parser.feed(page)
    assert parser.open == []
    assert not {name for name, _ in parser.attributes} & {"srcset", "onclick"}
    sources = [value or "" for name, value in parser.attributes if name == "src"]
    assert all(source.startswith("data:") for source in sources)
    anchors = {value for name, value in parser.attributes if name == "href"}
    assert anchors <= {f"#{value}" for name, value in parser.attributes if name == "id"}
    links = [value for name, value in parser.attributes if name == "xlink:href"]
    assert all(link and link.startswith("#") for link in links)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "http" not in page
    assert "<script" not in page


def test_html_is_one_sound_page_that_loads_nothing(tmp_path: Path) -> None:
    reports = [read_run(make_run(tmp_path / name, name=f"{name} <&>")) for name in ("one", "two")]
    page = html_page(reports)
    assert_sound(page)
    assert "<b>here" not in page
    assert "one &lt;&amp;&gt;" in page
    shown = tooltips(page)
    assert shown.count("one &lt;&amp;&gt;") == shown.count("two &lt;&amp;&gt;") == 4
    assert sum(text in ("0.00-0.25", "0.25-0.50", "0.50-0.75") for text in shown) == 2 * 3
    text = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert "nan" not in text.lower().replace("mechanism", "")


def test_html_has_the_regime(tmp_path: Path) -> None:
    reports = [read_run(regime_run(tmp_path / name)) for name in ("one", "two")]
    for chosen, curves in ((reports[:1], 4 + 3 + 4 + 2), (reports, 2 * (4 + 3 + 4 + 1))):
        panels = run_panels(chosen)
        assert sum(len(panel.traces) for panel in panels if isinstance(panel, Panel)) == curves
        page = html_page(chosen)
        assert_sound(page)
        marks = sum(len(panel.marks) for panel in panels if isinstance(panel, Panel))
        assert len(tooltips(page)) == curves + marks
        assert page.count(">acquisition</text>") == 2
        for expected in (
            ">Regime</h2>",
            "r: share of the semantic progress within the budget",
            ">Progress by noise level</h2>",
            "refinement since step",
            "semantic progress",
            "r_now 0.",
            MONITOR,
        ):
            assert expected in page


def test_a_page_follows_light_and_dark(tmp_path: Path) -> None:
    """Text, grid and background of the pictures take the colours that the page defines."""
    page = html_page([read_run(regime_run(tmp_path / "demo"))])
    pictures = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    for name in ("ink", "soft", "rule", "paper"):
        assert f"--{name}: " in page
        assert f"var(--{name})" in pictures
    assert "prefers-color-scheme: dark" in page
    fixed = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", pictures))
    assert fixed.isdisjoint({"#000000", "#ffffff", "#222222", "#666666", "#dddddd"})


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("one",), ("one", "two")])
def test_plots(tmp_path: Path, names: tuple[str, ...]) -> None:
    reports = [read_run(regime_run(tmp_path / name)) for name in names]
    text = write_plot(reports, tmp_path / "made" / "a.svg").read_text()
    texts = [element.text for element in xml.etree.ElementTree.fromstring(text).iter(f"{SVG}text")]
    assert "Regime variable r (share of the semantic progress made)" in texts
    assert "acquisition" in texts
    assert write_plot(reports, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert write_plot(reports, tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_what_cannot_be_plotted(tmp_path: Path) -> None:
    report = read_run(make_run(tmp_path / "demo"))
    with pytest.raises(StageError, match="cannot plot"):
        write_plot([report], tmp_path / "curves.bmp")
    (tmp_path / "file").write_text("")
    with pytest.raises(StageError, match="cannot write"):
        write_plot([report], tmp_path / "file" / "curves.svg")
    for name in ("metrics", "bins"):
        (tmp_path / "demo" / f"{name}.jsonl").unlink()
    with pytest.raises(StageError, match="no curves yet") as caught:
        write_plot([read_run(tmp_path / "demo")], tmp_path / "curves.svg")
    assert caught.value.exit_code == 1


def test_the_same_runs_give_the_same_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the time and the user's configuration of matplotlib."""
    import matplotlib

    panels = run_panels([read_run(structured(tmp_path / "demo", 2, 3))])
    page = [draw_inline(panel) for panel in panels]
    files = [draw_file(panels, file_format) for file_format in ("svg", "png", "pdf")]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "svg.hashsalt": "other"}):
        assert [draw_inline(panel) for panel in panels] == page
        again = [draw_file(panels, file_format) for file_format in ("svg", "png", "pdf")]
        assert matplotlib.rcParams["font.size"] == 30
    assert again == files


# -- where things stand ----------------------------------------------------------------------------


def test_labels_do_not_lie_over_each_other() -> None:
    labels = [(0, 26, "one"), (5, 26, "two"), (60, 38, "three"), (98, 32, "four")]
    places = label_places(labels, 100)
    assert [place.flipped for place in places] == [False, False, False, True]
    spans: dict[int, list[tuple[float, float]]] = {}
    for place, (x, width, _) in zip(places, labels, strict=True):
        start = x - width if place.flipped else x
        assert all(start >= end for _, end in spans.get(place.lane, []))
        spans.setdefault(place.lane, []).append((start, start + width))


def test_texts_of_a_panel_do_not_overlap() -> None:
    """Title, tick labels, labels of marks, the axis' name and the legend."""
    marks = [Mark(step, "event", f"stage number {step}") for step in (5, 40, 45, 50, 199, 200)]
    panel = curve([2.0 / k for k in range(1, 21)], marks=marks)
    colours = [scale_colour(k, 12) for k in range(12)]
    panel.traces = [
        Trace(label=f"a rather long label {k}", points=panel.traces[0].points, colour=colour)
        for k, colour in enumerate(colours)
    ]
    axes = drawn(panel)
    texts = [axes.title, axes.xaxis.label, *axes.texts, *axes.get_legend().get_texts()]
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        shown = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
        texts += [label for place, label in shown if low <= place <= high]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    assert len(boxes) > 6 + 12 + 8
    for (name, box), (other_name, other) in itertools.combinations(boxes, 2):
        assert not overlap(box, other), (name, other_name)
    frame = axes.get_window_extent()
    assert axes.get_legend().get_window_extent().y1 < frame.y0
    assert all(frame.x0 <= text.get_window_extent().x0 for text in axes.texts)
    assert all(text.get_window_extent().x1 <= frame.x1 for text in axes.texts)


def test_panels_are_equally_wide_and_within_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A legend or the colour bar takes no room from other panels."""
    kept: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: Any, **options: Any) -> None:
        kept.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    write_plot([read_run(structured(tmp_path / "one", 4, 5, 3))], tmp_path / "a.png")
    figure = kept[0]
    curves = [axes for axes in figure.axes if axes.lines]
    assert len({round(axes.get_window_extent().width) for axes in curves}) == 1
    assert sum(axes.get_legend() is not None for axes in curves) >= 3
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box is not None
        assert box.x0 >= -1 and box.y0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-9, 1e9), st.floats(1.001, 1e6), st.booleans())
def test_axes_have_some_readable_ticks(low: float, factor: float, log: bool) -> None:
    axes = drawn(curve([low, low * factor], log=log))
    bottom, top = axes.get_ylim()
    assert bottom <= low <= low * factor <= top
    inside = [tick for tick in axes.get_yticks() if bottom <= tick <= top]
    labels = {axes.yaxis.get_major_formatter()(tick, 0) for tick in inside}
    assert 2 <= len(inside) <= 16
    assert len(labels) > len(inside) / 2
    assert all(len(label) <= 9 for label in labels)


@pytest.mark.parametrize(
    "values", [[0.0], [5.0, 5.0], [0.0, 0.0], [-1.0, 1.0], [1e-300, 1e90], [0.0, 1.0, 1e-9]]
)
@pytest.mark.parametrize("log", [False, True])
def test_degenerate_curves_are_drawn(values: list[float], log: bool) -> None:
    bottom, top = drawn(curve(values, log=log)).get_ylim()
    assert bottom < top
    assert "<svg" in draw_inline(curve(values, label="$", log=log))


# -- similarities of blocks ------------------------------------------------------------------------


def test_the_similarities_are_drawn_with_the_borders_of_the_groups(tmp_path: Path) -> None:
    runs = [
        structured(tmp_path / "one", 4, 5, 3),
        structured(tmp_path / "two", 2, 2),
        make_run(tmp_path / "plain"),
    ]
    reports = [read_run(run) for run in runs]
    maps = [panel for panel in run_panels(reports) if isinstance(panel, HeatMap)]
    assert [heat_map.title for heat_map in maps] == [
        f"Similarity of the blocks' updates, step 20,000, {name}" for name in ("one", "two")
    ]
    assert maps[0].groups == [(0, 4, "A"), (4, 9, "B"), (9, 12, "C")]
    assert (maps[0].low, maps[0].high) == (0.1, 0.4)
    shown = tooltips(html_page(reports))
    assert sum(text.startswith("blocks ") for text in shown) == 12 * 12 + 2 * 2 * 4
    assert [text for text in shown if text.startswith("group ")] == [
        *("group A", "group B", "group C"),
        *("group A", "group B"),
    ]
    assert "blocks 4 and 5: 0.100" in shown
    assert "blocks " not in "".join(tooltips(html_page([reports[2]])))


def test_frames_lie_around_the_groups_of_a_heat_map(tmp_path: Path) -> None:
    report = read_run(structured(tmp_path / "one", 10, 8, 10))
    (heat_map,) = [panel for panel in run_panels([report]) if isinstance(panel, HeatMap)]
    axes = drawn(heat_map)
    frames = [patch for patch in axes.patches if not patch.get_fill()]
    assert [(frame.get_x(), frame.get_width()) for frame in frames] == [
        (-0.5, 10),
        (9.5, 8),
        (17.5, 10),
    ]
    cells = [patch for patch in axes.patches if patch.get_fill()]
    assert len(cells) == 28 * 28
    greys = [cell for cell in cells if len(set(cell.get_facecolor()[:3])) == 1]
    assert len(greys) == 28  # the diagonal is no similarity

    # Beside the matrix, nothing lies over anything else.
    bar = axes.child_axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    boxes += [bar.get_tightbbox(), axes.get_window_extent()]
    for box, other in itertools.combinations(boxes, 2):
        assert not overlap(box, other)


def test_colours_go_from_light_to_dark() -> None:
    scale = LinearSegmentedColormap.from_list("similarity", HEAT_COLOURS)
    lightness = [sum(to_rgb(scale(k / 50))) for k in range(51)]
    assert lightness == sorted(lightness, reverse=True)
