"""What the trainer's loop costs over a bare one, and what spinning threads cost beside other work.

    export STAGECLI_DATA=DIR
    OMP_NUM_THREADS=1 python docs/experiments/cpu_speed.py overhead
    python docs/experiments/cpu_speed.py spinning

`overhead`: the trainer and a plain PyTorch loop over the same model, batches, optimiser and average
take turns in one process, in CPU time. `spinning`: the trainer in processes of its own, one setting
after the other, alone and beside busy processes, in several rounds. Ratios within one run count;
the absolute numbers depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

NAME = "studies/digits"
QUIET = ("data.workers=0", "train.precision=fp32", "stage.regime.every=500")
SETTINGS: dict[str, dict[str, str]] = {
    "libgomp's default": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=30000": {"GOMP_SPINCOUNT": "30000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


# -- overhead --------------------------------------------------------------------------------------


def bare_loop(folder: Path) -> Callable[[int], None]:
    """A function that takes some steps of a plain loop."""
    import torch
    from timed_session import Session

    from stagecli.data.examples import stratified
    from stagecli.data.frames import to_frames
    from stagecli.data.loader import loader, read_batch
    from stagecli.flow.objective import flow_loss
    from stagecli.model.ema import EMA
    from stagecli.train.setup import build_network, build_optimizer

    # The same data and the same network, without the trainer.
    session = Session(NAME, QUIET, folder)
    trainer = session.trainer
    recipe, prepared = trainer.recipe, trainer.prepared
    examples = prepared.examples(prepared.train, features=False)
    batches = iter(loader(examples, trainer.feed.order))
    network = build_network(recipe, prepared, torch.device("cpu")).train()
    optimizer = build_optimizer(network, recipe.train, torch.device("cpu"))
    ema = EMA(network, recipe.train.ema)
    done = 0

    def take(count: int) -> None:
        nonlocal done
        for _ in range(count):
            batch = to_frames(read_batch(batches), prepared.codec)
            t_B = stratified(0, done, recipe.train.batch_size)
            result = flow_loss(network, batch["x0"], batch["noise"], t_B, batch)
            loss = result.loss_B.mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.train.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.update(network)
            float(loss.detach())
            done += 1

    return take


def overhead(rounds: int, steps: int) -> None:
    """Print the CPU time of the trainer over that of the bare loop, round by round."""
    from timed_session import Session

    static = (*QUIET, "train.log_every=500")
    with tempfile.TemporaryDirectory() as folder:
        bare = bare_loop(Path(folder) / "bare")
        session = Session(NAME, static, Path(folder) / "ours")
        bare(3)
        session.take(3)
        ratios = []
        for _ in range(rounds):
            began = time.process_time()
            bare(steps)
            theirs = time.process_time() - began
            ours = session.take(steps)[1] * steps
            ratios.append(ours / theirs)
            print(
                f"bare {1e3 * theirs / steps:.1f} ms, ours {1e3 * ours / steps:.1f} ms", flush=True
            )
    middle = statistics.median(ratios)
    print(f"trainer / bare loop: {middle:.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")


# -- spinning --------------------------------------------------------------------------------------

WORK = """
import sys, tempfile
sys.path.insert(0, {here!r})
from pathlib import Path
from timed_session import Session
with tempfile.TemporaryDirectory() as folder:
    session = Session({name!r}, {settings!r}, Path(folder))
    print(32 / session.take({steps})[0])
"""


def samples_per_second(environment: dict[str, str], steps: int, busy: int) -> float:
    """Of a training process with these variables, beside `busy` processes that only count."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    code = WORK.format(here=str(Path(__file__).parent), name=NAME, settings=QUIET, steps=steps)
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={**clean, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        for other in others:
            other.kill()
            other.wait()
    return float(result.stdout.split()[-1])


def spinning(rounds: int, steps: int, most: int) -> None:
    """Print samples per second of each setting, alone and beside busy processes."""
    print(f"load before: {os.getloadavg()[0]:.1f}")
    print(f"| setting | samples/s beside 0 to {most} busy processes |")
    speeds: dict[str, list[list[float]]] = {
        name: [[] for _ in range(most + 1)] for name in SETTINGS
    }
    for _ in range(rounds):
        for name, environment in SETTINGS.items():
            for busy in range(most + 1):
                speeds[name][busy].append(samples_per_second(environment, steps, busy))
    for name, columns in speeds.items():
        cells = " | ".join(f"{statistics.median(column):.1f}" for column in columns)
        print(f"| {name} | {cells} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("overhead", "spinning"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--busy", type=int, default=2, help="most busy processes (spinning)")
    options = parser.parse_args()
    if options.what == "overhead":
        overhead(options.rounds, options.steps)
    else:
        spinning(options.rounds, options.steps, options.busy)


if __name__ == "__main__":
    main()
