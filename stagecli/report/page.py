"""A self-contained HTML page: no scripts, nothing loaded from anywhere, in light and in dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from stagecli.report.drawing import Drawing
from stagecli.report.formats import significant
from stagecli.report.panel import Panel
from stagecli.report.pictures.sheet import draw_inline

__all__ = ["Section", "bullets", "figures", "page", "sections_html", "table"]

# Narrow screens first; what is wider than the page scrolls within itself.
STYLE = """:root { color-scheme: light dark;
  --ink: #222; --paper: #fff; --soft: #5c5c5c; --rule: #ddd; --raised: #f6f6f4; --accent: #0060a8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ddd; --paper: #181818; --soft: #aaa; --rule: #3a3a3a; --raised: #222;
    --accent: #7cc0f5 }
}
*, ::before, ::after { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1180px; margin: 1rem auto; padding: 0 1rem; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem }
h3 { font-size: 1rem; margin: 1rem 0 .3rem } h4 { font-weight: 600; margin: .5rem 0 .2rem }
a { color: var(--accent) }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; padding: 0 }
dl { margin: .3rem 0 1rem } dt { font-weight: 600 } dd { margin: 0 0 .4rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal }
th, td { text-align: left; vertical-align: top; max-width: 34rem;
  padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid var(--rule) }
th { font-weight: 600; color: var(--soft) }
.scroll { overflow-x: auto; margin: .4rem 0 }
.panels { display: flex; flex-wrap: wrap; gap: 1rem }
.note, figcaption small { color: var(--soft); font-size: .85rem }
figure { margin: 0; width: 560px; max-width: 100% }
svg { display: block; width: 100%; height: auto }
pre { font-size: .85rem; margin: 0; padding: .6rem; background: var(--raised) }
summary { cursor: pointer; padding: .3rem 0 }
.samples { display: flex; flex-wrap: wrap; gap: 0 1.6rem }
.sample { border-top: 1px solid var(--rule); padding: .2rem 0 .8rem; max-width: 100% }
.strip { display: flex; gap: .8rem; overflow-x: auto; padding: .2rem .2rem .5rem }
.clip { flex: none; width: 217px }
.clip img { display: block; width: 100%; height: 100px; background: #000 }
.clip audio { display: block; width: 100%; height: 40px }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem }
@media (max-width: 600px) { svg text { font-size: 9px !important } }
@media screen and (min-width: 601px) { td:first-child { white-space: nowrap } }
@media (min-width: 601px) {
  .strip { flex-wrap: wrap }
  dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem } dd { margin: 0 }
}
@media print {
  :root { --ink: #000; --paper: #fff; --soft: #444; --rule: #ccc; --raised: #fff }
  nav, audio { display: none } .strip { flex-wrap: wrap } figure, tr { break-inside: avoid }
  .scroll { overflow-x: visible } pre { white-space: pre-wrap } h2, h3 { break-after: avoid }
  th, td { overflow-wrap: anywhere; white-space: normal; padding-right: .6rem }
}"""


def page(title: str, body: Iterable[str]) -> str:
    """The page with a body of HTML elements; halves of surrogate pairs in it become `?`."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<style>{STYLE}</style><title>{escape(title)}</title>"
    )
    html = (
        f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'
    )
    return html.encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True)
class Section:
    """A part of a page; name: of the link to it; body: HTML, empty where there is nothing."""

    name: str
    title: str
    body: str


def sections_html(sections: Iterable[Section]) -> str:
    """Links to the sections that have a body, then the sections."""
    filled = [section for section in sections if section.body]
    links = "".join(
        f'<li><a href="#{section.name}">{escape(section.title)}</a></li>' for section in filled
    )
    bodies = "".join(
        f'<section aria-labelledby="{section.name}">'
        f'<h2 id="{section.name}">{escape(section.title)}</h2>{section.body}</section>'
        for section in filled
    )
    return f'<nav aria-label="On this page"><ul>{links}</ul></nav>{bodies}'


def bullets(sentences: Iterable[str]) -> str:
    """Sentences as a list; nothing without any."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>" if items else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], name: str = "table") -> str:
    """A table that scrolls by itself where it is wider than the page; name: for screen readers."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = ""
    for row in rows:
        body += "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
    return (
        f'<div class="scroll" role="group" tabindex="0" aria-label="{escape(name)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def figures(drawings: Iterable[Drawing]) -> str:
    """Drawings side by side, each named for screen readers; nothing without any."""
    pictures = "".join(
        "<figure>"
        + draw_inline(drawing).replace("<svg", f'<svg role="img" aria-label="{escape(words)}"', 1)
        + "</figure>"
        for drawing, words in ((drawing, _in_words(drawing)) for drawing in drawings)
    )
    return f'<div class="panels">{pictures}</div>' if pictures else ""


def _in_words(drawing: Drawing) -> str:
    """The title, and where the curves end."""
    if not isinstance(drawing, Panel):
        return drawing.title
    ends = [
        f"{trace.label} {significant(trace.points[-1].mean)}"
        for trace in drawing.traces
        if not trace.faint
    ]
    return f"{drawing.title}; last: {', '.join(ends)}" if ends else drawing.title
