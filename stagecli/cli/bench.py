"""`stagecli bench`."""

from __future__ import annotations

from typing import Annotated

from stagecli.bounds import Range
from stagecli.cli.help import examples
from stagecli.cli.options import AsJson, Overrides, RecipeName, number_option
from stagecli.cli.progress import progress_bars
from stagecli.terminal.console import Console

EXAMPLES = examples("stagecli bench quickstart", "stagecli bench my.toml --steps 100 --json")
STEPS = Range(1, 100_000)


def bench(
    recipe: RecipeName,
    *,
    steps: Annotated[
        int, number_option("--steps", limits=STEPS, help="Steps that are measured.")
    ] = 20,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure how fast a recipe trains here, and where the time goes; keeps nothing."""
    from stagecli.recipe.load import load_recipe
    from stagecli.train.bench import bench as measure
    from stagecli.train.bench import show_bench

    console = Console(as_json)
    loaded = load_recipe(recipe, overrides or [])
    with progress_bars() as report:
        document = measure(loaded, steps, report)
    console.result(document, lambda: show_bench(document, console))
