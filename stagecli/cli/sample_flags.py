"""Which flags of `stagecli sample` go together, and what --inpaint says. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from stagecli.errors import Problem, StageError

TEXT_FLAGS = (
    "--num-samples",
    "--negative-prompt",
    "--seconds",
    "--init-audio",
    "--strength",
    "--inpaint",
)
FILE_FLAGS = ("--cutoff", "--skip-bad")
# Of the second flag, the first needs it.
NEEDS = (("--strength", "--init-audio"), ("--inpaint", "--init-audio"))
EXCLUDES = (
    ("--strength", "--inpaint", "a span is filled from noise, whatever the strength"),
    ("--seconds", "--init-audio", "a clip is as long as the audio that it starts from"),
)


def check_flags(values: Mapping[str, object]) -> None:
    """Refuse flags that do not go together, all at once; values: None for those not given.

    Raises StageError.
    """
    given = [flag for flag, value in values.items() if value not in (None, False)]
    prompts = [flag for flag in ("--prompt", "--prompts") if flag in given]
    if bool(prompts) == ("--input" in given):
        raise StageError(
            "give either prompts or --input",
            hint='--prompt "TEXT", --prompts FILE, or --input FILE_OR_DIR',
        )
    problems = [
        *_foreign(given, FILE_FLAGS if prompts else TEXT_FLAGS, prompts or ["--input"]),
        *(
            Problem(flag, f"needs {needed}")
            for flag, needed in NEEDS
            if flag in given and needed not in given and prompts
        ),
        *(
            Problem(flag, f"cannot be given with {other}: {reason}")
            for flag, other, reason in EXCLUDES
            if flag in given and other in given and prompts
        ),
    ]
    if problems:
        raise StageError(
            "flags that do not go together",
            problems=problems,
            hint="`stagecli sample --help` lists them by what they are for",
        )


def _foreign(given: Sequence[str], flags: Sequence[str], source: Sequence[str]) -> list[Problem]:
    """A problem for each given flag that is for the other task."""
    task = "super-resolution" if flags is FILE_FLAGS else "text to audio"
    return [
        Problem(flag, f"is for {task}, and has no effect with {source[0]}")
        for flag in flags
        if flag in given
    ]


def parse_span(text: str) -> tuple[float, float]:
    """`1.5:2` as two times in seconds, the end behind the start. Raises StageError."""
    try:
        start, end = map(float, text.split(":"))
    except ValueError:
        start = end = math.nan
    if not (0 <= start < end < math.inf):
        raise StageError(
            f"--inpaint: must be START:END in seconds, got {text[:40]!r}",
            hint="such as --inpaint 1.5:2, which fills from 1.5 s to 2 s",
        )
    return start, end
