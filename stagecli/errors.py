"""The one error type: what is wrong, where, one way out, and an exit code; and what text may hold.

Messages quote files of others: `printable` is what a terminal gets of them, and `conceal` keeps the
values of `${VAR}` out of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

EXIT_FAILED = 1  # a check was negative, or the run failed
EXIT_USAGE = 2  # bad usage, recipe or data
EXIT_INTERRUPTED = 130
LONGEST_CHAIN = 8  # causes of an error that are told
LONGEST_CAUSE = 400  # characters of one of them


# All that a terminal obeys instead of printing, or cannot print: C0 but tab and line feed, DEL, C1,
# marks and overrides of the writing direction, separators of lines, halves of surrogate pairs.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_SHORTEST = 6  # characters of a value that is concealed; shorter ones are parts of common words
_variables: set[str] = set()  # that recipes of this process have used


def printable(text: str) -> str:
    """Text with its control characters as `\\u001b`, which is also their form in JSON and TOML."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def counted(count: int, one: str, several: str | None = None) -> str:
    """A number with its noun, and a verb if it has one: `1 file was`, `1,200 files were`.

    several: the words for other numbers than one; by default the noun with an s.
    """
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def among(count: int, total: int, noun: str, one: str = "", several: str = "") -> str:
    """A number of a total, whose noun goes with the total and the verb with the number.

    `1 of 3 files was`, `1 of 1 file was`, `2 of 3 files were`.
    """
    return f"{count:,} of {counted(total, noun)} {one if count == 1 else several}".rstrip()


def note_variables(names: Iterable[str]) -> None:
    """Remember variables of the environment whose values errors must not quote."""
    _variables.update(names)


def conceal(text: str) -> str:
    """Text with the values of the noted variables as `${VAR}`, the longest values first."""
    values = {os.environ.get(name, "").rstrip("/"): name for name in _variables}
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= _SHORTEST:
            text = text.replace(value, f"${{{values[value]}}}")
    return text


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
        self.message = conceal(message)
        super().__init__(self.message)
        self.problems = tuple(
            replace(
                problem,
                where=conceal(problem.where),
                what=conceal(problem.what),
                excerpt=conceal(problem.excerpt) if problem.excerpt else problem.excerpt,
            )
            for problem in problems
        )
        self.hint = conceal(hint) if hint else hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        lines = [self.message]
        lines += [f"  {problem.where}  {problem.what}" for problem in self.problems]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what led to it, is about memory that cannot be had."""
    if isinstance(error, StageError) and error.__cause__ is not None:
        return is_out_of_memory(error.__cause__)
    lacks = any(words in str(error) for words in ("allocate memory", "out of memory"))
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and lacks)


def significant(value: float | None, digits: int = 4, *, signed: bool = False) -> str:
    """`value` with so many significant digits, `-` for None; no exponent below 1e15.

    signed: with its sign, also if it is positive.
    """
    if value is None:
        return "-"
    sign = "+" if signed else ""
    if 10 ** (digits - 1) <= abs(value) < 1e15:
        return f"{value:{sign}.0f}"
    return f"{value:{sign}.{digits}g}"


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
