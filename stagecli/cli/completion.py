"""Completion of words in a shell: recipes, runs, and the keys of `--set` with their choices.

Without torch, which would take seconds; keys come from the JSON schema that the package holds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, MutableMapping
from pathlib import Path

SHELL = "_STAGECLI_COMPLETE"  # variable that a shell sets to ask for completions
WORDS = "COMP_WORDS"  # those of the command line, in bash
CURRENT = "COMP_CWORD"  # number of the one that is completed
BASH = "complete_bash"
KEY_BEFORE = "_STAGECLI_KEY_BEFORE"  # set here: the key before the `=`, where that ends a word

Completions = list[tuple[str, str]]
"""(word, its help) of each."""


def choices(*words: str) -> Callable[[str], list[str]]:
    """A completion that offers fixed words."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def complete_recipe(incomplete: str) -> Completions:
    """Shipped recipes, and recipe files below the folder that is typed."""
    from stagecli.recipe.load import read_about
    from stagecli.recipe.source import shipped_recipes

    shipped = [
        (name, read_about(path)["summary"])
        for name, path in shipped_recipes().items()
        if name.startswith(incomplete)
    ]
    files = [(str(path), "") for path in _paths(incomplete) if path.suffix == ".toml"]
    return [*shipped, *files, *_folders(incomplete)]


def complete_run(incomplete: str) -> Completions:
    """Names of runs in runs/, and folders."""
    from stagecli.runs.names import run_names

    names = [(name, "run") for name in run_names() if name.startswith(incomplete)]
    return [*names, *_folders(incomplete)]


def complete_setting(incomplete: str) -> Completions:
    """`train.precision=` and other keys; behind a key, and for the only one left, its choices."""
    from stagecli.recipe.keys import recipe_keys

    typed, equals, value = incomplete.partition("=")
    key_before = os.environ.get(KEY_BEFORE)
    if key_before is not None:
        typed, equals, value = key_before, "=", incomplete
    keys = [key for key in recipe_keys() if key.name.startswith(typed)]
    if equals:
        words = [word for key in keys if key.name == typed for word in key.choices]
        begin = "" if key_before else f"{typed}="
        return [(f"{begin}{word}", "") for word in words if word.startswith(value)]
    if len(keys) == 1 and keys[0].choices:
        return [(f"{keys[0].name}={word}", "") for word in keys[0].choices]
    return [(f"{key.name}=", key.meaning) for key in keys]


def join_bash_words(environment: MutableMapping[str, str]) -> None:
    """Undo, in what bash passes on, that it takes `--set train.precision=au` for four words.

    It replaces the last of them, `au`, so that the key before it is noted apart.
    """
    if environment.get(SHELL) != BASH:
        return
    words = environment.get(WORDS, "").split("\n")[: int(environment.get(CURRENT, "0")) + 1]
    text = "\n".join(words)
    last = re.search(r"(?<=\n--set\n)([^\n]+)\n=(?:\n([^\n]*))?$", text)
    if last:
        environment[KEY_BEFORE] = last[1]
        text = text[: last.start()] + (last[2] or "")
    text = re.sub(r"(?<=\n--set\n)([^\n]+)\n=\n", r"\1=", text)
    environment[WORDS] = text
    environment[CURRENT] = str(text.count("\n"))


def _folders(incomplete: str) -> Completions:
    return [(f"{path}/", "") for path in _paths(incomplete) if path.is_dir()]


def _paths(incomplete: str) -> list[Path]:
    """What there is below the folder that is typed, without hidden entries."""
    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    return [path for path in entries if str(path).startswith(incomplete) and path.name[0] != "."]
