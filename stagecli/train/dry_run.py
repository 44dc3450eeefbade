"""`stagecli train --dry-run`: all that can be known before the first step; writes nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from stagecli import launcher
from stagecli.data.cache import Progress
from stagecli.data.report import DataReport
from stagecli.errors import counted
from stagecli.files import JsonRow
from stagecli.model.network import count_parameters, meta_network
from stagecli.recipe.signature import signature
from stagecli.report.data_table import data_table, totals
from stagecli.schema import Recipe
from stagecli.stage.controller import Stages
from stagecli.terminal.console import Console
from stagecli.train.data_check import examine, open_training_data
from stagecli.train.encoders import load_frozen
from stagecli.train.initial import Init, check_fine_tuning, fine_tune, open_init
from stagecli.train.precision import resolve_precision
from stagecli.train.preflight import Shape, preflight_rows
from stagecli.train.prepare import Prepared
from stagecli.train.probe import shortage
from stagecli.train.probe_setup import count_probe_clips


@dataclass(frozen=True, kw_only=True)
class Plan:
    """rows: figures by name; data: the report on the clips."""

    rows: JsonRow
    data: DataReport


def make_plan(recipe: Recipe, runs_dir: Path, progress: Progress) -> Plan:
    """The plan of a run in `runs_dir`. Raises StageError if it cannot be trained."""
    init = open_init(recipe, runs_dir)
    with checked_data(resolve_precision(recipe), progress, init) as prepared:
        rows = plan_rows(prepared, progress, init)
    return Plan(rows=rows, data=prepared.data.report)


def show_plan(plan: Plan, out: Console) -> None:
    """Print a plan as tables; warn about what is doubtful in the data."""
    out.table("", ["", ""], [[name, _cell(value)] for name, value in plan.rows.items()])
    out.text()
    out.table("", *data_table(plan.data.facts))
    for doubt in plan.data.doubts:
        out.warn(f"data: {doubt}")


def plan_rows(prepared: Prepared, progress: Progress, init: Init | None = None) -> JsonRow:
    """Data counts, shapes, parameters, memory and measurements of a run, by name.

    init: the model that it starts from.
    Raises StageError for encoders that cannot be loaded.
    """
    # The model, without memory for its weights.
    recipe = prepared.recipe
    options = recipe.train
    network = meta_network(
        recipe, channels=prepared.codec.channels, text_width=prepared.frozen.text_width
    )
    parameters = count_parameters(network)
    tuning = {notice.after: notice.reason for notice in fine_tune(network, recipe, init)}
    width, depth, heads = recipe.model.resolved()
    frames, channels = prepared.shape
    shape = Shape(frames=frames, channels=channels, text_width=prepared.frozen.text_width)

    # The figures.
    stages = Stages.of(recipe)
    train = prepared.train
    return {
        "recipe": recipe.about.name,
        "task": recipe.task.kind,
        "training clips": len(train),
        "validation clips": len(prepared.valid),
        **totals(prepared.data.report.facts),
        "hours of training audio": round(sum(clip.seconds for clip in train) / 3600, 3),
        "frames x channels": f"{frames} x {channels}",
        "model": f"width {width}, depth {depth}, heads {heads}",
        "parameters": parameters,
        **tuning,
        **preflight_rows(recipe, shape, training_device(), launcher.processes()),
        "precision": options.precision,
        "steps": options.steps,
        "passes over the data": round(options.steps * options.batch_size / max(1, len(train)), 2),
        "mechanisms": ", ".join(stages.mechanisms) or "none (plain training)",
        "probes": probe_plan(prepared, stages, progress),
        "evaluation while training": evaluation_plan(recipe),
        "signature": signature(recipe),
    }


def training_device() -> torch.device:
    """Where this recipe would train."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def checked_data(
    recipe: Recipe, progress: Progress, init: Init | None = None
) -> Iterator[Prepared]:
    """What training would start from, with every clip checked and nothing cached or fitted.

    init: the model that it starts from.
    Raises StageError for encoders that cannot be loaded, and with every problem of the data.
    """
    # Every frozen network first: one that cannot be loaded costs no work on the data.
    frozen = load_frozen(recipe, torch.device("cpu"))
    check_fine_tuning(recipe, frozen, init)

    with tempfile.TemporaryDirectory() as scratch:  # for the indices of checked files
        source = open_training_data(recipe, progress, cache_dir=Path(scratch))
        yield Prepared(
            recipe=recipe,
            source=source,
            train=source.clips("train"),
            valid=source.clips("valid"),
            frozen=frozen,
            data=examine(recipe, source, frozen.text, progress, Path(scratch)),
        )


def probe_plan(prepared: Prepared, stages: Stages, progress: Progress) -> str:
    """How the discrepancy is measured. Raises StageError where the probe set is too small."""
    settings = stages.probes
    monitor = prepared.frozen.monitor
    if settings is None or monitor is None:
        return "none"
    count = count_probe_clips(settings, prepared, torch.device("cpu"), progress)
    if problem := shortage(count, settings.clips):
        prepared.data.report.doubts.append(problem)
    levels = ", ".join(map(str, settings.t))
    return (
        f"every {counted(settings.every, 'step')}, {counted(count, 'clip')} at t = {levels}, "
        f"by {monitor.label}"
    )


def evaluation_plan(recipe: Recipe) -> str:
    """How often generated audio is scored."""
    options = recipe.train
    if not options.evaluate_every:
        return "none"
    steps = options.evaluate_steps or recipe.evaluate.steps
    return (
        f"every {counted(options.evaluate_every, 'step')}, "
        f"{counted(options.evaluate_clips, 'valid clip')}, {counted(steps, 'sampler step')}"
    )


def _cell(value: object) -> object:
    return f"{value:,}" if isinstance(value, int) else value
