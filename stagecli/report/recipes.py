"""The recipes of runs on a page: the text of each, and where they differ."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from stagecli.files import NotTextError, read_user_text
from stagecli.report.page import table
from stagecli.report.run_report import RunReport

__all__ = ["recipe_differences", "recipes"]

LARGEST = 1_000_000  # bytes
UNSET = "-"
ABOUT = "about."  # describes a recipe, and trains nothing


def recipes(reports: Sequence[RunReport]) -> str:
    """The recipes of runs as HTML, the differences first; says so where one cannot be read."""
    texts: dict[str, str] = {}
    problems = []
    for report in reports:
        try:
            texts[report.name] = read_user_text(report.path / "recipe.toml", LARGEST)
        except NotTextError as problem:
            problems.append(f"{report.name}, recipe.toml: {problem}")
    html = "".join(f'<p class="note">{escape(problem)}</p>' for problem in problems)
    if len(texts) > 1:
        html += _differences(texts)
    for name, text in texts.items():
        html += (
            f"<details><summary>Recipe of {escape(name)}</summary>"
            f'<div class="scroll" role="group" tabindex="0" aria-label="recipe of {escape(name)}">'
            f"<pre>{escape(text)}</pre></div></details>"
        )
    return html


def _differences(texts: dict[str, str]) -> str:
    rows = recipe_differences(list(texts.values()))
    if not rows:
        return "<p>The recipes are equal, apart from what they say about themselves.</p>"
    return table(["differs", *texts], rows, "differences of the recipes")


def recipe_differences(texts: Sequence[str]) -> list[list[str]]:
    """[key, value in each recipe] of the keys whose values are not the same in all."""
    settings = [dict(_settings(text)) for text in texts]
    keys = dict.fromkeys(key for one in settings for key in one)
    rows = [[key, *(one.get(key, UNSET) for one in settings)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1 and not row[0].startswith(ABOUT)]


def _settings(text: str) -> Iterator[tuple[str, str]]:
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError):  # no difference can be told from it, but it is shown
        return
    yield from _flat("", tables)


def _flat(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", "on" if value == {} else str(value)
