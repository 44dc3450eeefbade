"""Base class of the `[stage.NAME]` sections: the options of a mechanism and its declarations. No
torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import PlainValidator, WithJsonSchema

from stagecli.bounds import Range
from stagecli.schema.section import Section

Role = Literal["teacher", "monitor"]
LAYERS = Range(-1000, 1000)


def _check_layer(value: Any) -> int | tuple[int, ...] | Literal["mean"]:
    """A number, some numbers or "mean". Raises ValueError."""
    if value == "mean":
        return "mean"
    try:
        if isinstance(value, list | tuple) and 0 < len(value) <= 1000:
            return tuple(map(LAYERS.whole, value))
        return LAYERS.whole(value)
    except ValueError:
        raise ValueError(f'must be whole numbers {LAYERS}, or "mean"') from None


Layer = Annotated[
    int | tuple[int, ...] | Literal["mean"],
    PlainValidator(_check_layer),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer"},
                {"type": "array", "items": {"type": "integer"}},
                {"const": "mean"},
            ]
        }
    ),
]


@dataclass(frozen=True)
class RegimeNeed:
    """Why a mechanism cannot work without a measured regime.

    reason: one clause, such as "its schedule follows r"; option: the option that causes it, empty
    where the mechanism as a whole needs the regime; alternative: a way out other than adding the
    section, which continues "add [stage.regime], or ...".
    """

    reason: str
    option: str = ""
    alternative: str = ""


class MechanismOptions(Section):
    """Options of a mechanism. What other packages have to know about it is declared here, not in a
    list of theirs.

    paths: names of the options that may hold `${VAR}`; removed: options of earlier versions, with
    the reason they are no longer needed; removed_values: (option, value) of earlier versions, with
    what to use instead; earlier: options that earlier versions did not have, with the value that
    repeats what those did, for their runs.
    """

    paths: ClassVar[tuple[str, ...]] = ()
    removed: ClassVar[Mapping[str, str]] = {}
    removed_values: ClassVar[Mapping[tuple[str, str], str]] = {}
    earlier: ClassVar[Mapping[str, Any]] = {}

    def encoders(self) -> Mapping[str, Role]:
        """Options that name an SSL encoder which steers training, with the encoder's role."""
        return {}

    def regime_need(self) -> RegimeNeed | None:
        """Why these options need the regime, or None if they don't."""
        return None

    def adapts_density(self) -> bool:
        """Whether the density of t follows something that is measured while training."""
        return False
