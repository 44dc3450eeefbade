"""Load recipes: a path or a shipped name -> a checked `Recipe`.

Precedence: defaults < extended recipe < recipe < `--set`. Nothing else overrides: `${VAR}` is
replaced from the environment only in the path-like keys of `PATH_KEYS` and those that mechanisms
declare, and an unset one is an error, but in `[data]` of a run's recipe.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stagecli.errors import note_variables
from stagecli.recipe.check import check_recipe
from stagecli.recipe.history import update_old_keys
from stagecli.recipe.source import RecipeSource, find_recipe, read_recipe
from stagecli.recipe.toml_positions import Key
from stagecli.recipe.toml_text import parse_toml, read_toml_text
from stagecli.schema import Recipe
from stagecli.schema.section import joined_paths

PATH_KEYS = (
    ("data", "path"),
    ("data", "cache_dir"),
    ("codec", "model"),
    ("codec", "vocoder"),
    ("condition", "model"),
    ("evaluate", "judge"),
    ("train", "init"),
)


def load_recipe(reference: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe. Raises one StageError that lists every problem."""
    source = read_recipe(find_recipe(str(reference)))
    source.override(overrides)
    return _resolve(source, to_train=True)


def load_from_run(path: Path) -> Recipe:
    """The recipe that a run saved, by this version or an earlier one. Raises StageError."""
    source = read_recipe(find_recipe(str(path)))
    update_old_keys(source.tree)
    return _resolve(source, to_train=False)


def read_about(path: Path) -> dict[str, str]:
    """Summary, requirements and path of a recipe file, which is not checked."""
    about = parse_toml(read_toml_text(path)).get("about", {})
    return {"summary": about.get("summary", ""), "needs": about.get("needs", ""), "path": str(path)}


def _resolve(source: RecipeSource, *, to_train: bool) -> Recipe:
    for key, message in _expand_paths(source.tree):
        if to_train or key[0] != "data":  # a run is used without its data, or with others
            source.report(key, message)
    return check_recipe(source, to_train=to_train)


def _expand_paths(tree: dict[str, Any]) -> Iterator[tuple[Key, str]]:
    from stagecli.stage import registry

    for *tables, name in (*PATH_KEYS, *registry.path_keys(tree.get("stage"))):
        node: Any = tree
        for table in tables:
            node = node.get(table) if isinstance(node, dict) else None
        value = joined_paths(node.get(name)) if isinstance(node, dict) else None
        if not isinstance(value, str):
            continue
        variables = re.findall(r"\$\{(\w+)\}", value)
        note_variables(variables)
        for variable in variables:
            if variable in os.environ:
                value = value.replace(f"${{{variable}}}", os.environ[variable])
            else:
                yield (*tables, name), f"environment variable {variable} is not set"
        node[name] = value
