"""A stand-in for the report: mean scores at the last step."""

from __future__ import annotations

from pathlib import Path

from stagecli.files import read_json, read_json_lines
from stagecli.terminal.console import Console


def write_report(study_dir: Path, console: Console) -> list[Path]:
    """Print the mean of the primary score at the last step, by arm and strength."""
    info = read_json(study_dir / "study.json")
    values: dict[tuple[str, float | None], list[float]] = {}
    scores = study_dir / "scores.jsonl"
    for _, row in read_json_lines(scores) if scores.exists() else ():
        value = row.get(info["primary"])
        if row["step"] == info["steps"] and value is not None:
            values.setdefault((row["arm"], row["strength"]), []).append(value)
    cells = [[*key, sum(v) / len(v), len(v)] for key, v in sorted(values.items(), key=str)]
    console.table(info["name"], ["arm", "strength", info["primary"], "seeds"], cells)
    return []
