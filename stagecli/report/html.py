"""Draws runs: one self-contained HTML page, or the same curves as SVG or (with matplotlib) PNG and PDF."""

from __future__ import annotations

import html as escaping
import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stagecli.errors import StageError
from stagecli.report import RunReport, heatmap
from stagecli.report import regime as report_regime
from stagecli.report.curves import duration, number
from stagecli.report.heatmap import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, HeatMap
from stagecli.report.panels import Line, Panel, event_text, lanes, panels
from stagecli.report.summary import summary
from stagecli.report.words import best_text

# -- SVG -------------------------------------------------------------------------------------------


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Round values between `low` and `high`: about five, or 1-2-5 per decade on a logarithmic axis."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        wide = len(decades) > 4
        found = [
            m * 10.0**d
            for d in decades
            for m in ((1,) if wide else (1, 2, 5))
            if low <= m * 10.0**d <= high
        ]
        if len(found) >= 3:
            return found
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(step * m for m in (1, 2, 2.5, 5, 10) if step * m >= (high - low) / 5)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    if abs(value) >= 1e4:
        return f"{value / 1e3:g}k"
    return f"{value:.4g}"


def svg(panel: Panel, x: float = 0, y: float = 0) -> str:
    """One panel as an <svg> element of WIDTH x HEIGHT; colours of text and grid come from a style sheet."""
    points = [p for line in panel.lines for p in line.points]
    log = panel.log and min(p[2] for p in points) > 0
    x_low = min(0.0, min(p[0] for p in points))
    x_high = max(x_low + 1, *(p[0] for p in points), *(mark.step for mark in panel.marks))
    y_low = min(p[1] for p in points)
    y_high = max(p[1] for p in points)
    if not log:  # from zero where zero is near, so that heights compare
        y_low = min(0.0, y_low) if y_low < 0.5 * y_high else y_low
    if y_high - y_low <= 1e-9 * abs(y_high) or y_high == y_low:
        around = 0.1 * abs(y_high) or 1.0
        y_low = y_low - around
        y_high = y_high + around
    pad = (y_high / y_low) ** 0.06 if log else 0.06 * (y_high - y_low)
    y_low, y_high = (
        (y_low / pad, y_high * pad) if log else (y_low if y_low == 0 else y_low - pad, y_high + pad)
    )
    y_low, y_high = panel.bounds or (y_low, y_high)

    def px(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - x_low) / ((x_high - x_low) or 1.0)

    def py(value: float) -> float:
        value = min(max(value, y_low), y_high)
        share = (
            math.log(value / y_low) / math.log(y_high / y_low)
            if log
            else (value - y_low) / (y_high - y_low)
        )
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    out = [
        f'<svg x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    ]
    scale = " (log scale)" if log else ""
    out.append(
        f'<text class="title" x="{LEFT}" y="18">{escaping.escape(panel.title)}{scale}</text>'
    )
    for value in ticks(y_low, y_high, log):
        at = py(value)
        out.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        out.append(
            f'<text class="tick" x="{LEFT - 7}" y="{at + 3.5:.1f}" text-anchor="end">{_short(value)}</text>'
        )
    for value in ticks(x_low, x_high, False):
        out.append(
            f'<text class="tick" x="{px(value):.1f}" y="{HEIGHT - 16}" text-anchor="middle">{_short(value)}</text>'
        )
    out.append(
        f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">step</text>'
    )
    out.extend(_marks(panel, px))
    for line in panel.lines:
        out.extend(_draw(line, px, py))
    out.extend(_labels(panel, px))
    return "\n".join([*out, "</svg>"])


def _marks(panel: Panel, px: Callable[[float], float]) -> list[str]:
    """Upright lines where something happened."""
    out = []
    for mark in panel.marks:
        place = (
            f'x1="{px(mark.step):.1f}" x2="{px(mark.step):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"'
        )
        out.append(f'<line class="mark" {place}><title>{escaping.escape(mark.text)}</title></line>')
    return out


def _labels(panel: Panel, px: Callable[[float], float]) -> list[str]:
    """The words beside the marks, over the curves."""
    out = []
    placed = lanes([(px(mark.step), mark.label) for mark in panel.marks], WIDTH - RIGHT, 6.2)
    for x, right, lane, label in placed:
        at = f'x="{x - 4 if right else x + 4:.1f}" y="{TOP + 11 + 13 * lane}"'
        at += f' text-anchor="{"end" if right else "start"}"'
        out.append(f'<text class="label" {at}>{escaping.escape(label)}</text>')
    return out


def _draw(line: Line, px: Any, py: Any) -> list[str]:
    out = []
    if line.band and len(line.points) > 2:
        top = [f"{px(s):.1f},{py(high):.1f}" for s, _, _, high in line.points]
        base = [f"{px(s):.1f},{py(low):.1f}" for s, _, low, _ in reversed(line.points)]
        out.append(
            f'<polygon points="{" ".join(top + base)}" fill="{line.colour}" fill-opacity="0.18"/>'
        )
    title = f"<title>{escaping.escape(line.label)}</title>"
    path = " ".join(f"{px(s):.1f},{py(v):.1f}" for s, v, _, _ in line.points)
    dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
    out.append(
        f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="1.7"{dash}>{title}</polyline>'
    )
    if len(line.points) < 25:
        for s, v, _, _ in line.points:
            out.append(
                f'<circle cx="{px(s):.1f}" cy="{py(v):.1f}" r="2.4" fill="{line.colour}">'
                f"<title>{escaping.escape(line.label)}: {v:.5g} at step {s:,.0f}</title></circle>"
            )
    return out


def legend(panel: Panel, x: float = 0, y: float = 0) -> str:
    """The keys of a panel's curves, as an <svg> element as wide as the panel."""
    out = []
    at = float(LEFT)
    row = 0
    for line in panel.lines:
        label = line.label if len(line.label) <= 40 else line.label[:39] + "~"
        length = 34 + 6.6 * len(label)
        if at + length > WIDTH - RIGHT and at > LEFT:
            at = float(LEFT)
            row = row + 1
        dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
        middle = 9 + 17 * row
        out.append(
            f'<line x1="{at:.0f}" x2="{at + 20:.0f}" y1="{middle}" y2="{middle}" stroke="{line.colour}"'
            f' stroke-width="3"{dash}/><text class="tick" x="{at + 25:.0f}" y="{middle + 4}">'
            f"{escaping.escape(label)}</text>"
        )
        at += length
    height = 17 * (row + 1) + 4
    head = f'<svg x="{x:g}" y="{y:g}" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">'
    return "\n".join([head, *out, "</svg>"])


# -- HTML ------------------------------------------------------------------------------------------

_SVG_STYLE = """text { font: 11px system-ui, sans-serif } .title { font-size: 13px; font-weight: 600 }
.mark { stroke-width: 1.4; stroke-dasharray: 3 3 }
.label { font-size: 10px; paint-order: stroke; stroke-width: 3px; stroke-linejoin: round }"""
_LIGHT = """text { fill: #333 } .tick { fill: #666 } .label { stroke: #fff }
.grid { stroke: #e4e4e4 } .mark { stroke: #999 }"""
_DARK = """text { fill: #ddd } .tick { fill: #aaa } .label { stroke: #181818 }
.grid { stroke: #3a3a3a } .mark { stroke: #888 }"""
_PAGE_STYLE = """:root { color-scheme: light dark; --ink: #222; --paper: #fff; --soft: #666; --rule: #ddd }
@media (prefers-color-scheme: dark) { :root { --ink: #ddd; --paper: #181818; --soft: #aaa; --rule: #3a3a3a } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1180px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid var(--rule); vertical-align: top }
th { font-weight: 600; color: var(--soft) }
.scroll { overflow-x: auto } .panels { display: flex; flex-wrap: wrap; gap: 1rem }
figure { margin: 0; width: 560px; max-width: 100% }
svg { display: block; max-width: 100%; height: auto }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem }"""

_FOOT = """<footer>Curves are means over equal stretches of steps, the band their lowest to highest value;
dashed upright lines are events.</footer>"""


def html(reports: Sequence[RunReport]) -> str:
    """One self-contained page about the runs: no scripts, nothing loaded from anywhere."""
    if not reports:
        raise StageError("there is no run to draw", hint="name at least one run directory")
    summaries = [summary(report) for report in reports]
    names = ", ".join(report.name for report in reports)
    style = (
        f"{_PAGE_STYLE}\n{_SVG_STYLE}\n{_LIGHT}\n@media (prefers-color-scheme: dark) {{ {_DARK} }}"
    )
    body = [
        f"<h1>{escaping.escape(names)}</h1>",
        _table(["", *(s["name"] for s in summaries)], _facts(summaries)),
    ]
    body.extend(_regime(summaries))
    for s in summaries:
        for title, lines in (("Reading", s["reading"]), ("Not readable", s["damage"])):
            if lines:
                items = "".join(f"<li>{escaping.escape(line)}</li>" for line in lines)
                suffix = f", {escaping.escape(s['name'])}" if len(summaries) > 1 else ""
                body.append(f"<h2>{title}{suffix}</h2><ul>{items}</ul>")
    drawn = panels(reports)
    if drawn:
        figures = []
        for p in drawn:
            figures.append(
                f'<figure aria-label="{escaping.escape(p.title)}">{"".join(_drawn(p))}</figure>'
            )
        body.append(f'<h2>Curves</h2><div class="panels">{"".join(figures)}</div>')
    events = _events(summaries)
    if events:
        body.append("<h2>Events</h2>" + _table(["run", "step", "what", "evidence"], events))
    bins = [_bin_cells(s["name"], b) for s in summaries for b in s["bins"]]
    if bins:
        columns = ["run", "t", "first tenth", "last tenth", "change", "share of the loss"]
        body.append("<h2>Loss by noise level</h2>" + _table(columns, bins))
    body.append(_FOOT)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><style>{style}</style>'
    head += f"<title>{escaping.escape(names)}</title>"
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'
    )


