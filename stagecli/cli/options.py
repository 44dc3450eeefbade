"""Options that several commands share, as annotated types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from stagecli.bounds import CFG_SCALE, SAMPLER_STEPS, Range
from stagecli.cli.completion import choices, complete_recipe, complete_run, complete_setting
from stagecli.cli.help import OUTPUT, SAMPLING
from stagecli.errors import StageError

SAMPLERS = ("euler", "heun", "ab2")


def one_of(flag: str, *allowed: str) -> Callable[[str | None], str | None]:
    """A Typer callback that raises StageError unless the value is absent or one of `allowed`."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in allowed:
            raise StageError(
                f"{flag}: unknown value {value!r}", hint=f"one of: {', '.join(allowed)}"
            )
        return value

    return check


def number_option(*names: str, limits: Range, help: str, panel: str | None = None) -> Any:
    """A Typer option for an `int` or `float`, or a list of them, that must lie within `limits`.

    Its help names the limits. Typer's own would let NaN through, and report one end only. panel:
    the heading that it stands under in --help.
    """

    def check(value: Any) -> Any:
        for number in value if isinstance(value, list) else [value]:
            if number is not None and number not in limits:
                raise StageError(f"{names[0]}: must be a number {limits}, got {str(number)[:40]}")
        return value

    return typer.Option(*names, callback=check, help=f"{help}  [{limits}]", rich_help_panel=panel)


AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON document on stdout and nothing else.",
        rich_help_panel=OUTPUT,
    ),
]
CfgScale = Annotated[
    float | None,
    number_option(
        "--cfg-scale",
        limits=CFG_SCALE,
        help="Scale of classifier-free guidance; 1 turns it off.",
        panel=SAMPLING,
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Replace files that exist; inputs are never replaced.",
        rich_help_panel=OUTPUT,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a recipe key (repeatable).",
        autocompletion=complete_setting,
    ),
]
RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="Path of a recipe, or the name of a shipped one.",
        autocompletion=complete_recipe,
    ),
]
Run = Annotated[
    Path,
    typer.Argument(help="Folder of a run, or its name in runs/.", autocompletion=complete_run),
]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="Directory that holds the runs.")]
Sampler = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        help="euler, heun or ab2.",
        callback=one_of("--sampler", *SAMPLERS),
        autocompletion=choices(*SAMPLERS),
        rich_help_panel=SAMPLING,
    ),
]
Steps = Annotated[
    int | None,
    number_option(
        "--steps",
        limits=SAMPLER_STEPS,
        help="Sampler steps; default: the recipe's.",
        panel=SAMPLING,
    ),
]
