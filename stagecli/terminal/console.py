"""The only file that draws on a terminal: tables, errors, JSON, and the live views of training.

stdout is data and nothing else; notes, errors and progress go to stderr. Meaning is never in colour only,
and where the terminal cannot draw (`TERM=dumb`, an encoding other than UTF-8) everything is ASCII.
Rich is imported inside functions, so that `--help` does not pay for it.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

from stagecli.errors import Problem, StageError
from stagecli.files import JsonRow
from stagecli.report.curves import number
from stagecli.terminal.views import Board, Notes, PlainView, QuietView, Throttle, View, line

__all__ = ["Console", "LiveView", "PlainView", "QuietView", "View", "make_view", "progress"]

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType
    from rich.live import Live

REFRESH_PER_SECOND = (
    2.0  # a frame takes some milliseconds; twice a second stays far below 1 % of training
)


def ascii_only(stream: TextIO) -> bool:
    """True where only ASCII is safe: a dumb terminal or an encoding other than UTF-8."""
    encoding = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "")
    return os.environ.get("TERM") == "dumb" or not encoding.startswith("utf")


def _rich(stream: TextIO) -> RichConsole:
    from rich.console import Console as RichConsole

    if ascii_only(stream) and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")  # a name the terminal cannot show is no reason to stop
    width = None if stream.isatty() or os.environ.get("COLUMNS") else 100
    return RichConsole(file=stream, highlight=False, markup=False, emoji=False, width=width)


def cell(value: object) -> str:
    """A value as people read it: 4 significant digits, `-` for what is not known."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(change: object) -> str:
    """A relative change with its sign, `-` for None."""
    value = number(change)
    return (
        "-"
        if value is None
        else f"{100 * value:+.1f} %"
        if abs(value) < 0.1
        else f"{100 * value:+.0f} %"
    )


