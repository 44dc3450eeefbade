"""stderr for people who may go away: a closed terminal or pipe never ends the work."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


class Unfailing(io.TextIOBase):
    """A text stream that drops everything once it cannot be written to any more."""

    def __init__(self, stream: Any) -> None:
        """stream: to write to; None drops everything from the start."""
        self._stream = stream

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:
                self._drop(error)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._drop(error)

    def _drop(self, error: Exception) -> None:
        """Drop everything from now on; text that cannot be encoded is the caller's mistake."""
        if isinstance(error, UnicodeError):
            raise error
        stream = self._stream
        self._stream = None
        try:  # what the interpreter still holds must not fail when it exits
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            return

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return int(self._stream.fileno())

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return getattr(self._stream, "errors", None)

    def reconfigure(self, **changes: Any) -> None:
        """As `io.TextIOWrapper.reconfigure`."""
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(**changes)


def protect_streams() -> None:
    """Let work go on when stderr is closed or breaks, before or during it.

    A descriptor of the three that was closed is opened on nothing: otherwise the next file of a run
    would get its number, and with it whatever a library writes there.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stdout is None:
        sys.stdout = Unfailing(None)
    if not isinstance(sys.stderr, Unfailing):
        sys.stderr = Unfailing(sys.stderr)
