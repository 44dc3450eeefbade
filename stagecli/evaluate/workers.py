"""Scores of many pairs at once, by as many workers as the process may use cores.

The results do not depend on the number of workers: each computes with one thread.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from stagecli.errors import EXIT_FAILED, StageError
from stagecli.evaluate.pairs import PERCEPTUAL

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Workers:
    """Made by `open_workers`; executor: None for one worker, this thread."""

    count: int
    executor: Executor | None = None

    def map(
        self, work: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[Result | ValueError]:
        """`work` of each item in order, or the ValueError that it raised.

        Raises StageError if a process dies.
        """
        attempt = partial(_attempt, work)
        with _one_thread():
            try:
                yield from (self.executor.map if self.executor else map)(attempt, items)
            except BrokenExecutor as error:
                raise StageError(
                    "a process that scores pairs has died",
                    hint="if memory ran out: OMP_NUM_THREADS=2 for two at once; what has been "
                    "scored is kept",
                    exit_code=EXIT_FAILED,
                ) from error


@contextmanager
def open_workers(metrics: Sequence[str]) -> Iterator[Workers]:
    """Workers for these metrics: as many as torch may use threads, which OMP_NUM_THREADS limits.

    Threads; but processes for perceptual metrics, whose packages hold the interpreter and keep
    state that threads would share. What a process computes has to be picklable.
    """
    count = torch.get_num_threads()
    if count == 1:
        yield Workers(1)
        return
    executor: Executor
    if any(name in PERCEPTUAL for name in metrics):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # so that torch is imported once, not by each
        executor = ProcessPoolExecutor(count, mp_context=context, initializer=_start_process)
    else:
        executor = ThreadPoolExecutor(count)
    try:
        yield Workers(count, executor)
    finally:
        executor.shutdown(cancel_futures=True)


def _attempt(work: Callable[[Item], Result], item: Item) -> Result | ValueError:
    try:
        return work(item)
    except ValueError as error:
        return error


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for each computation of torch, in this thread and in those that start within."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _start_process() -> None:
    """End at once with Ctrl-C, and with a parent that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