def _drawn(panel: Panel | HeatMap, x: float = 0, y: float = 0) -> list[str]:
    """A panel and, under it, the keys of its curves."""
    if isinstance(panel, HeatMap):
        return [heatmap.svg(panel, x, y)]
    return [svg(panel, x, y), *([legend(panel, x, y + HEIGHT)] if len(panel.lines) > 1 else [])]


def _regime(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """The regime's facts, one column per run, and how to turn it on where there is none."""
    out = []
    if any(s["regime"] for s in summaries):
        facts = [report_regime.facts(s["regime"]) for s in summaries]
        rows = [[key, *(f[key] for f in facts)] for key in facts[0]]
        out.append("<h2>Regime</h2>" + _table(["", *(s["name"] for s in summaries)], rows))
    for s in summaries:
        if s["regime_note"]:
            out.append(f"<p>{escaping.escape(s['name'])}: {escaping.escape(s['regime_note'])}</p>")
    return out


def _events(summaries: Sequence[dict[str, Any]]) -> list[list[str]]:
    """run, step, what, evidence: of every event; repeats of the regime's that change nothing are one row."""
    rows = []
    for s in summaries:
        found = [
            (e["step"], event_text(e), report_regime.evidence(e.get("evidence")))
            for e in s["events"]
            if e.get("mechanism") != "regime"
        ]
        for e in report_regime.timeline([e for e in s["events"] if e.get("mechanism") == "regime"]):
            reason = f" ({e['reason']})" if e["reason"] else ""
            found.append((e["step"], f"regime: {e['change']}{reason}", e["evidence"]))
        rows += [
            [s["name"], f"{step:,}", what, why]
            for step, what, why in sorted(found, key=lambda e: e[0])
        ]
    return rows


def _bin_cells(name: str, b: dict[str, Any]) -> list[str]:
    change = "-" if b["change"] is None else f"{100 * b['change']:+.1f} %"
    share = "-" if b["share"] is None else f"{100 * b['share']:.0f} %"
    return [
        name,
        f"{b['t_low']:.2f}-{b['t_high']:.2f}",
        _value(b["first"]),
        _value(b["last"]),
        change,
        share,
    ]


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _facts(summaries: Sequence[dict[str, Any]]) -> list[list[str]]:
    def fact(s: dict[str, Any]) -> dict[str, str]:
        valid = s["validation"] or {}
        parameters = number(s["parameters"])
        best = f"{_value(valid.get('best'))} at step {valid['best_step']:,}" if valid else "-"
        return {
            "task": str(s["task"] or "-"),
            "status": str(s["status"]),
            "step": f"{s['step']:,}" + (f" of {s['steps']:,}" if s["steps"] else ""),
            "parameters": "-" if parameters is None else f"{parameters / 1e6:.3g} M",
            "training loss, last 5 %": _value(s["loss"]["smoothed"]),
            "best validation loss": best,
            "best checkpoint": best_text(s["best_checkpoint"]),
            "samples per second": _value(s["speed"]["samples_per_s"]),
            "trained for": duration(s["time"]["spent_s"]),
            "attempts": str(max(1, len(s["attempts"]))),
            "version": str(s["version"] or "-"),
            "directory": str(s["path"]),
        }

    facts = [fact(s) for s in summaries]
    return [[key, *(f[key] for f in facts)] for key in facts[0]]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escaping.escape(c)}</th>" for c in columns)
    lines = ["".join(f"<td>{escaping.escape(str(c))}</td>" for c in row) for row in rows]
    return (
        f'<div class="scroll"><table><tr>{head}</tr>'
        + "".join(f"<tr>{line}</tr>" for line in lines)
        + "</table></div>"
    )


