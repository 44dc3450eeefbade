"""Tiny studies, and workers that do their runs in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conftest import fresh_accelerate, write_recipe

from stagecli.study.load import load_study
from stagecli.study.plan import RunId, Study
from stagecli.study.pool import Message
from stagecli.study.work import Work

TINY: dict[str, Any] = {
    "train__steps": 8,
    "train__validate_every": 4,
    "train__samples": 0,
    "condition__max_length": 64,
    "stage__regime__every": 1,
    "stage__regime__clips": 2,
}
STUDY = """
name = "tiny"
recipe = "tiny.toml"
seeds = [0, 1]
baseline = "standard"
[score]
steps = [4, 8]
clips = 8
sampler_steps = 2
strengths = [1.0, 2.0]
[set]
"train.log_every" = 1
[arms.standard]
summary = "no mechanism"
[arms.progress.set]
"stage.timesteps.kind" = "progress"
"""
REPLAYED = """
[arms.replayed.set]
"stage.regime.source" = "replay"
"stage.regime.replay" = "{progress@next}"
"""


def write_study(folder: Path, text: str = STUDY, kind: str = "t2a", **changes: Any) -> Path:
    """Write a study and its recipe."""
    write_recipe(folder / "tiny.toml", kind, **{**TINY, **changes})
    path = folder / "tiny.study.toml"
    path.write_text(text)
    return path


def tiny_study(folder: Path, text: str = STUDY, kind: str = "t2a", **changes: Any) -> Study:
    """A study in `folder`/study; its caches are there, too."""
    changes.setdefault("data__cache_dir", str(folder / "cache"))
    return load_study(write_study(folder, text, kind, **changes), folder / "study")


class Here:
    """Workers of a study that do each run as it is started, in this process."""

    def __init__(self, study: Study, size: int = 1) -> None:
        fresh_accelerate()
        self.started: list[RunId] = []
        self.inbox: list[Message] = []
        self.work = Work(study, self.report)

    @property
    def free(self) -> int:
        return 0 if self.inbox else 1

    @property
    def running(self) -> list[RunId]:
        return self.started[-1:] if self.inbox else []

    def report(self, kind: str, *values: Any) -> None:
        self.inbox.append(Message(self.started[-1], kind, values))

    def start(self, run: RunId) -> None:
        self.started.append(run)
        try:
            self.report("done" if self.work.do(run) else "stopped")
        except Exception as error:
            self.report("failed", str(error))

    def messages(self, seconds: float) -> Iterator[Message]:
        while self.inbox:
            yield self.inbox.pop(0)

    def stop(self) -> None: ...
    def close(self) -> None: ...
    def kill(self) -> None: ...
