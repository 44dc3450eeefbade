"""Scores of single clips, kept on disk so that an interrupted evaluation can continue."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stagecli.data.cache import canonical
from stagecli.errors import counted
from stagecli.files import append_json_lines, number, opened_line, read_json_lines, sealed_line

SystemScores = dict[str, dict[str, float]]
"""{system: {metric: value}} of one clip."""


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Short hash of everything that the scores depend on."""
    return hashlib.sha256(canonical(settings).encode()).hexdigest()[:10]


@dataclass
class Ledger:
    """Scores by (setting, clip), such as ("2000 Hz", "a.wav"); each is also a line of `path`.

    Scores are reused without a check, so the name of the file must hold the fingerprint of the
    settings. NaN and infinity are read back as NaN: both are left out of means. damaged: number of
    lines that are no entries; their clips are scored again.
    """

    path: Path | None = None
    scores: dict[tuple[str, str], SystemScores] = field(default_factory=dict)
    damaged: int = 0

    def damage_notice(self) -> list[str]:
        """What to report about damaged lines: one line or none."""
        lines = counted(self.damaged, "damaged entry", "damaged entries")
        return [f"{self.path}: {lines}; scored again"] if self.damaged else []

    def get(self, setting: str, clip: str) -> SystemScores | None:
        """The scores of a clip, or None."""
        return self.scores.get((setting, clip))

    def put(self, setting: str, clip: str, scores: SystemScores) -> None:
        """Keep the scores of a clip. Raises OSError."""
        self.scores[setting, clip] = scores
        if self.path is not None:
            append_json_lines(self.path, [sealed_line(setting, clip, scores)])


def open_ledger(path: Path, required: Mapping[str, Collection[str]] | None = None) -> Ledger:
    """The ledger at `path`, which need not exist. Torn lines are skipped.

    required: the systems, and their metrics, that every entry must have.
    """
    ledger = Ledger(path)
    if not path.exists():
        return ledger
    damaged = set()
    for line, entry in read_json_lines(path):
        try:
            values = opened_line(entry, 3)
        except ValueError:
            values = None
        if values is None or not all(map(_is_text, values[:2])):
            damaged.add(("line", str(line)))
            continue
        setting, clip, scores = values
        ledger.scores.pop((setting, clip), None)
        damaged.discard((setting, clip))
        if _are_scores(scores, required or {}):
            ledger.scores[setting, clip] = {
                system: {
                    name: float("nan") if value is None else value
                    for name, value in by_metric.items()
                }
                for system, by_metric in scores.items()
            }
        else:
            damaged.add((setting, clip))
    ledger.damaged = len(damaged)
    return ledger


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _are_scores(scores: Any, required: Mapping[str, Collection[str]]) -> bool:
    """Whether a value is {system: {metric: number or None}} with all that is required."""
    if not isinstance(scores, dict) or not all(isinstance(v, dict) for v in scores.values()):
        return False
    values = [value for by_metric in scores.values() for value in by_metric.values()]
    if not all(value is None or number(value) is not None for value in values):
        return False
    return all(set(names) <= set(scores.get(system, ())) for system, names in required.items())
