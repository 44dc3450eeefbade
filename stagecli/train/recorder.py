"""Rows and events of a run: written to its JSONL streams and shown on the terminal."""

from __future__ import annotations

from stagecli.files import JsonRow
from stagecli.runs.directory import Run
from stagecli.stage.base import Event
from stagecli.terminal.views import View


class Recorder:
    """Writes rows to the run and shows them in the view, on the main process only."""

    def __init__(self, run: Run | None, view: View) -> None:
        """run: the open run directory; None on every process but the main one."""
        self.run = run
        self.view = view

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
        show[stream](self.run.append(stream, {"step": step, **row}))

    def event(self, step: int, event: Event) -> None:
        """Append an event. Raises OSError."""
        self.record("events", step, event.row(step))
