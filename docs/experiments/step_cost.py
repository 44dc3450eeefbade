"""Cost that each mechanism adds to a training step, as Markdown.

    export STAGECLI_DATA=DIR OMP_NUM_THREADS=1
    python docs/experiments/step_cost.py fsdd-t2a esc10-sr

Variants of a recipe take single steps in turn in one process. Every variant is a whole `Trainer`:
its figure includes loader, cached features, projectors, optimiser and decisions, but not probes,
validation, checkpoints and the first read of the features from disk. One step of each variant
makes a round, in a rotating order, so that other load on the machine affects all of them alike.
Only one of them runs at a time, so CPU time is that of the process. Ratios are of sums over all
rounds; ± is twice their standard error, by the jackknife over blocks of rounds.
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

from stagecli.recipe.load import load_recipe
from stagecli.schema import Recipe
from stagecli.terminal.views import QuietView
from stagecli.train.interrupt import Interrupt
from stagecli.train.precision import resolve_precision
from stagecli.train.setup import build_trainer
from stagecli.train.trainer import Trainer

SHAPE = ("model.depth=12", "model.width=192", "model.heads=3")
EVERY = 300  # steps between probes, the default of the two recipes; none falls into a measurement
BLOCK = 12  # rounds of a jackknife block
ENDS = 4  # steps after which guidance ends, in the variants where it does

REGIME = ("stage.regime.source=linear", "stage.regime.clips=8", f"stage.regime.every={EVERY}")
GUIDANCE = ("stage.guidance.schedule=constant",)
TIMESTEPS = ("stage.timesteps.kind=progress",)
STRUCTURE = (
    "stage.structure.action=align",
    "stage.structure.when=always",
    "stage.structure.groups=thirds",
)


def variants(steps: int) -> dict[str, tuple[str, ...]]:
    """Name -> `--set` values; steps: the budget of the recipe."""
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
    """Lets a trainer, in a thread of its own, take one step at a time on request."""

    def __init__(self, make: Callable[[Turn], Trainer]) -> None:
        self.go = threading.Semaphore(0)
        self.done = threading.Semaphore(0)
        self.stop = False
        self.watching = False  # profile the allocations of the next step
        self.profile = None
        self.peak = 0  # bytes that the profiled step allocated at most
        self.failed: BaseException | None = None
        self.trainer = make(self)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self._wait()

    def _run(self) -> None:
        try:
            self.trainer.fit(Interrupt())  # not entered: only the main thread gets signals
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
        """Called by the trainer after each step: waits for the next request."""
        if self.profile is not None:
            self.profile.__exit__(None, None, None)
            self.peak = peak_allocation(self.profile, self.trainer.device.type)
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
        """Take one step; its CPU and wall seconds."""
        cpu = time.process_time()
        wall = time.perf_counter()
        self.go.release()
        self._wait()
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize()
        return time.process_time() - cpu, time.perf_counter() - wall

    def close_down(self) -> None:
        """End the trainer's thread."""
        self.stop = True
        self.go.release()
        self.thread.join()


def make_trainer(
    name: str, settings: tuple[str, ...], accelerator: Accelerator, folder: Path
) -> Callable:
    """A function that builds the trainer of one variant for a `Turn`."""

    def make(view: Turn) -> Trainer:
        folder.mkdir(exist_ok=True)
        return build_trainer(load_variant(name, settings), accelerator, folder, None, view)

    return make


def load_variant(name: str, settings: tuple[str, ...]) -> Recipe:
    steps = load_recipe(name).train.steps
    never = [f"train.{key}={steps}" for key in ("validate_every", "checkpoint_every")]
    return resolve_precision(load_recipe(name, [*never, "train.samples=0", *settings]))


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """Ratio of the sums minus 1, and twice its standard error."""
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
    *,
    rounds: int,
    warm: int,
    chosen: list[str],
) -> None:
    """Print the cost of the chosen variants relative to static; none chosen: of all."""
    with tempfile.TemporaryDirectory() as folder:
        turns = make_turns(name, shape, accelerator, Path(folder), chosen)
        recipe = turns["static"].trainer.recipe
        cpu, wall = take_rounds(name, turns, rounds, warm)
        for turn in turns.values():
            turn.close_down()
    width, depth, _ = recipe.model.resolved()
    model = f"width {width}, {depth} blocks, batch {recipe.train.batch_size}"
    load = f"load {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads"
    print(f"\n{name}: {model}, {accelerator.device}, {rounds} rounds, {load}\n")
    print("| variant | CPU ms, median | over static | wall ms, median | over static |")
    print("|---|---|---|---|---|")
    for variant in turns:
        cells = []
        for seconds in (cpu, wall):
            over, error = ratio(seconds[variant], seconds["static"])
            cells.append(f"{1e3 * statistics.median(seconds[variant]):.1f}")
            cells.append("-" if variant == "static" else f"{100 * over:+.1f} % ± {100 * error:.1f}")
        print(f"| {variant} | {' | '.join(cells)} |", flush=True)


