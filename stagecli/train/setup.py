"""Builds a trainer from a recipe, part by part; the only file that imports Accelerate."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator

from stagecli.errors import Problem, StageError
from stagecli.generate.pipeline import Pipeline
from stagecli.model.ema import EMA
from stagecli.model.network import Network
from stagecli.runs import checkpoint
from stagecli.runs.directory import Run
from stagecli.schema import Recipe, Train
from stagecli.stage.controller import Stages
from stagecli.terminal.views import View
from stagecli.train.log_window import LogWindow
from stagecli.train.memory import refuse_what_cannot_fit
from stagecli.train.outputs import Outputs
from stagecli.train.prepare import Prepared, prepare
from stagecli.train.probe_setup import build_probes
from stagecli.train.recorder import Recorder
from stagecli.train.scorer import build_scorer
from stagecli.train.state import RunContext, TrainingState
from stagecli.train.trainer import Trainer


def build_accelerator(recipe: Recipe) -> Accelerator:
    """Raises StageError where the precision or the batch size does not fit the machine."""
    options = recipe.train
    precision = "no" if options.precision == "fp32" else options.precision
    if precision == "fp16" and not torch.cuda.is_available():
        raise StageError(
            "fp16 needs a GPU",
            problems=[Problem("train.precision", "fp16")],
            hint="use --set train.precision=bf16",
        )
    accelerator = Accelerator(mixed_precision=precision)
    divisor = accelerator.num_processes * options.accumulate
    if options.batch_size % divisor:
        raise StageError(
            f"train.batch_size {options.batch_size} is not divisible by "
            f"{accelerator.num_processes} processes x accumulate {options.accumulate}",
            hint=f"choose a multiple of {divisor}",
        )
    return accelerator


def build_trainer(
    recipe: Recipe, accelerator: Accelerator, run_dir: Path, run: Run | None, view: View
) -> Trainer:
    """Everything before the first step: data, network, measurements, and the newest checkpoint.

    run: the open run directory, None on all but the main process.
    Raises StageError for anything that would keep the run from training.
    """
    options = recipe.train
    device = accelerator.device

    # The data, the codec, and what the frozen encoders compute once.
    stages = Stages.of(recipe)
    with accelerator.main_process_first():
        prepared = prepare(recipe, run_dir, device, view.progress, stages.features)
    features = prepared.features

    # What is trained.
    text_width = prepared.text.width if prepared.text is not None else None
    processes = accelerator.num_processes
    refuse_what_cannot_fit(recipe, prepared.codec, text_width, device, processes)
    network = build_network(recipe, prepared, device)
    ema = EMA(network, options.ema)
    optimizer = build_optimizer(network, options, device)
    wrapped, optimizer = accelerator.prepare(network, optimizer)
    stages.attach(network, features.width if features is not None else None)

    # What measures it.
    probes = None
    if stages.probes is not None:
        probes = build_probes(stages.probes, prepared, network, accelerator, view.progress)
    pipeline = build_pipeline(prepared, network, accelerator)
    scorer = None
    if options.evaluate_every:
        scorer = build_scorer(prepared, pipeline, accelerator, view.progress)

    # Where training stands.
    state = TrainingState(
        network=network,
        ema=ema,
        optimizer=optimizer,
        scaler=accelerator.scaler,
        stages=stages,
        probes=probes,
        log_window=LogWindow(options.bins),
    )
    resume(state, run_dir / "checkpoints", run)

    # The loop and what it writes.
    context = RunContext(
        recipe=recipe,
        run_dir=run_dir,
        accelerator=accelerator,
        prepared=prepared,
        wrapped=wrapped,
        recorder=Recorder(run, view),
    )
    return Trainer(context, state, Outputs(context, state, pipeline, scorer))


def build_pipeline(prepared: Prepared, network: Network, accelerator: Accelerator) -> Pipeline:
    """Generation with the network that is trained, for samples and scores."""
    return Pipeline(
        recipe=prepared.recipe,
        codec=prepared.codec,
        network=network,
        text=prepared.text,
        device=accelerator.device,
        autocast=accelerator.autocast,
    )


def build_network(recipe: Recipe, prepared: Prepared, device: torch.device) -> Network:
    """The network with its initial weights, a function of `train.seed`."""
    torch.manual_seed(recipe.train.seed)
    text_width = prepared.text.width if prepared.text is not None else None
    network = Network(recipe, channels=prepared.codec.channels, text_width=text_width)
    network.to(device)
    if recipe.train.compile:
        network.dit.compile_blocks()
    return network


def build_optimizer(
    network: Network, options: Train, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW that decays matrices only."""
    return torch.optim.AdamW(
        network.parameter_groups(options.weight_decay),
        lr=options.lr,
        betas=options.betas,
        fused=device.type in ("cuda", "cpu"),
    )


def resume(state: TrainingState, checkpoints: Path, run: Run | None) -> None:
    """Continue from the newest checkpoint, if any. Raises StageError where it is damaged."""
    if not checkpoint.steps(checkpoints):
        return
    progress = state.restore(checkpoint.resolve(checkpoints))
    if run is not None:  # a kill may have come between the checkpoint and run.json
        run.save_info(best=progress["best"])
