"""The only file that writes to a terminal: tables, errors, JSON, panels and bars.

stdout carries data and nothing else; notes, errors and progress go to stderr. Meaning is never in
colour alone, and where the terminal cannot draw (`TERM=dumb`, an encoding other than UTF-8)
everything is ASCII. Rich is imported inside functions, so that `--help` does not pay for it.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

from stagecli.errors import StageError
from stagecli.report.formats import significant, time_left
from stagecli.terminal.columns import columns_of, usable_environment
from stagecli.terminal.error_lines import problem_lines

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType
    from rich.live import Live

__all__ = [
    "Console",
    "LivePanel",
    "ProgressLines",
    "StyledLine",
    "cell",
    "progress",
    "stderr_can_redraw",
    "write_line",
]

StyledLine = list[tuple[str, str]]
"""A line as (text, style) pieces; a style is never the only carrier of a meaning."""

REFRESH_PER_SECOND = 2.0  # a frame takes milliseconds: far below 1 % of training
PROGRESS_SECONDS = 10.0  # at most one line of progress in so many, where there is no terminal
LABEL_WIDTH = 48  # columns of an error's places at most
NUMERIC = re.compile(r"[-+]?[\d.,]*(e[-+]\d+)?( %)?")


def ascii_only(stream: TextIO) -> bool:
    """True where only ASCII is safe: a dumb terminal or an encoding other than UTF-8."""
    encoding = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "")
    return os.environ.get("TERM") == "dumb" or not encoding.startswith("utf")


def stderr_can_redraw() -> bool:
    """True if stderr is a terminal that can be redrawn in place and the user has not opted out."""
    opted_out = os.environ.get("STAGECLI_NO_PROGRESS", "") not in ("", "0")
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not opted_out


def write_line(text: str) -> None:
    """One whole line on stderr, readable in a log file: never wrapped."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    sys.stderr.write(text.encode(encoding, "replace").decode(encoding) + "\n")
    sys.stderr.flush()


def cell(value: object) -> str:
    """A value in a table: floats with 4 significant digits, `-` for None."""
    if value is None:
        return "-"
    return significant(value) if isinstance(value, float) else str(value)


def _rich(stream: TextIO) -> RichConsole:
    from rich.console import Console as RichConsole

    if ascii_only(stream) and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")  # characters that the terminal cannot encode
    return RichConsole(
        file=stream,
        highlight=False,
        markup=False,
        emoji=False,
        width=columns_of(stream),
        _environ=usable_environment(),
    )


