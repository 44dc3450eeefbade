"""`stagecli train` around the loop: opens the run, trains, and records how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from stagecli.data.cache import Progress
from stagecli.errors import EXIT_FAILED, Problem, StageError
from stagecli.runs.directory import Run, open_run
from stagecli.schema import Recipe
from stagecli.stage.controller import Stages
from stagecli.terminal.views import View
from stagecli.train.precision import resolve_precision
from stagecli.train.prepare import Prepared, prepare
from stagecli.train.setup import build_accelerator, build_trainer


def train(
    recipe: Recipe,
    run_dir: Path,
    view: View,
    *,
    argv: Sequence[str] = (),
    overrides: Sequence[str] = (),
    restart: bool = False,
    accept_data: bool = False,
) -> str:
    """Train a recipe in `run_dir`, or resume it there.

    argv, overrides: the command line and its `--set` values, for run.json; accept_data: resume with
    other data than the run was trained on.
    Returns "finished" or "interrupted". Raises StageError.
    """
    # The main process opens the run; the others wait until its directory is there.
    recipe = resolve_precision(recipe)
    accelerator = build_accelerator(recipe)
    run = None
    if accelerator.is_main_process:
        run = open_run(recipe, run_dir, argv=argv, overrides=overrides, restart=restart)
    accelerator.wait_for_everyone()

    # However it ends, the run directory and the view record it.
    status = "failed"
    message = ""
    try:
        trainer = build_trainer(recipe, accelerator, run_dir, run, view, accept_data=accept_data)
        status = trainer.fit()
    except StageError as error:
        message = error.message
        raise
    except OSError as error:
        message = f"cannot write the run: {error.strerror or error}"
        raise StageError(
            message,
            problems=[Problem(str(error.filename or run_dir), str(error))],
            hint="free some space and run the same command again: "
            "it resumes from the last checkpoint",
            exit_code=EXIT_FAILED,
        ) from error
    except KeyboardInterrupt:
        status = "interrupted"
        message = "stopped immediately"
        raise
    finally:
        if run is not None:
            record_end(run, status, message or None)
        view.close(status, "" if status == "failed" else message)  # the caller prints the error
    return status


def record_end(run: Run, status: str, message: str | None) -> None:
    """Write how an attempt ended, or a start that led to none."""
    attempts = run.info["attempts"]
    with suppress(OSError):  # a second write error must not mask the first
        if not attempts:
            run.save_info(status=status, message=message)
        elif attempts[-1]["ended"] is None:
            run.end_attempt(status, message)


def prepare_only(recipe: Recipe, progress: Progress) -> Prepared:
    """Check the data and fill the caches without training. Raises StageError."""
    recipe = resolve_precision(recipe)
    device = build_accelerator(recipe).device
    return prepare(recipe, None, device, progress, Stages.of(recipe).features)
