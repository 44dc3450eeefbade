"""A self-contained HTML page: no scripts, nothing loaded from anywhere, in light and in dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """:root { color-scheme: light dark;
  --ink: #222; --paper: #fff; --soft: #666; --rule: #ddd }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ddd; --paper: #181818; --soft: #aaa; --rule: #3a3a3a }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1180px; margin: 2rem auto; padding: 0 1rem }
h1, h2, p, li { overflow-wrap: anywhere }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: left; vertical-align: top;
  padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid var(--rule) }
th { font-weight: 600; color: var(--soft) }
.scroll { overflow-x: auto } .panels { display: flex; flex-wrap: wrap; gap: 1rem }
.note { color: var(--soft); font-size: .9rem }
figure { margin: 0; width: 560px; max-width: 100% }
svg { display: block; width: 100%; height: auto }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem }"""


def page(title: str, body: Iterable[str]) -> str:
    """The page with a body of HTML elements."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<style>{STYLE}</style><title>{escape(title)}</title>"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that scrolls by itself where it is wider than the page."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = ""
    for row in rows:
        body += "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
