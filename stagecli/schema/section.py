"""What every section of a recipe is made of: the base class, and the types of its numbers.

No torch.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, field_validator

from stagecli import bounds
from stagecli.bounds import Length, Range, is_plain_text


def joined_paths(value: Any) -> Any:
    """A list of paths as one text, with `::` between them."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return "::".join(value)
    return value


# Every number of a recipe has one of these types, or a range of its own: finite, and no larger than
# anybody can mean.
Positive = Annotated[int, bounds.COUNT]
Natural = Annotated[int, bounds.OPTIONAL_COUNT]
Clips = Annotated[int, bounds.CLIPS]
Width = Annotated[int, Range(1, 65_536)]
Depth = Annotated[int, Range(1, 1000)]
Batch = Annotated[int, Range(1, 65_536)]
Bins = Annotated[int, Range(1, 1000)]
FilterOrder = Annotated[int, Range(1, 50)]
SamplerSteps = Annotated[int, bounds.SAMPLER_STEPS]
Seed = Annotated[int, bounds.SEED]
Real = Annotated[float, Range(-100, 100)]
PositiveReal = Annotated[float, Range(0, 1e6, open_low=True)]
Fraction = Annotated[float, Range(0, 1)]
PositiveFraction = Annotated[float, Range(0, 1, open_low=True)]
FractionBelowOne = Annotated[float, Range(0, 1, open_high=True)]
NoiseLevel = Annotated[float, Range(0, 1, open_low=True, open_high=True)]
Hertz = Annotated[float, bounds.HERTZ]
Paths = Annotated[str, BeforeValidator(joined_paths, json_schema_input_type=str | list[str])]
Some = Length(1, 100)
Two = Length(2, 2)


class Section(BaseModel):
    """Base of every section of a recipe: immutable, and unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        str_max_length=4000,
    )

    @field_validator("*")
    @classmethod
    def check_characters(cls, value: Any) -> Any:
        """Text that no file name, file or terminal could hold is refused where it enters."""
        texts = value if isinstance(value, tuple) else (value,)
        if not all(is_plain_text(text) for text in texts if isinstance(text, str)):
            raise ValueError("must be text without control characters")
        return value
