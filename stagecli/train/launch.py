"""What `stagecli train` does around the loop: opens the run, trains, and says how it ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from stagecli.errors import EXIT_FAILED, Problem, StageError
from stagecli.runs.directory import open_run
from stagecli.schema import Recipe
from stagecli.stage.controller import Stages
from stagecli.terminal.views import View
from stagecli.train.precision import settled
from stagecli.train.prepare import Prepared, prepare
from stagecli.train.trainer import Trainer, make_accelerator


def train(
    recipe: Recipe,
    run_dir: Path,
    view: View,
    *,
    argv: Sequence[str] = (),
    overrides: Sequence[str] = (),
    restart: bool = False,
) -> str:
    """Train a recipe in `run_dir`, or resume it there. Returns the status; raises StageError."""
    recipe = settled(recipe)
    accelerator = make_accelerator(recipe)
    run = None
    if accelerator.is_main_process:
        run = open_run(recipe, run_dir, argv=argv, overrides=overrides, restart=restart)
    accelerator.wait_for_everyone()
    status = "failed"
    message = ""
    try:
        status = Trainer(recipe, accelerator, run_dir, run, view).fit()
    except StageError as error:
        message = error.message
        raise
    except OSError as error:
        message = f"cannot write the run: {error.strerror or error}"
        raise StageError(
            message,
            problems=[Problem(str(error.filename or run_dir), str(error))],
            hint="free some space and run the same command again: it resumes from the last checkpoint",
            exit_code=EXIT_FAILED,
        ) from error
    except KeyboardInterrupt:
        status = "interrupted"
        message = "stopped at once"
        raise
    finally:
        if run and run.info["attempts"] and run.info["attempts"][-1]["ended"] is None:
            with suppress(OSError):  # a full disk is not to hide what it led to
                run.end_attempt(status, message or None)
        elif run and not run.info["attempts"]:
            with suppress(OSError):
                run.save_info(status=status, message=message or None)
        view.close(
            status, "" if status == "failed" else message
        )  # the error itself is printed by the caller
    return status


def prepare_only(recipe: Recipe, progress: Callable[[str, int, int], None]) -> Prepared:
    """Check the data and fill the caches, and train nothing."""
    recipe = settled(recipe)
    return prepare(
        recipe, None, make_accelerator(recipe).device, progress, Stages.of(recipe).features
    )
