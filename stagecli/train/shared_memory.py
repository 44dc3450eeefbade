"""Shared memory, in which loader processes hand their batches over: is there enough?"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from stagecli.data.loader import MicroBatches, shared_bytes
from stagecli.errors import Problem, StageError
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
    # What this machine's processes need together.
    workers = prepared.recipe.data.workers
    free = free_shared_memory()
    if not workers or free is None:
        return
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    examples = prepared.examples(prepared.train, features=True)

    def needed(count: int) -> int:
        return ranks * shared_bytes(examples, order, count)

    if needed(workers) <= USABLE * free:
        return

    # What fits.
    fits = max((n for n in range(1, workers) if needed(n) <= USABLE * free), default=0)
    raise StageError(
        f"the batches of {workers} loader processes do not fit into shared memory",
        problems=[
            Problem("data.workers", f"{workers} need up to {_mb(needed(workers))} MB in {FOLDER}"),
            Problem(str(FOLDER), f"{_mb(free)} MB are free"),
        ],
        hint=f"--set data.workers={fits} fits; or give the container more, "
        "such as docker run --shm-size=8g",
    )


def _mb(size: int) -> str:
    return f"{size / 2**20:,.1f}"
