"""The live view of training: the board in a panel on the terminal; and which view to use."""

from __future__ import annotations

from stagecli.files import JsonRow
from stagecli.report.evaluation import score_words
from stagecli.report.mechanisms import figure_words, names
from stagecli.terminal.board import Board, metric_names
from stagecli.terminal.board_lines import board_lines
from stagecli.terminal.console import LivePanel, StyledLine, stderr_can_redraw, write_line
from stagecli.terminal.views import PlainView, QuietView, View

__all__ = ["LiveView", "make_view"]


class LiveView:
    """One panel, redrawn in place by a thread of its own; training only changes the board."""

    def __init__(self) -> None:
        self.board = Board()
        self.panel = LivePanel(self._content)

    def _content(self, width: int, height: int, plain: bool) -> tuple[str, list[StyledLine]]:
        title = f"train {self.board.info.get('name', '')}".rstrip()
        if self.board.closing:
            title += f": {self.board.closing}"
        return title, board_lines(self.board, width, height, plain)

    def start(self, info: JsonRow) -> None:
        self.board.info = info
        self.panel.start()

    def progress(self, job: str, done: int, total: int) -> None:
        self.board.work.update(job, done, total)
        self.panel.start()

    def step(self, step: int) -> None:
        self.board.step = step
        self.board.work.current = None

    def row(self, row: JsonRow) -> None:
        # What the first scores and figures mean, above the panel, where they stay to be read.
        words: list[str] = []
        if not self.board.evaluation:
            words += score_words(metric_names(row))
        if not names([self.board.last]):
            words += figure_words(names([row]))
        for line in words:
            write_line(line)
        self.board.add_row(row)

    def bins(self, row: JsonRow) -> None:
        self.board.add_bins(row)

    def probe(self, row: JsonRow) -> None:
        self.board.regime.add(row)

    def event(self, row: JsonRow) -> None:
        self.board.add_event(row)

    def note(self, message: str) -> None:
        write_line(message)  # above the panel, which stays at the bottom

    def close(self, status: str, message: str) -> None:
        """Leaves the last frame on the screen, with how the run ended."""
        if self.panel.is_drawing:
            self.board.work.current = None
            self.board.closing = status
            self.panel.stop()
            if message:
                write_line(message)
        elif not self.panel.was_started and message:
            write_line(f"{status}: {message}")


def make_view(quiet: bool = False, verbose: bool = False) -> View:
    """The view for this stderr: a live panel on a terminal, else a line per log interval."""
    if quiet:
        return QuietView()
    return LiveView() if stderr_can_redraw() and not verbose else PlainView()