class _Copy(io.StringIO):
    """Captures text meant for a stream, with the properties of that stream."""

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

    @property
    def can_redraw(self) -> bool:
        """Whether stdout is a terminal that can be redrawn in place."""
        return not self.as_json and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

    @property
    def screen_size(self) -> tuple[int, int]:
        """Columns and lines of the terminal behind stdout; 80 x 24 if there is none."""
        try:
            size = os.get_terminal_size(sys.stdout.fileno())
        except (OSError, ValueError):
            return 80, 24
        return size.columns or 80, size.lines or 24

    # -- data, on stdout

    def result(self, document: Any, render: Callable[[], None] | None = None) -> None:
        """The command's answer: `document` with --json, else `render()` (or one line per key)."""
        if self.as_json:
            sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=self.ascii_only) + "\n")
            sys.stdout.flush()
        elif render is not None:
            render()
        else:
            pairs = document.items() if isinstance(document, dict) else [("", document)]
            for key, value in pairs:
                self.text(f"{key}  {cell(value)}".strip())

    def line(self, document: Any) -> None:
        """`document` as one line of JSON: one of several answers, each as it comes."""
        sys.stdout.write(json.dumps(document, ensure_ascii=self.ascii_only) + "\n")
        sys.stdout.flush()

    @contextmanager
    def captured(self) -> Iterator[io.StringIO]:
        """Captures what is printed inside, as it would look on stdout."""
        with redirect_stdout(_Copy(sys.stdout)) as copy:
            yield copy

    def text(self, line: str = "", style: str = "") -> None:
        """One line; nothing with --json."""
        if not self.as_json:
            _rich(sys.stdout).print(line, style=style or None, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table; nothing with --json. Columns of numbers are aligned to the right."""
        if self.as_json:
            return
        from rich.box import Box
        from rich.table import Table

        # A rule under the head and no other lines.
        rule = ("-" if self.ascii_only else "─") * 3
        blank = "    \n"
        box = Box(f"{blank * 2}{rule}{rule[0]}\n{blank * 5}", ascii=self.ascii_only)
        table = Table(
            title=title or None,
            title_justify="left",
            title_style="bold",
            box=box,
            show_edge=False,
            padding=(0, 1, 0, 0),
        )

        cells = [[cell(value) for value in row] for row in rows]
        for k, name in enumerate(columns):
            numeric = k > 0 and all(NUMERIC.fullmatch(row[k]) for row in cells)
            table.add_column(
                name,
                justify="right" if numeric else "left",
                overflow="fold",
                header_style="dim",
            )
        for row in cells:
            table.add_row(*row)
        _rich(sys.stdout).print(table)

    def redraw(self, lines: Sequence[str]) -> None:
        """Replace the screen by `lines`."""
        body = "".join(f"{line}\x1b[K\n" for line in lines)
        sys.stdout.write(f"\x1b[H{body}\x1b[J")
        sys.stdout.flush()

    # -- everything else, on stderr

    def note(self, message: str) -> None:
        """Something worth knowing."""
        _rich(sys.stderr).print(message, soft_wrap=True)

    def warn(self, message: str) -> None:
        """Something that may be wrong."""
        self._labelled("warning", "bold yellow", message)

    def error(self, error: StageError) -> None:
        """What is wrong, where (with the source line), and one way out."""
        self._labelled("error", "bold red", error.message)
        stderr = _rich(sys.stderr)
        longest = max((len(problem.where) for problem in error.problems), default=0)
        for problem in error.problems:
            for text in problem_lines(problem, min(LABEL_WIDTH, longest)):
                stderr.print(text, soft_wrap=True)
        if error.hint:
            stderr.print()
            self._labelled("hint", "bold cyan", error.hint)

    @staticmethod
    def _labelled(label: str, style: str, message: str) -> None:
        from rich.text import Text

        _rich(sys.stderr).print(Text.assemble((f"{label}: ", style), message), soft_wrap=True)


# -- progress and the live panel -------------------------------------------------------------------


class ProgressLines:
    """Progress as lines on stderr: the first, the last, and one in `PROGRESS_SECONDS` between."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, int]] = {}
        self._first: dict[str, tuple[float, int]] = {}

    def __call__(self, label: str, done: int, total: int) -> None:
        """Report `done` of `total` (0: unknown)."""
        now = time.monotonic()
        began, first = self._first.setdefault(label, (now, done))
        written, before = self._last.get(label, (-1e9, -1))
        finished = bool(total) and done >= total and before != done
        if finished or done < before or now - written >= PROGRESS_SECONDS:
            self._last[label] = (now, done)
            text = f"{label}: {done:,}" + (f" of {total:,}" if total else "")
            write_line(text + time_left(now - began, done - first, total - done))


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar on stderr, or lines where there is no terminal; yields `advance(n=1)`."""
    if stderr_can_redraw():
        from rich.progress import Progress

        with Progress(
            console=_rich(sys.stderr), transient=True, refresh_per_second=REFRESH_PER_SECOND
        ) as bars:
            bar = bars.add_task(label, total=total or None)
            yield lambda n=1: bars.advance(bar, n)
        return

    lines = ProgressLines()
    done = 0

    def advance(n: int = 1) -> None:
        nonlocal done
        done += n
        lines(label, done, total)

    yield advance


class LivePanel:
    """A panel on stderr, redrawn in place by Rich's own thread while the program works.

    content(width, height, ascii_only): the panel's title, and its lines in that space.
    """

    def __init__(self, content: Callable[[int, int, bool], tuple[str, list[StyledLine]]]) -> None:
        self._content = content
        self._live: Live | None = None
        self._width = 0  # of the last frame

    @property
    def was_started(self) -> bool:
        return self._live is not None

    @property
    def is_drawing(self) -> bool:
        return self._live is not None and self._live.is_started

    def start(self) -> None:
        """Draw from now on; nothing if it does already."""
        if self._live is not None:
            return
        from rich.live import Live

        console = _rich(sys.stderr)
        plain = ascii_only(sys.stderr)
        self._live = Live(
            get_renderable=lambda: self._frame(*console.size, plain),
            console=console,
            refresh_per_second=REFRESH_PER_SECOND,
            redirect_stdout=sys.stdout.isatty(),
            vertical_overflow="crop",
        )
        self._live.start()

    def stop(self) -> None:
        """Draw the last frame and leave it on the screen."""
        if self._live is not None:
            self._live.stop()

    def render(self, width: int, height: int, plain: bool) -> RenderableType:
        """The panel for a terminal of this size; plain: ASCII only."""
        from rich.box import ASCII, ROUNDED
        from rich.panel import Panel
        from rich.text import Text

        title, lines = self._content(max(40, width - 4), height - 3, plain)
        overflow: Any = "crop" if plain else "ellipsis"
        text = Text("\n", no_wrap=True, overflow=overflow).join(
            Text.assemble(*line) for line in lines
        )
        return Panel(
            text,
            title=Text(title, style="bold"),
            title_align="left",
            box=ASCII if plain else ROUNDED,
        )

    def _frame(self, width: int, height: int, plain: bool) -> RenderableType:
        """The panel; if the terminal got narrower, after erasing the lines the old one folds to."""
        from rich.console import Group
        from rich.control import Control
        from rich.segment import ControlType

        panel = self.render(width, height, plain)
        before = self._width
        self._width = width
        if not 0 < width < before:
            return panel
        lines = len(self._content(max(40, width - 4), height - 3, plain)[1]) + 2
        folded = lines * (-(-before // width) - 1)
        erase_line = [(ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)]
        return Group(Control(*erase_line * folded), panel)
