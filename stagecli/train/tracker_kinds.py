"""One class per kind of tracker: how it starts, and how it takes numbers, text, audio, pictures.

Each wraps the tracker of Accelerate of that name. All write to this machine unless an environment
variable of the tracker asks for more. Any call may raise anything: `trackers.Trackers` handles it.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stagecli.data.audio import read_channels

PROJECT = "stagecli"
# What these packages would send about themselves.
SILENCE = {"WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}

Wrapper = Callable[..., Any]
"""(name, *arguments, **options) -> Accelerate's tracker of that name, not started."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker is told about a run when it starts.

    id: of the run, unique; folder: that trackers may write to; config: the recipe, flattened;
    recipe: as text; key: what `Tracker.key` was in an earlier attempt, "" in the first.
    """

    name: str
    id: str
    folder: Path
    config: Mapping[str, Any]
    recipe: str
    key: str = ""


class Tracker(Protocol):
    """A started tracker. Every call may raise anything."""

    key: str  # what a later attempt needs to go on in the same log

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Values by name."""

    def text(self, step: int, name: str, text: str) -> None:
        """A line of text."""

    def audio(self, step: int, name: str, path: Path, caption: str) -> None:
        """A WAV file."""

    def picture(self, step: int, name: str, path: Path) -> None:
        """A PNG file."""

    def close(self) -> None:
        """Write what is still held back."""


def start_tracker(name: str, run: TrackedRun, wrapper: Wrapper) -> Tracker:
    """The tracker `name`, going on in the log of earlier attempts. May raise anything."""
    for variable, value in SILENCE.items():
        os.environ.setdefault(variable, value)
    run.folder.mkdir(parents=True, exist_ok=True)
    return STARTS[name](run, wrapper)


class TensorBoard:
    """Event files in `trackers/tensorboard`, one per attempt; TensorBoard reads them as one log."""

    def __init__(self, tracker: Any) -> None:
        self.tracker = tracker
        self.key = "tensorboard"

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self.tracker.log(dict(values), step=step)  # flushes, so that a kill loses nothing

    def text(self, step: int, name: str, text: str) -> None:
        self.tracker.log({name: text}, step=step)

    def audio(self, step: int, name: str, path: Path, caption: str) -> None:
        audio_NC, rate = read_channels(path)
        writer = self.tracker.tracker
        writer.add_audio(name, audio_NC[:, 0], global_step=step, sample_rate=rate)
        writer.add_text(f"{name}/caption", caption, global_step=step)
        writer.flush()

    def picture(self, step: int, name: str, path: Path) -> None:
        from matplotlib.image import imread

        writer = self.tracker.tracker
        writer.add_image(name, imread(path), global_step=step, dataformats="HWC")
        writer.flush()

    def close(self) -> None:
        self.tracker.finish()


def start_tensorboard(run: TrackedRun, wrapper: Wrapper) -> TensorBoard:
    tracker = wrapper("tensorboard", "tensorboard", run.folder)
    tracker.start()
    if not run.key:
        tracker.log({"recipe": f"```toml\n{run.recipe}\n```"}, step=0)
    return TensorBoard(tracker)


class MediaTracker:
    """wandb and trackio, whose modules wrap files in classes of the same names."""

    def __init__(self, tracker: Any, module: Any, key: str) -> None:
        self.tracker = tracker
        self.module = module
        self.key = key

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self.tracker.log(dict(values), step=step)

    def text(self, step: int, name: str, text: str) -> None:
        self.tracker.log({name: text}, step=step)

    def audio(self, step: int, name: str, path: Path, caption: str) -> None:
        self.tracker.log({name: self.module.Audio(str(path), caption=caption)}, step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        self.tracker.log({name: self.module.Image(str(path))}, step=step)

    def close(self) -> None:
        self.module.finish()  # also forgets the run, which would be closed again at exit


def start_wandb(run: TrackedRun, wrapper: Wrapper) -> MediaTracker:
    """Offline unless WANDB_MODE is set: `wandb sync` sends the folder when somebody wants that."""
    import wandb

    tracker = wrapper(
        "wandb",
        os.environ.get("WANDB_PROJECT", PROJECT),
        id=run.id,
        name=run.name,
        dir=os.environ.get("WANDB_DIR", str(run.folder)),
        mode=os.environ.get("WANDB_MODE", "offline"),
        resume="allow",
        settings={"console": "off", "silent": True},  # the terminal is the view's
    )
    tracker.start()
    if not run.key:
        tracker.store_init_configuration(dict(run.config))
    return MediaTracker(tracker, wandb, run.id)


def start_trackio(run: TrackedRun, wrapper: Wrapper) -> MediaTracker:
    """Its own local store, where `trackio show` looks, unless TRACKIO_SPACE_ID asks for a Space."""
    import trackio

    name = f"{run.name}-{run.id}"  # the store holds the runs of all folders
    options = {} if run.key else {"config": dict(run.config)}
    tracker = wrapper("trackio", PROJECT, name=name, resume="allow", embed=False, **options)
    tracker.start()
    return MediaTracker(tracker, trackio, name)


class MLflow:
    """A run of MLflow; audio, pictures and text are its artifacts."""

    def __init__(self, tracker: Any) -> None:
        self.tracker = tracker
        self.key = str(tracker.tracker.info.run_id)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self.tracker.log(dict(values), step=step)

    def text(self, step: int, name: str, text: str) -> None:
        module = importlib.import_module("mlflow")
        module.log_text(text, f"{name}/step_{step:08d}.txt")

    def audio(self, step: int, name: str, path: Path, caption: str) -> None:
        folder = f"{name.rpartition('/')[0]}/step_{step:08d}"
        self.tracker.log_artifact(str(path), folder)

    def picture(self, step: int, name: str, path: Path) -> None:
        self.tracker.log_artifact(str(path), f"{name}/step_{step:08d}")

    def close(self) -> None:
        self.tracker.finish()


def start_mlflow(run: TrackedRun, wrapper: Wrapper) -> MLflow:
    """A database in `trackers/mlflow` unless MLFLOW_TRACKING_URI is set."""
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    artifacts = None
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        folder = (run.folder / "mlflow").absolute()
        folder.mkdir(exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        artifacts = (folder / "artifacts").as_uri()
    tracker = wrapper(
        "mlflow", PROJECT, logging_dir=artifacts, run_name=run.name, run_id=run.key or None
    )
    tracker.start()
    if not run.key:
        tracker.store_init_configuration(dict(run.config))
    return MLflow(tracker)


STARTS: dict[str, Callable[[TrackedRun, Wrapper], Tracker]] = {
    "tensorboard": start_tensorboard,
    "wandb": start_wandb,
    "trackio": start_trackio,
    "mlflow": start_mlflow,
}
