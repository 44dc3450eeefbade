"""Progress bars on stderr for the commands that count several things in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from stagecli.terminal.console import progress


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Yields `report(label, done, total)`; a new label closes the bar before and opens its own."""
    current: str | None = None
    reported = 0

    def advance(count: int) -> None:
        raise AssertionError("no bar is open")

    with ExitStack() as bar:

        def report(label: str, done: int, total: int) -> None:
            nonlocal current, reported, advance
            if label != current:
                bar.close()
                advance = bar.enter_context(progress(label, total))
                current = label
                reported = 0
            advance(done - reported)
            reported = done

        yield report
