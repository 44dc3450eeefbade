"""pydantic's validation errors as sentences about recipe keys."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from stagecli.recipe.history import describe_old_key, describe_old_value
from stagecli.recipe.toml_positions import Key
from stagecli.schema import Recipe


def explain(
    error: ValidationError, section: Key = (), known_keys: Sequence[str] | None = None
) -> Iterator[tuple[Key, str]]:
    """(key, what is wrong with it) for every error.

    section: key of what was validated, if that was not the whole recipe, with its known_keys, to
    suggest the nearest one.
    """
    for item in error.errors():
        key = (*section, *error_key(item))
        if item["type"] == "extra_forbidden":
            yield key, describe_old_key(key) or _unknown_key(key, known_keys)
        elif item["type"] == "missing":
            yield key, "required, and missing"
        else:
            yield key, describe_old_value(key, str(item["input"])) or _bad_value(item)


def error_key(item: Any) -> Key:
    """The key that one pydantic error is about."""
    return tuple(str(name) for name in item["loc"])


def _unknown_key(key: Key, known_keys: Sequence[str] | None) -> str:
    names = _keys_beside(key) if known_keys is None else known_keys
    matches = difflib.get_close_matches(key[-1], names, n=1, cutoff=0.5)
    return f"unknown key; did you mean `{matches[0]}`?" if matches else "unknown key"


def _keys_beside(key: Key) -> list[str]:
    """All keys of the section that `key` belongs to; none if there is no such section."""
    model: type[BaseModel] = Recipe
    for name in key[:-1]:
        field = model.model_fields.get(name)
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def _bad_value(item: Any) -> str:
    """pydantic's message in our style, with the nearest allowed word and the value given."""
    text = item["msg"].removeprefix("Value error, ")
    text = text[:1].lower() + text[1:]
    given = item["input"]
    if item["type"] == "literal_error" and isinstance(given, str):
        allowed = re.findall(r"'([^']+)'", item["msg"])
        matches = difflib.get_close_matches(given, allowed, n=1)
        if matches:
            text += f"; did you mean `{matches[0]}`?"
    if isinstance(given, dict):  # a whole section is not worth printing
        return text
    return f"{text}, got {given!r}"
