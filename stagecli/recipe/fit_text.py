"""A fitted recipe as TOML text: only what differs from the defaults, each key with its reason."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagecli.errors import counted, printable
from stagecli.recipe.check import check_recipe
from stagecli.recipe.dump import toml_literal
from stagecli.recipe.fit import Part
from stagecli.recipe.keys import with_schema_line
from stagecli.recipe.source import RecipeSource
from stagecli.recipe.toml_text import parse_toml
from stagecli.schema import Recipe

if TYPE_CHECKING:
    from stagecli.data.check import DataSetCheck

WIDTH = 100
TASKS = {"t2a": "Text to audio", "sr": "Super-resolution"}
FOLLOW = """
# Training can also follow the regime, and draw noise levels where meaning is still being learnt: on
# spoken digits that took 40 % of the steps (docs/timesteps.md). Remove both "# " to try it.
# [stage.timesteps]
# kind = "progress"
"""


def recipe_name(text: str) -> str:
    """A name for a recipe and its run, from any text: `My sounds` becomes `My-sounds`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-") or "mine"


def recipe_text(parts: Sequence[Part], *, check: DataSetCheck, name: str, path: Path) -> str:
    """The text of a recipe at `path`. Raises StageError if it could not be trained."""
    task = check.task
    data_path = printable(check.data.path)
    clips = sum(facts["clips"] for facts in check.report.facts["splits"].values())
    summary = f"{task} on {data_path}, {counted(clips, 'clip')}"
    lines = [
        f"# {TASKS[task]} on {data_path}, written by `stagecli recipes new`.",
        f"#   stagecli train {path}",
        f"# Check first: stagecli train {path} --dry-run.  How long: stagecli bench {path}",
        "# Keys that are not here have defaults; `stagecli recipes show` prints all of them.",
        "",
        "[about]",
        f"name = {toml_literal(name)}",
        f"summary = {toml_literal(summary)}",
        'needs = "2 CPU cores"',
        "",
        "[task]",
        f"kind = {toml_literal(task)}",
    ]
    for part in parts:
        lines += ["", *_part_lines(part)]
    text = "\n".join(lines) + "\n"
    if task == "t2a":
        text += FOLLOW
    check_recipe(RecipeSource(path=path, tree=parse_toml(text), places={}), to_train=True)
    return with_schema_line(text)


def _part_lines(part: Part) -> Iterator[str]:
    if part.note:
        yield from _comment(part.note)
    yield part.header
    defaults = _defaults(part.header.strip("[]"))
    for key in part.keys:
        if defaults.get(key.name) == key.value:
            continue
        if key.why:
            yield from _comment(key.why)
        yield f"{key.name} = {toml_literal(key.value)}"


def _defaults(section: str) -> dict[str, Any]:
    field = Recipe.model_fields.get(section)
    fields = getattr(field.annotation, "model_fields", {}) if field is not None else {}
    return {name: inner.default for name, inner in fields.items()}


def _comment(text: str) -> list[str]:
    sentence = text[0].upper() + text[1:]
    return textwrap.wrap(printable(sentence), WIDTH, initial_indent="# ", subsequent_indent="# ")
