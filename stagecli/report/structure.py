"""What the probes of a run say about its blocks' groups: rows -> text for a terminal, and data for a plot. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagecli.files import JsonRow
from stagecli.report.curves import number, series, thin

__all__ = ["facts", "lines", "plot", "reading", "summary"]


PREFIX = "structure_"
SCORES = ("z", "p", "ari", "change", "contrast", "K")
CURVES = {
    "z": "z against the null",
    "ari": "ARI with the last partition",
    "change": "relative change of S",
}
STATES = {"waiting": "waiting", "active": "the term acts", "stopped": "stopped"}
SHADES = {True: " .:-=+*#%@", False: " ░▒▓█"}  # by whether only ASCII may be used
FACTS = ("structure", "groups", "z", "ARI", "change of S", "term on")


def matrix(value: Any) -> list[list[float]] | None:
    """A square matrix of numbers, at least 2 x 2, else None."""
    if not isinstance(value, list) or len(value) < 2:
        return None
    out = []
    for line in value:
        cells = [number(v) for v in line] if isinstance(line, list) else []
        if len(cells) != len(value) or any(v is None for v in cells):
            return None
        out.append([v for v in cells if v is not None])
    return out


def _labels(value: Any, depth: int | None = None) -> list[int] | None:
    """Groups of the blocks as numbers from 0, else None; depth: how many blocks there must be, if known."""
    good = isinstance(value, list) and bool(value) and all(type(v) is int and v >= 0 for v in value)
    return list(value) if good and depth in (None, len(value)) else None


def summary(
    rows: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]], *, points: int = 60
) -> JsonRow | None:
    """Structure of a run, ready for JSON; None where no row of its probes holds any.

    rows: of probes.jsonl, in order; events: all of the run; points: per curve in "series". "labels" is the newest
    partition, "groups" that which the term uses (None until it acts).
    """
    found = [dict(row) for row in rows if PREFIX + "state" in row]
    if not found:
        return None
    last = found[-1]
    measured = [row for row in found if matrix(row.get(PREFIX + "S"))]
    newest = measured[-1] if measured else last
    S = matrix(newest.get(PREFIX + "S"))
    depth = len(S) if S else None
    out: JsonRow = {
        "step": newest["step"],
        "state": str(last[PREFIX + "state"]),
        "S": S,
        "labels": _labels(newest.get(PREFIX + "labels"), depth),
        "groups": _labels(last.get(PREFIX + "groups")),
    }
    out |= {name: number(newest.get(PREFIX + name)) for name in SCORES}
    out["series"] = {}
    for name in CURVES:
        steps, values = series(found, PREFIX + name)
        thinned = thin(steps, values, points)
        if thinned:
            out["series"][name] = {
                "step": [round(p[0]) for p in thinned],
                "value": [p[1] for p in thinned],
            }
    out["events"] = [dict(event) for event in events if event.get("mechanism") == "structure"]
    out["reading"] = reading(out)
    return out


def groups_text(labels: Sequence[int]) -> str:
    """`A 1-4, B 5-8`, blocks counted from 1; a group in pieces names every piece."""
    parts = []
    for label in sorted(set(labels)):
        blocks = [k for k, other in enumerate(labels, 1) if other == label]
        runs: list[list[int]] = []
        for k in blocks:
            if runs and runs[-1][1] == k - 1:
                runs[-1][1] = k
            else:
                runs.append([k, k])
        spans = "+".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
        parts.append(f"{letter(label)} {spans}")
    return ", ".join(parts)


def letter(label: int) -> str:
    return chr(ord("A") + label) if label < 26 else str(label)


def facts(found: JsonRow | None) -> dict[str, str]:
    """(what, value), both to read; every key is there, `-` for what is not known."""
    if found is None:
        return dict.fromkeys(FACTS, "-")

    def shown(name: str, digits: str) -> str:
        return "-" if found[name] is None else format(found[name], digits)

    p = "" if found["p"] is None else f", p {found['p']:.2g}"
    labels = groups_text(found["labels"]) if found["labels"] else "-"
    values = (
        STATES.get(str(found["state"])) or str(found["state"]),
        labels,
        shown("z", ".1f") + p,
        shown("ari", ".2f"),
        shown("change", ".3f"),
        groups_text(found["groups"]) if found["groups"] else "-",
    )
    return dict(zip(FACTS, values, strict=True))


def lines(found: JsonRow | None, width: int, plain: bool) -> list[str]:
    """The newest groups and similarities in at most `width` columns; plain: ASCII only. No line without a matrix.

    A row and a column per block, shaded from the lowest to the highest similarity of different blocks; a blank between
    columns, and a line between rows, where a group ends.
    """
    if found is None or not found["S"]:
        return []
    S = found["S"]
    shades = SHADES[plain]
    depth = len(S)
    labels = found["labels"] or [0] * depth
    other = [S[i][j] for i in range(depth) for j in range(depth) if i != j]
    low = min(other)
    span = max(other) - min(other)
    ends = [k for k in range(1, depth) if labels[k] != labels[k - 1]]
    cell = 2 if 10 + 2 * depth + len(ends) <= width else 1
    if 10 + cell * depth + len(ends) > width:
        return [f"similarity of {depth} blocks: too wide for {width} columns"]

    def shade(value: float) -> str:
        k = int(len(shades) * (value - low) / span) if span > 1e-9 else 0
        return shades[max(0, min(len(shades) - 1, k))] * cell

    mark = "\\" if plain else "╲"
    out = [
        f"Similarity of the blocks' updates at step {found['step']:,}, {low:.2f} to {low + span:.2f}"
    ]
    for i in range(depth):
        cells = "".join(
            (" " if j in ends else "") + (mark * cell if i == j else shade(S[i][j]))
            for j in range(depth)
        )
        name = letter(labels[i]) if found["labels"] else " "
        out += [""] if i in ends else []
        out.append(f"  {i + 1:>3} {name}  {cells}".rstrip())
    return out


def plot(found: JsonRow | None) -> JsonRow | None:
    """Data of a heat map and of its curves, for any plotting library; None without a matrix.

    {"matrix" [L][L], "low", "high" (of different blocks), "boundaries": after which blocks a group ends, "labels",
    "curves": [{"name", "label", "step", "value"}], "marks": [{"step", "text"}]}
    """
    if found is None or not found["S"]:
        return None
    S = found["S"]
    labels = found["labels"] or []
    other = [S[i][j] for i in range(len(S)) for j in range(len(S)) if i != j]
    return {
        "matrix": S,
        "low": min(other),
        "high": max(other),
        "labels": labels,
        "boundaries": [k for k in range(1, len(labels)) if labels[k] != labels[k - 1]],
        "curves": [
            {"name": name, "label": CURVES[name], **curve}
            for name, curve in found["series"].items()
        ],
        "marks": [
            {"step": event["step"], "text": f"{event.get('from')} -> {event.get('to')}"}
            for event in found["events"]
            if event.get("from") != event.get("to")
        ],
    }


def reading(found: JsonRow) -> list[str]:
    """What there is to say of it, in sentences."""
    if not found["labels"]:
        return ["structure: one probe so far; groups need the change between two"]
    z = found["z"]
    out = []
    if z is not None and z < 2:
        out.append(
            f"structure: the blocks do not form groups beyond what their distance in depth explains (z {z:.1f})"
        )
    elif z is not None:
        out.append(
            f"structure: {len(set(found['labels']))} groups of blocks, {groups_text(found['labels'])} (z {z:.1f})"
        )
    for event in found["events"]:
        if event.get("to") in ("active", "stopped"):
            out.append(
                f"structure: {event['to']} since step {event['step']:,}: {event.get('reason')}"
            )
    return out
