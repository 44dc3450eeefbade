"""A recipe without the places of one machine, and the networks that have to travel with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagecli.hub.folder import CONFIGS, SAFE, TOKENIZER, matches
from stagecli.recipe.signature import portable_name
from stagecli.runs.exports import NETWORKS
from stagecli.schema import Data, Recipe

# A path in a sentence: from a slash or tilde at the start of a word to the last name.
_PATH = re.compile(r"(?:(?<=[\s:`'\"(=])|^)[~/](?:[^\s`'\")/]*/)+(?=[^\s`'\")/])")


def portable_recipe(recipe: Recipe) -> tuple[Recipe, dict[str, Path]]:
    """(the recipe, with names of files and folders instead of their paths; networks to copy).

    Networks that generating needs and that lie in a local folder have a name under NETWORKS in the
    recipe; the second value says where each of these is now.
    """
    networks = {}
    tree = recipe.model_dump()
    for section, key in _needed_networks(recipe):
        folder = Path(tree[section][key]).expanduser()
        if folder.is_dir():
            name = f"{NETWORKS}/{section}-{key}"
            networks[name] = folder
            tree[section][key] = name
    tree["data"]["cache_dir"] = Data.model_fields["cache_dir"].default
    named = {
        key: value if key == "about" else _without_places(value) for key, value in tree.items()
    }
    return Recipe.model_validate(named), networks


def _needed_networks(recipe: Recipe) -> list[tuple[str, str]]:
    """(section, key) of the frozen networks that generating loads."""
    needed = {
        ("codec", "model"): recipe.codec.kind in ("dac", "encodec"),
        ("codec", "vocoder"): recipe.codec.kind == "mel" and bool(recipe.codec.vocoder),
        ("condition", "model"): recipe.condition.text == "transformers",
    }
    return [place for place, is_needed in needed.items() if is_needed]


def _without_places(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_places(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_without_places(inner) for inner in value)
    return portable_name(value)


def network_files(folder: Path) -> list[Path]:
    """The files of a frozen network that loading it reads."""
    return matches(folder, (*CONFIGS, *SAFE, *TOKENIZER))


def without_folders(text: str) -> str:
    """Text in which every absolute path is the name of the file or folder alone."""
    return _PATH.sub("", text)
