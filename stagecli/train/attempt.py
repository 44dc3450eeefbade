"""The start of an attempt: what the run directory records and the terminal shows before a step."""

from __future__ import annotations

from collections.abc import Sequence

from stagecli.errors import counted
from stagecli.files import JsonRow
from stagecli.flow.schedule import schedule_change
from stagecli.metrics import in_training
from stagecli.model.network import count_parameters
from stagecli.runs.directory import Notice, Run, command_line
from stagecli.schema import Recipe
from stagecli.stage.base import Event
from stagecli.train.prepare import Prepared
from stagecli.train.recorder import Recorder
from stagecli.train.state import TrainingState

SHOWN_CLIPS = 20  # skipped clips that the screen lists by name


def begin_attempt(
    recipe: Recipe, state: TrainingState, recorder: Recorder, prepared: Prepared, device: str
) -> None:
    """Open a new attempt on the main process and report what is special about it and its data.

    Raises OSError.
    """
    run = recorder.run
    if run is None:
        return
    step = state.step
    parameters = count_parameters(state.network)

    # The attempt itself.
    resumed = bool(run.info["attempts"])
    run.begin_attempt(step, command_line())
    run.save_info(parameters=parameters)
    recorder.trackers.start(recipe, run, step)
    recorder.view.start(view_header(recipe, run, step, parameters, device))

    recorder.report_problems(step)
    report_data(recorder, prepared, state, f"all in {run.path / 'events.jsonl'}")

    # What this attempt continues, and whether its scores compare with those before.
    if resumed:
        recorder.event(
            step,
            Event(
                mechanism="trainer",
                before="stopped",
                after="training",
                reason=f"resumed from step {step}",
            ),
        )
    notices = list(run.notices)
    change = schedule_change(step, run.before.train, recipe.train) if resumed and run.before else ""
    if change:
        notices.append(Notice("learning rate changed", change))
    for notice in notices:
        recorder.event(
            step,
            Event(
                mechanism="trainer",
                before="unchanged",
                after=notice.after,
                reason=notice.reason,
                evidence=notice.evidence,
            ),
        )


def report_data(recorder: Recorder, prepared: Prepared, state: TrainingState, rest: str) -> None:
    """Show what is doubtful about the data; record changed data and clips left out as events.

    rest: where the clips left out that are not shown can be read. Raises OSError.
    """
    # What is doubtful, files passed over among it.
    for doubt in prepared.data.report.doubts:
        recorder.view.note(f"data: {doubt}")
    if state.probes is not None and (shortage := state.probes.shortage()):
        recorder.view.note(shortage)
    for text in first_lines(prepared.left_out, rest):
        recorder.view.note(f"left out: {text}")

    # What differs from the data that the run was trained on, and what is not read.
    if prepared.data.event is not None:
        recorder.event(state.step, prepared.data.event)
    passed_over = prepared.source.passed_over
    if passed_over:
        recorder.event(state.step, not_read("passed over", "; ".join(passed_over), {}))
    skipped = prepared.left_out
    if skipped:
        reason = f"{counted(len(skipped), 'clip')} left out"
        recorder.event(state.step, not_read("left out", reason, {"clips": skipped}))


def not_read(outcome: str, reason: str, evidence: JsonRow) -> Event:
    """The event of files or clips that are there and are not trained on."""
    return Event(mechanism="data", before="found", after=outcome, reason=reason, evidence=evidence)


def view_header(recipe: Recipe, run: Run, step: int, parameters: int, device: str) -> JsonRow:
    """What the view shows about the run: its name, size, device, and where it stands."""
    options = recipe.train
    return {
        "name": run.path.name,
        "task": recipe.task.kind,
        "steps": options.steps,
        "step": step,
        "parameters": parameters,
        "device": device,
        "precision": options.precision,
        "batch_size": options.batch_size,
        "run_dir": str(run.path),
        "best_by": None if options.best == in_training.LOSS else options.best,
    }


def first_lines(lines: Sequence[str], rest: str) -> list[str]:
    """The first `SHOWN_CLIPS` lines, and how many more there are; rest: where to read those."""
    if len(lines) <= SHOWN_CLIPS:
        return list(lines)
    return [*lines[:SHOWN_CLIPS], f"and {len(lines) - SHOWN_CLIPS} more, {rest}"]