# -- files -----------------------------------------------------------------------------------------


def plot(reports: Sequence[RunReport], path: str | Path) -> Path:
    """Write the curves to `path` (.svg: no dependency; .png or .pdf: matplotlib) and return it."""
    path = Path(path)
    drawn = panels(reports)
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise StageError(f"cannot plot to `{path}`", hint="end the file name in .svg, .png or .pdf")
    if path.suffix != ".svg" and importlib.util.find_spec("matplotlib") is None:
        raise StageError(
            f"writing `{path}` needs matplotlib, which is not installed",
            hint="run `pip install 'stagecli[plot]'`, or end the file name in .svg",
        )
    if not drawn:
        raise StageError(
            "the runs hold no curves yet", hint="wait for the first log interval", exit_code=1
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".svg":
            path.write_text(_sheet(drawn), encoding="utf-8")
        else:
            _matplotlib(drawn, path)
    except OSError as problem:
        raise StageError(
            f"cannot write `{path}`: {problem.strerror or problem}", hint="name a writable file"
        ) from None
    return path


def _sheet(drawn: Sequence[Panel | HeatMap]) -> str:
    cell_height = HEIGHT + 60
    width = 2 * WIDTH
    height = cell_height * math.ceil(len(drawn) / 2)
    size = f'width="{width}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {width} {height}">',
        f'<style>{_SVG_STYLE}\n{_LIGHT}</style><rect {size} fill="#fff"/>',
    ]
    for k, panel in enumerate(drawn):
        parts += _drawn(panel, WIDTH * (k % 2), cell_height * (k // 2))
    return "\n".join([*parts, "</svg>\n"])


def _matplotlib(drawn: Sequence[Panel | HeatMap], path: Path) -> None:
    from matplotlib.figure import Figure

    rows = math.ceil(len(drawn) / 2)
    figure = Figure(figsize=(12, 3.7 * rows), layout="constrained")
    axes = list(figure.subplots(rows, 2, squeeze=False).flat)
    for axis, panel in zip(axes, drawn, strict=False):
        if isinstance(panel, HeatMap):
            heatmap.matplotlib(panel, axis)
        else:
            _curves(axis, panel)
    for axis in axes[len(drawn) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=130)


def _curves(axis: Any, panel: Panel) -> None:
    from matplotlib.colors import hsv_to_rgb

    for k, line in enumerate(panel.lines):
        hue = 0.69 - 0.62 * k / max(1, len(panel.lines) - 1)
        colour = line.colour if line.band else hsv_to_rgb((hue, 0.75, 0.8))
        steps, means, lows, highs = zip(*line.points, strict=True)
        style = "-" if not line.dash else (0, tuple(float(d) / 1.5 for d in line.dash.split()))
        axis.plot(steps, means, color=colour, linestyle=style, linewidth=1.4, label=line.label)
        if line.band and len(steps) > 2:
            axis.fill_between(steps, lows, highs, color=colour, alpha=0.18, linewidth=0)
    for mark in panel.marks:
        axis.axvline(mark.step, color="0.6", linewidth=0.9, linestyle=":")
    log = panel.log and all(p[2] > 0 for line in panel.lines for p in line.points)
    axis.set_yscale("log" if log else "linear")
    if panel.bounds:
        axis.set_ylim(*panel.bounds)
    _label_marks(axis, panel)
    low, high = axis.get_ylim()
    axis.set_yticks(ticks(low, high, log))
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(lambda value, _: _short(value))
    axis.set_title(panel.title, fontsize=10, loc="left")
    axis.set_xlabel("step")
    axis.grid(alpha=0.25)
    if (
        len(panel.lines) > 1
    ):  # under the axes: inside it would lie on the curves and on the words beside the marks
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)}
        axis.legend(fontsize=7, ncols=min(5, len(panel.lines)), frameon=False, **place)


def _label_marks(axis: Any, panel: Panel) -> None:
    left, right = axis.get_xlim()
    scale = 500 / (right - left)  # points; a figure is two panels wide
    placed = lanes([((mark.step - left) * scale, mark.label) for mark in panel.marks], 500, 6.0)
    for x, at_right, lane, label in placed:
        axis.annotate(
            label,
            (left + x / scale, 0.975 - 0.075 * lane),
            xycoords=axis.get_xaxis_transform(),
            fontsize=7.5,
            xytext=(-3 if at_right else 3, 0),
            textcoords="offset points",
            va="top",
            ha="right" if at_right else "left",
            bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.8},
        )
