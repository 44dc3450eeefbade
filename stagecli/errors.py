"""The one error type: what is wrong, where, one way out, and the exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXIT_OK = 0
EXIT_FAILED = 1  # the answer is no, or the run failed
EXIT_USAGE = 2  # bad usage, bad recipe or bad data
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    where: `file:line`, `file:line:column`, a path, a flag or a recipe key; what: one sentence
    without a full stop; excerpt: the offending source line, if there is one.
    """

    where: str
    what: str
    excerpt: str | None = None


class StageError(Exception):
    """An error a user can act on; the command line prints it without a traceback.

    message: what is wrong; problems: every instance of it, listed together; hint: one way out;
    exit_code: 1 when the run failed or the answer is no, 2 when the input was bad.
    """

    def __init__(
        self,
        message: str,
        *,
        problems: Sequence[Problem] = (),
        hint: str | None = None,
        exit_code: int = EXIT_USAGE,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.problems = tuple(problems)
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        lines = [self.message, *(f"  {p.where}  {p.what}" for p in self.problems)]
        return "\n".join([*lines, f"hint: {self.hint}"] if self.hint else lines)
