"""What each mechanism adds to a training step, as Markdown: variants of a recipe, step by step in turn in one process.

    export STAGECLI_DATA=DIR OMP_NUM_THREADS=1; python docs/experiments/step_cost.py fsdd-t2a esc10-sr

Every variant is a whole `Trainer`: loader, cached features, projectors, optimiser and decisions are in its figure;
probes, validation, checkpoints and the first reading of the features from disk are not. One step of each variant makes
a round, in an order that turns, so that other load on the machine meets all of them alike. Only one of them runs at a
time: CPU time is the process's. Ratios are of sums over all rounds; ± is twice their standard error, by the jackknife
over blocks of rounds.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from accelerate import Accelerator

from stagecli.recipe import load as recipes
from stagecli.schema import Recipe
from stagecli.terminal.views import QuietView
from stagecli.train.precision import resolve_precision
from stagecli.train.setup import build_trainer
from stagecli.train.trainer import Trainer

SHAPE = ("model.depth=12", "model.width=192", "model.heads=3")
EVERY = 300  # steps between probes, as the default gives for the two recipes; none falls into a measurement
BLOCK = 12  # rounds
ENDS = 4  # steps after which guidance ends, where it does

REGIME = ("stage.regime.source=linear", "stage.regime.clips=8", f"stage.regime.every={EVERY}")
GUIDANCE = ("stage.guidance.schedule=constant",)
TIMESTEPS = ("stage.timesteps.kind=adaptive",)
STRUCTURE = ("stage.structure.when=always", "stage.structure.groups=thirds")


def variants(steps: int) -> dict[str, tuple[str, ...]]:
    """Name -> settings; steps: the recipe's budget."""
    ended = ("stage.guidance.schedule=stop", f"stage.guidance.end={ENDS / steps}")
    return {
        "static": (),
        "regime": REGIME,
        "guidance": GUIDANCE,
        "guidance, after its end": ended,
        "timesteps (and regime)": (*REGIME, *TIMESTEPS),
        "structure (and regime)": (*REGIME, *STRUCTURE),
        "all three (and regime)": (*REGIME, *GUIDANCE, *TIMESTEPS, *STRUCTURE),
        "all three, guidance ended": (*REGIME, *ended, *TIMESTEPS, *STRUCTURE),
    }


class Turn(QuietView):
    """Lets a trainer take one step when it is told to, in a thread of its own."""

    def __init__(self, make: Callable[[Turn], Trainer]) -> None:
        self.go = threading.Semaphore(0)
        self.done = threading.Semaphore(0)
        self.stop = False
        # the most that the step watched allocated
        self.watching = False
        self.profile = None
        self.most = 0
        self.failed: BaseException | None = None
        self.trainer = make(self)
        self.trainer.interrupt = self  # type: ignore[assignment]  # signals are the main thread's
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self._wait()

    requested = False

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, *_: object) -> None: ...

    def _run(self) -> None:
        try:
            self.trainer.fit()
        except SystemExit:
            pass
        except BaseException as problem:
            self.failed = problem
        self.done.release()

    def _wait(self) -> None:
        self.done.acquire()
        if self.failed is not None:
            raise self.failed

    def step(self, step: int) -> None:
        if self.profile is not None:
            self.profile.__exit__(None, None, None)
            self.most = most_allocated(self.profile, self.trainer.device.type)
            self.profile = None
        self.done.release()
        self.go.acquire()
        if self.stop:
            raise SystemExit
        if self.watching:
            self.watching = False
            self.profile = torch.profiler.profile(profile_memory=True, acc_events=True)
            self.profile.__enter__()

    def take(self) -> tuple[float, float]:
        """One step: its CPU and its wall seconds."""
        cpu = time.process_time()
        wall = time.perf_counter()
        self.go.release()
        self._wait()
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize()
        return time.process_time() - cpu, time.perf_counter() - wall

    def close_down(self) -> None:
        self.stop = True
        self.go.release()
        self.thread.join()


def make_trainer(
    name: str, settings: tuple[str, ...], accelerator: Accelerator, folder: Path
) -> Callable:
    def make(view: Turn) -> Trainer:
        folder.mkdir(exist_ok=True)
        return build_trainer(load(name, settings), accelerator, folder, None, view)

    return make


def load(name: str, settings: tuple[str, ...]) -> Recipe:
    steps = recipes.load(name).train.steps
    never = [f"train.{what}={steps}" for what in ("validate_every", "checkpoint_every")]
    return resolve_precision(recipes.load(name, [*never, "train.samples=0", *settings]))


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """Sum over sum, less 1, and twice its standard error."""
    sums = [
        (sum(ours[k : k + BLOCK]), sum(theirs[k : k + BLOCK])) for k in range(0, len(ours), BLOCK)
    ]
    top = sum(ours)
    base = sum(theirs)
    if len(sums) < 2:
        return top / base - 1, math.nan
    without = [(top - a) / (base - b) for a, b in sums]
    error = math.sqrt((len(sums) - 1) * statistics.pvariance(without))
    return top / base - 1, 2 * error


