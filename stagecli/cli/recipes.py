"""`stagecli recipes`: list, show, copy, check, new, and the schema."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from stagecli.cli.help import GroupedCommand, examples
from stagecli.cli.options import AsJson, Force, Overrides, RecipeName, one_of
from stagecli.cli.progress import progress_bars
from stagecli.errors import EXIT_FAILED, StageError, counted, printable
from stagecli.terminal.console import Console

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="List, show, copy, check and make recipes."
)


@app.command("list", cls=GroupedCommand, epilog=examples("stagecli recipes list"))
def list_recipes(as_json: AsJson = False) -> None:
    """List the shipped recipes."""
    from stagecli.recipe.load import read_about
    from stagecli.recipe.source import shipped_recipes

    console = Console(as_json)
    rows = [{"name": name, **read_about(path)} for name, path in shipped_recipes().items()]
    columns = ("name", "summary", "needs")
    cells = [[row[column] for column in columns] for row in rows]
    console.result(rows, lambda: console.table("", columns, cells))


@app.command(
    "show",
    cls=GroupedCommand,
    epilog=examples(
        "stagecli recipes show quickstart", "stagecli recipes show my.toml --set model.size=S"
    ),
)
def show_recipe(recipe: RecipeName, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print a recipe with every default and the meaning of every key."""
    from stagecli.recipe.dump import dump_recipe
    from stagecli.recipe.keys import with_schema_line
    from stagecli.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    text = with_schema_line(printable(dump_recipe(loaded, documented=True)))
    Console(as_json).result(loaded.model_dump(mode="json"), lambda: print(text))


@app.command(
    "copy", cls=GroupedCommand, epilog=examples("stagecli recipes copy quickstart my.toml")
)
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


@app.command(
    "schema", cls=GroupedCommand, epilog=examples("stagecli recipes schema > recipe.schema.json")
)
def print_schema() -> None:
    """Print the JSON schema of recipes, by which editors complete and check them."""
    from stagecli.recipe.keys import schema_text

    print(schema_text(), end="")


@app.command(
    "check",
    cls=GroupedCommand,
    epilog=examples("stagecli recipes check my.toml --set train.lr=1e-3"),
)
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


@app.command(
    "new",
    cls=GroupedCommand,
    epilog=examples(
        "stagecli recipes new --data sounds/ --task t2a -o my.toml",
        "stagecli recipes new --data clips.csv --task sr --set data.path_column=file_name",
    ),
)
def new_recipe(
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="PATH",
            help="A folder of audio, a manifest (.jsonl, .csv, .tsv), or hf:NAME, hf:FOLDER.",
        ),
    ],
    task: Annotated[
        str, typer.Option("--task", help="t2a or sr.", callback=one_of("--task", "t2a", "sr"))
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; default: NAME.toml in this folder."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the recipe and its run; default: by the output."),
    ] = None,
    captions_from: Annotated[
        str | None,
        typer.Option(
            "--captions-from",
            metavar="COLUMN",
            help="t2a: column or key with the captions; `folder`: the name of each file's folder.",
        ),
    ] = None,
    overrides: Overrides = None,
    force: Force = False,
) -> None:
    """Write a recipe that fits a data set and trains on a small machine."""
    from stagecli.data.check import Question, check_data_set, locate
    from stagecli.recipe.data_keys import data_keys
    from stagecli.recipe.fit import fitted
    from stagecli.recipe.fit_text import recipe_name, recipe_text
    from stagecli.targets import Target, plan_targets, write_target

    # What to read and where to write.
    keys = {**locate(data), **data_keys(overrides or [])}
    if captions_from is not None:
        keys["caption_column"] = captions_from
    stem = output.stem if output else f"{Path(keys['path']).stem}-{task}"
    run_name = name if name is not None else recipe_name(stem)
    if run_name != recipe_name(run_name):
        raise StageError(
            f"--name: {run_name!r:.80} cannot name a run",
            hint=f"try --name {recipe_name(run_name)}",
        )
    target = output or Path(f"{run_name}.toml")
    plan_targets([Target(target, "--output")], inputs=[Path(keys["path"])], force=force)

    # What fits, as text that has been checked.
    question = Question(keys=keys, task=task, max_length=64)
    with tempfile.TemporaryDirectory() as scratch, progress_bars() as report:
        check = check_data_set(question, base=Path.cwd(), cache_dir=Path(scratch), progress=report)
    text = recipe_text(fitted(check, keys), check=check, name=run_name, path=target)
    console = Console()
    for problem in check.left_out:
        console.warn(f"left out: {problem.where}: {problem.what}")
    doubts = len(check.report.doubts) - len(check.left_out)
    if doubts:
        console.warn(
            f"{counted(doubts, 'doubt')} about the data: `stagecli data check` prints them"
        )
    write_target(target, text, force=force)
    console.note(f"wrote {target};  train it with:  stagecli train {shlex.quote(str(target))}")
