"""Numbers, durations and curves as text for people; ASCII where nothing else can be shown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stagecli.errors import significant
from stagecli.files import number

UNICODE_LEVELS = "▁▂▃▄▅▆▇█"
ASCII_LEVELS = "_.-~=+*#"

__all__ = [
    "ascii_text",
    "bar",
    "duration",
    "percent",
    "signed_percent",
    "significant",
    "sparkline",
    "step_of",
    "time_left",
]


def signed_percent(change: object) -> str:
    """A relative change with its sign: `-0.4 %`, `+12 %`; `-` for None."""
    value = number(change)
    if value is None:
        return "-"
    return f"{100 * value:+.1f} %" if abs(value) < 0.1 else f"{100 * value:+.0f} %"


def percent(change: float) -> str:
    """A relative change without its sign: `0.4 %`, `12 %`."""
    return signed_percent(abs(change)).removeprefix("+")


def step_of(step: int, budget: int | None) -> str:
    """`80 of 100`; `80, past the budget of 70` for a run that has gone further."""
    if not budget:
        return f"{step:,}"
    return (
        f"{step:,} of {budget:,}" if step <= budget else f"{step:,}, past the budget of {budget:,}"
    )


def duration(seconds: float | None) -> str:
    """Seconds in two units: `41s`, `3m 20s`, `2h 05m`, `4d 03h`; `-` for None."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def time_left(elapsed: float, done: int, remaining: int) -> str:
    """`, 3m 20s left` at the pace of `done` in `elapsed` seconds; empty where there is none yet."""
    if done <= 0 or remaining <= 0 or elapsed < 1:
        return ""
    return f", {duration(elapsed / done * remaining)} left"


def ascii_text(text: str, ascii_only: bool) -> str:
    """`text` with `±` spelled in ASCII, if only ASCII can be shown."""
    return text.replace("±", "+-") if ascii_only else text


def sparkline(
    values: Sequence[float | None],
    width: int,
    *,
    ascii_only: bool = False,
    log: bool = False,
    bounds: tuple[float, float] | None = None,
) -> str:
    """`values` as one line of at most `width` characters, taller for higher; gaps are spaces.

    log: plot the logarithm (losses fall steeply at first); ignored unless all values are positive.
    bounds: the values of the lowest and the tallest character; default: the range of the means.
    """
    levels = ASCII_LEVELS if ascii_only else UNICODE_LEVELS
    clean = [number(v) for v in values]
    known = [v for v in clean if v is not None]
    if not known or width < 1:
        return ""
    if log and min(known) > 0:
        clean = [None if v is None else math.log(v) for v in clean]

    # One mean per character.
    size = min(width, len(clean))
    cuts = [round(i * len(clean) / size) for i in range(size + 1)]
    means: list[float | None] = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        stretch = [v for v in clean[start:end] if v is not None]
        means.append(sum(stretch) / len(stretch) if stretch else None)

    # Means to characters; a flat curve is drawn at half height.
    known = [v for v in means if v is not None]
    low, high = bounds or (min(known), max(known))
    span = high - low
    flat = span <= 1e-9 * max(abs(low), 1e-300)

    def character(value: float | None) -> str:
        if value is None:
            return " "
        return levels[3] if flat else levels[max(0, min(7, int(8 * (value - low) / span)))]

    return "".join(map(character, means))


def bar(share: float, width: int, ascii_only: bool, track: bool = True) -> str:
    """A bar of `width` characters, filled to `share` (0 to 1); track: show the unfilled rest."""
    share = min(1.0, max(0.0, share))
    if ascii_only:
        return ("#" * round(share * width)).ljust(width, "." if track else " ")
    eighths = round(share * width * 8)
    filled = "█" * (eighths // 8)
    if eighths % 8 and not track:
        filled += " ▏▎▍▌▋▊▉"[eighths % 8]
    return filled.ljust(width, "░" if track else " ")
