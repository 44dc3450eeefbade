"""Reads the JSONL files of a run, damaged ones too: uses what can be read, reports the rest."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from stagecli.errors import counted
from stagecli.files import JsonRow, parse_json

__all__ = ["decode_json", "drop_superseded", "read_rows"]

LARGEST_STEP = 10**12  # a larger one is damage
DAMAGE_LISTED = 3  # damaged lines named per file; the rest are counted


def decode_json(text: str) -> Any:
    """The value of a JSON text; NaN and infinity become None. Raises ValueError.

    Half a surrogate pair, as a file name that is not UTF-8 leaves it in a message, becomes U+FFFD:
    nothing could print it.
    """
    value = parse_json(text)
    return _printable(value) if "\\ud" in text or "\\uD" in text else value


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_printable(key): _printable(inner) for key, inner in value.items()}
    return [_printable(inner) for inner in value] if isinstance(value, list) else value


def read_rows(path: Path, damage: list[str], *, expected: bool) -> list[JsonRow]:
    """Rows of one JSONL file; every row returned has an integer `step` and `attempt`.

    What cannot be read is appended to `damage` as `file:line: reason`; expected: so is a missing
    file. Lines end at "\\n" only. Raises OSError.
    """
    if not path.is_file():
        if expected:
            damage.append(f"{path.name}: missing")
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    unfinished = len(lines) if lines[-1] else None  # a whole file ends with a line break
    rows = []
    broken = []
    for line_number, line in enumerate(lines, 1):
        if not line:
            continue
        row = _row(line)
        if row is None:
            broken.append(line_number)
        else:
            rows.append(row)
    damage += _damage(path.name, broken, unfinished)
    return rows


def _row(line: str) -> JsonRow | None:
    try:
        row = decode_json(line)
    except ValueError:
        return None
    if type(row) is not dict or type(row.get("step")) is not int:
        return None
    if not 0 <= row["step"] <= LARGEST_STEP:
        return None
    return row if type(row.setdefault("attempt", 1)) is int else None


def _damage(name: str, broken: list[int], unfinished: int | None) -> list[str]:
    messages = []
    for line_number in broken:
        if line_number == unfinished:
            messages.append(
                f"{name}:{line_number}: cut off in the middle of a line; read up to there"
            )
        elif len(messages) < DAMAGE_LISTED:
            messages.append(f"{name}:{line_number}: not a readable row; skipped")
    if len(broken) > len(messages):
        messages.append(f"{name}: {counted(len(broken), 'damaged line')} in all")
    return messages


def drop_superseded(rows: list[JsonRow], resumed_at: dict[int, int]) -> list[JsonRow]:
    """Rows that no later attempt trained again; resumed_at: attempt -> the step it continued."""
    last_valid: dict[int, float] = {}
    for attempt in {row["attempt"] for row in rows}:
        later = [step for other, step in resumed_at.items() if other > attempt]
        last_valid[attempt] = min(later, default=math.inf)
    if all(step == math.inf for step in last_valid.values()):
        return rows
    return [row for row in rows if row["step"] <= last_valid[row["attempt"]]]
