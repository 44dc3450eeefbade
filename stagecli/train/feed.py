"""The data of each step, or the decision of all processes to stop before it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from stagecli.data.examples import Collate
from stagecli.data.loader import MicroBatches, loader, read_batch
from stagecli.errors import StageError
from stagecli.schema import Recipe
from stagecli.stage.controller import Stages
from stagecli.train.interrupt import Interrupt
from stagecli.train.state import RunContext, TrainingState

Batch = dict[str, Tensor]


class Feed:
    """Gives every process its micro-batches of a step, or tells all of them to stop."""

    def __init__(self, context: RunContext, state: TrainingState) -> None:
        self.accelerator = context.accelerator
        self.prepared = context.prepared
        self.stages: Stages = state.stages
        self.state = state
        self.order = micro_batches(
            context.recipe,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )
        self.with_features = False  # whether batches carry features of the target
        self.batches: Iterator[Any] = iter(())
        self.waited = 0.0  # seconds without a batch

    def open(self) -> None:
        """Load from the current step on, with features of the target while a mechanism asks."""
        self.with_features = self.stages.features is not None
        if not self.with_features:
            self.prepared.features = None  # frees their memory
        examples = self.prepared.examples(self.prepared.train, features=self.with_features)
        pin = self.accelerator.device.type == "cuda"
        self.batches = iter(loader(examples, self.order.since(self.state.step), pin=pin))

    def follow_stages(self) -> None:
        """Load without features once no mechanism asks for them any more."""
        if self.with_features and self.stages.features is None:
            self.open()

    def take(self, interrupt: Interrupt) -> list[Batch] | None:
        """This process's micro-batches of the next step, or None to stop before it.

        All processes stop alike, whichever of them got a signal. Raises StageError on all of them
        where one cannot load its data: the state is then that of a whole step everywhere.
        """
        # Nothing is lost by a signal that comes while a single process waits for data.
        batches: list[Batch] = []
        failure: StageError | None = None
        interrupt.check_launcher()
        began = time.monotonic()
        if not interrupt.requested:
            try:
                with interrupt.at_once(self.accelerator.num_processes == 1):
                    for _ in range(self.order.accumulate):
                        batches.append(read_batch(self.batches))
            except KeyboardInterrupt:
                return None
            except StageError as error:
                failure = error
        self.waited += time.monotonic() - began

        # The same decision everywhere.
        stops, fails = self.anywhere(interrupt.requested, failure is not None)
        if fails:
            raise self.first(failure)
        return None if stops else batches

    def last_batch(self) -> Batch:
        """The last micro-batch of this process in the step to come, loaded once more."""
        order = self.order.since(self.state.step)
        indices = next(islice(iter(order), order.accumulate - 1, None))
        examples = self.prepared.examples(self.prepared.train, features=self.with_features)
        collate = Collate(examples.recipe.condition.max_length)
        return collate([examples[index] for index in indices])

    def anywhere(self, *flags: bool) -> list[bool]:
        """Whether each flag is set in any process."""
        if self.accelerator.num_processes == 1:
            return list(flags)
        own = torch.tensor([float(flag) for flag in flags], device=self.accelerator.device)
        return [value > 0 for value in self.accelerator.reduce(own, "sum").tolist()]

    def first(self, failure: StageError | None) -> StageError:
        """The failure of the first process that has one, on all of them."""
        failures = [failure]
        if self.accelerator.num_processes > 1:
            failures *= self.accelerator.num_processes
            torch.distributed.all_gather_object(failures, failure)
        return next(one for one in failures if one is not None)


def micro_batches(recipe: Recipe, *, rank: int, world: int) -> MicroBatches:
    """One process's share of the examples of every step of a run."""
    options = recipe.train
    return MicroBatches(
        batch_size=options.batch_size,
        accumulate=options.accumulate,
        rank=rank,
        world=world,
        start=0,
        stop=options.steps,
    )
