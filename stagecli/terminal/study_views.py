"""What a person sees of a study at work: a live table, or lines, or failures only."""

from __future__ import annotations

import time
from typing import Protocol

from stagecli.terminal.console import (
    LivePanel,
    ProgressLines,
    StyledLine,
    stderr_can_redraw,
    write_line,
)
from stagecli.terminal.study_board import Cell, StudyBoard, study_lines

__all__ = ["StudyView", "make_study_view"]

LINE_SECONDS = 30.0  # between lines about the steps of a run
SLOW = 3.0  # seconds after which work before the first run is shown
TOLD = ("training", "scoring", "done")


class StudyView(Protocol):
    """What a study reports to a person."""

    def start(self, board: StudyBoard) -> None:
        """Before the first run; the board then changes."""

    def progress(self, job: str, done: int, total: int) -> None:
        """Work before the first run."""

    def changed(self, cell: Cell) -> None:
        """A run has got further."""

    def note(self, message: str) -> None:
        """Something to know about."""

    def close(self) -> None:
        """The end; may be called twice."""


class QuietStudyView:
    """Prints failures and notes."""

    def start(self, board: StudyBoard) -> None:
        self.board = board

    def progress(self, job: str, done: int, total: int) -> None: ...

    def changed(self, cell: Cell) -> None:
        state = self.board.cells[cell]
        if state.state == "failed":
            write_line(f"{cell[0]}-{cell[1]}: failed: {state.message}")

    def note(self, message: str) -> None:
        write_line(message)

    def close(self) -> None: ...


class ShowingStudyView(QuietStudyView):
    """Shows also the work before the first run, where it takes long."""

    def __init__(self) -> None:
        self.lines = ProgressLines()
        self.began: dict[str, float] = {}

    def progress(self, job: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.began.setdefault(job, now) >= SLOW:
            self.lines(job, done, total)


class PlainStudyView(ShowingStudyView):
    """A line when a run gets into another state, and now and then one about its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[Cell, tuple[str, float]] = {}

    def changed(self, cell: Cell) -> None:
        super().changed(cell)
        state = self.board.cells[cell]
        before, when = self.told.get(cell, ("", -1e9))
        now = time.monotonic()
        again = state.state == "training" and now - when >= LINE_SECONDS
        if state.state in TOLD and (state.state != before or again):
            self.told[cell] = (state.state, now)
            text = state.state if state.state != "training" else f"step {state.text()}"
            write_line(f"{cell[0]}-{cell[1]}: {text}   ({self.board.summary()})")


class LiveStudyView(ShowingStudyView):
    """A table, redrawn in place."""

    def __init__(self) -> None:
        super().__init__()
        self.panel = LivePanel(self._content)

    def _content(self, width: int, height: int, plain: bool) -> tuple[str, list[StyledLine]]:
        return f"study {self.board.name}", study_lines(self.board, width, height, plain)

    def start(self, board: StudyBoard) -> None:
        super().start(board)
        self.panel.start()

    def close(self) -> None:
        """Leaves the last table on the screen."""
        if self.panel.is_drawing:
            self.panel.stop()


def make_study_view(quiet: bool = False) -> StudyView:
    """The view for this stderr."""
    if quiet:
        return QuietStudyView()
    return LiveStudyView() if stderr_can_redraw() else PlainStudyView()
