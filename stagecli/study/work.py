"""One run of a study, start to end: trained, then scored from its checkpoints, which then go."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from stagecli.files import JsonRow, number
from stagecli.generate.pipeline import Pipeline, SamplerSettings, default_device, load_pipeline
from stagecli.report.rows import read_rows
from stagecli.runs import checkpoint
from stagecli.runs.directory import is_run, read_info
from stagecli.runs.integrity import folders
from stagecli.runs.lock import lock_run
from stagecli.study.plan import RunId, Study
from stagecli.study.records import append_scores, missing
from stagecli.study.scoring import Clips, open_clips
from stagecli.train.launch import train

HIGH_T = 0.5
STEP_SECONDS = 0.5  # between reports of steps

Report = Callable[..., None]
"""Called with the kind of an event of a run, and its values."""


class ReportingView:
    """The view of a run that trains in a study: tells when it begins, and its steps."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.told = 0.0

    def start(self, info: JsonRow) -> None:
        self.report("training", info["step"])

    def progress(self, job: str, done: int, total: int) -> None:
        if self._is_due():
            self.report("preparing", job)

    def step(self, step: int) -> None:
        if self._is_due():
            self.report("step", step)

    def row(self, row: JsonRow) -> None: ...
    def bins(self, row: JsonRow) -> None: ...
    def probe(self, row: JsonRow) -> None: ...
    def event(self, row: JsonRow) -> None: ...

    def note(self, message: str) -> None:
        self.report("note", message)

    def close(self, status: str, message: str) -> None: ...

    def _is_due(self) -> bool:
        now = time.monotonic()
        due = now - self.told >= STEP_SECONDS
        if due:
            self.told = now
        return due


class Work:
    """Does runs of one study, one after the other; keeps the clips that they are scored on."""

    def __init__(self, study: Study, report: Report) -> None:
        """report: receives the events of the run at work."""
        self.study = study
        self.report = report
        self.clips: Clips | None = None

    def do(self, run: RunId) -> bool:
        """Train and score a run, whatever is left of it; False if it was interrupted.

        Raises StageError.
        """
        if not self.train(run):
            return False
        self.report("trained")
        left = missing(self.study, run)
        if left:
            self.score(run, left)
        self.clean(run)
        return True

    def train(self, run: RunId) -> bool:
        """Train a run to its end, if it is not there yet; False if it was interrupted."""
        folder = self.study.run_dir(run)
        lost = lost_checkpoints(self.study, run)
        if is_trained(self.study, run) and not lost:
            return True
        if lost:
            steps = ", ".join(map(str, lost))
            self.report("note", f"{run}: trained again for the checkpoints of step {steps}")
        overrides = self.study.overrides(run)
        recipe = self.study.load_recipe(run)
        view = ReportingView(self.report)
        status = train(recipe, folder, view, overrides=overrides, restart=bool(lost))
        return status == "finished"

    def score(self, run: RunId, left: Mapping[int, list[float | None]]) -> None:
        """Score the checkpoints of a trained run; each goes as soon as it is scored."""
        # What is loaded once for all.
        folder = self.study.run_dir(run)
        pipeline, _ = load_pipeline(folder, str(min(left)))
        if self.clips is None:
            self.clips = open_clips(
                pipeline.recipe,
                self.study.score,
                default_device(),
                progress=self.progress,
                note=partial(self.report, "note"),
            )
        measured = Measured(folder)

        # Every step at every strength.
        total = len(self.study.score.steps) * len(self.study.strengths)
        done = total - sum(map(len, left.values()))
        for step, strengths in left.items():
            path = checkpoint.resolve(folder / "checkpoints", str(step))
            pipeline.network.load_state_dict(checkpoint.load_weights(path))
            for strength in strengths:
                self.report("scoring", done / total)
                done += 1
                scores = self.scores(pipeline, strength)
                row = {"step": step, "strength": strength, **measured.at(step, path), **scores}
                append_scores(self.study, run, [row])
            self.clean(run)

    def scores(self, pipeline: Pipeline, strength: float | None) -> dict[str, float]:
        """Scores of the pipeline's weights."""
        assert self.clips is not None
        settings = SamplerSettings.of(
            pipeline.recipe.evaluate, steps=self.study.score.sampler_steps, cfg_scale=strength
        )
        return self.clips.scores(pipeline, settings, self.progress)

    def progress(self, job: str, done: int, total: int) -> None:
        """Progress of scoring has no place in the table; its begin has."""

    def clean(self, run: RunId) -> None:
        """Remove the checkpoints of a run that nothing needs any more; the last one stays."""
        left = missing(self.study, run)
        place = self.study.run_dir(run)
        lock = lock_run(place)
        try:
            for step in folders(place / "checkpoints"):
                if step < self.study.steps and step not in left:
                    checkpoint.remove(place / "checkpoints", step)
        finally:
            lock.release()


class Measured:
    """What a run measured of itself, by step."""

    def __init__(self, folder: Path) -> None:
        self.validations = read_rows(folder / "metrics.jsonl", [], expected=False)
        self.probes = read_rows(folder / "probes.jsonl", [], expected=False)

    def at(self, step: int, path: Path) -> dict[str, float | None]:
        """Training seconds up to a checkpoint, probes included, and the newest measurements."""
        _, trainer = checkpoint.load_state(path)
        losses: list[float] = []
        for row in self.validations:
            if row["step"] == step and "valid/loss" in row:
                losses = high_t_losses(row)
        probes = [row for row in self.probes if row["step"] <= step]
        newest = max(probes, key=lambda row: row["step"], default={})
        return {
            "seconds": float(trainer["seconds"]) + float(trainer["probe_seconds"]),
            "Dn": number(newest.get("Dn")),
            "valid_loss_high_t": sum(losses) / len(losses) if losses else None,
        }


def high_t_losses(row: Mapping[str, Any]) -> list[float]:
    """The validation losses of a row at noise levels from HIGH_T on."""
    prefix = "valid/loss_t"
    levels = {key: float(key.removeprefix(prefix)) for key in row if key.startswith(prefix)}
    values = [number(row[key]) for key, t in levels.items() if t >= HIGH_T]
    return [value for value in values if value is not None]


def is_trained(study: Study, run: RunId) -> bool:
    """Whether a run has its last checkpoint and was ended as finished."""
    folder = study.run_dir(run)
    if not is_run(folder) or study.steps not in checkpoint.steps(folder / "checkpoints"):
        return False
    return read_info(folder)["status"] == "finished"


def lost_checkpoints(study: Study, run: RunId) -> list[int]:
    """Steps behind the run, still to be scored, whose checkpoints are gone."""
    folder = study.run_dir(run) / "checkpoints"
    if not folder.exists():
        return []
    saved = checkpoint.steps(folder)
    newest = max(saved, default=0)
    return [step for step in missing(study, run) if step < newest and step not in saved]
