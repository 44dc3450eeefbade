"""Recipes as TOML text.

Written by hand rather than with `tomli-w`, which puts every item of an array on a line of its own
and writes no comments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import date, time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from stagecli.recipe.source import EXTENDS, read_recipe
from stagecli.recipe.toml_text import read_toml_text
from stagecli.schema import Recipe


def dump_recipe(recipe: Recipe, *, documented: bool = False) -> str:
    """The resolved recipe as TOML, every default written out; loads as the same recipe.

    documented: put the documentation of each key above it, as a comment.
    """
    return _dump_tree(recipe.model_dump(), documented)


def standalone_text(path: Path) -> str:
    """The text of a recipe file without `extends`: unchanged, or merged with what it extends.

    A merged text keeps the comment at the top of the file. Raises StageError, like `read_recipe`.
    """
    source = read_recipe(path)
    text = read_toml_text(path)
    if (EXTENDS,) not in source.places:
        return text
    lines = text.split("\n")
    comment = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    order = list(Recipe.model_fields)
    names = sorted(source.tree, key=lambda name: order.index(name) if name in order else 0)
    body = _dump_tree({name: source.tree[name] for name in names}, documented=False)
    return "\n".join([*comment, body])


def key_docs(section: str) -> dict[str, str]:
    """Key -> documentation of a section such as `train` or `stage.regime`; empty if unknown."""
    model: Any = None
    if section.startswith("stage."):
        from stagecli.stage import registry

        name = section.removeprefix("stage.")
        if name in registry.MECHANISMS:
            model = registry.load(name).Options
    elif section in Recipe.model_fields:
        model = Recipe.model_fields[section].annotation
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return {}
    return {name: field.description or "" for name, field in model.model_fields.items()}


def _dump_tree(tree: Mapping[str, Any], documented: bool) -> str:
    lines: list[str] = []
    for section, options in _sections(tree):
        docs = key_docs(section) if documented else {}
        if section:
            lines.append(f"[{section}]")
        for key, value in options.items():
            if value is None:  # TOML has no null; these keys default to it
                continue
            if docs.get(key):
                lines.append(f"# {' '.join(docs[key].split())}")
            lines.append(f"{_key(key)} = {toml_literal(value)}")
        lines.append("")
    return "\n".join(lines)


def _sections(tree: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(name, options) of each section; keys outside of any section come first, named ""."""
    loose, tables = _split(tree)
    if loose:
        yield "", loose
    for name, options in tables.items():
        if name != "stage":
            yield _key(name), options
            continue
        loose, mechanisms = _split(options)
        if loose:
            yield "stage", loose
        for mechanism, table in mechanisms.items():
            yield f"stage.{_key(mechanism)}", table


def _split(tree: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(plain values, tables) of a table."""
    loose = {key: value for key, value in tree.items() if not isinstance(value, Mapping)}
    return loose, {key: value for key, value in tree.items() if key not in loose}


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_literal(name)


def toml_literal(value: Any) -> str:
    """A value as it is written in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON strings are TOML strings, except that JSON allows a bare DEL character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_literal, value))}]"
    if isinstance(value, Mapping):
        items = (f"{_key(key)} = {toml_literal(item)}" for key, item in value.items())
        return f"{{{', '.join(items)}}}"
    if isinstance(value, (date, time)):
        return value.isoformat()
    return repr(value)
