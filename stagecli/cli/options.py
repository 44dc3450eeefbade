"""Options that several commands share, as annotated types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

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


AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
]
CfgScale = Annotated[
    float | None,
    typer.Option("--cfg-scale", min=0, help="Scale of classifier-free guidance; 1 turns it off."),
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
    int | None, typer.Option("--steps", min=1, help="Sampler steps; default: the recipe's.")
]
