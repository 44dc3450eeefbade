"""Scores of single clips, kept on disk so that an interrupted evaluation can continue."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stagecli.data.cache import canonical
from stagecli.files import append_json_lines, read_json_lines

SystemScores = dict[str, dict[str, float]]
"""{system: {metric: value}} of one clip."""


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Short hash of everything that the scores depend on."""
    return hashlib.sha256(canonical(settings).encode()).hexdigest()[:10]


@dataclass
class Ledger:
    """Scores by (setting, clip), such as ("2000 Hz", "a.wav"); each is also a line of `path`.

    Scores are reused without a check, so the name of the file must hold the fingerprint of the
    settings. NaN and infinity are read back as NaN: both are left out of means.
    """

    path: Path | None = None
    scores: dict[tuple[str, str], SystemScores] = field(default_factory=dict)

    def get(self, setting: str, clip: str) -> SystemScores | None:
        """The scores of a clip, or None."""
        return self.scores.get((setting, clip))

    def put(self, setting: str, clip: str, scores: SystemScores) -> None:
        """Keep the scores of a clip. Raises OSError."""
        self.scores[setting, clip] = scores
        if self.path is not None:
            append_json_lines(self.path, [[setting, clip, scores]])


def open_ledger(path: Path) -> Ledger:
    """The ledger at `path`, which need not exist. Torn and foreign lines are skipped."""
    ledger = Ledger(path)
    if not path.exists():
        return ledger
    for _, entry in read_json_lines(path):
        if isinstance(entry, list) and len(entry) == 3:
            setting, clip, scores = entry
            ledger.scores[setting, clip] = {
                system: {
                    name: float("nan") if value is None else value
                    for name, value in by_metric.items()
                }
                for system, by_metric in scores.items()
            }
    return ledger
