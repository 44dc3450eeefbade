"""The micro-batches of one process, in order, from worker processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch.utils.data import DataLoader

from stagecli.data.examples import Collate, Examples

# Seconds that a loader process outlives a SIGTERM, so that the trainer can finish its step.
LINGER = 20


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

    Ctrl-C, and SIGTERM from `timeout` or a scheduler, reach the whole process group, but the
    trainer handles them and still needs the examples of its step. A worker that is terminated alone
    exits after `LINGER` seconds.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LINGER))


def loader(examples: Examples, batches: MicroBatches, *, pin: bool = False) -> DataLoader:
    """The micro-batches in order, from `data.workers` processes."""
    workers = examples.recipe.data.workers
    return DataLoader(
        examples,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=Collate(examples.recipe.condition.max_length),
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_start_worker,
        # Seeds the workers, which never draw; without it the global generator would be advanced.
        generator=torch.Generator(),
    )
