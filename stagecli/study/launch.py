"""`stagecli study` around its workers: checks, starts runs, takes in what they report, goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from stagecli.errors import EXIT_FAILED, Problem, StageError
from stagecli.runs.lock import lock_run
from stagecli.study.plan import RunId, Study
from stagecli.study.pool import Message, Pool
from stagecli.study.preflight import check
from stagecli.study.records import missing, write_study
from stagecli.study.schedule import Schedule
from stagecli.study.work import is_trained
from stagecli.terminal.study_board import StudyBoard
from stagecli.terminal.study_views import StudyView
from stagecli.train.interrupt import Interrupt

WAIT = 0.2  # seconds for a report, between looks at signals


class Workers(Protocol):
    """Processes that do runs; `pool.Pool` is one."""

    @property
    def free(self) -> int: ...
    @property
    def running(self) -> list[RunId]: ...
    def start(self, run: RunId) -> None: ...
    def messages(self, seconds: float) -> Iterator[Message]: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...
    def kill(self) -> None: ...


def selected_runs(study: Study, arms: Sequence[str], seeds: Sequence[int]) -> list[RunId]:
    """The runs of these arms and seeds (none: all), and those that they need.

    Raises StageError for an arm or seed that there is not.
    """
    problems = [
        Problem("--arms", f"there is no arm {name!r}; there are: {', '.join(study.arms)}")
        for name in arms
        if name not in study.arms
    ]
    known = {run.seed for run in study.runs()}
    problems += [
        Problem("--seeds", f"no arm has the seed {seed}") for seed in seeds if seed not in known
    ]
    if problems:
        raise StageError(f"the study {study.name} has no such runs", problems=problems)
    chosen = [
        run
        for run in study.runs()
        if (not arms or run.arm in arms) and (not seeds or run.seed in seeds)
    ]
    if not chosen:
        raise StageError(f"no arm of {study.name} has such a seed: nothing to do")
    return study.with_needed(chosen)


def run_study(
    study: Study,
    runs: Sequence[RunId],
    view: StudyView,
    *,
    workers: int = 1,
    make_pool: Callable[[Study, int], Workers] = Pool,
) -> tuple[str, dict[RunId, str]]:
    """Train and score runs of a study; the same call again goes on.

    Returns "finished" or "interrupted", and why runs have failed. Raises StageError for what is
    wrong before the first step.
    """
    with locked(study), Interrupt() as interrupt:
        checked = check(study, list(runs), view.progress, view.note)
        write_study(study, checked.recipe, checked.metrics)
        schedule = Schedule(study, runs, checked.caches)
        for run in runs:
            if is_trained(study, run):
                schedule.take(run, "trained", (), 0.0)
                schedule.states[run].state = "waiting" if missing(study, run) else "done"
        cells = {(run.arm, run.seed): state for run, state in schedule.states.items()}
        view.start(StudyBoard(study.name, cells))
        with interrupt.at_once(False):
            status = _work(schedule, make_pool(study, workers), view, interrupt)
    return status, schedule.failures()


def _work(schedule: Schedule, pool: Workers, view: StudyView, interrupt: Interrupt) -> str:
    """Keep the workers busy until all runs are done, or a stop is requested."""
    stopping = False
    told: set[str] = set()
    try:
        while pool.running or (schedule.unfinished() and not stopping):
            if interrupt.requested and not stopping:
                stopping = True
                view.note("stopping: the runs at work are saved")
                pool.stop()
            while not stopping and pool.free and (run := schedule.next()) is not None:
                pool.start(run)
            if not pool.running:  # nothing can start, and nothing will change that
                break
            for message in pool.messages(WAIT):
                if message.kind == "note":
                    _note(view, message, told)
                    continue
                kind = message.kind
                if stopping and kind == "failed":  # it was ended, and goes on the next time
                    kind = "stopped"
                for run in schedule.take(message.run, kind, message.values, time.monotonic()):
                    view.changed((run.arm, run.seed))
    except BaseException:
        pool.kill()
        raise
    finally:
        pool.close()
        view.close()
    return "interrupted" if stopping else "finished"


def _note(view: StudyView, message: Message, told: set[str]) -> None:
    """Tell what a run notes, such as a doubt about the data, unless another run has told it."""
    text = str(message.values[0])
    if text not in told:
        told.add(text)
        view.note(f"{message.run}: {text}")


@contextmanager
def locked(study: Study) -> Iterator[None]:
    """Keep other processes from working on the same study. Raises StageError."""
    try:
        study.folder.mkdir(parents=True, exist_ok=True)
        lock = lock_run(study.folder)
    except OSError as error:
        raise StageError(
            f"cannot write the folder {study.folder}",
            problems=[Problem(str(error.filename or study.folder), error.strerror or str(error))],
            hint="choose a writable place with -o",
            exit_code=EXIT_FAILED,
        ) from error
    try:
        yield
    finally:
        lock.release()
