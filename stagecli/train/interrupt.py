"""Signals that end a run: the first requests a stop, the second stops immediately."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stagecli import launcher

# Ctrl-C; a scheduler's end of time; a closed terminal or connection; Slurm before a preemption.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
PASSED_ON = 2.0  # seconds in which a launcher passes on a signal that its processes got too


class Interrupt:
    """Inside `with`, the first of the signals sets `requested`, and the next one ends the process.

    Before the first step nothing would be lost, and the first signal raises KeyboardInterrupt; so
    it does inside `at_once`. A SIGHUP that was ignored before stays ignored: that is `nohup`. The
    handlers from before are back after the block, but for an error under a launcher: its signal to
    end must not come before the error is printed.
    """

    def __init__(self) -> None:
        self.requested = False
        self.raises = True  # whether the first signal raises KeyboardInterrupt
        self._first = 0.0  # when it came
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in SIGNALS:
            previous = signal.getsignal(number)
            if number != signal.SIGHUP or previous != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and launcher.is_launched():
            self.requested = True
            self._first = time.monotonic()
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self, enabled: bool = True) -> Iterator[None]:
        """Inside, the first signal raises KeyboardInterrupt, for work that can be dropped."""
        before = self.raises
        self.raises = enabled
        try:
            yield
        finally:
            self.raises = before

    def check_launcher(self) -> None:
        """Request a stop where the launcher is gone, which would leave this process an orphan."""
        self.requested = self.requested or launcher.has_lost_parent()

    def _handle(self, number: int, _: Any) -> None:
        if not self.requested:
            self.requested = True
            self._first = time.monotonic()
            if not launcher.is_launched():
                for other in self._previous:
                    signal.signal(other, _default(other))
            if self.raises:
                raise KeyboardInterrupt
        elif time.monotonic() - self._first > PASSED_ON:
            signal.signal(number, _default(number))
            os.kill(os.getpid(), number)


def _default(number: int) -> Any:
    """The effect of a signal without a handler."""
    return signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
