"""What an evaluation has finished, clip by clip, so that a killed one continues."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagecli.data.cache import canonical
from stagecli.files import finite


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Short hash of everything that decides the scores."""
    return hashlib.sha256(canonical(settings).encode()).hexdigest()[:10]


class Ledger:
    """Scores by (what, clip), in memory and, with a path, as one JSON line each.

    The file's name must hold the fingerprint of the settings: a line is taken as it stands. A line that a killed
    process left half written is ignored. NaN and infinity come back as NaN, which is left out of means either way.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._scores: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
        text = path.read_text(encoding="utf-8") if path is not None and path.exists() else ""
        self._torn = bool(text) and not text.endswith("\n")
        for line in text.splitlines():
            try:
                what, key, scores = json.loads(line)
            except ValueError:
                continue
            self._scores[what, key] = {
                system: {
                    name: float("nan") if value is None else value for name, value in values.items()
                }
                for system, values in scores.items()
            }
        self.found = len(self._scores)

    def get(self, what: str, key: str) -> dict[str, dict[str, float]] | None:
        """{system: {metric: value}} of a clip, or None."""
        return self._scores.get((what, key))

    def put(self, what: str, key: str, scores: dict[str, dict[str, float]]) -> None:
        """Remember the scores of a clip."""
        self._scores[what, key] = scores
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * self._torn + json.dumps([what, key, finite(scores)]) + "\n")
        self._torn = False
