"""pydantic's validation errors as sentences about recipe keys."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from stagecli.recipe.history import describe_old_key, describe_old_value
from stagecli.recipe.toml_positions import Key
from stagecli.schema import Recipe

SHOWN_DIGITS = 30
SHOWN_CHARACTERS = 100
SHOWN_ITEMS = 5
OUR_WORDS = {
    "string_type": "must be text",
    "string_unicode": "must be UTF-8 text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "model_type": "must be a section",
    "dict_type": "must be a section",
    "string_too_long": "is too long: 4,000 characters at most",
}
"""pydantic's type of error -> the problem in a user's words."""


def explain(
    error: ValidationError,
    section: Key = (),
    known_keys: Sequence[str] | None = None,
    model: type[BaseModel] = Recipe,
) -> Iterator[tuple[Key, str]]:
    """(key, what is wrong with it) for every error.

    section: key of what was validated, if that was not the whole recipe, with its known_keys, to
    suggest the nearest one; model: of the whole file.
    """
    for item in error.errors():
        key = (*section, *error_key(item))
        if item["type"] == "extra_forbidden":
            yield key, describe_old_key(key) or _unknown_key(key, known_keys, model)
        elif item["type"] == "missing":
            yield key, "required, and missing"
        else:
            value = item["input"]  # an integer may have more digits than text can be made of
            old = describe_old_value(key, value)
            yield key, old or _bad_value(item)


def error_key(item: Any) -> Key:
    """The key that one pydantic error is about."""
    return tuple(str(name) for name in item["loc"])


def shown(value: object) -> str:
    """A value as an error shows it: in one short line, whatever it is."""
    if isinstance(value, int) and abs(value) > 10**SHOWN_DIGITS:
        digits = int(value.bit_length() * math.log10(2))  # repr would refuse very long ones
        return f"an integer of about {digits:,} digits"
    if isinstance(value, str) and len(value) > SHOWN_CHARACTERS:
        return f"{value[:SHOWN_CHARACTERS]!r}... ({len(value):,} characters)"
    if isinstance(value, list | tuple):
        items = ", ".join(map(shown, value[:SHOWN_ITEMS]))
        if len(value) <= SHOWN_ITEMS:
            return f"[{items}]"
        return f"[{items}, ...] ({len(value):,} items)"
    return "a section" if isinstance(value, dict) else repr(value)


def _unknown_key(key: Key, known_keys: Sequence[str] | None, model: type[BaseModel]) -> str:
    names = _keys_beside(key, model) if known_keys is None else known_keys
    matches = difflib.get_close_matches(key[-1], names, n=1, cutoff=0.5)
    return f"unknown key; did you mean `{matches[0]}`?" if matches else "unknown key"


def _keys_beside(key: Key, model: type[BaseModel]) -> list[str]:
    """All keys of the section that `key` belongs to; none if there is no such section."""
    for name in key[:-1]:
        field = model.model_fields.get(name)
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def _bad_value(item: Any) -> str:
    """pydantic's message in our style, with the nearest allowed word and the value given."""
    text = OUR_WORDS.get(item["type"]) or item["msg"].removeprefix("Value error, ")
    text = text[:1].lower() + text[1:]
    given = item["input"]
    if item["type"] == "literal_error" and isinstance(given, str):
        allowed = re.findall(r"'([^']+)'", item["msg"])
        matches = difflib.get_close_matches(given, allowed, n=1)
        if matches:
            text += f"; did you mean `{matches[0]}`?"
    if isinstance(given, dict):  # a whole section is not worth printing
        return text
    return f"{text}, got {shown(given)}"
