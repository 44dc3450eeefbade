"""What numbers, lists and text of recipes and flags must keep to.

`Range` and `Length` are metadata of fields in `schema/`, and the limits of
options in `cli/`. No torch, and pydantic only while a model is built.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_SEED = 2**63 - 1  # the largest that every library takes


@dataclass(frozen=True)
class Range:
    """The finite numbers from `low` to `high`, both included unless open.

    As metadata of an annotated `int` or `float`, it refuses everything else: truth values, text,
    NaN, infinity, and fractions where the field is an `int`.
    """

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def __str__(self) -> str:
        """Such as "from 1 to 1,000" or "above 0 and at most 3,600"."""
        if not (self.open_low or self.open_high):
            return f"from {_shown(self.low)} to {_shown(self.high)}"
        lower = "above" if self.open_low else "at least"
        upper = "below" if self.open_high else "at most"
        return f"{lower} {_shown(self.low)} and {upper} {_shown(self.high)}"

    def __contains__(self, value: float) -> bool:
        """Whether a number lies inside; NaN does not."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def whole(self, value: object) -> int:
        """`value` as an int. Raises ValueError unless it is a whole number inside."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or value not in self:
            raise ValueError(f"must be a whole number {self}")
        return value

    def real(self, value: object) -> float:
        """`value` as a float. Raises ValueError unless it is a number inside."""
        if (type(value) is not int and type(value) is not float) or value not in self:
            raise ValueError(f"must be a number {self}")
        return float(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Checks a field before pydantic does, which would convert truth values and text."""
        from pydantic_core import core_schema

        check = self.whole if source is int else self.real
        return core_schema.no_info_before_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Callable[[Any], Any]) -> Any:
        """The limits in the words of JSON Schema."""
        low = "exclusiveMinimum" if self.open_low else "minimum"
        high = "exclusiveMaximum" if self.open_high else "maximum"
        return {**handler(schema), low: self.low, high: self.high}


@dataclass(frozen=True)
class Length:
    """The number of items that a list may have, as metadata of an annotated tuple."""

    least: int
    most: int

    def check(self, value: object) -> object:
        """`value`. Raises ValueError unless it is a list of such a length."""
        if isinstance(value, list | tuple) and self.least <= len(value) <= self.most:
            return value
        count = str(self.most)
        if self.least < self.most:
            count = f"{self.least} to {self.most:,}"
        raise ValueError(f"must be a list of {count} items")

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Checks the length before pydantic checks the items: a long list is one problem."""
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Callable[[Any], Any]) -> Any:
        """The limits in the words of JSON Schema."""
        return {**handler(schema), "minItems": self.least, "maxItems": self.most}


def is_plain_text(text: str) -> bool:
    """Whether text has neither lone surrogates nor control characters but tabs and newlines."""
    return not any(
        unicodedata.category(char) in ("Cc", "Cs") and char not in "\t\n" for char in text
    )


def _shown(number: float) -> str:
    """Grouped digits for whole numbers, else the shortest form."""
    if number == MAX_SEED:
        return "2^63 - 1"
    return f"{int(number):,}" if number == int(number) else f"{number:g}"


COUNT = Range(1, 10**9)
OPTIONAL_COUNT = Range(0, 10**9)
SEED = Range(0, MAX_SEED)
HERTZ = Range(1, 192_000)
CLIP_SECONDS = Range(0.05, 3600)
SAMPLER_STEPS = Range(1, 10_000)
CFG_SCALE = Range(0, 1000)
SAMPLES_PER_PROMPT = Range(1, 10_000)
STRENGTH = Range(0, 1, open_low=True)
CLIPS = Range(1, 1_000_000)
SCORED_CLIPS = Range(2, 1_000_000)
UPDATE_SECONDS = Range(0.1, 3600)
