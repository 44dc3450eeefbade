"""Study directories as a study writes them, made from formulas instead of training."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.run_directories import make_run, probe_rows, write_rows

BINS = 40


@dataclass(kw_only=True)
class Arm:
    """halving: steps in which its score halves; noise: sd of a run's log score, and shared: of the
    part that all arms have in common in a seed; moves: how far the median of its density goes.
    """

    halving: float
    noise: float = 0.03
    shared: float = 0.1
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    moves: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


ARMS = {
    "standard": Arm(halving=150),
    "strongest": Arm(halving=84),
    "all": Arm(halving=80, moves=0.25),
}


def write_study(
    path: Path,
    arms: Mapping[str, Arm] | None = None,
    *,
    task: str = "t2a",
    steps: Sequence[int] = (150, 300, 450, 600),
    strengths: Sequence[float] = (1.0, 1.5, 2.0),
    against: Sequence[str] = ("strongest",),
    seed: int = 0,
) -> Path:
    """A finished study. kad = 40 * 2^(-step / halving), best at cfg_scale 1.5."""
    arms = ARMS if arms is None else arms
    path.mkdir(parents=True)
    metrics = {
        "kad": {"direction": "lower", "title": "KAD"},
        "label_accuracy": {"direction": "higher", "title": "digits heard right"},
    }
    document = {
        "name": "digits",
        "recipe": "studies/digits",
        "task": task,
        "steps": steps[-1],
        "baseline": next(iter(arms)),
        "against": [name for name in against if name in arms],
        "primary": "kad",
        "score_steps": list(steps),
        "strengths": list(strengths) if task == "t2a" else [None],
        "metrics": metrics,
        "arms": {
            name: {
                "summary": f"the arm {name}",
                "seeds": list(arm.seeds),
                "set": dict(arm.settings),
                "adaptive": arm.moves is not None,
            }
            for name, arm in arms.items()
        },
    }
    (path / "study.json").write_text(json.dumps(document))
    rows = []
    for name, arm in arms.items():
        for run_seed in arm.seeds:
            rows += score_rows(name, arm, run_seed, document, seed)
            _write_run(path / "runs" / f"{name}-{run_seed}", arm, run_seed, steps[-1])
    write_rows(path / "scores.jsonl", rows)
    return path


def score_rows(
    name: str, arm: Arm, run_seed: int, document: dict[str, Any], seed: int
) -> list[dict[str, Any]]:
    """Rows of scores.jsonl of one run."""
    common = random.Random(f"{seed}/{run_seed}").gauss(0, arm.shared)
    own = random.Random(f"{seed}/{name}/{run_seed}").gauss(0, arm.noise)
    rows = []
    for step in document["score_steps"]:
        for strength in document["strengths"]:
            penalty = 0.0 if strength is None else (strength - 1.5) ** 2
            kad = 40 * math.exp(common + own + penalty) * 2 ** (-step / arm.halving)
            rows.append(
                {
                    "arm": name,
                    "seed": run_seed,
                    "step": step,
                    "strength": strength,
                    "seconds": 0.3 * step * (1.1 if arm.moves else 1.0),
                    "kad": kad,
                    "label_accuracy": 1 / (1 + 0.3 * kad),
                }
            )
    return rows


def _write_run(path: Path, arm: Arm, run_seed: int, steps: int) -> None:
    """The run directory, with probes and densities if the arm is adaptive."""
    make_run(path, steps=steps)
    if arm.moves is None:
        return
    rows, _ = probe_rows(steps, 24, seed=run_seed)
    for k, row in enumerate(rows):
        middle = 0.45 + arm.moves * min(1.0, max(0.0, (k - 5) / 12))
        row |= density(middle)
    write_rows(path / "probes.jsonl", rows)


def density(middle: float, width: float = 0.15) -> dict[str, Any]:
    """Columns of a density of t that is normal around `middle`, cut to (0, 1)."""
    heights = [math.exp(-((((k + 0.5) / BINS - middle) / width) ** 2) / 2) for k in range(BINS)]
    shares = [height / sum(heights) for height in heights]
    quantiles = {}
    for name, level in (("q10", 0.1), ("q50", 0.5), ("q90", 0.9)):
        below = 0.0
        for k, share in enumerate(shares):
            if below + share >= level:
                quantiles[f"density_{name}"] = (k + (level - below) / share) / BINS
                break
            below += share
    return {"density_shares": shares, **quantiles, "density_state": "progress"}