def measure(
    name: str,
    shape: tuple[str, ...],
    accelerator: Accelerator,
    rounds: int,
    warm: int,
    beside: list[str],
) -> None:
    """beside: the variants that are measured beside static; none given: all."""
    with tempfile.TemporaryDirectory() as folder:
        turns = {}
        for k, (variant, settings) in enumerate(variants(recipes.load(name).train.steps).items()):
            if beside and variant not in ("static", *beside):
                continue
            print(f"{name}: making {variant}", file=sys.stderr, flush=True)
            turns[variant] = Turn(
                make_trainer(name, (*shape, *settings), accelerator, Path(folder) / str(k))
            )
            if features := turns[
                variant
            ].trainer.prepared.features:  # an epoch later they are all in memory
                for clip in turns[variant].trainer.prepared.train:
                    features.memory.read(clip)
                    features.samples_of(clip)
        names = list(turns)
        cpu: dict[str, list[float]] = {variant: [] for variant in names}
        wall: dict[str, list[float]] = {variant: [] for variant in names}
        for k in range(warm + rounds):
            for j in range(len(names)):
                variant = names[(j + k) % len(names)]
                spent = turns[variant].take()
                if k >= warm:
                    cpu[variant].append(spent[0])
                    wall[variant].append(spent[1])
            if (k + 1) % (5 * BLOCK) == 0:
                print(f"{name}: {k + 1} rounds", file=sys.stderr, flush=True)
        table = turns["static"].trainer.recipe
        for turn in turns.values():
            turn.close_down()
    batch = table.train.batch_size
    model = table.model.resolved()
    print(
        f"\n{name}: width {model[0]}, {model[1]} blocks, batch {batch}, {accelerator.device}, {rounds} rounds, "
        f"load {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads\n"
    )
    print(
        "| variant | CPU ms, median | over static | wall ms, median | over static |\n|---|---|---|---|---|"
    )
    for variant in names:
        cells = []
        for found in (cpu, wall):
            over, error = ratio(found[variant], found["static"])
            cells.append(f"{1e3 * statistics.median(found[variant]):.1f}")
            cells.append("-" if variant == "static" else f"{100 * over:+.1f} % ± {100 * error:.1f}")
        print(f"| {variant} | {' | '.join(cells)} |", flush=True)


def memory(name: str, shape: tuple[str, ...], accelerator: Accelerator, folder: Path) -> None:
    """Bytes of tensors between steps, and the most a step allocates on top: static, guided, guidance having ended."""
    print(
        f"\n{name}: memory on {accelerator.device}, MiB\n\n| variant | tensors between steps | a step on top |"
    )
    print("|---|---|---|")
    stop = (
        "stage.guidance.schedule=stop",
        f"stage.guidance.end={1 / recipes.load(name).train.steps}",
    )
    for variant, settings in (
        ("static", ()),
        ("guidance", GUIDANCE),
        ("guidance, after its end", stop),
    ):
        turn = Turn(make_trainer(name, (*shape, *settings), accelerator, folder / variant))
        for step in range(5):
            turn.watching = step == 3
            turn.take()
        print(
            f"| {variant} | {tensors(accelerator.device.type) / 2**20:.2f} | {turn.most / 2**20:.2f} |",
            flush=True,
        )
        turn.close_down()
        del turn
        accelerator.free_memory()


def tensors(device: str) -> int:
    """Bytes of all tensors that there are on a device."""
    gc.collect()
    there = [
        x for x in gc.get_objects() if issubclass(type(x), torch.Tensor) and x.device.type == device
    ]
    found = [x.untyped_storage() for x in there]
    return sum({storage.data_ptr(): storage.nbytes() for storage in found}.values())


def most_allocated(profile: torch.profiler.profile, device: str) -> int:
    """The largest sum of what had been allocated on a device and not yet freed, in bytes."""
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    events = [e for e in events if e.device_type().name.lower() == device]
    return max(
        accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())), default=0
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", default=["fsdd-t2a", "esc10-sr"])
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument(
        "--rounds", type=int, default=10 * BLOCK, help=f"in blocks of {BLOCK}; 0: memory alone"
    )
    parser.add_argument("--warm", type=int, default=6, help="rounds before, that do not count")
    parser.add_argument(
        "--set", action="append", default=[], help="of every variant, after the shape"
    )
    every = [name for name in variants(1000) if name != "static"]
    parser.add_argument(
        "--variant", action="append", default=[], choices=every, help="beside static; default: all"
    )
    options = parser.parse_args()
    shape = (*SHAPE, *options.set)
    for name in options.recipes:
        precision = {"fp32": "no"}.get(
            load(name, shape).train.precision, load(name, shape).train.precision
        )
        accelerator = Accelerator(mixed_precision=precision, cpu=options.device == "cpu")
        with tempfile.TemporaryDirectory() as temporary:
            memory(name, shape, accelerator, Path(temporary))
        if options.rounds:
            measure(name, shape, accelerator, options.rounds, options.warm, options.variant)


if __name__ == "__main__":
    main()
