"""The SSL encoders of a recipe, opened and checked against it before any work on the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagecli.schema import Recipe
from stagecli.ssl import check_monitor, open_encoder
from stagecli.stage.base import ProbeSettings
from stagecli.stage.controller import Stages

if TYPE_CHECKING:
    from stagecli.ssl.base import Encoder


def check_encoders(recipe: Recipe) -> None:
    """Raise StageError where the monitor, the teacher, or a judge that training uses does not fit.

    They are opened again where they are used: that takes little, beside what fails late.
    """
    stages = Stages.of(recipe)
    if stages.probes is not None:
        open_monitor(recipe, stages.probes)
    if stages.features is not None:
        open_encoder(stages.features.encoder, stages.features.layer)
    if recipe.task.kind == "t2a" and recipe.train.evaluate_every:
        open_encoder(recipe.evaluate.judge)


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
