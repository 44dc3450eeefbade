"""Rows and events of a run: written to its JSONL streams, shown on the terminal, and tracked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stagecli.files import JsonRow
from stagecli.runs.directory import Run
from stagecli.stage.base import Event
from stagecli.terminal.views import View
from stagecli.train.trackers import Trackers


class Recorder:
    """Writes rows to the run, shows them in the view and sends them to the trackers.

    On the main process only.
    """

    def __init__(self, run: Run | None, view: View, trackers: Trackers) -> None:
        """run: the open run directory; None on every process but the main one."""
        self.run = run
        self.view = view
        self.trackers = trackers

    def record(self, stream: str, step: int, row: JsonRow) -> None:
        """Append a row to `metrics`, `bins`, `events` or `probes`. Raises OSError."""
        if self.run is None:
            return
        show = {
            "metrics": self.view.row,
            "bins": self.view.bins,
            "events": self.view.event,
            "probes": self.view.probe,
        }
        written = self.run.append(stream, {"step": step, **row})
        show[stream](written)
        self.trackers.record(stream, written)
        self.report_problems(step)

    def event(self, step: int, event: Event) -> None:
        """Append an event. Raises OSError."""
        self.record("events", step, event.row(step))

    def samples(self, step: int, folder: Path, rows: Sequence[JsonRow]) -> None:
        """Send the audio of a folder; rows: of its samples.jsonl. Raises OSError."""
        self.trackers.samples(step, folder, rows)
        self.report_problems(step)

    def picture(self, step: int) -> None:
        """Send a picture of the run's curves. Raises OSError."""
        if self.run is not None:
            self.trackers.picture(step, self.run.path)
            self.report_problems(step)

    def close(self, step: int) -> None:
        """End the trackers. Raises OSError."""
        self.trackers.close()
        self.report_problems(step)

    def report_problems(self, step: int) -> None:
        """An event and a warning for whatever failed in the trackers."""
        for event in self.trackers.take_problems():
            self.view.note(f"warning: {event.after}: {event.reason}")
            self.event(step, event)
