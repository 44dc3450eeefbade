"""Worker processes of a study: each does one run at a time, with one thread, and reports on it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from stagecli.errors import StageError, causes
from stagecli.study.plan import RunId, Study
from stagecli.study.records import LOG

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
PATIENCE = 600.0  # seconds that a worker may take to save its run when the study is stopped


@dataclass(frozen=True)
class Message:
    """What happened to a run. kind: an event of `Work`, or done, failed, stopped."""

    run: RunId
    kind: str
    values: tuple[Any, ...] = ()


@dataclass
class Worker:
    """A process, the pipe to it, and the run it is at; None: it is free."""

    process: BaseProcess
    pipe: Connection
    run: RunId | None = None


class Pool:
    """So many workers, which are started when they are needed and replaced when they die."""

    def __init__(self, study: Study, size: int, method: str = "spawn") -> None:
        """size: processes at a time; method: how they are started."""
        self.study = study
        self.size = size
        self.context: Any = multiprocessing.get_context(method)
        self.workers: list[Worker] = []

    @property
    def free(self) -> int:
        """How many runs can be started now."""
        return self.size - len(self.running)

    @property
    def running(self) -> list[RunId]:
        """Runs at work."""
        return [worker.run for worker in self.workers if worker.run is not None]

    def start(self, run: RunId) -> None:
        """Give a run to a free worker."""
        worker = next((worker for worker in self.workers if worker.run is None), None)
        if worker is None:
            worker = self._new_worker()
            self.workers.append(worker)
        worker.run = run
        worker.pipe.send(run)

    def messages(self, seconds: float) -> Iterator[Message]:
        """Reports that have come, waiting at most so long for the first one."""
        waited: list[Any] = [worker.pipe for worker in self.workers]
        waited += [worker.process.sentinel for worker in self.workers]
        ready = wait(waited, seconds)
        for worker in list(self.workers):
            if worker.pipe in ready or worker.process.sentinel in ready:
                yield from self._read(worker)

    def stop(self) -> None:
        """Ask all workers to save their runs and to end."""
        for worker in self.workers:
            if worker.process.is_alive() and worker.process.pid is not None:
                os.kill(worker.process.pid, signal.SIGTERM)

    def close(self) -> None:
        """End all workers: free ones at once, the others when they have stopped."""
        for worker in self.workers:
            with suppress(OSError):
                worker.pipe.send(None)
            worker.pipe.close()
        for worker in self.workers:
            worker.process.join(PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self.workers = []

    def kill(self) -> None:
        """End all workers now; their runs go on from their last checkpoints."""
        for worker in self.workers:
            worker.process.kill()

    def _read(self, worker: Worker) -> Iterator[Message]:
        """All that a worker has reported; it is removed when it is dead."""
        run = worker.run
        try:
            while run is not None and worker.pipe.poll():
                kind, *values = worker.pipe.recv()
                if kind in ("done", "failed", "stopped"):
                    worker.run = None
                yield Message(run, kind, tuple(values))
                run = worker.run
            dead = not worker.process.is_alive()
        except (EOFError, OSError):
            dead = True
        if dead:
            worker.process.join()
            self.workers.remove(worker)
            if worker.run is not None:
                yield Message(worker.run, "failed", (_death(worker.process.exitcode),))

    def _new_worker(self) -> Worker:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=serve, args=(self.study, theirs), daemon=False)
        with environment(ONE_THREAD):
            process.start()
        theirs.close()
        return Worker(process, ours)


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        return f"its process was ended by {name}; memory may have run out"
    return f"its process ended with exit code {exitcode}"


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables that processes started inside get."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# -- in the worker's process ---------------------------------------------------------------------


def serve(study: Study, pipe: Connection) -> None:
    """Do the runs that come through the pipe, until None comes or a signal ends one."""
    # A process that Ctrl-C reaches through the study only, and that ends with it.
    os.setpgid(0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _write_to(study.folder / LOG)

    import torch

    from stagecli.study.work import Work

    # Runs, until there are no more.
    torch.set_num_threads(1)
    work = Work(study, lambda kind, *values: pipe.send((kind, *values)))
    while True:
        try:
            run = pipe.recv()
        except (EOFError, OSError):
            return
        if run is None:
            return
        try:
            if not work.do(run):
                pipe.send(("stopped",))
                return
            pipe.send(("done",))
        except KeyboardInterrupt:
            pipe.send(("stopped",))
            return
        except Exception as error:
            sys.stderr.write(f"{run}:\n{traceback.format_exc()}\n")
            pipe.send(("failed", failure_text(error)))


def failure_text(error: Exception) -> str:
    """What went wrong with a run, in one line."""
    if isinstance(error, StageError):
        return causes(error)[0]
    return f"{causes(error)[0]} (see {LOG})"


def _end_with_parent() -> None:
    """End this process when the study is gone, however it went; its run goes on from its last
    checkpoint.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _write_to(log: Path) -> None:
    """Send what libraries print into a file: the terminal shows the table."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
