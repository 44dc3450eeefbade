"""`stagecli train --dry-run`: all that can be known before the first step; writes nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from stagecli.codec import make_codec
from stagecli.condition.text import text_encoder
from stagecli.data.open import open_source
from stagecli.data.source import Source
from stagecli.files import JsonRow
from stagecli.model.network import count_parameters, meta_network
from stagecli.recipe.signature import signature
from stagecli.schema import Recipe
from stagecli.ssl import open_encoder
from stagecli.stage.controller import Stages
from stagecli.terminal.console import Console
from stagecli.train.memory import least_bytes
from stagecli.train.precision import resolve_precision
from stagecli.train.probe_setup import open_monitor


def dry_run(recipe: Recipe, out: Console) -> None:
    """Print the plan of a run as a table. Raises StageError where it could not be trained."""
    rows = [
        [name, f"{value:,}" if isinstance(value, int) else value]
        for name, value in plan_rows(recipe).items()
    ]
    out.table("", ["", ""], rows)


def plan_rows(recipe: Recipe) -> JsonRow:
    """Data counts, shapes, parameters, memory and measurements of a run, by name.

    Raises StageError for bad data, and for encoders that cannot be loaded.
    """
    # The data and the shape of one crop.
    recipe = resolve_precision(recipe)
    options = recipe.train
    source = check_data(recipe)
    train = source.clips("train")
    codec = make_codec(recipe)
    num_samples = round(recipe.data.seconds * recipe.data.sample_rate)

    # The model, without memory for its weights.
    text = text_encoder(recipe, torch.device("cpu"))
    text_width = text.width if text is not None else None
    network = meta_network(recipe, channels=codec.channels, text_width=text_width)
    parameters = count_parameters(network)
    width, depth, heads = recipe.model.resolved()

    stages = Stages.of(recipe)
    return {
        "recipe": recipe.about.name,
        "task": recipe.task.kind,
        "training clips": len(train),
        "validation clips": len(source.clips("valid")),
        "left out": len(source.skipped),
        "hours of training audio": round(sum(clip.seconds for clip in train) / 3600, 3),
        "frames x channels": f"{codec.frames(num_samples)} x {codec.channels}",
        "model": f"width {width}, depth {depth}, heads {heads}",
        "parameters": parameters,
        "memory at least, MB": round(least_bytes(recipe, codec, parameters) / 2**20),
        "precision": options.precision,
        "steps": options.steps,
        "passes over the data": round(options.steps * options.batch_size / max(1, len(train)), 2),
        "mechanisms": ", ".join(stages.mechanisms) or "none (plain training)",
        "probes": probe_plan(recipe, stages),
        "evaluation while training": evaluation_plan(recipe),
        "signature": signature(recipe),
    }


def check_data(recipe: Recipe) -> Source:
    """The data set with every clip checked. Raises StageError with every problem."""
    with tempfile.TemporaryDirectory() as scratch:  # for the index of checked files
        return open_source(
            recipe.data,
            need_captions=recipe.condition.text != "none",
            base=Path.cwd(),
            splits=("train", "valid"),
            seed=recipe.train.seed,
            cache_dir=Path(scratch),
        )


def probe_plan(recipe: Recipe, stages: Stages) -> str:
    """How the discrepancy is measured. Raises StageError where the monitor does not fit."""
    settings = stages.probes
    if settings is None:
        return "none"
    monitor = open_monitor(recipe, settings)
    levels = ", ".join(map(str, settings.t))
    return (
        f"every {settings.every} steps, {settings.clips} clips at t = {levels}, by {monitor.label}"
    )


def evaluation_plan(recipe: Recipe) -> str:
    """How often generated audio is scored. Raises StageError where the judge cannot be loaded."""
    options = recipe.train
    if not options.evaluate_every:
        return "none"
    if recipe.task.kind == "t2a":
        open_encoder(recipe.evaluate.judge)  # a missing judge is reported now
    steps = options.evaluate_steps or recipe.evaluate.steps
    return (
        f"every {options.evaluate_every} steps, {options.evaluate_clips} valid clips, "
        f"{steps} sampler steps"
    )