class _Copy(io.StringIO):
    """Takes what is meant for a stream and answers what that stream would."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return self._stream.isatty()


class Console:
    """Output of one command. as_json: stdout carries exactly one JSON document, from `result`."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json

    @property
    def ascii_only(self) -> bool:
        """Whether stdout can take ASCII only."""
        return ascii_only(sys.stdout)

    @property
    def width(self) -> int:
        """Columns of stdout."""
        return _rich(sys.stdout).width

    def result(self, document: Any, render: Callable[[], None] | None = None) -> None:
        """The command's answer: `document` with --json, else `render()` (or one line per key)."""
        if self.as_json:
            sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=self.ascii_only) + "\n")
            sys.stdout.flush()
        elif render is not None:
            render()
        else:
            for key, value in document.items() if isinstance(document, dict) else [("", document)]:
                self.text(f"{key}  {cell(value)}".strip())

    def line(self, document: Any) -> None:
        """`document` as one line of JSON on stdout: one of several answers, as they come."""
        sys.stdout.write(json.dumps(document, ensure_ascii=self.ascii_only) + "\n")
        sys.stdout.flush()

    @contextmanager
    def captured(self) -> Iterator[io.StringIO]:
        """What is printed inside, as it would look on stdout."""
        with redirect_stdout(_Copy(sys.stdout)) as copy:
            yield copy

    def text(self, line: str = "", style: str = "") -> None:
        """One line of data on stdout; nothing with --json."""
        if not self.as_json:
            _rich(sys.stdout).print(line, style=style or None, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table on stdout; nothing with --json. Columns of numbers stand right."""
        if self.as_json:
            return
        from rich.box import Box
        from rich.table import Table

        cells = [[cell(value) for value in row] for row in rows]
        head = "-" if self.ascii_only else "─"
        box = Box(
            f"    \n    \n{head}{head}{head}{head}\n    \n    \n    \n    \n    \n",
            ascii=self.ascii_only,
        )
        table = Table(
            title=title or None,
            title_justify="left",
            title_style="bold",
            box=box,
            show_edge=False,
            padding=(0, 1, 0, 0),
        )
        for k, name in enumerate(columns):
            right = all(re.fullmatch(r"[-+]?[\d.,]*(e[-+]\d+)?( %)?", row[k]) for row in cells)
            table.add_column(
                name,
                justify="right" if right and k else "left",
                overflow="fold",
                header_style="dim",
            )
        for row in cells:
            table.add_row(*row)
        _rich(sys.stdout).print(table)

    def note(self, message: str) -> None:
        """Something worth knowing, on stderr."""
        _rich(sys.stderr).print(message, soft_wrap=True)

    def warn(self, message: str) -> None:
        """Something that may be wrong, on stderr."""
        self._labelled("warning", "bold yellow", message)

    def error(self, error: StageError) -> None:
        """What is wrong, where (with the source line), and one way out, on stderr."""
        self._labelled("error", "bold red", error.message)
        out = _rich(sys.stderr)
        width = min(48, max((len(p.where) for p in error.problems), default=0))
        for problem in error.problems:
            for text in _problem_lines(problem, width):
                out.print(text, soft_wrap=True)
        if error.hint:
            out.print()
            self._labelled("hint", "bold cyan", error.hint)

    @staticmethod
    def _labelled(label: str, style: str, message: str) -> None:
        from rich.text import Text

        _rich(sys.stderr).print(Text.assemble((f"{label}: ", style), message), soft_wrap=True)


def _problem_lines(problem: Problem, width: int) -> list[str]:
    lines = [f"  {problem.where.ljust(width)}  {problem.what}"]
    if problem.excerpt is None:
        return lines
    place = re.search(r":(\d+)(?::(\d+))?$", problem.where)
    label = place.group(1) if place else ""
    excerpt = problem.excerpt.expandtabs(4).rstrip()
    lines.append(f"  {label:>5} | {excerpt}")
    if place and place.group(2) and (column := int(place.group(2)) - 1) < len(excerpt):
        word = re.match(r"[\w.\-]+", excerpt[column:])
        lines.append(f"  {'':>5} | {' ' * column}{'^' * (len(word.group()) if word else 1)}")
    return lines


# -- progress and the live view --------------------------------------------------------------------


class LiveView(Notes):
    """One panel on a terminal, redrawn in place by Rich's own thread; training only sets fields."""

    def __init__(self) -> None:
        self._board = Board()
        self._live: Live | None = None
        self._width = 0

    def _open(self) -> None:
        if self._live is None:
            from rich.live import Live

            self._console = _rich(sys.stderr)
            self._plain = ascii_only(sys.stderr)
            self._live = Live(
                get_renderable=self._frame,
                console=self._console,
                refresh_per_second=REFRESH_PER_SECOND,
                redirect_stdout=sys.stdout.isatty(),
                vertical_overflow="crop",
            )
            self._live.start()

    def _frame(self) -> RenderableType:
        from rich.box import ASCII, ROUNDED
        from rich.console import Group
        from rich.control import Control
        from rich.panel import Panel
        from rich.segment import ControlType
        from rich.text import Text

        width, height = self._console.size
        lines = self._board.lines(max(40, width - 4), height - 3, self._plain)
        text = Text("\n", no_wrap=True, overflow="crop" if self._plain else "ellipsis").join(
            Text.assemble(*line) for line in lines
        )
        name = f"train {self._board.info.get('name', '')}".rstrip()
        title = Text(
            name + (f": {self._board.closing}" if self._board.closing else ""), style="bold"
        )
        panel = Panel(text, title=title, title_align="left", box=ASCII if self._plain else ROUNDED)
        before = self._width
        self._width = width
        if (
            0 < width < before
        ):  # a terminal made narrower folds the old panel into more lines: erase those too
            extra = (len(lines) + 2) * (-(-before // width) - 1)
            up = [(ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)] * extra
            return Group(Control(*up), panel)
        return panel

    def start(self, info: JsonRow) -> None:
        self._board.info = info
        self._open()

    def progress(self, what: str, done: int, total: int) -> None:
        self._board.add_progress(what, done, total)
        self._open()

    def step(self, step: int) -> None:
        self._board.at = step
        self._board.current = None

    def row(self, row: JsonRow) -> None:
        self._board.add_row(row)

    def bins(self, row: JsonRow) -> None:
        self._board.add_bins(row)

    def probe(self, row: JsonRow) -> None:
        self._board.regime.add(row)

    def event(self, row: JsonRow) -> None:
        self._board.add_event(row)

    def close(self, status: str, message: str) -> None:
        """Leaves the last frame on the screen, with how the run ended."""
        if self._live is not None and self._live.is_started:
            self._board.current = None
            self._board.closing = status
            self._live.stop()
            if message:
                line(message)
        elif self._live is None and message:
            line(f"{status}: {message}")


def make_view(quiet: bool = False, verbose: bool = False) -> View:
    """The view for this stderr: a live panel on a terminal, else a line per log interval."""
    if quiet:
        return QuietView()
    plain = verbose or os.environ.get("STAGECLI_NO_PROGRESS", "") not in ("", "0")
    if plain or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return PlainView()
    return LiveView()


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar on stderr for evaluation and sampling; yields `advance(n=1)`."""
    done = 0
    if (
        sys.stderr.isatty()
        and not os.environ.get("STAGECLI_NO_PROGRESS")
        and os.environ.get("TERM") != "dumb"
    ):
        from rich.progress import Progress

        with Progress(
            console=_rich(sys.stderr), transient=True, refresh_per_second=REFRESH_PER_SECOND
        ) as bars:
            task = bars.add_task(what, total=total or None)
            yield lambda n=1: bars.advance(task, n)
        return
    throttle = Throttle()

    def advance(n: int = 1) -> None:
        nonlocal done
        done += n
        throttle(what, done, total)

    yield advance