def make_turns(
    name: str,
    shape: tuple[str, ...],
    accelerator: Accelerator,
    folder: Path,
    chosen: list[str],
) -> dict[str, Turn]:
    """Variant -> a trainer that is ready for its first step, with all features in memory."""
    turns = {}
    for k, (variant, settings) in enumerate(variants(load_recipe(name).train.steps).items()):
        if chosen and variant not in ("static", *chosen):
            continue
        print(f"{name}: making {variant}", file=sys.stderr, flush=True)
        trainer = make_trainer(name, (*shape, *settings), accelerator, folder / str(k))
        turns[variant] = Turn(trainer)
        # As after an epoch: the first read of a clip's features is not measured.
        prepared = turns[variant].trainer.prepared
        if prepared.features:
            for clip in prepared.train:
                prepared.features.memory.read(clip)
                prepared.features.samples_of(clip)
    return turns


def take_rounds(
    name: str, turns: dict[str, Turn], rounds: int, warm: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """CPU and wall seconds of each variant's steps, after `warm` rounds that do not count."""
    names = list(turns)
    cpu: dict[str, list[float]] = {variant: [] for variant in names}
    wall: dict[str, list[float]] = {variant: [] for variant in names}
    for k in range(warm + rounds):
        for j in range(len(names)):
            variant = names[(j + k) % len(names)]
            cpu_s, wall_s = turns[variant].take()
            if k >= warm:
                cpu[variant].append(cpu_s)
                wall[variant].append(wall_s)
        if (k + 1) % (5 * BLOCK) == 0:
            print(f"{name}: {k + 1} rounds", file=sys.stderr, flush=True)
    return cpu, wall


def memory(name: str, shape: tuple[str, ...], accelerator: Accelerator, folder: Path) -> None:
    """Print MiB of tensors between steps, and the peak that a step allocates on top of them."""
    print(f"\n{name}: memory on {accelerator.device}, MiB\n")
    print("| variant | tensors between steps | a step on top |\n|---|---|---|")
    stop = (
        "stage.guidance.schedule=stop",
        f"stage.guidance.end={1 / load_recipe(name).train.steps}",
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
        held = tensor_bytes(accelerator.device.type) / 2**20
        print(f"| {variant} | {held:.2f} | {turn.peak / 2**20:.2f} |", flush=True)
        turn.close_down()
        del turn
        accelerator.free_memory()


def tensor_bytes(device: str) -> int:
    """Bytes of all tensors on a device; storage that tensors share counts once."""
    gc.collect()
    storages = [
        x.untyped_storage()
        for x in gc.get_objects()
        if issubclass(type(x), torch.Tensor) and x.device.type == device
    ]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def peak_allocation(profile: torch.profiler.profile, device: str) -> int:
    """Peak of the bytes allocated on a device and not yet freed."""
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
        "--rounds", type=int, default=10 * BLOCK, help=f"in blocks of {BLOCK}; 0: memory only"
    )
    parser.add_argument("--warm", type=int, default=6, help="rounds before the measurement")
    parser.add_argument("--set", action="append", default=[], help="for every variant (repeatable)")
    every = [name for name in variants(1000) if name != "static"]
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        choices=every,
        help="measured beside static (repeatable); default: all",
    )
    options = parser.parse_args()
    shape = (*SHAPE, *options.set)
    for name in options.recipes:
        precision = load_variant(name, shape).train.precision
        accelerator = Accelerator(
            mixed_precision="no" if precision == "fp32" else precision,
            cpu=options.device == "cpu",
        )
        with tempfile.TemporaryDirectory() as temporary:
            memory(name, shape, accelerator, Path(temporary))
        if options.rounds:
            measure(
                name,
                shape,
                accelerator,
                rounds=options.rounds,
                warm=options.warm,
                chosen=options.variant,
            )


if __name__ == "__main__":
    main()
