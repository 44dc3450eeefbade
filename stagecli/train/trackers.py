"""The trackers of `train.report_to`: a copy of what the run records; they never stop a run."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, TypeVar

from stagecli.errors import causes
from stagecli.files import JsonRow, write_atomic
from stagecli.recipe.dump import dump_recipe
from stagecli.report.panels import run_panels
from stagecli.report.pictures.sheet import draw_file
from stagecli.report.run_report import read_run
from stagecli.runs.directory import Run
from stagecli.schema import Recipe
from stagecli.stage.base import Event
from stagecli.train.tracker_kinds import TrackedRun, Tracker, Wrapper, start_tracker
from stagecli.train.tracker_rows import (
    SAMPLES,
    already_sent,
    event_text,
    numbers_of,
    plain_config,
    row_key,
)

FOLDER = "trackers"  # in the run directory
KEYS = "trackers"  # of an attempt in run.json: name -> `Tracker.key`
PICTURE = "curves.png"

Result = TypeVar("Result")


class Trackers:
    """The trackers of one attempt, on the main process.

    Whatever a tracker raises turns it off, and `take_problems` returns the event that says so; the
    run goes on without it. A resume takes some steps again: what an earlier attempt has sent of
    them is not sent twice.
    """

    def __init__(self, wrapper: Wrapper) -> None:
        """wrapper: makes the trackers of Accelerate."""
        self.wrapper = wrapper
        self.started: dict[str, Tracker] = {}
        self.sent: dict[str, set[tuple[int, str]]] = {}
        self.problems: list[Event] = []

    def start(self, recipe: Recipe, run: Run, step: int) -> None:
        """Start those of the recipe, for the attempt that has just begun. Raises OSError.

        step: that the attempt continues from.
        """
        if not recipe.train.report_to:
            return
        *before, attempt = run.info["attempts"]
        for name in dict.fromkeys(recipe.train.report_to):
            earlier = [entry for entry in before if name in entry.get(KEYS, {})]
            tracked = TrackedRun(
                name=run.path.name,
                id=run.info.get("id", run.path.name),
                folder=run.path / FOLDER,
                config=plain_config(recipe),
                recipe=dump_recipe(recipe),
                key=str(earlier[-1][KEYS][name]) if earlier else "",
            )
            tracker = self._tried(name, start_tracker, name, tracked, self.wrapper)
            if tracker is not None:
                self.started[name] = tracker
                numbers = {entry["attempt"] for entry in earlier}
                self.sent[name] = already_sent(run.path, numbers, step)
        attempt[KEYS] = {name: tracker.key for name, tracker in self.started.items()}
        run.save_info()

    def take_problems(self) -> list[Event]:
        """The events of what failed since the last call."""
        problems = self.problems
        self.problems = []
        return problems

    def record(self, stream: str, row: JsonRow) -> None:
        """Send a row of `metrics`, `bins`, `events` or `probes`."""
        step = row["step"]
        if stream == "events":
            name = f"events/{row['mechanism']}"
            text = event_text(row)
            self._send(step, row_key(stream, row), lambda tracker: tracker.text(step, name, text))
            return
        values = numbers_of(stream, row)
        self._send(step, row_key(stream, row), lambda tracker: tracker.numbers(step, values))

    def samples(self, step: int, folder: Path, rows: Sequence[JsonRow]) -> None:
        """Send the audio files of a folder; rows: of its samples.jsonl."""
        captions = {row["path"]: str(row.get("prompt") or row.get("input")) for row in rows}
        files = [
            (f"{SAMPLES}/{path.stem}", path, captions.get(path.name, path.stem))
            for path in sorted(folder.glob("*.wav"))
        ]

        def send(tracker: Tracker) -> None:
            for name, path, caption in files:
                tracker.audio(step, name, path, caption)

        self._send(step, SAMPLES, send)

    def picture(self, step: int, run_dir: Path) -> None:
        """Draw the curves of the run as `inspect-regime --plot` does, and send them."""
        if not self.started:
            return
        path = run_dir / FOLDER / PICTURE
        try:
            panels = run_panels([read_run(run_dir)])
            if not panels:
                return
            write_atomic(path, draw_file(panels, "png"))
        except Exception as error:  # the trackers are well, and get the next one
            self._report("curves", "curves not drawn", causes(error), causes(error)[0])
            return
        self._send(step, PICTURE, lambda tracker: tracker.picture(step, "curves", path))

    def close(self) -> None:
        """Write what the trackers hold back, and end them."""
        for name, tracker in list(self.started.items()):
            self._tried(name, tracker.close)
        self.started = {}

    def _send(self, step: int, key: str, send: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.started.items()):
            if (step, key) not in self.sent[name]:
                self._tried(name, send, tracker)

    def _tried(self, name: str, action: Callable[..., Result], *arguments: Any) -> Result | None:
        """What the action on a tracker returns; None where it fails, and the tracker is off.

        What it prints is dropped: stdout is for data, and the terminal for the view.
        """
        try:
            with redirect_stdout(io.StringIO()):
                return action(*arguments)
        except Exception as error:
            self.started.pop(name, None)
            reason = f"{causes(error)[0]}; the run goes on without {name}"
            self._report(f"{name} on", f"{name} off", causes(error), reason)
            return None

    def _report(self, before: str, after: str, why: list[str], reason: str) -> None:
        self.problems.append(
            Event(
                mechanism="tracker",
                before=before,
                after=after,
                reason=reason,
                evidence={"causes": why},
            )
        )
