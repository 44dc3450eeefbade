"""The state of a study while it works, and the lines of its table: arms by seeds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stagecli.report.formats import bar, duration, significant
from stagecli.terminal.console import StyledLine

STYLES = {"done": "green", "failed": "bold red", "waiting": "dim"}
SCORING = 0.15  # share of a run's work that is scoring
Cell = tuple[str, int]
"""(arm, seed)."""


@dataclass
class RunState:
    """Where a run stands.

    state: waiting, preparing, training, scoring, done or failed; began: (time, step) of training in
    this process, for the speed; scored: share of its scores that are there.
    """

    state: str = "waiting"
    step: int = 0
    steps: int = 1
    scored: float = 0.0
    message: str = ""
    began: tuple[float, int] | None = None

    @property
    def share(self) -> float:
        """Share of the run's work that is done."""
        if self.state == "done":
            return 1.0
        return (1 - SCORING) * self.step / self.steps + SCORING * self.scored

    @property
    def speed(self) -> float | None:
        """Steps per second in this process."""
        if self.began is None:
            return None
        elapsed = time.monotonic() - self.began[0]
        done = self.step - self.began[1]
        return done / elapsed if done > 0 and elapsed > 0 else None

    def text(self) -> str:
        """The cell of the table."""
        if self.state == "training":
            speed = f" {significant(self.speed, 2)}/s" if self.speed else ""
            return f"{self.step}/{self.steps}{speed}"
        return f"scoring {self.scored:.0%}" if self.state == "scoring" else self.state


@dataclass
class StudyBoard:
    """All runs of a study. name: of the study."""

    name: str
    cells: Mapping[Cell, RunState]
    began: float = field(default_factory=time.monotonic)
    at_start: float = field(init=False)

    def __post_init__(self) -> None:
        self.at_start = self.share

    @property
    def share(self) -> float:
        """Share of the study's work that is done; what has failed counts as done."""
        states = self.cells.values()
        return sum(1.0 if s.state == "failed" else s.share for s in states) / max(1, len(states))

    @property
    def seconds_left(self) -> float | None:
        """At the pace of this process; None before there is one."""
        gained = self.share - self.at_start
        if gained <= 0.002:
            return None
        return (time.monotonic() - self.began) / gained * (1 - self.share)

    def summary(self) -> str:
        """`3 of 12 runs done, 1 failed, 2 at work, 41 %, 1h 20m left`."""
        states = [cell.state for cell in self.cells.values()]
        words = [f"{states.count('done')} of {len(states)} runs done"]
        failed = states.count("failed")
        at_work = sum(state in ("preparing", "training", "scoring") for state in states)
        words += [f"{failed} failed"] if failed else []
        words += [f"{at_work} at work"] if at_work else []
        words.append(f"{self.share:.0%}")
        left = self.seconds_left
        words += [f"{duration(left)} left"] if left is not None and self.share < 1 else []
        return ", ".join(words)


def study_lines(board: StudyBoard, width: int, height: int, plain: bool) -> list[StyledLine]:
    """The table in `width` columns and at most `height` lines; plain: ASCII only."""
    arms = list(dict.fromkeys(arm for arm, _ in board.cells))
    seeds = list(dict.fromkeys(seed for _, seed in board.cells))
    label = max([len("seed"), *map(len, arms)])
    texts = {cell: state.text() for cell, state in board.cells.items()}
    column = max([len("waiting"), *map(len, texts.values()), *(len(str(s)) for s in seeds)]) + 2
    shown = seeds[: max(1, (width - label - 2) // column)]
    rows: list[StyledLine] = [[("seed".ljust(label + 2), "dim"), *_heads(shown, column)]]
    for arm in arms:
        line: StyledLine = [(arm.ljust(label + 2), "")]
        for seed in shown:
            state = board.cells.get((arm, seed))
            text = texts[arm, seed] if state is not None else ""
            line.append((text.ljust(column), STYLES.get(state.state, "") if state else ""))
        rows.append(line)
    room = max(1, height - 2)
    if len(rows) > room:
        rows = [*rows[: room - 1], [(f"... and {len(rows) - room + 1} more arms", "dim")]]
    foot = bar(board.share, min(40, width // 3), plain)
    return [*rows, [], [(f"{foot}  {board.summary()}", "")]]


def _heads(seeds: Sequence[int], column: int) -> StyledLine:
    return [(str(seed).ljust(column), "dim") for seed in seeds]
