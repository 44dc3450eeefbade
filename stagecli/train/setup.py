"""Builds a trainer from a recipe, part by part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from stagecli.generate.pipeline import Pipeline
from stagecli.model.ema import EMA
from stagecli.model.network import Network
from stagecli.runs import checkpoint
from stagecli.runs.directory import Notice, Run, move_aside
from stagecli.runs.integrity import RESUMES, Choice, folders, newest_whole
from stagecli.schema import Recipe, Train
from stagecli.stage.controller import Stages
from stagecli.terminal.views import View
from stagecli.train.encoders import load_frozen
from stagecli.train.feed import micro_batches
from stagecli.train.finite import build_check
from stagecli.train.initial import Init, check_fine_tuning, fine_tune, open_init
from stagecli.train.log_window import LogWindow
from stagecli.train.memory import refuse_what_cannot_fit
from stagecli.train.outputs import Outputs
from stagecli.train.prepare import Prepared, prepare
from stagecli.train.probe import ProbeSet
from stagecli.train.probe_setup import build_probes
from stagecli.train.processes import accelerate_tracker, first_device, wrap
from stagecli.train.recorder import Recorder
from stagecli.train.scorer import build_scorer
from stagecli.train.shared_memory import check_least_shared_memory, check_shared_memory
from stagecli.train.state import RunContext, TrainingState
from stagecli.train.trackers import Trackers
from stagecli.train.trainer import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator


def trainer_at(
    start: Choice | None,
    recipe: Recipe,
    accelerator: Accelerator,
    run_dir: Path,
    *,
    run: Run | None,
    view: View,
    accept_data: bool,
) -> Trainer:
    """The trainer as it was at the checkpoint `start`; new where there is none.

    Raises StageError, OSError.
    """
    path = start.path if start is not None else None
    trainer = build_trainer(
        recipe, accelerator, run_dir, run, view, start=path, accept_data=accept_data
    )
    if start is not None:
        resume(trainer.state, start, run)
    return trainer


def build_trainer(
    recipe: Recipe,
    accelerator: Accelerator,
    run_dir: Path,
    run: Run | None,
    view: View,
    *,
    start: Path | None = None,
    accept_data: bool = False,
) -> Trainer:
    """Everything before the first step: data, network and measurements, not resumed yet.

    run: the open run directory, None on all but the main process; start: the checkpoint to resume;
    accept_data: as in `prepare`.
    Raises StageError for anything that would keep the run from training.
    """
    device = accelerator.device

    # The data, the codec, and what the frozen encoders compute once; a new run may fine-tune.
    stages = Stages.of(recipe)
    init = open_init(recipe, run_dir.parent, run) if start is None else None
    prepared = prepare_together(
        recipe, accelerator, run_dir, run, view, start=start, accept_data=accept_data, init=init
    )

    # What is trained.
    network = build_network(recipe, prepared, first_device(accelerator))
    fine_tune(network, recipe, init, run)
    adamw = build_optimizer(network, recipe.train, device)
    wrapped, optimizer = wrap(accelerator, network, adamw)
    stages.attach(network, prepared.feature_width)

    # What measures it.
    pipeline = build_pipeline(prepared, network, accelerator)
    scorer = None
    if recipe.train.evaluate_every:
        scorer = build_scorer(prepared, pipeline, accelerator, view.progress)

    # Where training stands, and what checks it.
    state = TrainingState(
        network=network,
        ema=EMA(network, recipe.train.ema),
        optimizer=optimizer,
        scaler=accelerator.scaler,
        stages=stages,
        probes=open_probes(stages, prepared, network, accelerator, view),
        log_window=LogWindow(recipe.train.bins),
    )
    check = build_check(state, adamw, recipe, device)

    # The loop and what it writes.
    context = RunContext(
        recipe=recipe,
        run_dir=run_dir,
        accelerator=accelerator,
        prepared=prepared,
        wrapped=wrapped,
        recorder=Recorder(run, view, Trackers(accelerate_tracker)),
    )
    return Trainer(context, state, Outputs(context, state, pipeline, scorer), check)


def prepare_together(
    recipe: Recipe,
    accelerator: Accelerator,
    run_dir: Path,
    run: Run | None,
    view: View,
    *,
    start: Path | None,
    accept_data: bool,
    init: Init | None = None,
) -> Prepared:
    """What `prepare` makes, by the main process first; the others then find its caches.

    init: the model that a new run starts from; the other arguments are those of `build_trainer`.
    Raises StageError.
    """
    processes = accelerator.num_processes
    order = micro_batches(recipe, rank=0, world=processes)
    with accelerator.main_process_first():
        # The networks, and what does not fit the machine however the data turn out.
        frozen = load_frozen(recipe, accelerator.device)
        refuse_what_cannot_fit(
            recipe, frozen.codec, frozen.text_width, accelerator.device, processes
        )
        check_least_shared_memory(recipe, frozen, order)
        statistics, notices = check_fine_tuning(recipe, frozen, init)

        # The data.
        prepared = prepare(
            recipe,
            run_dir,
            accelerator.device,
            view.progress,
            frozen=frozen,
            start=start,
            accept_data=accept_data,
            inherited=statistics,
        )
    check_shared_memory(prepared, order)
    if run is not None:
        run.notices += notices
        run.notices += [Notice("made again", problem) for problem in prepared.rebuilt]
    return prepared


def open_probes(
    stages: Stages, prepared: Prepared, network: Network, accelerator: Accelerator, view: View
) -> ProbeSet | None:
    """The probes that the mechanisms ask for, if any. Raises StageError."""
    if stages.probes is None:
        return None
    return build_probes(stages.probes, prepared, network, accelerator, view.progress)


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
    network = Network(
        recipe, channels=prepared.codec.channels, text_width=prepared.frozen.text_width
    )
    network.to(device)
    if recipe.train.compile != "none":
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


def starting_point(checkpoints: Path, step: int | None) -> Choice | None:
    """The checkpoint to continue from: that of `step`, else the newest that is whole.

    None where there is none. Raises StageError where those there are cannot be used.
    """
    if step is None:
        return newest_whole(checkpoints)
    path = checkpoint.resolve(checkpoints, str(step), needed=RESUMES)
    newer = [path for other, path in folders(checkpoints).items() if other > step]
    return Choice(path, [(path, f"is newer than --from-checkpoint {step}") for path in newer])


def resume(state: TrainingState, start: Choice, run: Run | None) -> None:
    """Continue from a checkpoint; newer ones are moved aside, so that it is the newest.

    Raises StageError where it does not fit, OSError where the run cannot be written.
    """
    progress = state.restore(start.path)
    if run is None:
        return
    run.save_info(
        best=progress.get("best")
    )  # a kill may have come between the checkpoint and run.json
    for path, reason in start.passed_over:
        kept = move_aside(path).name
        text = f"{path.name} {reason}: continuing from {start.path.name}; it is kept as {kept}"
        run.notices.append(Notice("checkpoint passed over", text))
