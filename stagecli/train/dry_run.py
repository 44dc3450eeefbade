"""`stagecli train --dry-run`: everything that can be known before the first step, and nothing written."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from stagecli.codec import make_codec
from stagecli.condition.text import text_encoder
from stagecli.data.open import open_source
from stagecli.model.network import count_parameters, meta_network
from stagecli.recipe.signature import signature
from stagecli.schema import Recipe
from stagecli.ssl import open_encoder
from stagecli.stage.controller import Stages
from stagecli.terminal.console import Console
from stagecli.train.precision import settled
from stagecli.train.probe import open_monitor


def facts(recipe: Recipe) -> dict[str, Any]:
    """Data counts, shapes, parameters, and memory of weights and optimiser. Raises StageError for bad data."""
    with (
        tempfile.TemporaryDirectory() as scratch
    ):  # the check index goes there: a dry run writes nothing
        source = open_source(
            recipe.data,
            need_captions=recipe.condition.text != "none",
            base=Path.cwd(),
            splits=("train", "valid"),
            seed=recipe.train.seed,
            cache_dir=Path(scratch),
        )
    train = source.clips("train")
    valid = source.clips("valid")
    codec = make_codec(recipe)
    text = text_encoder(recipe, torch.device("cpu"))
    network = meta_network(recipe, channels=codec.channels, text_width=text.width if text else None)
    parameters = count_parameters(network)
    samples = round(recipe.data.seconds * recipe.data.sample_rate)
    seen = recipe.train.steps * recipe.train.batch_size
    width, depth, heads = recipe.model.resolved()
    recipe = settled(recipe)
    stages = Stages.of(recipe)
    probes = "none"
    if stages.probes is not None:
        asked = stages.probes
        label = open_monitor(recipe, asked).label
        probes = f"every {asked.every} steps, {asked.clips} clips at t = {', '.join(map(str, asked.t))}, by {label}"
    return {
        "recipe": recipe.about.name,
        "task": recipe.task.kind,
        "training clips": len(train),
        "validation clips": len(valid),
        "left out": len(source.skipped),
        "hours of training audio": round(sum(clip.seconds for clip in train) / 3600, 3),
        "frames x channels": f"{codec.frames(samples)} x {codec.channels}",
        "model": f"width {width}, depth {depth}, heads {heads}",
        "parameters": parameters,
        # fp32 weights, gradients, two AdamW moments and the EMA; activations come on top.
        "weights and optimiser, MB": round(parameters * 4 * 5 / 2**20),
        "precision": recipe.train.precision,
        "steps": recipe.train.steps,
        "passes over the data": round(seen / max(1, len(train)), 2),
        "mechanisms": ", ".join(stages.mechanisms) or "none (plain training)",
        "probes": probes,
        "evaluation while training": _evaluation(recipe),
        "signature": signature(recipe),
    }


def _evaluation(recipe: Recipe) -> str:
    train = recipe.train
    if not train.evaluate_every:
        return "none"
    if recipe.task.kind == "t2a":
        open_encoder(recipe.evaluate.judge)  # a judge that is not there is an error now
    steps = train.evaluate_steps or recipe.evaluate.steps
    return f"every {train.evaluate_every} steps, {train.evaluate_clips} valid clips, {steps} sampler steps"


def dry_run(recipe: Recipe, out: Console) -> None:
    document = facts(recipe)
    out.table(
        "",
        ["", ""],
        [
            [name, f"{value:,}" if isinstance(value, int) else value]
            for name, value in document.items()
        ],
    )
