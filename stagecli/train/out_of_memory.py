"""The error of a step for which memory was not enough: what was asked for, and what would fit."""

from __future__ import annotations

from collections.abc import Iterator

from stagecli.errors import EXIT_FAILED, Problem, StageError, causes, counted
from stagecli.model.sharded import is_sharded
from stagecli.schema import Recipe
from stagecli.train.memory import (
    USABLE,
    MemoryEstimate,
    bytes_of,
    estimate_memory,
    in_words,
    peak_memory,
)
from stagecli.train.state import RunContext


def not_enough_memory(error: Exception, context: RunContext) -> StageError:
    """The error of a run whose training took more memory than there is.

    error: what ended it. The estimate takes some seconds and hardly any memory.
    """
    recipe = context.recipe
    options = recipe.train
    accelerator = context.accelerator
    processes = accelerator.num_processes
    there = bytes_of(accelerator.device)
    clips = options.batch_size // (options.accumulate * processes)
    frames, channels = context.prepared.shape
    estimate = estimate_memory(
        recipe,
        frames=frames,
        channels=channels,
        text_width=context.prepared.frozen.text_width,
    )
    if is_sharded(context.wrapped):
        estimate = estimate.sharded(processes)
    return StageError(
        f"there is not enough memory for {counted(clips, 'clip')} at once",
        problems=[
            Problem(
                "train.batch_size",
                f"{options.batch_size} = {clips} clips x train.accumulate {options.accumulate} x "
                f"{counted(processes, 'process', 'processes')}",
            ),
            Problem("measured", f"{in_words(peak_memory())} at most, of {in_words(there)}"),
            Problem("estimated", f"{in_words(estimate.total(clips))} for this batch"),
            Problem("cause", causes(error)[-1]),
        ],
        hint=nearest_setting(recipe, estimate, processes, round(USABLE * there)),
        exit_code=EXIT_FAILED,
    )


def nearest_setting(recipe: Recipe, estimate: MemoryEstimate, processes: int, usable: int) -> str:
    """A way out: the fewest micro-batches of the same step that should fit."""
    options = recipe.train
    for accumulate, clips in splits(options.batch_size, options.accumulate, processes):
        needed = estimate.total(clips)
        if needed <= usable:
            return (
                f"run the same command again with --set train.accumulate={accumulate}: the same "
                f"batch of {options.batch_size} in steps of {counted(clips, 'clip')}, about "
                f"{in_words(needed)}; it resumes from the last checkpoint"
            )
    if options.activation_checkpointing:
        return "train a smaller model, or fewer data.seconds, under another name with --name"
    return (
        "no train.accumulate makes this batch small enough: run the same command again with "
        "--set train.activation_checkpointing=true, which takes less memory, or train a smaller "
        "model under another name with --name"
    )


def splits(batch_size: int, accumulate: int, processes: int) -> Iterator[tuple[int, int]]:
    """(`train.accumulate`, clips at once) of a batch, larger than `accumulate`, in order."""
    own = batch_size // processes
    for number in range(accumulate + 1, own + 1):
        if own % number == 0:
            yield number, own // number
