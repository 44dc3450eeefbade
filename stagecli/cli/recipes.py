"""`stagecli recipes`: list, show, copy, check, and the schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stagecli.cli.options import AsJson, Force, Overrides, RecipeName
from stagecli.errors import EXIT_FAILED, StageError, printable
from stagecli.terminal.console import Console

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="List, show, copy and check recipes."
)


@app.command("list")
def list_recipes(as_json: AsJson = False) -> None:
    """List the shipped recipes."""
    from stagecli.recipe.load import read_about
    from stagecli.recipe.source import shipped_recipes

    console = Console(as_json)
    rows = [{"name": name, **read_about(path)} for name, path in shipped_recipes().items()]
    columns = ("name", "summary", "needs")
    cells = [[row[column] for column in columns] for row in rows]
    console.result(rows, lambda: console.table("", columns, cells))


@app.command("show")
def show_recipe(recipe: RecipeName, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print a recipe with every default and the meaning of every key."""
    from stagecli.recipe.dump import dump_recipe
    from stagecli.recipe.keys import with_schema_line
    from stagecli.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    text = with_schema_line(printable(dump_recipe(loaded, documented=True)))
    Console(as_json).result(loaded.model_dump(mode="json"), lambda: print(text))


@app.command("copy")
def copy_recipe(
    recipe: RecipeName,
    destination: Annotated[Path, typer.Argument(help="File to write, or a folder.")],
    force: Force = False,
) -> None:
    """Copy a shipped recipe to a file of your own; the copy extends no other recipe."""
    from stagecli.recipe.dump import standalone_text
    from stagecli.recipe.keys import with_schema_line
    from stagecli.recipe.source import find_recipe
    from stagecli.targets import Target, plan_targets, write_target

    source = find_recipe(recipe)
    target = destination / source.name if destination.is_dir() else destination
    plan_targets([Target(target, recipe)], inputs=[source], force=force)
    write_target(target, with_schema_line(standalone_text(source)), force=force)
    Console().note(f"wrote {target};  train it with:  stagecli train {target}")


@app.command("schema")
def print_schema() -> None:
    """Print the JSON schema of recipes, by which editors complete and check them."""
    from stagecli.recipe.keys import schema_text

    print(schema_text(), end="")


@app.command("check")
def check_recipe(recipe: RecipeName, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check a recipe; exit 1 if it has problems."""
    from stagecli.recipe.load import load_recipe
    from stagecli.recipe.signature import signature

    console = Console(as_json)
    try:
        loaded = load_recipe(recipe, overrides or [])
    except StageError as error:
        if as_json:
            problems = [
                {"where": problem.where, "what": problem.what} for problem in error.problems
            ]
            console.result({"ok": False, "message": error.message, "problems": problems})
        else:
            console.error(error)
        raise typer.Exit(EXIT_FAILED) from None
    console.result({"ok": True, "name": loaded.about.name, "signature": signature(loaded)})
