"""Numbers of a study as text."""

from __future__ import annotations

from collections.abc import Sequence

from stagecli.files import JsonRow
from stagecli.report.formats import significant

NONE = "-"
LEAST_P = 0.001


def figure(summary: JsonRow | None, seeds: int) -> str:
    """`1.234 ± 0.05`: mean and standard deviation over seeds; `(n of m)` where some are missing."""
    if summary is None:
        return NONE
    spread = "" if summary["sd"] is None else f" ± {significant(summary['sd'], 2)}"
    few = f" ({summary['n']} of {seeds})" if summary["n"] < seeds else ""
    return f"{significant(summary['mean'])}{spread}{few}"


def signed(value: float) -> str:
    return significant(value, 3, signed=True)


def interval(bounds: Sequence[float] | None) -> str:
    """`-0.1 to +0.06`, `-` for None."""
    return NONE if bounds is None else f"{signed(bounds[0])} to {signed(bounds[1])}"


def percents(bounds: Sequence[float] | None) -> str:
    """Shares as `44 to 52 %`, `-` for None."""
    if bounds is None:
        return NONE
    low, high = (f"{100 * bound:.0f}" for bound in bounds)
    return f"{low} to {high} %"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def p_text(p: float | None) -> str:
    """`0.031`, `< 0.001`, `-`."""
    if p is None:
        return NONE
    return f"< {LEAST_P:g}" if p < LEAST_P else significant(p, 2)


def strength_text(strength: float | None) -> str:
    return NONE if strength is None else f"{strength:g}"
