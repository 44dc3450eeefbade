"""`stagecli train`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stagecli import launcher
from stagecli.cli.help import OUTPUT, examples
from stagecli.cli.options import Overrides, RecipeName, RunsDir
from stagecli.cli.progress import progress_bars
from stagecli.errors import EXIT_INTERRUPTED, StageError, counted
from stagecli.terminal.console import Console
from stagecli.terminal.live import make_view

if TYPE_CHECKING:
    from stagecli.schema import Recipe
    from stagecli.terminal.views import View

CHECK = "Check first"
RESUME = "Start over or resume"
ONCE = ("--restart", "--accept-data")  # flags that a resume does not repeat
EXAMPLES = examples(
    "stagecli train quickstart",
    "stagecli train my.toml --dry-run",
    "stagecli train my.toml --set train.lr=1e-4 --name low-lr",
)


def train(
    recipe: RecipeName,
    *,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the run; default: the recipe's.")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    overrides: Overrides = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Validate everything and print the plan without writing anything.",
            rich_help_panel=CHECK,
        ),
    ] = False,
    prepare_only: Annotated[
        bool,
        typer.Option(
            "--prepare-only",
            help="Check the data and fill the caches, then stop.",
            rich_help_panel=CHECK,
        ),
    ] = False,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart",
            help="Start over; the existing run is renamed, not deleted.",
            rich_help_panel=RESUME,
        ),
    ] = False,
    accept_data: Annotated[
        bool,
        typer.Option(
            "--accept-data",
            help="Resume although the data have changed; an event records how.",
            rich_help_panel=RESUME,
        ),
    ] = False,
    from_checkpoint: Annotated[
        int | None,
        typer.Option(
            "--from-checkpoint",
            min=0,
            metavar="STEP",
            help="Resume from this step; newer checkpoints are renamed, not deleted.",
            rich_help_panel=RESUME,
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show errors only.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Train a recipe; the same command again resumes it."""
    from stagecli.recipe.load import load_recipe

    # What to train, and where.
    if restart and from_checkpoint is not None:
        raise StageError("--restart starts over: it has no checkpoint to continue from")
    loaded = load_recipe(recipe, overrides or [])
    folder = _folder(loaded, runs_dir, name, recipe)
    if dry_run:
        _dry_run(loaded, folder.parent)
        return
    is_main_process = launcher.is_main()
    view = make_view(quiet or not is_main_process)
    if prepare_only:
        _prepare(loaded, view)
        return
    # Train, and say what comes next.
    from stagecli.train.launch import train as launch

    status = launch(
        loaded,
        folder,
        view,
        argv=sys.argv[1:],
        overrides=overrides or [],
        restart=restart,
        accept_data=accept_data,
        from_checkpoint=from_checkpoint,
    )
    console = Console()
    if status == "interrupted":
        if is_main_process:
            console.note(f"interrupted; resume with:  {launcher.command(_resuming(sys.argv[1:]))}")
        raise typer.Exit(EXIT_INTERRUPTED)
    if not quiet and is_main_process:
        console.note(f"run: {folder}   samples: {folder / 'samples'}")
        console.note(f"next:  stagecli evaluate {folder}   |   stagecli inspect-regime {folder}")


def _resuming(arguments: Sequence[str]) -> list[str]:
    """The arguments without those that are for one start only."""
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--from-checkpoint":
            next(words, None)  # its value
        elif word not in ONCE and not word.startswith("--from-checkpoint="):
            kept.append(word)
    return kept


def _folder(recipe: Recipe, runs_dir: Path, name: str | None, reference: str) -> Path:
    """Where the run goes. Raises StageError for a name that cannot be used."""
    from stagecli.runs.directory import run_folder

    if name is not None:
        return run_folder(runs_dir, name, "--name")
    if recipe.about.name:
        return run_folder(runs_dir, recipe.about.name, "about.name")
    return run_folder(runs_dir, Path(reference).stem, reference)


def _dry_run(recipe: Recipe, runs_dir: Path) -> None:
    from stagecli.train import dry_run

    with progress_bars() as report:
        plan = dry_run.make_plan(recipe, runs_dir, report)
    if launcher.is_main():
        dry_run.show_plan(plan, Console())


def _prepare(recipe: Recipe, view: View) -> None:
    from stagecli.train import launch

    prepared = launch.prepare_only(recipe, view.progress)
    view.close(
        "prepared",
        f"{len(prepared.train)} training and {counted(len(prepared.valid), 'validation clip')} "
        "are ready",
    )
    console = Console()
    for doubt in prepared.data.report.doubts:
        console.warn(f"data: {doubt}")
    skipped = prepared.source.skipped
    if skipped:
        console.warn(f"{counted(len(skipped), 'clip')} skipped:")
        for problem in skipped:
            console.note(f"  {problem.where}  {problem.what}")
