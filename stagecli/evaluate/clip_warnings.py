"""Warnings about clips, counted by kind, so that a thousand clipped files give one line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from stagecli.errors import counted, significant
from stagecli.metrics.checks import shared_peak


@dataclass
class ClipWarnings:
    """title: of the set, as printed; total: clips in it; by_kind: lines by their text without
    numbers; peaks, reference_peaks: largest magnitude of each clip."""

    title: str
    total: int
    by_kind: dict[str, list[str]] = field(default_factory=dict)
    peaks: list[float] = field(default_factory=list)
    reference_peaks: list[float] = field(default_factory=list)

    def add(
        self,
        file: Path,
        warnings: Iterable[str],
        peak: float,
        reference_peak: float | None = None,
    ) -> None:
        """Count the warnings about one clip."""
        for warning in warnings:
            kind = re.sub(r"[-+]?\d[\d.]*(e[-+]\d+)?", "#", warning)
            self.by_kind.setdefault(kind, []).append(f"{file}: {warning}")
        self.peaks.append(peak)
        if reference_peak is not None:
            self.reference_peaks.append(reference_peak)

    def has_level(self) -> bool:
        """Whether the level of some clip differs from its reference's."""
        return any("level:" in kind for kind in self.by_kind)

    def lines(self) -> list[str]:
        """One line per kind, the most frequent first, each with its first clip."""
        lines = []
        for same_kind in sorted(self.by_kind.values(), key=len, reverse=True):
            others = len(same_kind) - 1
            more = f" (and {others} more of {counted(self.total, 'clip')})" if others else ""
            lines.append(f"{same_kind[0]}{more}")
        peak = shared_peak(self.peaks)
        if peak is not None and shared_peak(self.reference_peaks) is None:
            lines.append(
                f"all {counted(self.total, 'clip')} of {self.title} peak at "
                f"{significant(peak, 3)}: peak-normalised, so their levels mean nothing"
            )
        return lines
