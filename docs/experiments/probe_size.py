"""How few clips a probe can do with: r and the density of t from parts of a large probe set.

    export STAGECLI_DATA=DIR OMP_NUM_THREADS=1
    python docs/experiments/probe_size.py studies/digits 25 --clips 64 --runs runs/size
    python docs/experiments/probe_size.py studies/env-sr 20 --clips 42 --runs runs/size

Trains RECIPE once, probing every EVERY steps all clips at all noise levels, and keeps the distances
of every clip. Then draws parts of the clips, `together` (each at every level) or `spread` (three
times as many, each at two of the six levels, for the same cost), and compares r and the median of
the progress density with those of all clips. A second call only prints.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stagecli.flow.schedule import learning_rate
from stagecli.recipe.load import load_recipe
from stagecli.schema import Train
from stagecli.stage.densities_measured import by_progress
from stagecli.stage.regime_variable import Regime, RegimeSettings
from stagecli.terminal.views import QuietView
from stagecli.train import probe
from stagecli.train.launch import train

SIZES = (2, 3, 4, 6, 8, 12, 16)  # clips per noise level
DRAWS = 40
TURNS = 3  # of clips through the levels, in the design `spread`
FLOOR = 0.15


def distances_of(recipe: str, every: int, clips: int, runs: Path) -> dict[str, Any]:
    """Distances [probe, t, clip] of a run of the recipe, and their scale."""
    path = runs / f"{Path(recipe).stem}-distances.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    kept: dict[str, Any] = {"d": []}
    measure = probe.ProbeSet.distances

    def measure_and_keep(self: probe.ProbeSet, *arguments: Any, **options: Any) -> torch.Tensor:
        d_TB = measure(self, *arguments, **options)
        kept["d"].append(d_TB.tolist())
        kept.update(t=list(self.settings.t), ceiling=self.ceiling, reference=self.reference)
        return d_TB

    probe.ProbeSet.distances = measure_and_keep  # type: ignore[method-assign]
    probe.LEVELS_PER_CLIP = 10**6  # every clip at every level
    options = [f"stage.regime.clips={clips}", f"stage.regime.every={every}"]
    train(load_recipe(recipe, options), runs / Path(recipe).stem, QuietView(), overrides=options)
    path.write_text(json.dumps(kept))
    return kept


class Replay:
    """r and the median t of the progress density after every probe, from parts of the clips."""

    def __init__(self, kept: dict[str, Any], options: Train, every: int) -> None:
        self.kept = kept
        self.d_PTB = np.array(kept["d"])
        self.every = every
        self.times = [0.0]
        for step in range(options.steps):
            self.times.append(self.times[-1] + learning_rate(step, options) / options.lr)
        self.settings = RegimeSettings(probes=options.steps // every, tau_end=self.times[-1])

    def of(self, rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """rows: the clips of each noise level."""
        regime = Regime(self.settings)
        scale = self.kept["reference"] - self.kept["ceiling"]
        r, medians = [], []
        for number, d_TB in enumerate(self.d_PTB, 1):
            means = [d_B[part].mean() for d_B, part in zip(d_TB, rows, strict=True)]
            Dn = [float(mean - self.kept["ceiling"]) / scale for mean in means]
            step = number * self.every
            regime.observe(step, self.times[step], dict(zip(self.kept["t"], Dn, strict=True)))
            r.append(regime.r)
            density = by_progress(tuple(regime.levels), FLOOR) if regime.levels else None
            half = torch.tensor([0.5], dtype=torch.float64)
            medians.append(math.nan if density is None else float(density.quantile(half)[0]))
        return np.array(r), np.array(medians)

    def compare(self, size: int, design: str, rng: random.Random) -> str:
        """A row of the table."""
        levels, clips = self.d_PTB.shape[1:]
        r_all, t_all = self.of([list(range(clips))] * levels)
        r_errors, t_errors, arrivals = [], [], []
        for _ in range(DRAWS):
            if design == "together":
                parts = [rng.sample(range(clips), size)] * levels
            else:
                drawn = rng.sample(range(clips), min(TURNS * size, clips))
                parts = [drawn[k % TURNS :: TURNS] for k in range(levels)]
            r, t = self.of(parts)
            r_errors.append(r - r_all)
            t_errors.append(t - t_all)
            arrivals.append((int(np.argmax(r >= 0.5)) + 1) / len(r))
        r_error = float(np.sqrt(np.mean(np.square(r_errors))))
        t_error = float(np.sqrt(np.nanmean(np.square(t_errors))))
        half = f"{100 * np.mean(arrivals):.0f} ± {100 * np.std(arrivals):.0f} %"
        return f"| {size} | {design} | {r_error:.3f} | {t_error:.3f} | {half} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("every", type=int, help="steps between probes")
    parser.add_argument("--clips", type=int, default=64, help="clips measured")
    parser.add_argument("--runs", type=Path, default=Path("runs/size"), help="where to train")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    kept = distances_of(options.recipe, options.every, options.clips, options.runs)
    replay = Replay(kept, load_recipe(options.recipe).train, options.every)
    print("| clips per level | design | error of r, rms | of the median t | r >= 0.5 at |")
    print("|---|---|---|---|---|")
    rng = random.Random(0)
    for size in SIZES:
        for design in ("together", "spread"):
            print(replay.compare(size, design, rng))


if __name__ == "__main__":
    main()
