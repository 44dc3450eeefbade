"""Reads the columns `density_*` of probes.jsonl for a report. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from stagecli.files import JsonRow, number
from stagecli.stage.probe_columns import DensityCourse, GroupedMatrix, ProbeColumns, ProbeCurve

PREFIX = "density_"
SHARES = f"{PREFIX}shares"  # of the density in equal bins of t from 0 to 1
BINS = 40
QUANTILES = {"q10": 0.1, "q50": 0.5, "q90": 0.9}  # of t; their names in rows
FACTS = ("density of t", "median t", "80 % of t in")
PANEL = "Noise levels t trained (1 is noise)"


class TimestepsColumns(ProbeColumns):
    """The density of t at every probe."""

    title = "Timesteps"
    curves = (
        ProbeCurve("t_q10", f"{PREFIX}q10", "10 % of t below", PANEL),
        ProbeCurve("t_q50", f"{PREFIX}q50", "median", PANEL),
        ProbeCurve("t_q90", f"{PREFIX}q90", "90 % of t below", PANEL),
    )

    def summary(self, rows: Sequence[JsonRow]) -> JsonRow | None:
        """The newest quantiles, and "first": those of the first probe."""
        known = [quantiles for row in rows if (quantiles := _quantiles(row)) is not None]
        if not known:
            return None
        newest = next(row for row in reversed(rows) if _quantiles(row) is not None)
        return {
            "step": newest["step"],
            "state": str(newest.get(f"{PREFIX}state") or "-"),
            **known[-1],
            "first": known[0],
        }

    def facts(self, summary: JsonRow | None) -> dict[str, str]:
        if summary is None:
            return dict.fromkeys(FACTS, "-")
        values = (
            _state_text(summary["state"]),
            f"{summary['q50']:.2f}",
            f"{summary['q10']:.2f} to {summary['q90']:.2f}",
        )
        return dict(zip(FACTS, values, strict=True))

    def matrix(self, summary: JsonRow | None) -> GroupedMatrix | None:
        return None

    def density(self, rows: Sequence[JsonRow]) -> DensityCourse | None:
        """Of the rows that have the shares; None for those of a version that wrote none."""
        probes = [
            (row["step"], shares, quantiles)
            for row in rows
            if (shares := _shares(row)) and (quantiles := _quantiles(row))
        ]
        if not probes:
            return None
        return DensityCourse(
            title="Density of t (1 is noise)",
            steps=tuple(step for step, _, _ in probes),
            shares=tuple(shares for _, shares, _ in probes),
            quantiles={
                name: tuple(quantiles[name] for _, _, quantiles in probes) for name in QUANTILES
            },
        )

    def sentences(self, summary: JsonRow, events: Sequence[JsonRow]) -> list[str]:
        first = summary["first"]["q50"]
        now = summary["q50"]
        if abs(now - first) < 0.01:
            return [f"timesteps: half of the training is above t = {now:.2f}, as at the start"]
        direction = "more" if now > first else "less"
        return [
            f"timesteps: half of the training is above t = {now:.2f}; it started at {first:.2f},"
            f" so it moved to {direction} noise"
        ]


COLUMNS = TimestepsColumns()


def _quantiles(row: JsonRow) -> dict[str, float] | None:
    """The quantiles of a row by name, None unless all are numbers."""
    values = {name: number(row.get(PREFIX + name)) for name in QUANTILES}
    known = {name: value for name, value in values.items() if value is not None}
    return known if len(known) == len(QUANTILES) else None


def _shares(row: JsonRow) -> tuple[float, ...] | None:
    """The shares of a row, None unless all are numbers."""
    values = row.get(SHARES)
    if not isinstance(values, list) or len(values) != BINS:
        return None
    known = [value for one in values if (value := number(one)) is not None]
    return tuple(known) if len(known) == BINS else None


def _state_text(state: str) -> str:
    """Where t is drawn from, for the reader."""
    texts = {
        "objective": "that of [objective]",
        "progress": "follows the progress by noise level",
        "discrepancy": "follows Dn by noise level",
        "infonoise": "follows the loss by noise level",
    }
    return texts.get(state, state)
