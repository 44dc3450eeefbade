"""`stagecli train` around the loop: opens the run, trains, and records how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from stagecli import launcher
from stagecli.data.cache import Progress
from stagecli.errors import StageError, causes
from stagecli.runs import checkpoint
from stagecli.runs.directory import Run
from stagecli.runs.integrity import RESUMES
from stagecli.runs.opening import open_run
from stagecli.schema import Recipe
from stagecli.terminal.views import View
from stagecli.train.failure import as_stage_error, is_lost_connection
from stagecli.train.interrupt import Interrupt
from stagecli.train.precision import resolve_precision
from stagecli.train.prepare import Prepared, prepare
from stagecli.train.processes import build_accelerator
from stagecli.train.setup import starting_point, trainer_at


def train(
    recipe: Recipe,
    run_dir: Path,
    view: View,
    *,
    argv: Sequence[str] = (),
    overrides: Sequence[str] = (),
    restart: bool = False,
    accept_data: bool = False,
    from_checkpoint: int | None = None,
) -> str:
    """Train a recipe in `run_dir`, or resume it there.

    argv, overrides: the command line and its `--set` values, for run.json; accept_data: resume with
    other data than the run was trained on; from_checkpoint: the step to continue from, instead of
    the newest checkpoint.
    Returns "finished" or "interrupted". Raises StageError.
    """
    recipe = resolve_precision(recipe)
    run = None
    status = "failed"
    message = ""
    interrupt = Interrupt()
    with interrupt:
        accelerator = build_accelerator(recipe)
        if from_checkpoint is not None:
            checkpoint.resolve(run_dir / "checkpoints", str(from_checkpoint), needed=RESUMES)
        try:
            # The main process opens the run; the others wait until its directory is there.
            if accelerator.is_main_process:
                run = open_run(recipe, run_dir, argv=argv, overrides=overrides, restart=restart)
            accelerator.wait_for_everyone()
            start = starting_point(run_dir / "checkpoints", from_checkpoint)
            trainer = trainer_at(
                start, recipe, accelerator, run_dir, run=run, view=view, accept_data=accept_data
            )
            status = trainer.fit(interrupt)
        except KeyboardInterrupt:
            status = "interrupted"
            message = "stopped immediately"
            raise
        except Exception as error:
            failure = as_stage_error(error, run_dir, "training failed")
            message = failure.message
            # The main process tells what all have; another one tells what it alone has.
            alone = not isinstance(error.__cause__ or error, StageError)
            if not launcher.is_main() and alone and not is_lost_connection(error):
                view.close("failed", f"process {accelerator.process_index}: {causes(error)[-1]}")
            raise failure from error
        finally:
            # However it ends, the run directory and the view record it.
            if run is not None:
                record_end(run, status, message or None)
                run.close()
            told = status != "failed" and launcher.is_main()  # the caller prints the error
            view.close(status, message if told else "")
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
    return prepare(recipe, None, device, progress)
