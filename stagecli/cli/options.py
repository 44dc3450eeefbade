"""Options that several commands share, as annotated types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from stagecli.bounds import CFG_SCALE, SAMPLER_STEPS, Range
from stagecli.errors import StageError


def one_of(flag: str, *allowed: str) -> Callable[[str | None], str | None]:
    """A Typer callback that raises StageError unless the value is absent or one of `allowed`."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in allowed:
            raise StageError(
                f"{flag}: unknown value {value!r}", hint=f"one of: {', '.join(allowed)}"
            )
        return value

    return check


def number_option(*names: str, limits: Range, help: str) -> Any:
    """A Typer option for an `int` or `float`, or a list of them, that must lie within `limits`.

    Its help names the limits. Typer's own would let NaN through, and report one end only.
    """

    def check(value: Any) -> Any:
        for number in value if isinstance(value, list) else [value]:
            if number is not None and number not in limits:
                raise StageError(f"{names[0]}: must be a number {limits}, got {str(number)[:40]}")
        return value

    return typer.Option(*names, callback=check, help=f"{help}  [{limits}]")


AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
]
CfgScale = Annotated[
    float | None,
    number_option(
        "--cfg-scale", limits=CFG_SCALE, help="Scale of classifier-free guidance; 1 turns it off."
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Replace files that exist; inputs are never replaced.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key (repeatable)."),
]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="Directory that holds the runs.")]
Sampler = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        help="euler, heun or ab2.",
        callback=one_of("--sampler", "euler", "heun", "ab2"),
    ),
]
Steps = Annotated[
    int | None,
    number_option("--steps", limits=SAMPLER_STEPS, help="Sampler steps; default: the recipe's."),
]
