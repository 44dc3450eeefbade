"""State of a run as a view receives it, from which the live view is laid out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from stagecli.files import JsonRow, number
from stagecli.metrics.in_training import described, higher_is_better
from stagecli.report.curves import GrowingCurve
from stagecli.terminal.regime_board import RegimeBoard

__all__ = ["Board", "metric_names"]

RECENT_ROWS = 20  # over which the present pace is taken


@dataclass
class TrackedMetric:
    """The curve of one metric, and its best value with the step of it."""

    curve: GrowingCurve = field(default_factory=GrowingCurve)
    best: tuple[float, int] | None = None

    def add(self, value: float | None, step: int, higher_is_better: bool = False) -> None:
        """A new value; None, which is not finite, is skipped."""
        if value is None:
            return
        self.curve.add(value)
        sign = -1 if higher_is_better else 1
        if self.best is None or sign * value < sign * self.best[0]:
            self.best = (value, step)


@dataclass
class Job:
    """Progress of one piece of work beside training; total 0: unknown."""

    done: int
    total: int
    started: float
    updated: float


@dataclass
class Work:
    """Work before and between steps: filling caches, validation, saving."""

    jobs: dict[str, Job] = field(default_factory=dict)
    current: str | None = None  # a key of `jobs`; None: training

    def update(self, name: str, done: int, total: int) -> None:
        """Record progress; a job that goes backwards has started over."""
        now = time.monotonic()
        job = self.jobs.get(name)
        if job is None:
            job = self.jobs[name] = Job(0, total, now, now)
        if done < job.done:
            job.started = now
        job.done = done
        job.total = total
        job.updated = now
        self.current = None if total and done >= total else name


@dataclass
class Clock:
    """When training started, and at which times the last rows came."""

    started: float = field(default_factory=time.monotonic)
    recent: list[tuple[float, int]] = field(default_factory=list)  # (time, step)

    def add(self, step: int) -> None:
        self.recent = [*self.recent[-RECENT_ROWS:], (time.monotonic(), step)]

    def seconds_per_step(self) -> float | None:
        """The pace of the last rows, with validation and saving; None with too few."""
        if len(self.recent) < 2 or self.recent[-1][1] <= self.recent[0][1]:
            return None
        first_time, first_step = self.recent[0]
        last_time, last_step = self.recent[-1]
        return (last_time - first_time) / (last_step - first_step)


@dataclass
class Board:
    """State of a run as a view receives it; another thread may read it at any time."""

    info: JsonRow = field(default_factory=dict)  # of `View.start`
    step: int | None = None  # None until the first step: still preparing
    last: JsonRow = field(default_factory=dict)  # the newest value of every metric
    loss: TrackedMetric = field(default_factory=TrackedMetric)
    validation: TrackedMetric = field(default_factory=TrackedMetric)
    evaluation: JsonRow = field(default_factory=dict)  # the newest row with an evaluation
    followed_metric: TrackedMetric = field(default_factory=TrackedMetric)
    bins_first: JsonRow | None = None
    bins_last: JsonRow | None = None
    last_event: JsonRow | None = None  # but the regime's
    regime: RegimeBoard = field(default_factory=RegimeBoard)
    work: Work = field(default_factory=Work)
    clock: Clock = field(default_factory=Clock)
    closing: str | None = None  # how the run ended

    def add_row(self, row: JsonRow) -> None:
        """A row of metrics.jsonl."""
        known = {key: v for key, v in row.items() if v is not None or key == "train/loss"}
        self.last = {**self.last, **known}
        self.loss.add(number(row.get("train/loss")), row["step"])
        self.validation.add(number(row.get("valid/loss")), row["step"])
        if metric_names(row):
            self.evaluation = row
            name = self.followed_name()
            self.followed_metric.add(number(row.get(name)), row["step"], higher_is_better(name))
        self.clock.add(row["step"])

    def followed_name(self) -> str:
        """The metric whose curve is drawn: the one that chooses checkpoints, or the first."""
        chosen = self.info.get("best_by")
        return chosen if chosen in self.evaluation else metric_names(self.evaluation)[0]

    def add_bins(self, row: JsonRow) -> None:
        """A row of bins.jsonl."""
        self.bins_first = self.bins_first or row
        self.bins_last = row

    def add_event(self, row: JsonRow) -> None:
        """A row of events.jsonl."""
        if row.get("mechanism") == "regime":
            self.regime.event = row
        else:
            self.last_event = row

    def seconds_left(self) -> float | None:
        """Seconds to the last step at the present pace; None while it is unknown."""
        steps = self.info.get("steps")
        pace = self.clock.seconds_per_step()
        if not steps or self.step is None or pace is None:
            return None
        last_time, last_step = self.clock.recent[-1]
        return max(0.0, (steps - last_step) * pace - (time.monotonic() - last_time))


def metric_names(row: JsonRow) -> list[str]:
    """The evaluation metrics `eval/...` in a row, without those at single cutoffs."""
    names = []
    for key in row:
        description = described(key)
        if description is not None and not description[1]:
            names.append(key)
    return names
