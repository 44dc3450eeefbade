"""Which run of a study comes next, and where each stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from stagecli.study.plan import RunId, Study
from stagecli.terminal.study_board import RunState

PREPARED = ("training", "trained", "scoring", "done")


class Schedule:
    """The states of the runs, changed by what the workers report.

    A run waits for those whose directories it reads, and while another one fills a cache that both
    use.
    """

    def __init__(self, study: Study, runs: Iterable[RunId], caches: Mapping[str, str]) -> None:
        """runs: in the order of training; caches: arm -> name of the caches that it fills."""
        self.study = study
        self.caches = caches
        self.states: dict[RunId, RunState] = {run: RunState(steps=study.steps) for run in runs}
        self.trained: set[RunId] = set()
        self.filled: set[str] = set()

    def next(self) -> RunId | None:
        """A run that can start now; it counts as started."""
        filling = {
            self.caches[run.arm] for run, state in self.states.items() if state.state == "preparing"
        }
        for run, state in self.states.items():
            cache = self.caches[run.arm]
            ready = cache in self.filled or cache not in filling
            if state.state == "waiting" and ready and self.trained.issuperset(self.needs(run)):
                state.state = "preparing"
                return run
        return None

    def needs(self, run: RunId) -> list[RunId]:
        """The runs that a run waits for."""
        return self.study.needs(run)

    def unfinished(self) -> bool:
        """Whether a run is still waiting or at work."""
        return any(state.state not in ("done", "failed") for state in self.states.values())

    def failures(self) -> dict[RunId, str]:
        """Why runs have failed."""
        return {run: s.message for run, s in self.states.items() if s.state == "failed"}

    def take(self, run: RunId, kind: str, values: tuple[Any, ...], now: float) -> list[RunId]:
        """Take in what a worker reports; returns the runs whose states have changed."""
        state = self.states[run]
        if kind in PREPARED:
            self.filled.add(self.caches[run.arm])
        if kind == "training":
            state.state = "training"
            state.step = int(values[0])
            state.began = (now, state.step)
        elif kind == "step":
            state.step = int(values[0])
        elif kind == "trained":
            self.trained.add(run)
            state.state = "scoring"
            state.step = state.steps
        elif kind == "scoring":
            state.state = "scoring"
            state.scored = float(values[0])
        elif kind == "done":
            self.trained.add(run)
            state.state = "done"
        elif kind == "stopped":
            state.state = "waiting"
        elif kind == "failed":
            return self.fail(run, str(values[0]))
        return [run]

    def fail(self, run: RunId, message: str) -> list[RunId]:
        """Mark a run as failed, and those that need its directory unless it is trained."""
        state = self.states[run]
        state.state = "failed"
        state.message = message
        failed = [run]
        for other, waiting in self.states.items():
            if run not in self.trained and waiting.state == "waiting" and run in self.needs(other):
                failed += self.fail(other, f"needs the run {run}, which has failed")
        return failed
