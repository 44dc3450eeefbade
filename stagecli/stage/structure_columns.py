"""Reads the columns `structure_*` of probes.jsonl for a report. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stagecli.files import JsonRow, number
from stagecli.stage.probe_columns import GroupedMatrix, ProbeColumns, ProbeCurve, group_spans

PREFIX = "structure_"
SCORES = ("z", "p", "ari", "change", "contrast", "K")
STATES = {
    "waiting": "waiting",
    "active": "the term acts",  # in runs of earlier versions, whose rows have no action
    "stopped": "stopped",
    "fixed": "groups fixed, no action",
    "align": "aligning groups",
    "diversify": "diversifying groups",
}
FACTS = ("structure", "groups", "z", "ARI", "change of S", "fixed groups")


class StructureColumns(ProbeColumns):
    """Groups of blocks, their scores, and the state of the action."""

    title = "Structure"
    words = (
        "groups: blocks whose weights change alike, from one probe to the next",
        "z, p: how far they stand out from what blocks at that distance in depth would show",
        "ARI: agreement with the groups of the last probe, 1 where they are the same",
        "change of S: relative change of the similarities since the last probe",
    )
    curves = (
        ProbeCurve("z", f"{PREFIX}z", "z against the null", "Groups of blocks: z against the null"),
        ProbeCurve("ari", f"{PREFIX}ari", "ARI with the last partition"),
        ProbeCurve("change", f"{PREFIX}change", "relative change of S"),
    )

    def summary(self, rows: Sequence[JsonRow]) -> JsonRow | None:
        """ "labels" is the newest partition, "groups" the one that is fixed (None until then)."""
        known = [row for row in rows if PREFIX + "state" in row]
        if not known:
            return None
        last = known[-1]
        measured = [row for row in known if _matrix(row.get(PREFIX + "S"))]
        newest = measured[-1] if measured else last
        S = _matrix(newest.get(PREFIX + "S"))
        return {
            "step": newest["step"],
            "state": _state(last),
            "S": S,
            "labels": _labels(newest.get(PREFIX + "labels"), len(S) if S else None),
            "groups": _labels(last.get(PREFIX + "groups")),
            **{name: number(newest.get(PREFIX + name)) for name in SCORES},
        }

    def facts(self, summary: JsonRow | None) -> dict[str, str]:
        if summary is None:
            return dict.fromkeys(FACTS, "-")
        z = _text(summary["z"], ".1f")
        if summary["p"] is not None:
            z += f", p {summary['p']:.2g}"
        values = (
            STATES.get(summary["state"]) or summary["state"],
            _groups_text(summary["labels"]),
            z,
            _text(summary["ari"], ".2f"),
            _text(summary["change"], ".3f"),
            _groups_text(summary["groups"]),
        )
        return dict(zip(FACTS, values, strict=True))

    def matrix(self, summary: JsonRow | None) -> GroupedMatrix | None:
        if summary is None or not summary["S"]:
            return None
        return GroupedMatrix(
            title="Similarity of the blocks' updates",
            step=summary["step"],
            values=summary["S"],
            labels=tuple(summary["labels"] or ()),
        )

    def sentences(self, summary: JsonRow, events: Sequence[JsonRow]) -> list[str]:
        labels = summary["labels"]
        if not labels:
            return ["structure: one probe so far; groups need the change between two"]
        z = summary["z"]
        lines = []
        if z is not None and z < 2:
            lines.append(
                "structure: the blocks do not form groups beyond what their distance in depth "
                f"explains (z {z:.1f})"
            )
        elif z is not None:
            count = len(set(labels))
            lines.append(f"structure: {count} groups of blocks, {group_spans(labels)} (z {z:.1f})")
        for event in events:
            if event.get("to") in ("active", "fixed", "stopped"):
                since = f"{event['to']} since step {event['step']:,}"
                lines.append(f"structure: {since}: {event.get('reason')}")
        return lines


COLUMNS = StructureColumns()


def _state(row: JsonRow) -> str:
    """The state, or while an action acts its name."""
    state = str(row[PREFIX + "state"])
    action = row.get(PREFIX + "action")
    return action if state == "active" and isinstance(action, str) else state


def _matrix(value: Any) -> list[list[float]] | None:
    """A square matrix of numbers, at least 2 x 2, else None."""
    if not isinstance(value, list) or len(value) < 2:
        return None
    matrix = []
    for line in value:
        cells = [number(v) for v in line] if isinstance(line, list) else []
        numbers = [v for v in cells if v is not None]
        if len(numbers) != len(value) or len(cells) != len(value):
            return None
        matrix.append(numbers)
    return matrix


def _labels(value: Any, depth: int | None = None) -> list[int] | None:
    """Groups of the blocks as numbers from 0, else None. depth: number of blocks, if known."""
    if not isinstance(value, list) or not value or depth not in (None, len(value)):
        return None
    if any(type(label) is not int or label < 0 for label in value):
        return None
    return list(value)


def _text(value: float | None, digits: str) -> str:
    return "-" if value is None else format(value, digits)


def _groups_text(labels: list[int] | None) -> str:
    return group_spans(labels) if labels else "-"
