"""The processes of a run: how many, on which devices, with whole weights or parts of them.

The only file that imports Accelerate.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    parse_flag_from_env,
)
from torch.distributed.fsdp import MixedPrecisionPolicy, register_fsdp_forward_method
from torch.utils import _pytree as pytree

from stagecli import launcher
from stagecli.errors import EXIT_FAILED, Problem, StageError, causes, counted
from stagecli.model.dit import Block, Output
from stagecli.model.network import Network
from stagecli.schema import Recipe, Train
from stagecli.train.graph import check_compile

pytree.register_dataclass(Output)  # FSDP looks into what a network returns


def build_accelerator(recipe: Recipe) -> Accelerator:
    """The processes of this run, which work together on the CPU where there is no GPU.

    Raises StageError where the precision, the batch size or the processes do not fit the machine.
    """
    options = recipe.train
    precision = "no" if options.precision == "fp32" else options.precision
    if precision == "fp16" and not torch.cuda.is_available():
        raise StageError(
            "fp16 needs a GPU",
            problems=[Problem("train.precision", "fp16")],
            hint="use --set train.precision=bf16",
        )
    launcher.check_environment()
    check_split(options, launcher.processes())
    accelerator = connect(precision)
    check_compile(recipe, accelerator.device, accelerator.num_processes)
    return accelerator


def check_split(options: Train, processes: int) -> None:
    """Raises StageError where a step's batch cannot be split over the processes."""
    parts = processes * options.accumulate
    if options.batch_size % parts == 0:
        return
    below = options.batch_size // parts * parts
    sizes = f"{below} or {below + parts}" if below else str(parts)
    raise StageError(
        f"train.batch_size {options.batch_size} is not divisible by "
        f"{counted(processes, 'process', 'processes')} x accumulate {options.accumulate}",
        hint=f"choose train.batch_size {sizes}, or another number of processes",
    )


def connect(precision: str) -> Accelerator:
    """Join the processes that a launcher started.

    Raises StageError where there are not as many as it was asked for: each of them would train the
    whole run.
    """
    # What can be seen before.
    asked = launcher.processes()
    gpus = torch.cuda.device_count()
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    on_cpu = asked > 1 and not torch.accelerator.is_available()
    if gpus and local > gpus and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        raise StageError(
            f"{local} processes on this machine, which has {counted(gpus, 'GPU')}",
            hint=(
                f"start {counted(gpus, 'process', 'processes')}; train.accumulate makes their "
                "batches smaller"
            ),
        )

    # What came of it.
    sharding = fsdp_plugin(precision) if launcher.shares_weights() else None
    try:
        accelerator = Accelerator(mixed_precision=precision, cpu=on_cpu, fsdp_plugin=sharding)
    except Exception as error:
        raise StageError(
            "the processes of this run cannot be connected",
            problems=[Problem("cause", text) for text in causes(error)],
            hint="start them with torchrun or accelerate launch; or unset RANK, WORLD_SIZE and "
            "LOCAL_RANK to train in one process",
            exit_code=EXIT_FAILED,
        ) from error
    if accelerator.num_processes != asked:
        raise StageError(
            f"{counted(asked, 'process was', 'processes were')} asked for, and "
            f"{accelerator.num_processes} would train",
            problems=[Problem("WORLD_SIZE", f"is {asked}; the device is {accelerator.device}")],
            hint="start them with torchrun --nproc_per_node N -m stagecli train ...",
        )
    if sharding is not None:
        # Beside CPUs Accelerate passes over FSDP, and would give every process all weights.
        for state in (PartialState(), accelerator.state):
            state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = sharding
    return accelerator


def fsdp_plugin(precision: str) -> FullyShardedDataParallelPlugin:
    """The settings of FSDP, which the launcher asks for.

    Every transformer block is a unit of its own. Weights stay fp32 and are computed in `precision`
    by autocast, as in one process. Raises StageError for what is not supported.
    """
    problems = []
    if os.environ.get("FSDP_VERSION", "1") != "2":
        problems.append(Problem("fsdp_version", "is 1; set it to 2"))
    if parse_flag_from_env("FSDP_OFFLOAD_PARAMS"):
        problems.append(Problem("fsdp_offload_params", "is not supported; set it to false"))
    if parse_flag_from_env("FSDP_ACTIVATION_CHECKPOINTING"):
        problem = "is set in the recipe: --set train.activation_checkpointing=true"
        problems.append(Problem("fsdp_activation_checkpointing", problem))
    if precision == "fp16":
        problems.append(Problem("train.precision", "is fp16, which is not tested with FSDP"))
    if problems:
        raise StageError(
            "FSDP cannot be used as it is configured",
            problems=problems,
            hint="change the configuration of accelerate launch; docs/distributed.md shows one",
        )
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=[Block.__name__],
        cpu_ram_efficient_loading=False,  # the first weights are a function of the seed
        mixed_precision_policy=MixedPrecisionPolicy(cast_forward_inputs=False),
    )


def first_device(accelerator: Accelerator) -> torch.device:
    """Where the network is built. FSDP moves it part by part: the whole need not fit a device."""
    return torch.device("cpu") if accelerator.is_fsdp2 else accelerator.device


def wrap(
    accelerator: Accelerator, network: Network, optimizer: torch.optim.Optimizer
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """(the network for the forward pass, its optimiser), as the engine of the run needs them."""
    wrapped, prepared = accelerator.prepare(network, optimizer)
    if accelerator.is_fsdp2:
        # Weights are parts between steps, whatever ran before: averages and checkpoints read them.
        wrapped.set_reshard_after_forward(True)
        register_fsdp_forward_method(network, "encode_condition")
    return wrapped, prepared


def accelerate_tracker(name: str, /, *arguments: Any, **options: Any) -> Any:
    """Accelerate's tracker `name`, not started. Raises StageError where it has none."""
    if name not in LOGGER_TYPE_TO_CLASS:
        raise StageError(
            f"the installed Accelerate has no tracker {name}: pip install --upgrade accelerate"
        )
    return LOGGER_TYPE_TO_CLASS[name](*arguments, **options)
