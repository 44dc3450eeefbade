"""The one error type: what is wrong, where, one way out, and an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXIT_FAILED = 1  # a check was negative, or the run failed
EXIT_USAGE = 2  # bad usage, recipe or data
EXIT_INTERRUPTED = 130
LONGEST_CHAIN = 8  # causes of an error that are told
LONGEST_CAUSE = 400  # characters of one of them


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    where: `file:line`, `file:line:column`, a path, a flag or a recipe key; what: the problem in one
    sentence without a full stop; excerpt: the offending source line, if there is one.
    """

    where: str
    what: str
    excerpt: str | None = None


class StageError(Exception):
    """An error that the user can act on; the command line prints it without a traceback.

    message: what is wrong; problems: every instance of it; hint: one way out; exit_code: the exit
    status of the command.
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
        lines = [self.message]
        lines += [f"  {problem.where}  {problem.what}" for problem in self.problems]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


def causes(error: BaseException) -> list[str]:
    """An error and what led to it, the newest first, in one line each without a traceback."""
    lines: list[str] = []
    current: BaseException | None = error
    while current is not None and len(lines) < LONGEST_CHAIN:
        if isinstance(current, StageError):
            places = [f"{problem.where}: {problem.what}" for problem in current.problems]
            text = "; ".join([current.message, *places])
        else:
            first = next((line for line in str(current).splitlines() if line.strip()), "")
            text = f"{type(current).__name__}: {first.strip()}" if first else type(current).__name__
        lines.append(text[:LONGEST_CAUSE])
        hidden = current.__cause__ is None and current.__suppress_context__
        current = current.__cause__ or (None if hidden else current.__context__)
    return lines
