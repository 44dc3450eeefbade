"""A recipe as written: the TOML tree, where each key comes from, and the problems met so far.

A recipe may start with `extends = "RECIPE"`, the name of a shipped recipe or a path relative to
the file. Its keys are then added to that recipe's, section by section; `[about]` is not inherited.
The extended recipe must be complete: it cannot extend a third one.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stagecli.errors import Problem, StageError
from stagecli.files import is_regular_file
from stagecli.recipe.messages import shown
from stagecli.recipe.toml_positions import Key, Position, find_positions, split_key
from stagecli.recipe.toml_text import MAX_DEPTH, parse_toml, read_toml_text

EXTENDS = "extends"
STUDIES = "studies"  # folder of the shipped recipes of studies, and of the studies
STUDY_SUFFIX = ".study.toml"
SHOWN_LINE = 200  # characters of a line of the recipe, or of a flag, in an error


@dataclass(kw_only=True)
class RecipeSource:
    """A parsed recipe that is not checked yet.

    places: key -> the file that sets it and the position in that file; flags: key -> the `--set`
    argument that sets it; problems: everything found wrong so far, in no order.
    """

    path: Path
    tree: dict[str, Any]
    places: dict[Key, tuple[Path, Position]]
    flags: dict[Key, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def report(self, key: Key, message: str) -> None:
        """Add a problem with `key`, placed where the key is set or would belong."""
        where, excerpt = self._locate(key)
        self.problems.append(Problem(where, f"{'.'.join(key)}: {message}", excerpt))

    def _locate(self, key: Key) -> tuple[str, str | None]:
        """(place, source line) of a key, or of the innermost table around it that has one."""
        for length in range(len(key), 0, -1):
            prefix = key[:length]
            if prefix in self.flags:
                return _flag(self.flags[prefix]), None
            if prefix in self.places:
                path, position = self.places[prefix]
                excerpt = position.text[:SHOWN_LINE]
                return f"{path}:{position.line}:{position.column}", excerpt
            for flag, text in self.flags.items():
                if flag[:length] == prefix:  # only a flag mentions this table
                    return _flag(text), None
        return f"{self.path}:1:1", None

    def override(self, overrides: Sequence[str]) -> None:
        """Apply `--set` arguments in order; the last one wins. Malformed ones become problems."""
        for text in overrides:
            try:
                key, value = _parse_override(text)
                self.flags[key] = text
                _assign(self.tree, key, value)
            except ValueError as error:
                self.problems.append(Problem(_flag(text), str(error)))


def _flag(text: str) -> str:
    """A `--set` argument as an error shows it."""
    return f"--set {text}" if len(text) <= SHOWN_LINE else f"--set {text[:SHOWN_LINE]}..."


def shipped_recipes() -> dict[str, Path]:
    """Name -> path of every recipe that ships with the package."""
    folder = recipes_folder()
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in (*sorted(folder.glob("*.toml")), *sorted(folder.glob(f"{STUDIES}/*.toml")))
        if not path.name.endswith(STUDY_SUFFIX)
    }


def shipped_studies() -> dict[str, Path]:
    """Name -> path of every study that ships with the package."""
    paths = sorted((recipes_folder() / STUDIES).glob(f"*{STUDY_SUFFIX}"))
    return {path.name.removesuffix(STUDY_SUFFIX): path for path in paths}


def recipes_folder() -> Path:
    """The folder of what ships with the package: in a wheel, or beside the source."""
    in_wheel = Path(__file__).parents[1] / "_recipes"
    return in_wheel if in_wheel.is_dir() else Path(__file__).parents[2] / "recipes"


def find_recipe(reference: str, folder: Path = Path()) -> Path:
    """Path of a recipe given by its path, relative to `folder`, or by its shipped name.

    Raises StageError that suggests the nearest shipped name.
    """
    path = folder / reference
    if is_regular_file(path):
        return path
    names = shipped_recipes()
    if reference in names:
        return names[reference]
    if os.path.exists(path):
        problem = "is a folder" if path.is_dir() else "is not a regular file"
    elif path.suffix == ".toml":
        problem = "no such recipe file"
    else:
        problem = "no such file and no shipped recipe of that name"
    wanted = reference if f"{STUDIES}/" in reference else path.stem
    matches = difflib.get_close_matches(wanted, names, n=1)
    hint = "`stagecli recipes list` shows the shipped recipes"
    if matches:
        hint = f"did you mean `{matches[0]}`?"
    raise StageError(
        f"recipe not found: {reference}", problems=[Problem(reference, problem)], hint=hint
    )


def read_recipe(path: Path) -> RecipeSource:
    """Parse a recipe file and the one it extends. Raises StageError if either cannot be parsed."""
    source = read_source(path)
    if EXTENDS not in source.tree:
        return source
    parent = _read_parent(source, source.tree.pop(EXTENDS))
    parent.tree.pop("about", None)
    inherited = {key: place for key, place in parent.places.items() if key[0] != "about"}
    source.tree = _merge(parent.tree, source.tree)
    source.places = {**inherited, **source.places}
    return source


def read_source(path: Path) -> RecipeSource:
    """Parse one TOML file, whatever it describes. Raises StageError if it cannot be parsed."""
    try:
        text = read_toml_text(path)
        tree = parse_toml(text)
    except tomllib.TOMLDecodeError as error:
        problem = _syntax_problem(path, str(error))
        raise StageError(f"{path} is not valid TOML", problems=[problem]) from error
    except ValueError as error:
        problem = _syntax_problem(path, str(error))
        raise StageError(f"cannot read {path}", problems=[problem]) from error
    places = {key: (path, position) for key, position in find_positions(text).items()}
    return RecipeSource(path=path, tree=tree, places=places)


def _syntax_problem(path: Path, message: str) -> Problem:
    match = re.search(r"^(.*) \(at line (\d+), column (\d+)\)$", message)
    if not match:
        return Problem(str(path), message)
    return Problem(f"{path}:{match[2]}:{match[3]}", match[1])


def _read_parent(source: RecipeSource, reference: object) -> RecipeSource:
    """The recipe that `source` extends. Raises StageError placed at the `extends` line."""

    def refuse(message: str, hint: str | None) -> StageError:
        source.report((EXTENDS,), message)
        return StageError(f"{source.path} has 1 problem", problems=source.problems, hint=hint)

    if not isinstance(reference, str):
        raise refuse(
            "must be text: the name or path of a recipe",
            "name a shipped recipe, or give a path relative to this file",
        )
    try:
        path = find_recipe(reference, source.path.parent)
    except StageError as error:
        raise refuse(f"{error.problems[0].what}, got {shown(reference)}", error.hint) from None
    parent = read_source(path)
    if EXTENDS in parent.tree:
        raise refuse(
            f"{shown(reference)} extends another recipe itself",
            "extend a recipe that is complete; `stagecli recipes copy` makes a complete copy",
        )
    return parent


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` on top, table by table."""
    merged = dict(base)
    for key, value in changes.items():
        old = base.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _parse_override(text: str) -> tuple[Key, Any]:
    """`train.lr=1e-4` -> (("train", "lr"), 1e-4); a value that is not TOML is taken as a string.

    Raises ValueError.
    """
    key_text, equals, value_text = text.partition("=")
    if not equals:
        raise ValueError("needs the form key=VALUE")
    key = split_key(key_text.strip())
    if key[0] == EXTENDS:
        raise ValueError(f"`{EXTENDS}` can be set in a recipe file only")
    if len(key) > MAX_DEPTH:
        raise ValueError(f"has a key of more than {MAX_DEPTH} parts")
    try:
        return key, parse_toml(f"value = {value_text}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value_text.strip()


def _assign(tree: dict[str, Any], key: Key, value: Any) -> None:
    """Set `key` in a nested dictionary. Raises ValueError if it runs through a plain value."""
    node = tree
    for name in key[:-1]:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ValueError(f"`{name}` is not a section")
    node[key[-1]] = value
