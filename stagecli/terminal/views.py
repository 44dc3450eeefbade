"""What a person sees while a run trains: the interface of a view, and its forms as plain lines."""

from __future__ import annotations

from typing import Protocol

from stagecli.files import JsonRow, number
from stagecli.report.evaluation import score_words
from stagecli.report.formats import duration, significant
from stagecli.report.regime_text import change_text
from stagecli.terminal.board import Board, metric_names
from stagecli.terminal.console import ProgressLines, write_line
from stagecli.terminal.regime_board import probe_text, regime_key

__all__ = ["PlainView", "QuietView", "View"]

# Columns of a row in a plain line, and their labels; evaluations come after the first.
VALIDATION = ("valid/loss", "valid")
STEP_FIGURES = (
    ("optim/lr", "lr"),
    ("train/grad_norm", "grad"),
    ("speed/samples_per_s", "samples/s"),
)


class View(Protocol):
    """What the trainer reports to a person; rows are those of the run directory's files."""

    def start(self, info: JsonRow) -> None:
        """info: name, task, steps, step, parameters, device, precision, batch_size, run_dir."""

    def progress(self, job: str, done: int, total: int) -> None:
        """Work before or between steps, such as filling the cache; total 0: unknown."""

    def step(self, step: int) -> None:
        """After each optimiser step; cheap."""

    def row(self, row: JsonRow) -> None:
        """A row of metrics.jsonl."""

    def bins(self, row: JsonRow) -> None:
        """A row of bins.jsonl."""

    def probe(self, row: JsonRow) -> None:
        """A row of probes.jsonl."""

    def event(self, row: JsonRow) -> None:
        """A row of events.jsonl."""

    def note(self, message: str) -> None:
        """Something to know about before training, such as a clip that is left out."""

    def close(self, status: str, message: str) -> None:
        """The end; may be called twice."""


class QuietView:
    """Prints nothing except how a run ended that did not finish."""

    def start(self, info: JsonRow) -> None: ...
    def progress(self, job: str, done: int, total: int) -> None: ...
    def step(self, step: int) -> None: ...
    def row(self, row: JsonRow) -> None: ...
    def bins(self, row: JsonRow) -> None: ...
    def probe(self, row: JsonRow) -> None: ...
    def event(self, row: JsonRow) -> None: ...
    def note(self, message: str) -> None: ...

    def close(self, status: str, message: str) -> None:
        if status != "finished" and message:
            write_line(f"{status}: {message}")


class PlainView:
    """One line per log interval and per event, for logs and pipes.

    The line of a log interval carries the newest probe, if there was one since the last line.
    """

    def __init__(self) -> None:
        self._board = Board()
        self._progress = ProgressLines()
        self._closed = False
        self._probe: JsonRow | None = None  # the newest, until a line has carried it
        self._explained = False  # what Dn and r are

    def start(self, info: JsonRow) -> None:
        self._board.info = info
        known = [f"{key} {value}" for key, value in info.items() if value is not None]
        facts = [fact for fact in known if not fact.startswith("name ")]
        write_line(f"train {info.get('name', '')}: {', '.join(facts)}")

    def progress(self, job: str, done: int, total: int) -> None:
        self._progress(job, done, total)

    def step(self, step: int) -> None:
        self._board.step = step

    def row(self, row: JsonRow) -> None:
        step = row["step"]
        self._board.step = step
        first_scores = not self._board.evaluation and metric_names(row)
        self._board.add_row(row)
        if first_scores:
            for line in score_words(metric_names(row)):
                write_line(line)
        words = [_step_text(step, self._board.info.get("steps"))]
        if "train/loss" in row:
            loss = number(row["train/loss"])
            words.append("loss not finite" if loss is None else f"loss {significant(loss)}")
        evaluated = [(name, name) for name in metric_names(row)]
        for key, label in (VALIDATION, *evaluated, *STEP_FIGURES):
            value = number(row.get(key))
            if value is not None:
                words.append(f"{label} {significant(value)}")
        words += self._take_probe(step)
        left = self._board.seconds_left()
        if left is not None:
            words.append(f"left {duration(left)}")
        write_line("  ".join(words))

    def _take_probe(self, step: int) -> list[str]:
        """The words for a probe that no line has carried yet."""
        if self._probe is None:
            return []
        if not self._explained:
            for line in regime_key(self._board.info.get("task")):
                write_line(line)
            self._explained = True
        text = probe_text(self._probe, step)
        self._probe = None
        return [text]

    def bins(self, row: JsonRow) -> None: ...

    def probe(self, row: JsonRow) -> None:
        self._probe = row

    def event(self, row: JsonRow) -> None:
        text = f"event at step {row['step']}: {row.get('mechanism')} {change_text(row)}"
        write_line(f"{text}: {row['reason']}" if row.get("reason") else text)

    def note(self, message: str) -> None:
        write_line(message)

    def close(self, status: str, message: str) -> None:
        if self._closed:
            return
        self._closed = True
        if self._probe is not None:
            step = self._probe["step"]
            write_line("  ".join([f"step {step}", *self._take_probe(step)]))
        write_line(f"{status}: {message}" if message else status)


def _step_text(step: int, budget: int | None) -> str:
    """`step 10/100`; only the step where the budget is unknown or behind it."""
    return f"step {step}/{budget}" if budget and step <= budget else f"step {step}"
