"""The micro-batches of one process, in order, from worker processes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stagecli.data.examples import Collate, Examples
from stagecli.errors import EXIT_FAILED, Problem, StageError, causes

# Seconds that a loader process outlives a SIGTERM, so that the trainer can finish its step.
LINGER = 20
PREFETCH = 4  # micro-batches that each loader process prepares in advance
PATIENCE = 600  # seconds without a batch from loader processes before that is an error


@dataclass(frozen=True, kw_only=True)
class MicroBatches:
    """Global sample indices of every micro-batch of one process, for steps start to stop - 1.

    Step s trains the indices [s B, (s + 1) B), B = batch_size. It is split into `accumulate`
    micro-batches, each of which the `world` processes share in order of rank, so that the union
    over processes is the same for any world size and any accumulation.
    """

    batch_size: int
    accumulate: int
    rank: int
    world: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Examples of one process in one micro-batch."""
        return self.batch_size // (self.accumulate * self.world)

    def since(self, step: int) -> MicroBatches:
        """The same batches starting from another step."""
        return replace(self, start=step)

    def rows(self, micro: int) -> slice:
        """Rows of the global batch that belong to this process in micro-batch `micro`."""
        first = (micro * self.world + self.rank) * self.size
        return slice(first, first + self.size)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            first = step * self.batch_size
            for micro in range(self.accumulate):
                rows = self.rows(micro)
                yield list(range(first + rows.start, first + rows.stop))

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulate


def _start_worker(_: int) -> None:
    """Run one thread per worker and leave signals to the trainer.

    Ctrl-C, a closed terminal, and the signals of `timeout` or a scheduler reach the whole process
    group, but the trainer handles them and still needs the examples of its step. A worker that is
    terminated alone exits after `LINGER` seconds.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LINGER))


@dataclass(frozen=True)
class Lost:
    """An example that could not be made. key: of its clip; causes: one a line."""

    key: str
    causes: tuple[str, ...]


class Guarded(Dataset):
    """Examples, or `Lost` where one raises: a loader process would only pass its traceback on."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __getitem__(self, index: int) -> Any:
        try:
            return self.examples[index]
        except Exception as error:
            return Lost(self.examples.clip_of(index).key, tuple(causes(error)))


@dataclass(frozen=True)
class GuardedCollate:
    """Collates examples to a batch, or passes on the first `Lost`."""

    collate: Collate

    def __call__(self, items: Sequence[Any]) -> dict[str, Tensor] | Lost:
        lost = next((item for item in items if isinstance(item, Lost)), None)
        return lost if lost is not None else self.collate(items)


def loader(examples: Examples, batches: MicroBatches, *, pin: bool = False) -> DataLoader:
    """The micro-batches in order, from `data.workers` processes; `Lost` instead of one that fails.

    `read_batch` takes the next one.
    """
    workers = examples.recipe.data.workers
    return DataLoader(
        Guarded(examples),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=GuardedCollate(Collate(examples.recipe.condition.max_length)),
        pin_memory=pin,
        prefetch_factor=PREFETCH if workers else None,
        timeout=PATIENCE if workers else 0,
        worker_init_fn=_start_worker,
        # Seeds the workers, which never draw; without it the global generator would be advanced.
        generator=torch.Generator(),
    )


class _Ends:
    """Makes the end of a loader process an error where a batch is read, and nowhere else.

    torch's handler of SIGCHLD raises at once, which may be in the middle of a step.
    """

    def __init__(self) -> None:
        self.reading = False
        self.pending = False
        self.original: Callable[[int, FrameType | None], Any] | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler: that of torch while a batch is read, else a note for later."""
        if self.reading and self.original is not None:
            self.original(number, frame)
        else:
            self.pending = True

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Raises RuntimeError in the block if a loader process has ended, before or in it."""
        current = signal.getsignal(signal.SIGCHLD)
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and callable(current) and current != self.handle:
            self.original = current
            signal.signal(signal.SIGCHLD, self.handle)
        self.reading = True
        try:
            if self.pending:
                self.pending = False
                self.handle(signal.SIGCHLD, None)
            yield
        finally:
            self.reading = False


_ends = _Ends()


def read_batch(batches: Iterator[Any]) -> dict[str, Tensor]:
    """The next batch of a loader.

    Raises StageError for an example that cannot be made, and where the loader processes have ended
    or hang.
    """
    try:
        with _ends.raised():
            batch = next(batches)
    except (RuntimeError, OSError, EOFError) as error:  # examples fail as `Lost`
        hangs = "timed out" in str(error)
        raise StageError(
            f"no batch within {PATIENCE} s" if hangs else "a loader process has ended",
            problems=[Problem("data.workers", text) for text in causes(error)[:1]],
            hint="run the same command again to resume; with --set data.workers=0 "
            "the trainer itself loads the data",
            exit_code=EXIT_FAILED,
        ) from error
    if isinstance(batch, Lost):
        raise StageError(
            "a training example cannot be loaded",
            problems=[Problem(batch.key, text) for text in batch.causes],
            hint="repair or restore the data, and run the same command again to resume",
            exit_code=EXIT_FAILED,
        )
    return batch


def example_bytes(examples: Examples) -> int:
    """Bytes of the tensors of the first example."""
    batch = Collate(examples.recipe.condition.max_length)([examples[0]])
    return sum(value.nbytes for value in batch.values())


def shared_bytes(size: int, batches: MicroBatches, workers: int) -> int:
    """Shared memory in bytes that the batches of `workers` loader processes take at most.

    size: of an example in bytes.
    """
    return size * batches.size * (PREFETCH * workers + batches.accumulate)
