"""The report on the data of a run as a table: a row per fact, a column per split. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stagecli.files import JsonRow
from stagecli.report.formats import significant

Cell = Callable[[Any], str]


def _by_count(counts: Mapping[str, int]) -> str:
    """`{"44100": 3, "48000": 1}` as "44100 (3), 48000 (1)"."""
    return ", ".join(f"{value} ({count})" for value, count in counts.items())


def _spread(values: Sequence[float]) -> str:
    """Minimum, median and maximum of five figures of `spread`."""
    return " / ".join(significant(values[k]) for k in (0, 2, 4)) if values else "-"


ROWS: tuple[tuple[str, str, Cell], ...] = (
    ("clips", "clips", str),
    ("synthesised", "of them synthesised", str),
    ("hours", "hours", significant),
    ("seconds", "seconds: least / median / most", _spread),
    ("rates", "sample rates, Hz (clips)", _by_count),
    ("channels", "channels (clips), read as their mean", _by_count),
    ("level_db", "level, dB of full scale (RMS)", _spread),
    ("peaks_over_1", "peaks above full scale", str),
    ("equal_content", "content of another clip", str),
    ("captions", "captions", str),
    ("different_captions", "different captions", str),
    ("captions_cut", "captions cut", str),
    ("captions_made_equal", "captions made equal by the cut", str),
    ("bandwidths_measured", "bandwidths measured", str),
    ("bandwidth_hz", "content up to, Hz", _spread),
    ("narrow", "content ends below the band", str),
)


def data_table(facts: JsonRow) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of the facts of a data report; facts that were not counted are left out."""
    splits = facts["splits"]
    rows = [
        [label, *(show(splits[split][name]) for split in splits)]
        for name, label, show in ROWS
        if all(name in splits[split] for split in splits)
    ]
    return ["data", *splits], rows


def totals(facts: JsonRow) -> JsonRow:
    """What concerns the data as a whole, by label."""
    rows: JsonRow = {"left out": facts["left_out"]}
    rows["passed over"] = "; ".join(facts["passed_over"]) or "nothing"
    rows["valid clips with the content of a training clip"] = facts["equal_in_train_and_valid"]
    return rows
