"""Shared memory, in which loader processes hand their batches over: is there enough?"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from stagecli.data.loader import MicroBatches, example_bytes, shared_bytes
from stagecli.errors import Problem, StageError, counted
from stagecli.schema import Recipe
from stagecli.train.encoders import Frozen
from stagecli.train.prepare import Prepared

FOLDER = Path("/dev/shm")
USABLE = 0.9  # share of the free memory that batches may take


def free_shared_memory() -> int | None:
    """Free bytes; None on a system that holds shared memory elsewhere."""
    return shutil.disk_usage(FOLDER).free if FOLDER.is_dir() else None


def check_shared_memory(prepared: Prepared, order: MicroBatches) -> None:
    """Refuse loader processes whose batches do not fit: they would wait for memory for ever.

    Raises StageError with the number of processes that fits.
    """
    workers = prepared.recipe.data.workers
    if workers:
        examples = prepared.examples(prepared.train, features=True)
        _refuse(workers, example_bytes(examples), order)


def check_least_shared_memory(recipe: Recipe, frozen: Frozen, order: MicroBatches) -> None:
    """The same before any work on the data, of which only the length of the captions counts.

    Raises StageError.
    """
    _refuse(recipe.data.workers, least_example_bytes(recipe, frozen), order)


def least_example_bytes(recipe: Recipe, frozen: Frozen) -> int:
    """Bytes of the tensors of an example without those of its caption."""
    num_samples = round(recipe.data.seconds * recipe.data.sample_rate)
    frames = frozen.codec.frames(num_samples)
    values = [frames * frozen.codec.channels]  # noise
    values.append(values[0] if frozen.codec.is_network else num_samples)  # frames or audio
    if recipe.task.kind == "sr":
        values.append(num_samples + 2)  # the low-resolution input, its level and cutoff
    if frozen.teacher is not None:
        length = int(num_samples * frozen.teacher.sample_rate / recipe.data.sample_rate)
        values.append(frozen.teacher.frames(length) * frozen.teacher.dimension)
    mask = frames if recipe.data.padding == "mask" else 0
    return 4 * sum(values) + mask


def _refuse(workers: int, size: int, order: MicroBatches) -> None:
    """Raise StageError where batches of examples of `size` bytes do not fit."""
    # What this machine's processes need together.
    free = free_shared_memory()
    if not workers or free is None:
        return
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)

    def needed(count: int) -> int:
        return ranks * shared_bytes(size, order, count)

    if needed(workers) <= USABLE * free:
        return

    # What fits.
    fits = max((n for n in range(1, workers) if needed(n) <= USABLE * free), default=0)
    raise StageError(
        f"the batches of {counted(workers, 'loader process', 'loader processes')} do not fit into "
        "shared memory",
        problems=[
            Problem(
                "data.workers",
                f"{counted(workers, 'process needs', 'processes need')} up to "
                f"{_mb(needed(workers))} MB in {FOLDER}",
            ),
            Problem(str(FOLDER), f"{_mb(free)} MB are free"),
        ],
        hint=f"--set data.workers={fits} fits; or give the container more, "
        "such as docker run --shm-size=8g",
    )


def _mb(size: int) -> str:
    return f"{size / 2**20:,.1f}"
