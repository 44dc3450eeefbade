"""The frozen networks of a recipe, loaded once, and before any work on the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stagecli.codec import make_codec
from stagecli.codec.base import Codec
from stagecli.condition.text import PretrainedText, text_encoder
from stagecli.schema import Recipe
from stagecli.ssl import check_monitor, open_encoder
from stagecli.stage.base import ProbeSettings
from stagecli.stage.controller import Stages

if TYPE_CHECKING:
    from stagecli.ssl.base import Encoder


@dataclass(kw_only=True)
class Frozen:
    """The networks that training uses and does not train; None where the recipe uses none.

    Codec and text encoder are on the device of the run, the SSL encoders on the CPU until they are
    used. judge: where training evaluates; teacher: until its features are cached.
    """

    codec: Codec
    text: PretrainedText | None = None
    monitor: Encoder | None = None
    teacher: Encoder | None = None
    judge: Encoder | None = None

    @property
    def text_width(self) -> int | None:
        """D of the text encoder's embeddings; None without one."""
        return self.text.width if self.text is not None else None


def load_frozen(recipe: Recipe, device: torch.device) -> Frozen:
    """Load the frozen networks of a recipe, its codec not fitted yet.

    Raises StageError where one cannot be loaded, or does not fit the recipe.
    """
    frozen = Frozen(codec=make_codec(recipe).to(device).eval(), text=text_encoder(recipe, device))
    stages = Stages.of(recipe)
    if stages.probes is not None:
        frozen.monitor = open_monitor(recipe, stages.probes)
    if stages.features is not None:
        frozen.teacher = open_encoder(stages.features.encoder, stages.features.layer)
    if recipe.task.kind == "t2a" and recipe.train.evaluate_every:
        frozen.judge = open_encoder(recipe.evaluate.judge)
    return frozen


def open_monitor(recipe: Recipe, settings: ProbeSettings) -> Encoder:
    """The monitor, checked against the recipe. Raises StageError where it does not fit."""
    monitor = open_encoder(settings.monitor, settings.layer)
    cutoff = recipe.condition.cutoff
    restored_band = None
    if recipe.task.kind == "sr" and cutoff:
        top = recipe.data.sample_rate / 2
        if settings.partial_band and monitor.band > cutoff[0]:
            top = min(top, monitor.band)
        restored_band = (cutoff[0], top)
    check_monitor(
        monitor,
        task=recipe.task.kind,
        sample_rate=recipe.data.sample_rate,
        restored_band=restored_band,
        clip_seconds=recipe.data.seconds,
        judge_name=recipe.evaluate.judge,
    )
    return monitor
