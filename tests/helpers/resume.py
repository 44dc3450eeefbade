"""Kill a training run, and compare what two runs wrote."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import T2A, die_at, forked, read_rows, run_cli, sha

STEPS = T2A["train.steps"]
TIMED = ("time", "attempt", "speed/samples_per_s", "speed/step_s", "eval/seconds")


def facts(run: Path, stream: str = "metrics") -> dict[tuple[int, str], Any]:
    """(step, name) -> value, leaving out the values that depend on the clock.

    Asserts that a step trained twice, before a kill and after the resume, gave the same values.
    """
    seen: dict[tuple[int, str], Any] = {}
    for row in read_rows(run, stream):
        for name, value in row.items():
            if name not in TIMED:
                key = (row["step"], name)
                assert seen.setdefault(key, value) == value, (
                    f"{key}: a different value when trained again"
                )
    return seen


def weights(run: Path, step: int = STEPS) -> tuple[str, str]:
    """Hashes of the network's weights and of their average in one checkpoint."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    return sha(folder / "model.safetensors"), sha(folder / "ema.safetensors")


def same(run: Path, reference: Path) -> None:
    """Assert that two finished runs wrote the same rows and weights and chose the same best."""
    assert facts(run) == facts(reference)
    assert facts(run, "bins") == facts(reference, "bins")
    assert weights(run) == weights(reference)
    info = json.loads((run / "run.json").read_text())
    assert info["status"] == "finished"
    assert info["best"] == json.loads((reference / "run.json").read_text())["best"]


def attempts(run: Path) -> list[int]:
    """The step at which each attempt of a run started."""
    return [
        attempt["from_step"] for attempt in json.loads((run / "run.json").read_text())["attempts"]
    ]


def killed(cwd: Path, *args: object, arrange: Callable[[], object]) -> None:
    """Run the command in a process that `arrange` has made to kill itself with SIGKILL."""

    def work() -> None:
        arrange()
        run_cli(*args, cwd=cwd)

    process = forked(work)
    process.join(600)
    assert process.exitcode == -signal.SIGKILL


def at_row(step: int) -> Callable[[], None]:
    """Die instead of writing the row of `step`, so that the rows before it are on disk."""

    def arrange() -> None:
        from stagecli.runs.directory import Run

        die_at(Run, "append", lambda run, stream, row: stream == "metrics" and row["step"] == step)

    return arrange
